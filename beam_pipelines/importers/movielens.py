"""MovieLens ratings: ML-100K (u.data, u.item, u.user) and the later releases (ratings.csv, movies.csv)."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.importers.dataset import Dataset, capture, dead_letters, filled
from beam_pipelines.importers.delimited import MALFORMED, TRUNCATED, Format, as_ids, constant, parse, without_header
from beam_pipelines.importers.lines import Block, File, read_blocks
from beam_pipelines.io.ingest import Captured
from schemas.arrow import TIMESTAMP
from schemas.tables import EVENTS, ITEMS, USERS
from transforms.ingest import END_OF_TIME, MAX_ID_BYTES

_RATING_TYPES = (pa.int64(), pa.int64(), pa.float64(), pa.int64())
ML_100K = Format(dict(zip(("user", "item", "rating", "timestamp"), _RATING_TYPES, strict=True)), "\t", header=False)
LATEST = Format(dict(zip(("userId", "movieId", "rating", "timestamp"), _RATING_TYPES, strict=True)))
GENRES = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
          "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western")
"""Of ML-100K: the flags of u.item in order."""
NO_GENRES = "(no genres listed)"
MIN_STARS, MAX_STARS = 0.5, 5.0

Row = dict[str, Any]


class MovieLens(Dataset):
    """Ratings, with the genres of each movie stamped on its ratings."""

    name = "movielens"

    def __init__(self, root: Path, ratings: File, movies: File | None, users: File | None) -> None:
        super().__init__(root, [ratings])
        self._movies, self._users = movies, users
        self._is_100k = ratings.source.endswith("u.data")
        self._items: dict[str, Row] = {}
        self._profiles: dict[str, Row] = {}

    def captured(self) -> Iterator[tuple[File, Captured]]:
        nothing = pa.schema([f for f in EVENTS.schema if f.name != "event_hash"]).empty_table()
        readers: list[tuple[File | None, dict[str, Row], Callable[[str], Row]]] = [
            (self._movies, self._items, _item_100k if self._is_100k else _item_latest),
            (self._users, self._profiles, _user_100k)]
        for file, rows, reader in readers:
            if file is not None:
                for block in read_blocks(file):
                    dead = _described(block, rows, reader, "latin-1" if self._is_100k else "utf-8")
                    if dead is not None:
                        yield file, Captured(nothing, dead=dead)
        ids = pa.array(list(self._items), pa.string())
        genres = pa.array([row["categories"] for row in self._items.values()] + [[]], pa.list_(pa.string()))
        form = ML_100K if self._is_100k else LATEST
        for file in self.files:
            for block in read_blocks(file):
                yield file, self._ratings(without_header(block, form), form, ids, genres)

    def _ratings(self, block: Block, form: Format, ids: pa.Array, genres: pa.Array) -> Captured:
        user, item, rating, timestamp = form.columns
        parsed = parse(block, form)
        stars, seconds = parsed.columns[rating].to_numpy(), parsed.columns[timestamp].to_numpy()
        off = ~((stars >= MIN_STARS) & (stars <= MAX_STARS))
        parsed.refuse(off, "rating_out_of_range", f"a rating is {MIN_STARS} to {MAX_STARS} stars")
        seconds = seconds[~off]
        parsed.refuse((seconds < 0) | (seconds >= END_OF_TIME // 1_000_000), "time_out_of_range", "timestamp is no time in s")
        rows = parsed.columns
        users, items = as_ids(rows[user]), as_ids(rows[item])
        self.seen_users.update(users.dictionary.to_pylist())
        self.seen_items.update(items.dictionary.to_pylist())
        place = pc.index_in(items.dictionary, ids).fill_null(len(genres) - 1)
        return capture(block, parsed, rows[timestamp].to_numpy() * np.int64(1_000_000), {
            "user_id": users, "item_id": items, "event_type": constant("rating", len(rows)),
            "value": rows[rating].combine_chunks(), "categories": genres.take(place.take(items.indices))})

    def items(self) -> pa.Table:
        rows = list(self._items.values())
        return filled(ITEMS.schema, len(rows), {
            "item_id": pa.array(list(self._items), pa.string()), "title": _column(rows, "title", pa.string()),
            "categories": _column(rows, "categories", pa.list_(pa.string())),
            "published_at": _column(rows, "published_at", TIMESTAMP), "updated_at": _since_1970(rows),
            "attributes": _column(rows, "attributes", ITEMS.schema.field("attributes").type)}).cast(ITEMS.schema)

    def users(self) -> pa.Table:
        rows = list(self._profiles.values())
        return filled(USERS.schema, len(rows), {
            "user_id": pa.array(list(self._profiles), pa.string()), "updated_at": _since_1970(rows),
            "attributes": _column(rows, "attributes", USERS.schema.field("attributes").type)}).cast(USERS.schema)


def _column(rows: list[Row], name: str, kind: pa.DataType) -> pa.Array:
    return pa.array([row[name] for row in rows], kind)


def _since_1970(rows: list[Row]) -> pa.Array:
    return pa.array(np.zeros(len(rows), np.int64)).cast(TIMESTAMP)


def _described(block: Block, rows: dict[str, Row], reader: Callable[[str], Row], encoding: str) -> pa.Table | None:
    """Reads lines of a catalogue into ``rows``; of an id given twice the later line holds. Returns the dead letters."""
    bad = {}
    for at, line in enumerate(block.lines.to_pylist()):
        if block.broken and at == len(block) - 1:
            bad[at] = (TRUNCATED, block.broken)
        elif at or block.numbers[0] != 1 or not line.startswith((b"movieId,", b"\xef\xbb\xbfmovieId,")):
            try:
                row = reader(line.rstrip(b"\r").decode(encoding))
                rows[row.pop("id")] = row
            except ValueError as error:
                bad[at] = (MALFORMED, str(error))
    return dead_letters(block, bad)


def _id(text: str) -> str:
    if not text.isascii() or not text.isdecimal() or len(text) > MAX_ID_BYTES:
        raise ValueError(f"{text[:40]!r} is not an id")
    return str(int(text))


def _item_100k(line: str) -> Row:
    fields = line.split("|")
    if len(fields) != 5 + len(GENRES):
        raise ValueError(f"{len(fields)} fields instead of {5 + len(GENRES)}")
    genres = [g for g, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]
    published = None
    if fields[2]:
        published = datetime.strptime(fields[2], "%d-%b-%Y").replace(tzinfo=UTC)
    return _item(fields[0], fields[1], genres, published)


def _item_latest(line: str) -> Row:
    try:
        fields = next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if len(fields) != 3:
        raise ValueError(f"{len(fields)} fields instead of 3")
    return _item(fields[0], fields[1], [g for g in fields[2].split("|") if g and g != NO_GENRES], None)


def _item(item_id: str, title: str, genres: list[str], published: datetime | None) -> Row:
    year = re.search(r"\((\d{4})\)\s*$", title)
    if published is None and year and 1800 <= int(year[1]) < 2200:
        published = datetime(int(year[1]), 1, 1, tzinfo=UTC)
    return {"id": _id(item_id), "title": title or None, "categories": genres, "published_at": published,
            "attributes": [("year", year[1])] if year else []}


def _user_100k(line: str) -> Row:
    fields = line.split("|")
    if len(fields) != 5:
        raise ValueError(f"{len(fields)} fields instead of 5")
    named = zip(("age", "gender", "occupation"), fields[1:4], strict=True)  # no zip code: it says where a person lives
    return {"id": _id(fields[0]), "attributes": [(name, value) for name, value in named if value]}
