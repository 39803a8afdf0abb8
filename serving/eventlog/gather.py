"""Compiled loops over librdkafka's messages: pointers to rd_kafka_message_t become columns, without the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from transforms.records.memory import copy, int32_at, int64_at

I64 = npt.NDArray[np.int64]

# Offsets in rd_kafka_message_t (64-bit): int err, topic*, int32 partition, payload*, len, key*, key_len, int64 offset.
_ERR, _PAYLOAD, _LEN, _OFFSET = 0, 24, 32, 56


@intrinsic
def _timestamp(typing: Any, function: Any, message: Any) -> Any:
    """Calls rd_kafka_message_timestamp(message, NULL) at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(64)
        kind = ir.FunctionType(number, [pointer, pointer])
        kept = cgutils.alloca_once(builder, ir.IntType(64))  # the type of the timestamp, which nobody asks for
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()),
                            [builder.inttoptr(args[1], pointer), builder.bitcast(kept, pointer)])

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _destroy(typing: Any, function: Any, message: Any) -> Any:
    """Calls rd_kafka_message_destroy(message) at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [builder.inttoptr(args[1], pointer)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@njit(cache=True, nogil=True)
def total_bytes(messages: I64) -> int:
    """Bytes of the payloads of all messages that are no errors."""
    total = 0
    for i in range(len(messages)):
        if int32_at(messages[i], _ERR) == 0:
            total += int64_at(messages[i], _LEN)
    return total


@njit(cache=True, nogil=True)
def gather(messages: I64, data: npt.NDArray[np.uint8], ends: I64, offsets: I64, timestamps: I64,
           errors: npt.NDArray[np.int32], timestamp_of: int, destroy: int) -> None:
    """Copies n messages into columns and destroys them.

    Args:
      messages: (n,) addresses.
      data: total_bytes(messages) bytes, filled with the payloads; an error message adds none.
      ends, offsets, timestamps, errors: (n,), filled; timestamps in milliseconds.
      timestamp_of, destroy: addresses of rd_kafka_message_timestamp and rd_kafka_message_destroy.
    """
    end = 0
    base = np.int64(data.ctypes.data)
    for i in range(len(messages)):
        message = messages[i]
        errors[i] = int32_at(message, _ERR)
        offsets[i] = int64_at(message, _OFFSET)
        timestamps[i] = _timestamp(timestamp_of, message)
        if errors[i] == 0:
            size = int64_at(message, _LEN)
            if size > 0:
                copy(base + end, int64_at(message, _PAYLOAD), size)
            end += size
        ends[i] = end
        _destroy(destroy, message)
