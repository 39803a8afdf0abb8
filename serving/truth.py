"""The truth for training: what each answer showed and the exact feature values it used, into the log ``LOG-served``.

A record is Avro's single-object encoding of ServedFeatures (schemas/avro), written by hand, after the answer has left. A queue
of bounded length holds what is not written yet; what finds it full is counted as dropped. Nothing here ever waits for the log,
or fails a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from schemas.cells import SOURCES
from serving.eventlog import EventLog, LogError, Producer, open_log, partition_of
from serving.eventlog.local import LocalLog
from serving.logs import LOGGER
from serving.ranking.listed import ID_END, SOURCE
from serving.ranking.model import Ask, Ranked
from serving.recommender import Answer
from serving.signal_values import NUMBERS, numbers_of
from serving.truth_kernel import encode_numbers_and_items
from transforms.records.single_object import head

MAX_WAITING = 20_000
"""Records, of some 2 kB each."""
FLUSH_S, BATCH, MAX_ROUNDS = 0.1, 500, 8
_F32 = np.dtype("<f4")
_END, _ONE = b"\0", b"\2"
_log = logging.getLogger(LOGGER)


def zigzag(value: int) -> bytes:
    """An Avro int or long."""
    left = (value << 1) ^ (value >> 63)
    return bytes((left,)) if left < 0x80 else _rest.__wrapped__(left)


def _moment(micros: int) -> bytes:
    """``zigzag`` of a time: what lies above its last second is made once."""
    left = micros << 1
    if left >> 21 <= 0:
        return zigzag(micros)
    return bytes((left & 0x7F | 0x80, left >> 7 & 0x7F | 0x80, left >> 14 & 0x7F | 0x80)) + _rest(left >> 21)


@functools.lru_cache(64)
def _rest(left: int) -> bytes:
    """Of a varint."""
    found = bytearray()
    while left >= 0x80:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


def _string(text: str) -> bytes:
    raw = text.encode()
    return zigzag(len(raw)) + raw


_named = functools.lru_cache(4096)(_string)
"""For texts of which there are few: sources, features, versions."""


@functools.lru_cache(1024)
def _template(names: tuple[str, ...]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """A map of k names, each to an array of one float, still 0; the (k,) places of the floats."""
    found, places = bytearray(zigzag(len(names)) if names else b""), list[int]()
    for name in names:
        found += _named(name) + _ONE
        places.append(len(found))
        found += b"\0\0\0\0" + _END
    return np.frombuffer(bytes(found) + _END, np.uint8), np.array(places, np.int64)


@functools.lru_cache(1024)
def _strings(names: tuple[str, ...], more: bytes = b"") -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Avro strings, each with something behind it, one after the other; where each ends."""
    found = [_named(name) + more for name in names]
    return np.frombuffer(b"".join(found) or b"\0", np.uint8), np.cumsum([len(f) for f in found], dtype=np.int64)


_numbers = functools.cache(functools.partial(_strings, NUMBERS, _ONE))


_sources = functools.cache(functools.partial(_strings, SOURCES))


def _joined(ids: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """n ids one behind the other, and where each ends."""
    raw = [i.encode() for i in ids]
    return (np.frombuffer(bytearray(b"".join(raw) or b"\0"), np.uint8),
            np.array(list(itertools.accumulate(map(len, raw))), np.int32))


def _body(values: Mapping[str, float], ranked: Ranked, position: int) -> bytes:
    """The numbers of the user and the array of items, the first one at ``position``."""
    numbers, named = numbers_of(values), _numbers()
    if numbers is None:
        numbers, named = np.array(list(values.values()), np.float64), _strings(tuple(values), _ONE)
    names, packed = tuple(ranked.features), ranked.packed
    if packed is not None and ranked.table is not None:
        return encode_numbers_and_items(numbers, *named, packed.text, packed.numbers[ID_END], position, ranked.scores,
                                        packed.numbers[SOURCE], *_sources(), *_template(names), ranked.table).tobytes()
    sources = tuple(dict.fromkeys(ranked.sources))
    table = np.array([ranked.features[name] for name in names], _F32).reshape(len(names), len(ranked.item_ids))
    return encode_numbers_and_items(  # copies: another kind of array would be compiled for, for seconds
        numbers, *named, *_joined(ranked.item_ids), position, np.array(ranked.scores, _F32),
        np.array([sources.index(name) for name in ranked.sources], np.int32), *_strings(sources), *_template(names),
        table).tobytes()


def encode_served(ask: Ask, answer: Answer, served_at: int) -> bytes:
    """The record of an answer; ``served_at`` in microseconds."""
    candidates = answer.candidates
    index = b"\0" if answer.bundle is None else b"\2" + _named(answer.bundle.manifest.index_version)
    return b"".join((head("served_features"), _string(ask.request_id), _string(ask.user_id), _named(ask.context),
                     _moment(served_at), _named(candidates.tier), _named(candidates.recs.model_version), index,
                     _body(answer.signals.values, answer.ranked, len(ask.shown) + 1), _ONE))


@functools.cache
def _warm_up() -> None:
    """Compiles, a second on a new machine, before the first answer waits for it."""
    _body({}, Ranked(["i"], np.zeros(1, np.float32), ["popular"], ["popular"], [""], {}, False), 1)


class Truth:
    """Writes what was served. For one event loop.

    Args:
      uri: of the log, created where it is not there.
      outcomes: counts records sent, dropped and failed.
    """

    def __init__(self, uri: str, outcomes: Counter[str], max_waiting: int = MAX_WAITING) -> None:
        self._outcomes, self._max = outcomes, max_waiting
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._log: EventLog = open_log(uri)
        self._producer: Producer = self._log.producer()
        self._partitions = self._log.partitions()
        self._only = _claim(self._log) if isinstance(self._log, LocalLog) else None
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""
        _warm_up()

    @property
    def waiting(self) -> int:
        """Records that are not written yet."""
        return len(self._waiting)

    def start(self) -> None:
        """Begins to write, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep_writing())

    def tell(self, ask: Ask, answer: Answer) -> None:
        """Takes an answer; never raises."""
        if len(self._waiting) >= self._max:
            self._outcomes["dropped"] += 1
            return
        try:
            partition = partition_of(ask.user_id, self._partitions) if self._only is None else self._only
            self._waiting.append((partition, encode_served(ask, answer, time.time_ns() // 1000)))
        except (ValueError, TypeError, OverflowError) as error:  # a bug here must not cost an answer
            self._outcomes["failed"] += 1
            _log.error("what was served could not be told", exc_info=error)

    async def flush(self) -> None:
        """Writes what waits now, as far as the log takes it."""
        for _ in range(len(self._waiting) // BATCH + 1):
            if not await self._write():
                return

    async def close(self, seconds: float = 5.0) -> None:
        """Writes what waits, for a while, then releases the log."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.flush(), seconds)
        self._outcomes["dropped"] += len(self._waiting)
        self._producer.close()
        self._log.close()

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            for _ in range(MAX_ROUNDS):  # a full queue is written in parts, and requests come between
                if len(self._waiting) == 0 or not await self._write():
                    break

    async def _write(self) -> bool:
        """Writes up to BATCH records; False when the log did not take all of them: they wait on."""
        sends = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        if not sends:
            return True
        try:
            found = await self._producer.send_all(sends, time.time_ns() // 1000)
            failed = [send for send, outcome in zip(sends, found, strict=True) if isinstance(outcome, LogError)]
            trouble = next((str(o) for o in found if isinstance(o, LogError)), "")
        except LogError as error:
            failed, trouble = sends, str(error) or "the log is away"
        except asyncio.CancelledError:
            self._waiting.extendleft(reversed(sends))
            raise
        self._outcomes["sent"] += len(sends) - len(failed)
        if trouble != self._trouble:
            self._trouble = trouble
            _log.log(logging.WARNING if trouble else logging.INFO, "served log away" if trouble else "served log back",
                     extra={"fields": {"detail": trouble} if trouble else {}})
        room = max(0, self._max - len(self._waiting))
        self._waiting.extendleft(reversed(failed[:room]))
        self._outcomes["dropped"] += len(failed[room:])
        return not failed


def _claim(log: LocalLog) -> int:
    """A partition of a local log that no other worker writes; raises LogError when there is none."""
    error: LogError | None = None
    for partition in range(log.partitions()):
        try:
            log.writer(partition)
            return partition
        except LogError as taken:
            error = taken
    raise error or LogError(f"{log.uri} has no partitions")


