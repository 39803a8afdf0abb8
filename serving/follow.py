"""Items and users as they are PUT, within a second: their logs are followed, their entries come into the store, new items into
every worker's overlay.

The workers of the API do it, because each needs the new items in its memory anyway, and they run whenever anything can ask for
them; the lake gets the same upserts once a minute and the nightly job writes the entries again, equal. On a machine one worker
at a time writes, the one that holds a lock (of servers that can only read their workspace one each); it keeps its place in the
store, so that whoever is next goes on there. A write is a whole entry under its updated_at: written twice, or late, it changes
nothing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from schemas.keys import ENTITY_KINDS, row_key
from serving.catalogue import GROUP, USER_GROUP, encode_item, encode_user
from serving.eventlog import EventLog, LogError, LogMissing, LogReader, OffsetGone, open_log, side_uri
from serving.logs import LOGGER
from serving.ranking.overlay import ItemUpsert, Overlay
from serving.stores import Store, StoreError, open_store
from serving.stores.base import Cell, FeatureWrite
from transforms.records import Records
from transforms.records.upserts import decode_upserts

Kind = Literal["item", "user"]
KINDS: tuple[Kind, ...] = ("item", "user")
OVERLAY_SECONDS = 2 * 86_400
"""A worker that starts reads the items PUT since then: older ones are in the bundle, which is made daily."""
MAX_OVERLAY = 50_000
"""Items that a worker keeps beside its bundle."""
_POLL_BYTES, _POLL_S = 4 << 20, 0.25
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_STORE_AFTER = 1_000
_log = logging.getLogger(LOGGER)


@dataclass
class Following:
    """How it goes, for /metrics and the health page.

    Attributes:
      written: entries that came into the store; seen: upserts read.
      waiting: upserts that wait for the store.
      writes: this process is the one that writes.
      trouble: why it waits, "" while all is well.
    """

    written: int = 0
    seen: int = 0
    waiting: int = 0
    writes: bool = False
    trouble: str = ""


class Follower:
    """One thread that follows both logs.

    Args:
      log: URI of the event log that they lie beside. They need not be there yet.
      store: URI of the store.
      locks: files whose lock makes one process of a machine the writer: the first that can be opened and locked. Where none
        can, this one only reads.
      on_items: called in the thread with the newest upserts of items.
    """

    def __init__(self, log: str, store: str, locks: Sequence[Path], on_items: Callable[[Sequence[ItemUpsert]], None]) -> None:
        self.state = Following()
        self._uri, self._lock_paths = store, locks
        self._lock: IO[bytes] | None = None
        self._logs = {kind: _Tail(side_uri(log, f"{kind}s"), kind) for kind in KINDS}
        self._on_items = on_items
        self._store: Store | None = None
        self._waiting: dict[Kind, tuple[list[FeatureWrite], dict[int, int]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beamrec-follow", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def close(self) -> None:
        """Ends; what was read and not written is read again by whoever is next."""
        self._stop.set()
        self._thread.join(10)
        for tail in self._logs.values():
            tail.close()
        if self._store is not None:
            self._store.close()
        if self._lock is not None:
            self._lock.close()

    def _run(self) -> None:
        pause = _PAUSE_S
        while not self._stop.is_set():
            try:
                self._step()
                pause, self.state.trouble = _PAUSE_S, ""
            except (LogError, StoreError, OSError) as error:
                if not self.state.trouble:
                    _log.warning("catalogue not followed", extra={"fields": {"detail": str(error)}})
                self.state.trouble = str(error) or type(error).__name__
                self._forget_store()
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            except Exception as error:  # nobody waits for this thread: it may not end
                _log.error("catalogue not followed", exc_info=error)
                self.state.trouble = type(error).__name__
                self._stop.wait(_LONGEST_PAUSE_S)

    def _step(self) -> None:
        """Writes what waits, then reads on."""
        if not self.state.writes and self._locked():
            places = {kind: self._place(tail.uri, kind) for kind, tail in self._logs.items()}
            self.state.writes = True
            for kind, tail in self._logs.items():
                tail.go_back(places[kind])
        for kind in list(self._waiting):
            self._write(kind)
        there = False
        for kind, tail in self._logs.items():
            rows = tail.poll()
            there = there or tail.is_open
            if not rows:
                continue
            self.state.seen += len(rows)
            if kind == "item":
                self._on_items([_upsert_of(row) for row in rows])
            if self.state.writes:
                held, _ = self._waiting.get(kind, ([], {}))
                self._waiting[kind] = held + [_entry(kind, row) for row in rows], tail.positions()
                self.state.waiting += len(rows)
                self._write(kind)
        if not there:
            self._stop.wait(_PAUSE_S)

    def _write(self, kind: Kind) -> None:
        writes, places = self._waiting[kind]
        store = self._opened()
        for start in range(0, len(writes), _STORE_AFTER):
            store.write_features(writes[start : start + _STORE_AFTER])
        now = time.time_ns() // 1_000_000 * 1000
        place = json.dumps({"source": self._logs[kind].uri, "offsets": {str(p): o for p, o in sorted(places.items())}})
        store.write_features([FeatureWrite(_place_row(kind), "meta", "place", Cell(place.encode(), now))])
        del self._waiting[kind]
        self.state.written += len(writes)
        self.state.waiting -= len(writes)

    def _place(self, uri: str, kind: Kind) -> dict[int, int]:
        """Where the last writer of a log was; {} for one that nobody has written from."""
        cell = self._opened().read_features([_place_row(kind)], "meta", ["place"])[0].get("place")
        try:
            found = json.loads(cell.value) if cell is not None else {}
            return {int(p): int(o) for p, o in found["offsets"].items()} if found.get("source") == uri else {}
        except (ValueError, KeyError, AttributeError):
            return {}

    def _opened(self) -> Store:
        if self._store is None:
            self._store = open_store(self._uri, create=False)
        return self._store

    def _forget_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _locked(self) -> bool:
        if self._lock is not None:
            return True
        for path in self._lock_paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = path.open("wb")
            except OSError:  # a folder that can only be read
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return False
            except OSError:  # a file system without locks
                lock.close()
                continue
            self._lock = lock
            return True
        return False


class _Tail:
    """One log, from where the newest items were PUT; it is opened when it is there."""

    def __init__(self, uri: str, kind: Kind) -> None:
        self.uri, self._kind = uri, kind
        self._log: EventLog | None = None
        self._reader: LogReader | None = None
        self._back: dict[int, int] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the log is there."""
        return self._reader is not None

    def go_back(self, places: Mapping[int, int]) -> None:
        """Reads on from there, and from the start where no place is known."""
        self._back = dict(places)
        if self._log is not None and self._reader is not None:
            self._seek(self._log, self._reader)

    def positions(self) -> dict[int, int]:
        """The offsets it goes on from."""
        return self._reader.positions() if self._reader is not None else {}

    def poll(self) -> list[dict[str, Any]]:
        """The newest upsert of each entity among what came; raises LogError."""
        if self._reader is None and not self._open():
            return []
        assert self._log is not None and self._reader is not None
        try:
            records = self._reader.poll(_POLL_BYTES, _POLL_S)
        except OffsetGone as gone:
            self._reader.seek({gone.partition: gone.earliest})
            return []
        except LogMissing:  # Kafka is only asked now
            self.close()
            return []
        except LogError:
            self.close()
            raise
        return _newest(records, self._kind, self.uri)

    def _open(self) -> bool:
        try:
            log = open_log(self.uri)
            since = (time.time_ns() // 1000) - OVERLAY_SECONDS * 1_000_000
            reader = log.reader({p: log.offset_at(p, since) for p in range(log.partitions())})
        except LogMissing:
            return False
        self._log, self._reader = log, reader
        self._seek(log, reader)
        return True

    def _seek(self, log: EventLog, reader: LogReader) -> None:
        if self._back is None:
            return
        now = reader.positions()
        ends = {p: log.latest(p) for p in now}
        starts = {p: max(self._back.get(p, 0), log.earliest(p)) for p in now}
        reader.seek({p: min(now[p], starts[p] if starts[p] <= ends[p] else log.earliest(p)) for p in now})
        self._back = None

    def close(self) -> None:
        """Releases the log."""
        if self._reader is not None:
            self._reader.close()
        if self._log is not None:
            self._log.close()
        self._reader = self._log = None


def _newest(records: Records, kind: Kind, source: str) -> list[dict[str, Any]]:
    """The newest upsert of each entity, of equal times the last; what cannot be read is the lake writer's to bury."""
    if not len(records):
        return []
    upserts, _ = decode_upserts(records, kind, source)
    found: dict[str, dict[str, Any]] = {}
    columns = upserts.schema.names
    moments = [name for name in ("updated_at", "signup_at", "published_at") if name in columns]
    for name in moments:
        at = columns.index(name)
        upserts = upserts.set_column(at, name, upserts.column(at).cast("int64"))
    for row in upserts.to_pylist():
        known = found.get(row[f"{kind}_id"])
        if known is None or row["updated_at"] >= known["updated_at"]:
            found[row[f"{kind}_id"]] = row
    return list(found.values())


def _entry(kind: Kind, row: Mapping[str, Any]) -> FeatureWrite:
    attributes = dict(row["attributes"] or ())
    if kind == "item":
        value = encode_item(row["title"], row["categories"], row["price"], row["image"], attributes)
    else:
        value = encode_user(row["signup_at"], row["country"], attributes)
    return FeatureWrite(row_key(ENTITY_KINDS[kind], row[f"{kind}_id"]), "meta", GROUP if kind == "item" else USER_GROUP,
                        Cell(value, max(0, row["updated_at"]) // 1000 * 1000))


def _upsert_of(row: Mapping[str, Any]) -> ItemUpsert:
    return ItemUpsert(row["item_id"], row["updated_at"], row["title"], tuple(row["categories"] or ()), row["price"],
                      row["image"], dict(row["attributes"] or ()), row["is_active"])


def _place_row(kind: Kind) -> str:
    return f"status#follow#{kind}"


def grown(overlay: Overlay, upserts: Iterable[ItemUpsert]) -> Overlay:
    """An overlay with more items: of MAX_OVERLAY the newest."""
    more = overlay.with_items(upserts)
    if len(more.items) <= MAX_OVERLAY:
        return more
    return Overlay.of(sorted(more.items.values(), key=_updated_at)[-MAX_OVERLAY:])


def _updated_at(upsert: ItemUpsert) -> int:
    return upsert.updated_at
