"""Stream states: any order, split and merge gives the same cells, and they read as the definitions say, row by row."""

import functools
import math

import numpy as np
import pytest
import stream_oracle as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_oracle import GAP, HOUR, PANE

from schemas import stream_cells
from transforms.accumulators.base import Lists
from transforms.accumulators.events import Events
from transforms.accumulators.stream import item as item_module
from transforms.accumulators.stream import pairs as pairs_module
from transforms.accumulators.stream.base import StateError
from transforms.accumulators.stream.item import ItemState
from transforms.accumulators.stream.user import UserState

LATER = st.sampled_from([0, 1, PANE, GAP - 1, GAP, HOUR, 3 * HOUR, 23 * HOUR, 49 * HOUR])
END = 1 << 62


def added(*batches):
    users, items = UserState(), ItemState()
    for chosen in batches:
        events = Events(oracle.batch(chosen))
        users.add(events)
        items.add(events)
        items.add_pairs(users.take_pairs())
    return users, items


def cells_of(state):
    return {(cells.group, i): (value, at) for cells in state.cells()
            for i, value, at in zip(cells.entities.ids.to_pylist(), cells.values, cells.timestamps.tolist(), strict=True)}


def plain(value):
    """A feature value as the oracle has it."""
    if isinstance(value, tuple):
        ids, times, scores = value
        return list(zip(ids, times.tolist(), scores.tolist(), strict=True))
    return value


def present(values):
    """The values that are not NaN and no empty list."""
    return {k: v for k, v in values.items() if (len(v) > 0 if isinstance(v, list) else not math.isnan(v))}


def of_cells(state, t):
    return {(group, i): present({k: plain(v) for k, v in stream_cells.extract(group, value, t).items()})
            for (group, i), (value, _) in cells_of(state).items()}


def of_extract(state, t):
    found = {}
    for group, extract in zip(state.groups, state.extract(t), strict=True):
        for k, i in enumerate(extract.entities.ids.to_pylist()):
            values = {}
            for name, column in extract.columns.items():
                if isinstance(column, Lists):
                    a, b = column.offsets[k], column.offsets[k + 1]
                    values[name] = list(zip(column.ids[a:b].to_pylist(), column.times[a:b].tolist(),
                                            column.scores[a:b].tolist(), strict=True))
                else:
                    values[name] = float(column[k])
            found[group, i] = present(values)
    return found


def expected(events, t, **caps):
    found = {}
    for user in {e.user for e in events}:
        for group, values in oracle.user_features([e for e in events if e.user == user], t).items():
            found[group, user] = present(values)
    for item in {e.item for e in events if e.item}:
        for group, values in oracle.item_features(events, item, t, **caps).items():
            found[group, item] = present(values)
    return found


def check_values(users, items, events, t, **caps):
    wanted = expected(events, t, **caps)
    for read in (of_cells, of_extract):
        got = read(users, t) | read(items, t)
        assert {k for k, v in wanted.items() if any(v.values())} <= got.keys() <= wanted.keys()
        for key, values in got.items():
            assert wanted[key] == values, (key, read.__name__)


@settings(max_examples=150, deadline=None)
@given(events=oracle.events(), later=LATER)
def test_values_are_what_the_definitions_say(events, later):
    check_values(*added(events), events, events[-1].time + later)


@settings(max_examples=60, deadline=None)
@given(events=oracle.events(), later=LATER, size=st.integers(1, 9), data=st.data())
def test_caps_on_heavy_users_and_popular_items_keep_the_values_exact(events, later, size, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "PRESENCE_CAP", 2)
        patch.setattr(item_module, "PANE_PARTNERS_CAP", 2)
        shuffled = data.draw(st.permutations(events))
        states = added(*(shuffled[i : i + size] for i in range(0, len(events), size)))
        check_values(*states, events, events[-1].time + later, presence_cap=2, pane_cap=2)


@settings(max_examples=60, deadline=None)
@given(events=oracle.events(), data=st.data())
def test_any_order_split_and_merge_gives_the_same_cells(events, data):
    whole = added(events)
    shuffled = data.draw(st.permutations(events))
    size, shape = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(["chain", "tree", "all"]))
    parts = [shuffled[i : i + size] for i in range(0, len(events), size)]
    running = added(*parts)
    for k, state in enumerate(whole):
        assert cells_of(running[k]) == cells_of(state)
        kept = type(state).from_bytes(running[k].to_bytes(ordered=False))
        assert cells_of(kept) == cells_of(state)
        assert running[k].to_bytes() == state.to_bytes() == kept.to_bytes()
    users = [added(part)[0] for part in parts]
    for state in users[::2]:
        state.to_bytes()  # packing one compacts it, and changes nothing
    users = [UserState.from_bytes(s.to_bytes()) if i % 2 else s for i, s in enumerate(users)]
    if shape == "chain":
        merged = functools.reduce(lambda a, b: a.merge(b), users)
    else:
        while shape == "tree" and len(users) > 1:
            users = [users[i].merge(*users[i + 1 : i + 2]) for i in range(0, len(users), 2)]
        merged = users[0].merge(*users[1:])
    assert cells_of(merged) == cells_of(whole[0])
    assert merged.to_bytes() == whole[0].to_bytes()


@settings(max_examples=40, deadline=None)
@given(events=oracle.events())
def test_selected_entities_have_the_cells_they_had(events):
    for state in added(events):
        everything, hashes = cells_of(state), state.entities().hashes
        assert (hashes[1:] > hashes[:-1]).all()
        asked = np.sort(np.append(hashes[::2], np.uint64(5)))
        chosen = state.select(asked)
        assert chosen.entities().hashes.tolist() == hashes[::2].tolist()
        names = set(chosen.entities().ids.to_pylist())
        assert cells_of(chosen) == {k: v for k, v in everything.items() if k[1] in names}
        only = {(c.group, i): (v, at) for c in state.cells(asked) for i, v, at in
                zip(c.entities.ids.to_pylist(), c.values, c.timestamps.tolist(), strict=True)}
        assert only == cells_of(chosen)
        assert not type(state)().cells() and len(type(state)()) == 0


@settings(max_examples=120, deadline=None)
@given(events=oracle.events(max_size=90), later=LATER, data=st.data())
def test_a_stream_with_late_events_finalises_each_row_once_and_forgets_only_what_nobody_reads(events, later, data):
    delays = data.draw(st.lists(st.sampled_from([0, 0, 0, MINUTES_20, HOUR]), min_size=len(events), max_size=len(events)))
    arrivals = sorted(range(len(events)), key=lambda i: (events[i].time + delays[i], i))
    users, items = UserState(), ItemState()
    seen, previous, size = [], -END, data.draw(st.integers(1, 20))
    finals = {}
    for start in range(0, len(arrivals), size):
        chosen = Events(oracle.batch([events[i] for i in arrivals[start : start + size]]))
        users.add(chosen)
        items.add(chosen)
        items.add_pairs(users.take_pairs())
        seen += arrivals[start : start + size]
        coming = [events[i].time for i in arrivals[start + size :]]
        horizon = max(previous, min(coming)) if coming else previous  # the strictest that is true
        for state in (users, items):
            for name, rows in state.final(horizon, previous).items():
                finals.setdefault(name, []).append(rows)
            state.prune(horizon)
            if data.draw(st.booleans()):
                state.compact()
        if data.draw(st.booleans()):
            users, items = UserState.from_bytes(users.to_bytes()), ItemState.from_bytes(items.to_bytes())
        previous = horizon
    check_values(users, items, events, max(events[-1].time + later, previous))
    for state in (users, items):
        for name, rows in state.final(END, previous).items():
            finals.setdefault(name, []).append(rows)
        state.prune(END)
        state.compact()
        assert len(state) == 0
    panes = [row for rows in finals["stream_panes"] for row in rows.to_pylist()]
    counted = {}
    for row in panes:
        for name in oracle.NAMES:
            if row[f"count_{name}"]:
                key = row["user_id"], int(row["start"].timestamp()) * 1_000_000 // PANE, name
                assert key not in counted
                counted[key] = row[f"count_{name}"]
    assert counted == oracle.pane_rows(events)
    closed = [(r["user_id"], s, e, r["events"], r["dwell_sum"], r["price_sum"], r["price_min"], r["price_max"])
              for rows in finals["stream_sessions"]
              for r, s, e in zip(rows.to_pylist(), rows.column("start").cast("int64").to_pylist(),
                                 rows.column("end").cast("int64").to_pylist(), strict=True)]
    assert sorted(closed, key=repr) == oracle.session_rows(events)
    minutes = [(r["item_id"], r["start"]) for rows in finals["stream_minutes"] for r in rows.to_pylist()]
    assert len(minutes) == len(set(minutes))
    assert sum(r["weight"] for rows in finals["stream_minutes"] for r in rows.to_pylist()) == \
        sum(oracle.WEIGHT[e.kind] for e in events if e.item)


MINUTES_20 = 20 * oracle.MINUTE


@settings(max_examples=60, deadline=None)
@given(events=oracle.events(), size=st.integers(1, 9), data=st.data())
def test_changes_of_pairs_add_up_to_the_pairs(events, size, data):
    cap = data.draw(st.integers(1, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "PRESENCE_CAP", cap)
        users, total = UserState(["pairs"]), {}
        shuffled = data.draw(st.permutations(events))
        for start in range(0, len(events), size):
            users.add(Events(oracle.batch(shuffled[start : start + size])))
            rows = users.take_pairs()
            keys = list(zip(*(rows.column(c).to_pylist() for c in ("item_id", "other_id", "pane")), strict=True))
            assert len(keys) == len(set(keys)) and 0 not in rows.column("users").to_pylist()
            for key, n in zip(keys, rows.column("users").to_pylist(), strict=True):
                total[key] = total.get(key, 0) + n
        assert {k: v for k, v in total.items() if v} == oracle.pair_users(events, cap)
        assert users.take_pairs().num_rows == 0


def test_a_long_session_takes_bounded_state():
    users, sizes = UserState(["user_panes", "user_session"]), []
    for k in range(2_000):  # an event every 25 minutes, for a month
        event = oracle.Event(f"e{k}", "u", f"i{k % 3}", "click", oracle.ORIGIN + k * 25 * oracle.MINUTE, 5, 1.0, ("c",))
        users.add(Events(oracle.batch([event])))
        if k % 50 == 49:
            users.final(event.time - HOUR, 0)
            users.prune(event.time - HOUR)
            users.compact()
            sizes.append(len(users))
    assert max(sizes[5:]) < 120
    cell = next(c for c in users.cells() if c.group == "user_session").values[0]
    session = stream_cells.decode_session(cell)
    assert (session.start, session.events, session.dwell_sum) == (oracle.ORIGIN, 2_000, 10_000)


def test_unused_groups_cost_nothing_and_unknown_ones_are_refused():
    users = UserState(["user_panes"])
    users.add(Events(oracle.batch([oracle.Event("e", "u", "i", "click", oracle.ORIGIN, 5, 1.0, ("c",))])))
    assert set(users.tables) == {"panes"} and len(users) == 1
    assert [c.group for c in users.cells()] == ["user_panes"]
    with pytest.raises(ValueError, match="user_pains"):
        UserState(["user_pains"])


def test_a_state_of_another_layout_is_refused_with_the_reason(monkeypatch):
    data = added([oracle.Event("e", "u", "i", "click", oracle.ORIGIN, 5, 1.0, ("c",))])[0].to_bytes()
    for broken in (b"", data[:40], data[: len(data) // 2], b"x" * 100):
        with pytest.raises(StateError):
            UserState.from_bytes(broken)
    with pytest.raises(StateError, match="fewer feature groups"):
        UserState.from_bytes(UserState(["user_panes"]).to_bytes())
    monkeypatch.setattr(UserState, "LAYOUT", 2)
    with pytest.raises(StateError, match="layout 1, this version reads layout 2"):
        UserState.from_bytes(data)
