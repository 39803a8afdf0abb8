"""What the stream must hold, by plain SQL over the clicks: one statement per table and feature group,
        nothing of ours in them.

Values of a group are asked at T = the newest event of each user or item, plus a shift; lists come as three columns: ids,
        times
and scores, in order.
"""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl

from beam_pipelines.parity.clicks import CATEGORIES
from schemas.keys import hash64_column

_PANE, _MINUTE, _DAY, _GAP = 300_000_000, 60_000_000, 86_400_000_000, 1_800_000_000

_BASE = f"""
CREATE TEMP TABLE e AS SELECT CAST(user_id AS VARCHAR) u, CAST(click_article_id AS VARCHAR) i, click_timestamp * 1000 ts, tie,
  'c' || (click_article_id % {CATEGORIES}) cat, (click_article_id % 97) * 1000000 + 250000 price FROM clicks;
CREATE TEMP TABLE tu AS SELECT u, max(ts) AS newest FROM e GROUP BY u;
CREATE TEMP TABLE ti AS SELECT i, max(ts) AS newest FROM e GROUP BY i;
CREATE TEMP TABLE s AS
  WITH marked AS (SELECT *, ts - lag(ts) OVER (PARTITION BY u ORDER BY ts, tie) >= {_GAP} AS new FROM e)
  SELECT *, sum(CASE WHEN new THEN 1 ELSE 0 END) OVER (PARTITION BY u ORDER BY ts,
        tie ROWS UNBOUNDED PRECEDING) AS sid FROM marked;
CREATE TEMP TABLE sessions AS SELECT u, sid, min(ts) AS first, max(ts) AS last, count(*) events, sum(price) price_sum,
  min(price) price_min, max(price) price_max FROM s GROUP BY u, sid;
CREATE TEMP TABLE open AS SELECT * FROM sessions JOIN (SELECT u, max(sid) sid FROM sessions GROUP BY u) USING (u, sid);
"""

TABLES: dict[str, str] = {
    "stream_panes": f"""SELECT u AS user_id, ts // {_PANE} * {_PANE} AS start, count(*) AS count_click,
        sum(price)::BIGINT AS price_sum,
        count(*) AS price_n, min(price) AS price_min, max(price) AS price_max FROM e GROUP BY ALL""",
    "stream_sessions": """SELECT u AS user_id, first AS start, last AS "end", events, events AS count_click,
        price_sum::BIGINT AS price_sum, events AS price_n, price_min, price_max FROM sessions""",
    "stream_minutes": f"""SELECT i AS item_id, ts // {_MINUTE} * {_MINUTE} AS start, 2 * count(*) AS weight FROM e
        GROUP BY ALL""",
}
"""The closed panes and sessions: the columns that clicks can fill. Times are microseconds."""

_NEWEST_ITEMS = """list(i ORDER BY seen.ts DESC, seen.tie DESC)[:50] AS ids,
        list(seen.ts ORDER BY seen.ts DESC, seen.tie DESC)[:50] AS times,
        list(2.0::FLOAT ORDER BY seen.ts DESC, seen.tie DESC)[:50] AS scores"""
_DECAYED = f"CAST(round(16777216 * pow(2, -(T // {_PANE} - pane) / 12.0)) AS BIGINT)"

FEATURES: dict[str, str] = {
    "user_panes": f"""SELECT u AS id, count(*) FILTER (ts // {_PANE} = T // {_PANE}) AS count_click_5m,
        count(*) FILTER (ts // {_PANE} BETWEEN T // {_PANE} - 11 AND T // {_PANE}) AS count_click_1h
        FROM e JOIN at_user USING (u) GROUP BY u""",
    "user_day": f"""SELECT u AS id, count(*) FILTER (ts // {_DAY} = T // {_DAY}) AS count_click_day
        FROM e JOIN at_user USING (u) GROUP BY u""",
    "user_session": f"""SELECT u AS id, (last - first) / 1e6 AS session_length_s, events::DOUBLE AS session_events,
        price_min / 1e6 AS session_price_min, price_max / 1e6 AS session_price_max,
        price_sum / events / 1e6 AS session_price_mean
        FROM open JOIN at_user USING (u) WHERE T < last + {_GAP}""",
    "session_items": f"""SELECT u AS id, {_NEWEST_ITEMS} FROM (SELECT u, i, max({{'ts': ts, 'tie': tie}}) AS seen
        FROM s JOIN open USING (u, sid) JOIN at_user USING (u) WHERE T < last + {_GAP} GROUP BY u, i) GROUP BY u""",
    "session_categories": f"""SELECT u AS id, list(cat ORDER BY n DESC, cat)[:64] AS ids,
        list((n / total)::FLOAT ORDER BY n DESC, cat)[:64] AS scores FROM (SELECT u, cat, count(*) AS n,
        any_value(events) AS total
        FROM s JOIN open USING (u, sid) JOIN at_user USING (u) WHERE T < last + {_GAP} GROUP BY u, cat) GROUP BY u""",
    "category_preference": f"""SELECT u AS id, list(cat ORDER BY n DESC, cat) AS ids, list((n / total)::FLOAT
        ORDER BY n DESC, cat) AS scores
        FROM (SELECT *, sum(n) OVER (PARTITION BY u) AS total FROM (SELECT u, cat, sum({_DECAYED} * 2)::BIGINT AS n
        FROM (SELECT *, ts // {_PANE} AS pane FROM e JOIN at_user USING (u)) WHERE pane > T // {_PANE} - 48 GROUP BY u,
        cat)) GROUP BY u""",
    "recent_items": f"""SELECT u AS id, {_NEWEST_ITEMS} FROM (SELECT u, i, max({{'ts': ts, 'tie': tie}}) AS seen
        FROM e JOIN at_user USING (u) WHERE ts > T - {_DAY} GROUP BY u, i) GROUP BY u""",
    "item_minutes": f"""SELECT i AS id, 2 * count(*) FILTER (ts // {_MINUTE} = T // {_MINUTE}) AS popularity_1m,
        2 * count(*) FILTER (ts // {_MINUTE} BETWEEN T // {_MINUTE} - 9 AND T // {_MINUTE}) AS popularity_10m,
        2 * count(*) FILTER (ts // {_MINUTE} BETWEEN T // {_MINUTE} - 59 AND T // {_MINUTE}) AS popularity_1h
        FROM e JOIN at_item USING (i) GROUP BY i""",
    "recent_cooccurring_items": f"""
        WITH shown AS (SELECT DISTINCT u, ts // {_PANE} AS pane, i FROM e),
        has AS (SELECT * FROM shown JOIN (SELECT u, pane FROM shown GROUP BY u, pane HAVING count(*) <= 32) USING (u, pane)),
        pairs AS (SELECT DISTINCT b.u, b.pane, least(a.i, b.i) AS a, greatest(a.i, b.i) AS b FROM has b JOIN has a
            ON a.u = b.u AND a.pane BETWEEN b.pane - 6 AND b.pane AND a.i <> b.i),
        sides AS (SELECT u, pane, a AS i, b AS other FROM pairs UNION ALL SELECT u, pane, b, a FROM pairs),
        counted AS (SELECT i, pane, other, count(*) AS n FROM sides GROUP BY ALL),
        capped AS (SELECT *, max(pane) OVER (PARTITION BY i) AS newest_pane FROM counted
            QUALIFY row_number() OVER (PARTITION BY i, pane ORDER BY n DESC, other) <= 32),
        best AS (SELECT i, other FROM capped WHERE pane > newest_pane - 48 GROUP BY i,
        other QUALIFY row_number() OVER (PARTITION BY i
            ORDER BY sum(CAST(round(16777216 * pow(2, -(newest_pane - pane) / 12.0)) AS BIGINT) * n) DESC, other) <= 200),
        valued AS (SELECT i, other, sum({_DECAYED} * n)::BIGINT AS n FROM (SELECT i, other, pane, newest_pane, n,
            greatest(T, newest_pane * {_PANE}) AS T FROM capped JOIN best USING (i, other) JOIN at_item USING (i))
            WHERE pane > T // {_PANE} - 48 AND pane > newest_pane - 48 GROUP BY i, other)
        SELECT i AS id, list(other ORDER BY n DESC, other) AS ids, list((n / 16777216)::FLOAT ORDER BY n DESC,
        other) AS scores
        FROM valued GROUP BY i""",
}
"""Feature values at T of the tables ``at_user`` (u, T) and ``at_item`` (i, T); entities without any value are left out.

The newest pair of an item may be in a later pane than its own newest event: its pairs are read no earlier than that.
"""


class Oracle:
    """Answers for one set of clicks (columns of ``parity.clicks.read_clicks``)."""

    def __init__(self, clicks: pl.DataFrame) -> None:
        tie = hash64_column(clicks["event_id"].to_arrow())
        self._db = duckdb.connect()
        self._db.register("clicks", clicks.with_columns(tie=pl.Series(tie, dtype=pl.UInt64)).to_arrow())
        self._db.execute(_BASE)

    def _rows(self, query: str) -> pl.DataFrame:
        return pl.DataFrame(pl.from_arrow(self._db.sql(query).to_arrow_table()))

    def table(self, name: str) -> pl.DataFrame:
        """The rows of a table of closed panes or sessions."""
        return self._rows(TABLES[name])

    def newest(self, entity: str) -> pl.DataFrame:
        """(id, newest): the newest event of each user or item, microseconds."""
        return self._rows("SELECT u AS id, newest FROM tu" if entity == "user" else "SELECT i AS id, newest FROM ti")

    def feature(self, name: str, shift: int) -> pl.DataFrame:
        """Values of a group or list feature at T = newest + shift (microseconds), by id."""
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE at_user AS SELECT u, newest + {int(shift)} AS T FROM tu")
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE at_item AS SELECT i, newest + {int(shift)} AS T FROM ti")
        return self._rows(FEATURES[name])

    def consumed(self) -> pl.DataFrame:
        """(user_id, item_id, newest): the newest click of each user on each item, microseconds: it hides the item."""
        return self._rows("SELECT u AS user_id, i AS item_id, max(ts) AS newest FROM e GROUP BY u, i")

    def sessions_published(self) -> tuple[int, int, np.ndarray]:
        """How many published sessions there are, how many of them are exactly one of ours, and the gaps inside the others.

        Returns:
          published, equal, and the greatest gap (seconds) between clicks of each published session that is not one of ours.
        """
        self._db.execute("""CREATE OR REPLACE TEMP TABLE p AS SELECT CAST(user_id AS VARCHAR) u, session_id,
        click_timestamp * 1000 ts,
            tie FROM clicks""")
        rows = self._db.execute("""
            WITH theirs AS (SELECT u, session_id, min(ts) first, max(ts) last, count(*) n, max(gap) gap FROM (SELECT *,
            ts - lag(ts)
              OVER (PARTITION BY session_id ORDER BY ts, tie) AS gap FROM p) GROUP BY u, session_id)
            SELECT t.gap / 1e6, o.u IS NOT NULL FROM theirs t LEFT JOIN sessions o
              ON o.u = t.u AND o.first = t.first AND o.last = t.last AND o.events = t.n""").fetchall()
        equal = sum(1 for _, same in rows if same)
        return len(rows), equal, np.array([gap or 0.0 for gap, same in rows if not same])
