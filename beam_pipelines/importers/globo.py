"""Globo.com news clicks: hourly files ``clicks_hour_NNN.csv`` (or .csv.gz); each row is a click."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from beam_pipelines.importers.dataset import Dataset, capture
from beam_pipelines.importers.delimited import Format, as_ids, constant, parse, without_header
from beam_pipelines.importers.lines import Block, File, read_blocks
from beam_pipelines.io.ingest import Captured
from transforms.ingest import END_OF_TIME

FORMAT = Format(dict.fromkeys((
    "user_id", "session_id", "session_start", "session_size", "click_article_id", "click_timestamp", "click_environment",
    "click_deviceGroup", "click_os", "click_country", "click_region", "click_referrer_type"), pa.int64()))


class Globo(Dataset):
    """Clicks with the published codes of device, os, country and referrer, and the published session id."""

    name = "globo"

    def captured(self) -> Iterator[tuple[File, Captured]]:
        for file in self.files:
            for block in read_blocks(file):
                yield file, self._clicks(without_header(block, FORMAT))

    def _clicks(self, block: Block) -> Captured:
        parsed = parse(block, FORMAT)
        millis = parsed.columns["click_timestamp"].to_numpy()
        parsed.refuse((millis < 0) | (millis >= END_OF_TIME // 1000), "time_out_of_range", "click_timestamp is no time in ms")
        rows = parsed.columns
        users, items = as_ids(rows["user_id"]), as_ids(rows["click_article_id"])
        self.seen_users.update(users.dictionary.to_pylist())
        self.seen_items.update(items.dictionary.to_pylist())
        return capture(block, parsed, rows["click_timestamp"].to_numpy() * np.int64(1000), {
            "user_id": users, "item_id": items, "event_type": constant("click", len(rows)),
            "session_id": as_ids(rows["session_id"]), "device": as_ids(rows["click_deviceGroup"]),
            "os": as_ids(rows["click_os"]), "country": as_ids(rows["click_country"]),
            "referrer": as_ids(rows["click_referrer_type"])})
