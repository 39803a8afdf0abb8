"""Bigtable's data calls on plain protobuf messages: what the client library does per row in Python is done here per request.

One channel a process; calls that may be repeated are repeated with growing pauses and jitter until their time is up.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.cloud.bigtable_admin_v2.types import bigtable_table_admin as admin_types
from google.cloud.bigtable_admin_v2.types import table as table_types
from google.cloud.bigtable_v2.types import bigtable as types
from google.protobuf.empty_pb2 import Empty

from serving.stores.base import StoreError

EMULATOR = "BIGTABLE_EMULATOR_HOST"
MAX_MESSAGE = 256 * 1024 * 1024
ATTEMPT_SECONDS = 20.0
_SCOPES = ("https://www.googleapis.com/auth/bigtable.data", "https://www.googleapis.com/auth/bigtable.admin.table")
OPTIONS = [("grpc.max_send_message_length", MAX_MESSAGE), ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]
_PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED,
            grpc.StatusCode.RESOURCE_EXHAUSTED}
_PASSING_CODES = {code.value[0] for code in _PASSING}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


def _message(wrapper: Any) -> Any:
    """The protobuf class behind one of the client library's wrappers, which cost microseconds a field."""
    return type(wrapper.pb(wrapper()))


ReadRowsRequest = _message(types.ReadRowsRequest)
MutateRowsRequest = _message(types.MutateRowsRequest)
CheckAndMutateRowRequest = _message(types.CheckAndMutateRowRequest)
CreateTableRequest = _message(admin_types.CreateTableRequest)
GetTableRequest = _message(admin_types.GetTableRequest)
ModifyColumnFamiliesRequest = _message(admin_types.ModifyColumnFamiliesRequest)
Table = _message(table_types.Table)


class Calls:
    """The data calls on a channel, of grpc or of grpc.aio."""

    def __init__(self, channel: Any) -> None:
        data = "/google.bigtable.v2.Bigtable/"
        self.read = channel.unary_stream(f"{data}ReadRows", ReadRowsRequest.SerializeToString,
                                         _message(types.ReadRowsResponse).FromString)
        self.mutate = channel.unary_stream(f"{data}MutateRows", MutateRowsRequest.SerializeToString,
                                           _message(types.MutateRowsResponse).FromString)
        self.check = channel.unary_unary(f"{data}CheckAndMutateRow", CheckAndMutateRowRequest.SerializeToString,
                                         _message(types.CheckAndMutateRowResponse).FromString)


@dataclass(frozen=True)
class Row:
    """One row as read: (family, qualifier, timestamp, value) of each cell, in Bigtable's order."""

    key: bytes
    cells: list[tuple[str, bytes, int, bytes]]


class Backoff:
    """Pauses between attempts, growing, each drawn at random up to its length ("full jitter")."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE

    @property
    def left(self) -> float:
        """Seconds until the time is up."""
        return self._until - time.monotonic()

    def wait(self) -> bool:
        """Waits; False, at once, when the time is up."""
        pause = random.random() * self._pause
        if self.left <= pause:
            return False
        time.sleep(pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return True


def passing(error: grpc.RpcError) -> bool:
    """Whether the same call may succeed a little later."""
    return error.code() in _PASSING


class Rpc:
    """The calls that the store makes. Raises StoreError when a call fails for good or its time is up.

    Args:
      seconds: a call is given up after so long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        host = os.environ.get(EMULATOR)
        self._data = grpc.insecure_channel(host, options=OPTIONS) if host else _google("bigtable")
        self._admin = self._data if host else _google("bigtableadmin")
        self.calls = Calls(self._data)
        tables = "/google.bigtable.admin.v2.BigtableTableAdmin/"
        self._create = self._admin.unary_unary(f"{tables}CreateTable", CreateTableRequest.SerializeToString, Empty.FromString)
        self._get = self._admin.unary_unary(f"{tables}GetTable", GetTableRequest.SerializeToString, Empty.FromString)
        self._describe = self._admin.unary_unary(f"{tables}GetTable", GetTableRequest.SerializeToString, Table.FromString)
        self._modify = self._admin.unary_unary(f"{tables}ModifyColumnFamilies", ModifyColumnFamiliesRequest.SerializeToString,
                                               Table.FromString)

    def close(self) -> None:
        """Ends the connections."""
        self._data.close()
        self._admin.close()

    def read_rows(self, request: Any) -> Iterator[Row]:
        """Rows in key order. A read that breaks off goes on behind the last row that came, a scan too."""
        backoff, last = Backoff(self.seconds), b""
        while True:
            try:
                for row in rows_of(self.calls.read(request, timeout=min(ATTEMPT_SECONDS, max(0.001, backoff.left)))):
                    last = row.key
                    backoff = Backoff(self.seconds)
                    yield row
                return
            except grpc.RpcError as error:
                if not (passing(error) and backoff.wait()):
                    raise failed("read", error) from error
                if last and not _go_on_behind(request, last):
                    return

    def mutate_rows(self, request: Any) -> Pending:
        """Starts a bulk write; ``finish`` it."""
        return Pending(self, request)

    def check_and_mutate(self, request: Any) -> bool:
        """Whether the predicate matched. Not repeated here: what a lost answer means only the caller knows."""
        try:
            return bool(self.calls.check(request, timeout=min(ATTEMPT_SECONDS, self.seconds)).predicate_matched)
        except grpc.RpcError as error:
            if passing(error):
                raise
            raise failed("flip", error) from error

    def has_table(self, name: str) -> bool:
        """Whether a table is there."""
        return self._unless(grpc.StatusCode.NOT_FOUND, self._get, GetTableRequest(name=name, view=1))

    def families(self, table: str) -> dict[str, str]:
        """GC rules by family of a table, in the words of cbt."""
        found = self._asked(self._describe, GetTableRequest(name=table, view=2))
        return {name: _rule(family.gc_rule) for name, family in sorted(found.column_families.items())}

    def set_families(self, table: str, there: Mapping[str, bool]) -> None:
        """Gives families, those that are not there too, the rule that one cell is kept."""
        request = ModifyColumnFamiliesRequest(name=table)
        for family, known in there.items():
            change = request.modifications.add(id=family)
            (change.update if known else change.create).gc_rule.max_num_versions = 1
        self._asked(self._modify, request)

    def _asked(self, call: Callable[..., Any], request: Any) -> Any:
        backoff = Backoff(self.seconds)
        while True:
            try:
                return call(request, timeout=min(ATTEMPT_SECONDS, max(0.001, backoff.left)))
            except grpc.RpcError as error:
                if not (passing(error) and backoff.wait()):
                    raise failed("look at the tables", error) from error

    def create_table(self, request: Any) -> bool:
        """False when it was there already."""
        return self._unless(grpc.StatusCode.ALREADY_EXISTS, self._create, request)

    def _unless(self, code: grpc.StatusCode, call: Callable[..., Any], request: Any) -> bool:
        backoff = Backoff(self.seconds)
        while True:
            try:
                call(request, timeout=min(ATTEMPT_SECONDS, max(0.001, backoff.left)))
                return True
            except grpc.RpcError as error:
                if error.code() == code:
                    return False
                if not (passing(error) and backoff.wait()):
                    raise failed("look at the tables", error) from error


class Pending:
    """A bulk write under way."""

    def __init__(self, rpc: Rpc, request: Any) -> None:
        self._rpc, self._request = rpc, request
        self._backoff = Backoff(rpc.seconds)
        self._call = self._start()

    def _start(self) -> Any:
        return self._rpc.calls.mutate(self._request, timeout=min(ATTEMPT_SECONDS, max(0.001, self._backoff.left)))

    def finish(self) -> dict[bytes, str]:
        """Waits for every row; those that failed for a while are sent again, alone.

        Returns:
          Row keys that are refused for good, with the reason; all others are written.

        Raises:
          StoreError: the call is refused, or the time is up; the rows taken stay written.
        """
        refused: dict[bytes, str] = {}
        while True:
            taken = self._outcome()
            entries = self._request.entries
            refused.update((entries[index].row_key, reason) for index, reason in taken.refused.items())
            again = sorted(taken.left - taken.refused.keys())
            if not again:
                return refused
            if taken.invalid:  # one bad row may have cost the whole call: each half by itself finds it
                if len(again) == 1:
                    return refused | {entries[again[0]].row_key: taken.reason or "refused"}
                middle = len(again) // 2
                for half in (again[:middle], again[middle:]):
                    refused |= Pending(self._rpc, self._of([entries[index] for index in half])).finish()
                return refused
            if taken.reason is not None or not self._backoff.wait():
                raise StoreError(f"Bigtable did not take {len(again)} of {len(entries)} rows: "
                                 f"{taken.reason or 'it stayed unavailable'}")
            self._request = self._of([entries[index] for index in again])
            self._call = self._start()

    def _of(self, entries: Sequence[Any]) -> Any:
        return MutateRowsRequest(table_name=self._request.table_name, app_profile_id=self._request.app_profile_id,
                                 entries=entries)

    def _outcome(self) -> Taken:
        taken = Taken(len(self._request.entries))
        try:
            for answer in self._call:
                taken.add(answer)
        except grpc.RpcError as error:
            taken.broke(error)
        return taken


class Taken:
    """What became of the rows of a MutateRows request.

    Attributes:
      left: indices of the rows that are not written.
      refused: those that never will be, with the reason.
      reason: why the call as a whole was refused; None while trying again may help.
      invalid: it was refused for what it says.
    """

    def __init__(self, rows: int) -> None:
        self.left = set(range(rows))
        self.refused: dict[int, str] = {}
        self.reason: str | None = None
        self.invalid = False

    def add(self, answer: Any) -> None:
        """Takes one message of the answer."""
        for entry in answer.entries:
            if entry.status.code == 0:
                self.left.discard(entry.index)
            elif entry.status.code not in _PASSING_CODES:
                self.refused[entry.index] = entry.status.message or f"code {entry.status.code}"

    def broke(self, error: grpc.RpcError) -> None:
        """The call failed before it answered for every row."""
        if not passing(error):
            self.reason, self.invalid = _words(error), error.code() == grpc.StatusCode.INVALID_ARGUMENT


def rows_of(answers: Any) -> Iterator[Row]:
    """Chunks of a ReadRows stream put together; a row counts once it is committed."""
    key, family, qualifier = b"", "", b""
    cells: list[tuple[str, bytes, int, bytes]] = []
    parts: list[bytes] = []
    stamp = 0
    for answer in answers:
        for chunk in answer.chunks:
            if chunk.reset_row:
                cells, parts = [], []
                continue
            if chunk.row_key:
                key = chunk.row_key
            if chunk.HasField("family_name"):
                family = chunk.family_name.value
            if chunk.HasField("qualifier"):
                qualifier = chunk.qualifier.value
            if not parts:
                stamp = chunk.timestamp_micros
            parts.append(chunk.value)
            if chunk.value_size:  # the value goes on in the next chunk
                continue
            cells.append((family, qualifier, stamp, parts[0] if len(parts) == 1 else b"".join(parts)))
            parts = []
            if chunk.commit_row:
                yield Row(key, cells)
                cells = []


def _rule(rule: Any) -> str:
    """A GC rule as cbt writes it."""
    which = rule.WhichOneof("rule")
    if which == "max_num_versions":
        return f"maxversions() == {rule.max_num_versions}"
    if which == "max_age":
        return f"maxage() > {rule.max_age.seconds}s"
    return which or "never"


def _go_on_behind(request: Any, last: bytes) -> bool:
    """Leaves out of a read what came already; False when nothing is left of it."""
    kept: Sequence[bytes] = [key for key in request.rows.row_keys if key > last]
    scan = bool(request.rows.row_ranges)
    del request.rows.row_keys[:]
    request.rows.row_keys.extend(kept)
    for part in request.rows.row_ranges:
        part.start_key_open = last
    return scan or bool(kept)


def _google(service: str) -> grpc.Channel:
    from google.api_core import grpc_helpers

    return grpc_helpers.create_channel(f"{service}.googleapis.com:443", credentials=_credentials(), scopes=_SCOPES,
                                       options=OPTIONS)


def _credentials() -> Any:
    import google.auth

    try:
        return google.auth.default(scopes=_SCOPES)[0]
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise StoreError(f"no Google credentials for Bigtable ({error}); for the emulator set {EMULATOR}") from error


def async_channel(options: Sequence[tuple[str, int]]) -> Any:
    """A channel of grpc.aio for the data calls, in the running loop."""
    host, options = os.environ.get(EMULATOR), [*OPTIONS, *options]
    if host:
        return grpc.aio.insecure_channel(host, options=options)
    from google.api_core import grpc_helpers_async

    return grpc_helpers_async.create_channel("bigtable.googleapis.com:443", credentials=_credentials(), scopes=_SCOPES,
                                             options=options)


def failed(what: str, error: grpc.RpcError) -> StoreError:
    """What to raise for a call that failed for good."""
    return StoreError(f"Bigtable could not {what}: {_words(error)}")


def _words(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {(error.details() or '').splitlines()[0][:300] if error.details() else 'no details'}"
