"""Event bodies of every kind of nonsense: no crash, no 5xx; every event that was accepted is in the log, every one that was
refused among the dead letters."""

import asyncio
import json
import random
import time

import pytest
from collect_world import dead_in, polled, settings

from serving.collector.app import Collector
from transforms.records import decode

CLICK = {"user_id": "u1", "item_id": "i1", "event_type": "click"}
VALUES = [None, True, 0, -1, 2**63, 1e308, "", "x", "ü" * 300, "\u0000", [], {}, [[]], {"a": "b"}, ["Drama"],
          "2026-11-21T00:00:00Z", 10**18, -(10**18), "purchase", 1_700_000_000_000]
FIELDS = ["event_id", "user_id", "item_id", "event_type", "occurred_at", "surface", "page_position", "dwell_ms", "value",
          "categories", "price", "attributes", "schema_version", "nonsense", "ingested_at"]


def bodies(seed, count):
    """Whole events, mended ones, events torn, mixed and wrapped, and plain noise."""
    rng = random.Random(seed)
    for n in range(count):
        events = []
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            event = dict(CLICK, event_id=f"f{seed}-{n}-{len(events)}")
            for _ in range(rng.choice((0, 0, 1, 2, 4))):
                event[rng.choice(FIELDS)] = rng.choice(VALUES)
            events.append(event)
        text = json.dumps(events[0] if len(events) == 1 else rng.choice((events, {"events": events})),
                          ensure_ascii=rng.random() < 0.5).encode()
        kind = rng.random()
        if kind < 0.1:
            text = text[: rng.randrange(len(text) + 1)]
        elif kind < 0.25:
            noisy = bytearray(text)
            for _ in range(rng.randrange(1, 4)):
                noisy[rng.randrange(len(noisy))] = rng.randrange(256)
            text = bytes(noisy)
        elif kind < 0.28:
            text = rng.randbytes(rng.randrange(60))
        yield text


def fuzz(root, seed, count):
    """(bodies, ids accepted, events refused, statuses) of a run."""
    accepted, refused, statuses = [], 0, {}

    async def main():
        nonlocal refused
        collector = Collector(settings(root))
        collector.open()
        pending = []

        async def one(body):
            nonlocal refused
            outcome = await collector.router.accept(body)
            statuses[outcome.status] = statuses.get(outcome.status, 0) + 1
            said = json.loads(outcome.body())
            assert outcome.status < 500 and said
            for event in said.get("events", []):
                assert event["status"] in ("accepted", "rejected") and (event["status"] == "accepted" or event["reason"])
                if event["status"] == "accepted":
                    accepted.append(event["event_id"])
                else:
                    refused += 1

        for body in bodies(seed, count):
            pending.append(asyncio.create_task(one(body)))
            if len(pending) == 2000:
                await asyncio.gather(*pending)
                pending.clear()
        await asyncio.gather(*pending)
        await collector.flush()
        assert sum(collector.counters.rejected.values()) == refused
        assert sum(collector.counters.accepted.values()) == len(accepted) and not collector.counters.log_failures
        collector.close()

    asyncio.run(main())
    return accepted, refused, statuses


def check(root, seed, count):
    accepted, refused, statuses = fuzz(root, seed, count)
    assert set(statuses) <= {202, 413, 422} and sum(statuses.values()) == count
    held = []
    for records in polled(f"dir:{root / 'log'}"):
        found = decode(records, "log")
        assert found.dead.num_rows == 0
        held += found.events.column("event_id").to_pylist()
    assert sorted(held) == sorted(accepted) and len(accepted) > count // 3
    assert len(dead_in(root)) == refused > count // 10


def test_fuzzed_bodies_are_all_answered_and_none_is_lost(tmp_path):
    check(tmp_path, int(time.time() // 86_400), 4_000)


@pytest.mark.slow
def test_a_million_fuzzed_bodies(tmp_path, request):
    if request.config.getoption("-m") != "slow":
        pytest.skip("takes minutes: pytest -m slow tests/serving/api/test_fuzz.py")
    for part in range(20):
        root = tmp_path / str(part)
        root.mkdir()
        check(root, 1_000 + part, 50_000)
