"""What was served, told to a log: exactly what was shown, read back by the library; never in anybody's way."""

import asyncio
import io
from collections import Counter

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakewriter import write_lake
from schemas import avro
from schemas.cells import RankedList
from serving.eventlog import LogUnavailable, open_log
from serving.ranking.model import Ask, Candidates, Ranked, Signals
from serving.recommender import Answer
from serving.truth import Truth, _moment, encode_served, zigzag
from transforms.records.single_object import HEAD_BYTES, head


def answer(ids=("i1", "i2"), values=None, features=None, **more):
    n = len(ids)
    scores = np.linspace(1, 0.5, n, dtype=np.float32)
    features = {"session": scores * 2, "list_score": scores} if features is None else features
    ranked = Ranked(list(ids), scores, ["two_tower"] * n, ["popular"] * n, [""] * n, features, True)
    recs = RankedList(ids, scores, ranked.sources, ranked.reasons, ranked.because, "m1", 0, 1)
    signals = Signals(values={"count_view_1h": 3.0, "session_events": 2.5} if values is None else values)
    return Answer(ranked, Candidates(recs, "v1", "list", True), signals, None, {})


def read(record):
    assert record.startswith(head("served_features"))
    stream = io.BytesIO(record[HEAD_BYTES:])
    found = fastavro.schemaless_reader(stream, avro.load("served_features"))
    assert not stream.read()
    return found


def test_a_record_is_what_was_shown():
    ask = Ask("ann", "email", shown=np.zeros(20, np.uint32), request_id="r1")
    found = read(encode_served(ask, answer(), 1_700_000_000_000_000))
    assert (found["request_id"], found["user_id"], found["surface"], found["served_from"]) == ("r1", "ann", "email", "list")
    assert found["model_version"] == "m1" and found["index_version"] is None and found["schema_version"] == 1
    assert found["user_features"] == {"count_view_1h": [3.0], "session_events": [2.5]}
    assert [(i["item_id"], i["position"], i["score"], i["rec_source"]) for i in found["items"]] == [
        ("i1", 21, 1.0, "two_tower"), ("i2", 22, 0.5, "two_tower")]
    assert found["items"][1]["features"] == {"session": [1.0], "list_score": [0.5]}


@given(st.lists(st.text(max_size=70), max_size=30), st.dictionaries(st.text(max_size=20), st.floats(width=32, allow_nan=False)),
       st.dictionaries(st.text(max_size=9), st.floats(width=32, allow_nan=False), max_size=5), st.integers(0, 2**52))
def test_any_answer_reads_back_by_the_library(ids, values, features, at):
    columns = {name: np.full(len(ids), value, np.float32) for name, value in features.items()}
    found = read(encode_served(Ask("ü", request_id="r"), answer(ids, values, columns), at))
    assert [i["item_id"] for i in found["items"]] == ids
    assert found["user_features"] == {name: [value] for name, value in values.items()}
    assert all(i["features"] == {name: [value] for name, value in features.items()} for i in found["items"])


@given(st.integers(0, 2**62) | st.integers(0, 2**22))
def test_a_moment_is_a_long(value):
    assert _moment(value) == zigzag(value)


@given(st.integers(-(2**63), 2**63 - 1))
def test_zigzag_is_avros(value):
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, "long", value)
    assert zigzag(value) == stream.getvalue()


def told(uri, count, outcomes, **more):
    async def main():
        truth = Truth(uri, outcomes, **more)
        truth.start()
        for n in range(count):
            truth.tell(Ask(f"user{n}", request_id=f"r{n}"), answer())
        await truth.close()

    asyncio.run(main())


def test_it_reaches_the_lake_once_whatever_is_read_again(tmp_path):
    outcomes = Counter()
    open_log(f"dir:{tmp_path / 'log'}?partitions=2").close()
    told(f"dir:{tmp_path / 'log-served'}?partitions=2", 1200, outcomes)
    assert outcomes == {"sent": 1200, "dropped": 0}
    lake = Lake.open(tmp_path / "lake")
    assert write_lake(lake, f"dir:{tmp_path / 'log'}", until_end=True).served == 1200
    told(f"dir:{tmp_path / 'log-served'}", 10, outcomes)
    assert write_lake(lake, f"dir:{tmp_path / 'log'}", until_end=True).served == 10
    rows = lake.read("served")
    assert len(rows) == 1210 and len(set(rows["request_id"].to_pylist())) == 1200
    row = rows.slice(0, 1).to_pylist()[0]
    assert row["items"][0]["item_id"] == "i1" and dict(row["items"][0]["features"])["session"] == [2.0]


def test_each_worker_has_a_partition_of_a_local_log(tmp_path):
    uri = f"dir:{tmp_path / 'log-served'}?partitions=2"

    async def main():
        workers = [Truth(uri, Counter()) for _ in range(2)]
        for n, worker in enumerate(workers):
            worker.tell(Ask(f"u{n}"), answer())
        for worker in workers:
            await worker.close()

    asyncio.run(main())
    log = open_log(uri)
    assert [log.latest(p) for p in range(2)] == [1, 1]


class Away:
    """A producer whose log is away until ``back``."""

    def __init__(self):
        self.back, self.sent = False, 0

    async def send_all(self, sends, timestamp):
        if not self.back:
            raise LogUnavailable("away")
        self.sent += len(sends)
        return [0] * len(sends)

    def close(self):
        pass


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_log_that_is_away_costs_what_does_not_fit_and_nothing_else(tmp_path, comes_back):
    outcomes, away = Counter(), Away()

    async def main():
        truth = Truth(f"dir:{tmp_path / 'log'}?partitions=1", outcomes, max_waiting=50)
        truth._producer = away
        for n in range(80):
            truth.tell(Ask(f"u{n}"), answer())
        await truth.flush()
        assert truth.waiting == 50 and outcomes["dropped"] == 30 and outcomes["sent"] == 0
        away.back = comes_back
        await truth.close()

    asyncio.run(main())
    assert (outcomes["sent"], outcomes["dropped"]) == ((50, 30) if comes_back else (0, 80))
