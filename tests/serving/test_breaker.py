"""The circuit breaker against a clock of the test's own."""

import pytest

from serving.breaker import WINDOW, Breaker, BreakerSettings


class Time:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Time()


@pytest.fixture
def breaker(clock):
    return Breaker("lists", BreakerSettings(failures=3, pause_s=1, max_pause_s=4, jitter=0.5, probe_s=2), clock=clock)


def open_it(breaker):
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert breaker.state == "open"


def test_it_opens_after_failures_in_a_row_and_lets_nothing_through(breaker, clock):
    for good in (False, False, True, False, False):
        assert breaker.allows()
        breaker.ok() if good else breaker.failed()
    assert breaker.state == "closed"
    breaker.failed()
    assert breaker.state == "open" and breaker.opened == 1
    assert 1 <= breaker.pause_s <= 1.5
    clock.now += 0.99
    assert not breaker.allows() and breaker.pause_s > 0
    clock.now += 0.51
    assert breaker.pause_s == 0 and breaker.allows()
    breaker.ok()
    assert breaker.pause_s == 0


def test_it_opens_when_half_of_the_calls_fail_though_never_three_in_a_row(breaker):
    for call in range(WINDOW):
        assert breaker.state == "closed", call
        breaker.ok() if call % 2 == 0 else breaker.failed()
    assert breaker.state == "open"


def test_one_probe_at_a_time_and_a_good_one_closes_it(breaker, clock):
    open_it(breaker)
    clock.now += 1.51  # the pause and all of its jitter
    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]
    assert breaker.state == "half_open"
    breaker.ok()
    assert breaker.state == "closed" and breaker.allows() and breaker.allows()


def test_bad_probes_double_the_pause_up_to_its_bound(breaker, clock):
    open_it(breaker)
    for pause in (1, 2, 4, 4):
        clock.now += pause * 0.99
        assert not breaker.allows()
        clock.now += pause * 0.52
        assert breaker.allows()
        breaker.failed()
        assert breaker.state == "open"
    clock.now += 6.1
    assert breaker.allows()
    breaker.ok()
    open_it(breaker)
    clock.now += 1.51
    assert breaker.allows(), "a good probe makes the pause short again"


def test_a_probe_that_never_reports_does_not_keep_it_half_open_for_ever(breaker, clock):
    open_it(breaker)
    clock.now += 1.51
    assert breaker.allows() and not breaker.allows()
    clock.now += 2
    assert breaker.allows()


def test_answers_of_calls_sent_before_it_opened_change_nothing(breaker, clock):
    open_it(breaker)
    breaker.ok()
    breaker.failed()
    assert breaker.state == "open" and breaker.opened == 1
    clock.now += 1.51
    assert breaker.allows(), "and do not put off the probe"


def test_pauses_are_spread(clock):
    ends = set()
    for _ in range(20):
        one = Breaker("x", BreakerSettings(failures=1, pause_s=1, jitter=0.5), clock=clock)
        one.failed()
        clock.now += 1
        step = 0
        while not one.allows():
            step += 1
            clock.now += 0.01
        ends.add(step)
        clock.now += 10
    assert len(ends) > 5


def test_changes_are_told(clock):
    told = []
    one = Breaker("features", BreakerSettings(failures=1, pause_s=1, jitter=0), lambda *change: told.append(change), clock)
    one.failed()
    clock.now += 1
    one.allows()
    one.ok()
    assert told == [("features", "open"), ("features", "half_open"), ("features", "closed")]
