"""The windows of the stream benchmark by plain SQL (DuckDB), and how many rows of an engine's result differ from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.errors import UserError
from beam_pipelines.io.stream_audit import read_parts
from schemas.stream_cells import PANE, SECOND, SESSION_GAP, extract_rings
from serving.stores.base import Store

WINDOWS = ("tumbling", "sliding", "sessions")
SLIDES = 12
"""Panes of a sliding window."""
_PANE, _GAP = PANE // SECOND, SESSION_GAP // SECOND

_QUERIES = {
    "tumbling": "SELECT user_id, pane * {pane} AS start, count(*) AS events FROM log GROUP BY ALL",
    "sliding": "SELECT user_id, (pane - slide) * {pane} AS start, count(*) AS events FROM log, range({slides}) AS s(slide) "
               "GROUP BY ALL",
    "sessions": """
      WITH begun AS (SELECT user_id, time, coalesce(time - lag(time) OVER w >= {gap} * 1000000, true) AS first
                     FROM log WINDOW w AS (PARTITION BY user_id ORDER BY time)),
           numbered AS (SELECT user_id, time, sum(first::INTEGER) OVER w AS session
                        FROM begun WINDOW w AS (PARTITION BY user_id ORDER BY time ROWS UNBOUNDED PRECEDING))
      SELECT user_id, floor(min(time) / 1000000)::BIGINT AS start, floor(max(time) / 1000000)::BIGINT + {gap} AS "end",
             count(*) AS events
      FROM numbered GROUP BY user_id, session""",
}
_COLUMNS = {"tumbling": "user_id, start, events", "sliding": "user_id, start, events",
            "sessions": 'user_id, start, "end", events'}


class Truth:
    """What is right for some events: counts per user of 5-minute panes, of an hour every 5 minutes, of sessions.

    Rows have user_id, start (of sessions end too; it lies the gap after the last event) and events; times are whole seconds.
    """

    def __init__(self, users: pa.Array | pa.ChunkedArray, times: npt.NDArray[np.int64]) -> None:
        """Users and times (microseconds) of the events, one each; raises UserError without DuckDB."""
        try:
            import duckdb
        except ImportError as error:
            raise UserError("results are compared with DuckDB's: pip install duckdb") from error
        self._sql: Any = duckdb.connect()
        self._sql.register("given", pa.table({"user_id": users.cast(pa.string()), "time": times, "pane": times // PANE}))
        self._sql.execute("CREATE TABLE log AS SELECT * FROM given")
        for name, query in _QUERIES.items():
            self._sql.execute(f"CREATE TABLE {name} AS {query.format(pane=_PANE, slides=SLIDES, gap=_GAP)}")
        self.events = len(times)
        self.last_pane = int(times.max()) // PANE * _PANE
        """Start of the newest pane, seconds."""

    def rows(self, window: str) -> int:
        """How many results there are."""
        return int(self._sql.execute(f"SELECT count(*) FROM {window}").fetchall()[0][0])

    def differing(self, window: str, found: pa.Table, since: int | None = None) -> int:
        """Rows that are in one result and not in the other, repeats included.

        Args:
          since: windows that begin before (seconds) are left out.
        """
        self._sql.register("found", found)
        limit = "" if since is None else f" WHERE start >= {since}"
        right, given = (f"SELECT {_COLUMNS[window]} FROM {table}{limit}" for table in (window, "found"))
        counts = [self._sql.execute(f"SELECT count(*) FROM (({a}) EXCEPT ALL ({b}))").fetchall()[0][0]
                  for a, b in ((right, given), (given, right))]
        self._sql.unregister("found")
        return int(sum(counts))

    def differing_files(self, folder: Path, windows: Sequence[str], ends: bool = False) -> int:
        """The same for an engine's CSV files, those of a kind of window in a folder of its name.

        Args:
          ends: whether panes and sliding windows have their end after their start.
        """
        total = 0
        for window in windows:
            names = ["user_id", "start", *(["end"] if ends or window == "sessions" else []), "events"]
            files = [str(path) for path in sorted((folder / window).glob("[!._]*")) if path.stat().st_size]
            if not files:
                total += self.rows(window)
                continue
            types = {name: "VARCHAR" if name == "user_id" else "BIGINT" for name in names}
            found = self._sql.sql(f"SELECT * FROM read_csv({files}, header = false, columns = {types})")
            total += self.differing(window, found.to_arrow_table())
        return total

    def differing_ours(self, audit: Path, store: Store) -> int:
        """The same for our job: panes and sessions by its audit, sliding windows as a reader extracts them from the cells.

        Sliding windows are those of the newest pane and of the eleven after it: what the cells can still tell of all users.
        """
        panes, sessions = (read_parts(audit, name) for name in ("stream_panes", "stream_sessions"))
        return (self.differing("tumbling", _rows(panes, sum(panes[c].to_numpy() for c in _counts(panes))))
                + self.differing("sessions", _rows(sessions, sessions["events"].to_numpy(), end=True))
                + self.differing("sliding", self._slid(store), since=self.last_pane - (SLIDES - 1) * _PANE))

    def _slid(self, store: Store) -> pa.Table:
        rows, cells = [], []
        for row, cell in store.scan_features("stream", "user_panes"):
            rows.append(row.split("#", 2)[2])
            cells.append(cell.value)
        users, parts = np.array(rows, object), []
        for slide in range(SLIDES):
            end = self.last_pane + (slide + 1) * _PANE
            events = extract_rings("user_panes", cells, end * SECOND - 1)[:, 1::2].sum(1)
            some = np.flatnonzero(events)
            parts.append(pa.table({"user_id": pa.array(users[some], pa.string()), "events": events[some],
                                   "start": np.full(len(some), end - SLIDES * _PANE)}))
        return pa.concat_tables(parts)


def _counts(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name.startswith("count_")]


def _rows(table: pa.Table, events: Any, end: bool = False) -> pa.Table:
    def seconds(name: str) -> npt.NDArray[np.int64]:
        return np.asarray(table[name].cast(pa.int64())) // SECOND

    return pa.table({"user_id": table["user_id"], "start": seconds("start"), **({"end": seconds("end") + _GAP} if end else {}),
                     "events": np.asarray(events, np.int64)})
