"""The clock of a workspace that live events come into."""

from schemas.workspace import DAY_MICROS, Workspace


def test_a_clock_runs_once_live_events_come_in_and_no_import_freezes_it_again(tmp_path):
    space = Workspace(tmp_path)
    assert space.data_until is None
    space.freeze_after(5 * DAY_MICROS)
    space.run_clock()
    assert not space.is_frozen and space.now() > 1_600_000_000_000_000 and space.data_until == 6 * DAY_MICROS
    space.freeze_after(8 * DAY_MICROS)
    assert not space.is_frozen and space.data_until == 9 * DAY_MICROS
    fresh = Workspace(tmp_path / "fresh")
    fresh.run_clock()
    assert not fresh.is_frozen and fresh.data_until is None
    fresh.freeze_after(0)
    assert not fresh.is_frozen and fresh.data_until == DAY_MICROS
