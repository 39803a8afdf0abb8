"""A list that lies in a cell makes the very page, and its JSON the very bytes, that the same list of strings makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bundle_world import make_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from models.inference.bundle import Bundle
from schemas.cells import REASONS, SOURCES, CellError, RankedList, decode_recs, encode_recs
from schemas.keys import hash64
from serving.api.pages import Pages, Pieces
from serving.page_json import items_json, write_score
from serving.ranking.listed import ListCell, read_listed, size_of
from serving.ranking.model import Ask, Candidates, Ranked, Signals
from serving.ranking.overlay import ItemUpsert, Overlay
from serving.ranking.policy import ContextPolicy, Rule, load
from serving.ranking.rank import rank
from serving.recommender import Answer
from serving.truth import encode_served

TITLES = {"i1": "", "i2": 'Quoted "two" \\ twice', "i3": "Größe\n3"}
POLICIES = [load().of("homepage"), load().of("email"),
            replace(load().of("homepage"), explore_slot=3, max_per_category=2, diversity=0.8,
                    rules=(Rule("boost", category="c1", add=0.5), Rule("block", item="i7")))]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: Any) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "v1", items=120, categories=5, inactive=["i30"], extra=["x1"],
                       titles=TITLES)


def recs_of(rng: np.random.Generator, because: bool = True, unknown: bool = True) -> RankedList:
    n = int(rng.integers(1, 60))
    ids = [f"i{k}" for k in rng.choice(120, n, replace=False)]
    if unknown:
        ids[rng.integers(n)] = "not in the bundle"
    whys = [str(rng.choice(["", "i1", "i2", "i3", "i5", *(["gone"] if unknown else [])])) if because else "" for _ in range(n)]
    scores = np.sort(rng.normal(size=n).astype(np.float32))[::-1]
    return RankedList(ids, scores, rng.choice(SOURCES, n).tolist(), rng.choice(REASONS, n).tolist(), whys, "m1", 0, 1)


def both(bundle: Bundle, recs: RankedList, signals: Signals, policy: ContextPolicy, overlay: Overlay | None = None,
         **ask: Any) -> tuple[Ranked, Ranked]:
    cell = encode_recs(recs)
    packed, plain = read_listed(cell), decode_recs(cell)
    assert isinstance(packed, ListCell)
    one, other = (rank(Ask("u", request_id="r", **ask), Candidates(r, "v1", "list", True), signals, policy, bundle, overlay)
                  for r in (packed, plain))
    return one, other


def assert_same(one: Ranked, other: Ranked) -> None:
    for name in ("item_ids", "sources", "reasons", "because"):
        assert list(getattr(one, name)) == list(getattr(other, name)), name
    assert one.scores.tobytes() == other.scores.tobytes() and (one.more, one.explored) == (other.more, other.explored)
    assert list(one.features) == list(other.features)
    for name, values in one.features.items():
        assert values.tobytes() == other.features[name].tobytes()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(POLICIES), st.integers(1, 40), st.booleans())
def test_the_page_is_the_same(bundle: Bundle, seed: int, policy: ContextPolicy, size: int, confident: bool) -> None:
    rng = np.random.default_rng(seed)
    some = [f"i{k}" for k in rng.integers(0, 130, 12)]
    signals = Signals(known=True, hidden=frozenset(some[:3]), session=[(i, float(w)) for w, i in enumerate(some[3:8])],
                      preference={"c1": 0.6, "c4": 0.3, "none": 0.1}, low_confidence=confident)
    shown = np.array([hash64(i) & 0xFFFFFFFF for i in some[8:10]], np.uint32)
    one, other = both(bundle, recs_of(rng), signals, policy, page_size=size, exclude=frozenset(some[10:]), shown=shown)
    assert one.packed is not None and other.packed is None
    assert_same(one, other)


def test_what_upserts_touch_is_laid_over_the_page(bundle: Bundle) -> None:
    rng = np.random.default_rng(1)
    overlay = Overlay.of([ItemUpsert("i5", 1, "new title", ("c1",)), ItemUpsert("i9", 1, is_active=False)])
    touched = 0
    for _ in range(40):
        recs = recs_of(rng)
        one, other = both(bundle, recs, Signals(), POLICIES[0], overlay)
        assert_same(one, other)
        assert "i9" not in list(one.item_ids)
        touched += one.packed is None
        assert one.packed is None or "i5" not in recs.item_ids
    assert 0 < touched < 40


@pytest.mark.parametrize("odd", ["ä", "a" * 200])
def test_ids_beyond_the_usual_are_strings(bundle: Bundle, odd: str) -> None:
    popular = ["popular"] * 3
    cell = encode_recs(RankedList(["i1", odd, "i2"], np.ones(3, np.float32), popular, popular, [""] * 3, "m", 0, 1))
    found = rank(Ask("u"), Candidates(read_listed(cell), "v1", "list", True), Signals(), load().of("email"), bundle)
    assert found.packed is None and list(found.item_ids) == ["i1", odd, "i2"]


@settings(max_examples=400)
@given(st.integers(0, 2**32), st.integers(0, 8), st.integers(0, 500), st.integers(0, 255), st.integers(0, 6))
def test_a_broken_cell_is_refused_by_both_or_read_the_same(seed: int, many: int, at: int, byte: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    ids = ["item" * int(rng.integers(0, 3)) + str(k) for k in range(many)]
    made = RankedList(ids, rng.random(many).astype(np.float32), rng.choice(SOURCES, many).tolist(),
                      rng.choice(REASONS, many).tolist(), ids[::-1], "m1", 5, 2**40)
    whole = bytearray(encode_recs(made))
    if at < len(whole):
        whole[at] = byte
    cell = bytes(whole[: len(whole) - cut])
    try:
        wanted = decode_recs(cell)
    except CellError:
        with pytest.raises(CellError):
            read_listed(cell)
        return
    found = read_listed(cell)
    for name in ("item_ids", "sources", "reasons", "source_item_ids"):
        assert list(getattr(found, name)) == list(getattr(wanted, name)), name
    assert found.scores.tobytes() == wanted.scores.tobytes() and size_of(found) == len(wanted.item_ids)
    assert (found.model_version, found.generated_at, found.expires_at) == (
        wanted.model_version, wanted.generated_at, wanted.expires_at)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_the_record_of_what_was_served_is_the_same(bundle: Bundle, seed: int, size: int) -> None:
    ask, signals = Ask("u", page_size=size, request_id="r"), Signals(session=[("i2", 1.0)], values={"count_view_1h": 3.0})
    recs = recs_of(np.random.default_rng(seed))
    one, other = both(bundle, recs, signals, POLICIES[2], page_size=size)
    assert one.packed is not None and one.packed.known == (bundle.positions(list(one.item_ids)) >= 0).all()
    records = [encode_served(ask, Answer(r, Candidates(recs, "v1", "list", True), signals, bundle, {}), 1_700_000_000_000_000)
               for r in (one, other)]
    assert records[0] == records[1]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 5000))
def test_the_json_is_the_same(bundle: Bundle, seed: int, before: int) -> None:
    rng = np.random.default_rng(seed)
    signals = Signals(session=[("i2", 1.0), ("i3", 2.0), ("i11", 1.0)])
    ranked = both(bundle, recs_of(rng, unknown=False), signals, POLICIES[2], page_size=40)[0]
    assert ranked.packed is not None
    found = items_json(ranked.packed, ranked.scores, before + 1, bundle)
    if (np.abs(ranked.scores[ranked.scores != 0]) >= 1e-4).all():
        assert found is not None
    assert found in (None, Pieces(bundle).page(ranked, before + 1, {}))


def test_items_that_the_bundle_lacks_and_odd_ids_are_left_to_pieces(tmp_path: Any) -> None:
    bundle = make_bundle(tmp_path / "v1", extra=['quoted "x"'])
    for first, why in (("gone", ""), ("i1", "gone"), ('quoted "x"', "")):
        recs = RankedList([first, "i2"], np.ones(2, np.float32), ["popular"] * 2, ["popular"] * 2, [why, ""], "m1", 0, 1)
        candidates = Candidates(read_listed(encode_recs(recs)), "v1", "list", True)
        ranked = rank(Ask("u"), candidates, Signals(), load().of("email"), bundle)
        assert ranked.packed is not None
        assert Pages().packed(Ask("u"), Answer(ranked, candidates, Signals(), bundle, {})) is None


def written(value: float) -> bytes | None:
    out = np.zeros(40, np.uint8)
    end = write_score(np.float32(value), out, 0)
    return out[:end].tobytes() if end >= 0 else None


@settings(max_examples=2000)
@given(st.floats(width=32) | st.floats(-4, 4, width=32))
def test_scores_are_written_as_percent_7g(value: float) -> None:
    text = b"%.7g" % value
    assert written(value) in ((text, None) if not 1e-4 <= abs(value) < 1e7 else (text,))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 10.0, 0.1, 9999999.0, 0.99999999, 0.00012345678, 1e6, 123456.7, 2.5, 0.5,
                                   16777215 / 2**24, 8388609 / 8388608, 1234567.5, 1234568.5])
def test_scores_of_few_and_many_digits(value: float) -> None:
    assert written(value) == b"%.7g" % float(np.float32(value))
