"""Reads, copies and prefetches at addresses, for compiled loops that check every bound themselves: no wrap-around, no reference
counts; and the bits of a float, without an array to view."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# A width of 8, 32 or 64 bits each; the address is base + at, and need not be aligned.


def _load(builder: Any, args: Any, bits: int) -> Any:
    address = builder.add(args[0], args[1])
    return builder.load(builder.inttoptr(address, ir.IntType(bits).as_pointer()), align=1)


@intrinsic
def byte_at(typing: Any, base: Any, at: Any) -> Any:
    """The byte at an address, as int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(_load(builder, args, 8), ir.IntType(64))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def int32_at(typing: Any, base: Any, at: Any) -> Any:
    """The int32 at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(builder, args, 32)

    return types.int32(types.int64, types.int64), generate


@intrinsic
def int64_at(typing: Any, base: Any, at: Any) -> Any:
    """The int64 at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(builder, args, 64)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def float_of(typing: Any, bits: Any) -> Any:
    """The float32 whose bits are the low half of an int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), generate


@intrinsic
def bits_of(typing: Any, value: Any) -> Any:
    """The bits of a float32, as int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], ir.IntType(32)), ir.IntType(64))

    return types.int64(types.float32), generate


@intrinsic
def prefetch(typing: Any, base: Any, at: Any) -> Any:
    """Asks for the cache line of an address, which need not exist, and does not wait for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        address = builder.inttoptr(builder.add(args[0], args[1]), byte)
        builder.call(function, [address, word(0), word(2), word(1)])  # to read, into the second level, data
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def copy(typing: Any, target: Any, source: Any, size: Any) -> Any:
    """memcpy(target, source, size)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
