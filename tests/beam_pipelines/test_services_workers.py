"""State of Flink's Python workers: markers are read once, writes are awaited together, a refused one fails the bundle."""

import threading

import pytest
from apache_beam.coders import BytesCoder
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker import statesampler
from apache_beam.runners.worker.sdk_worker import _Future
from apache_beam.runners.worker.statecache import StateCache
from apache_beam.utils.counters import CounterFactory

from beam_pipelines.services.workers import PatientState, Unsampled, _Cache

TOKEN = beam_fn_api_pb2.ProcessBundleRequest.CacheToken(
    user_state=beam_fn_api_pb2.ProcessBundleRequest.CacheToken.UserState(), token=b"t")


class Answer(_Future):
    """Tells when it is awaited."""

    def __init__(self, said, what, error=""):
        super().__init__()
        self._said, self._what = said, what
        self.set(beam_fn_api_pb2.StateResponse(error=error))

    def get(self, timeout=None):
        self._said.append(f"await {self._what}")
        return super().get(timeout)


class Runner:
    """A runner's side of state."""

    def __init__(self, error=""):
        self.said, self.error, self.held = [], error, {}

    def process_instruction_id(self, bundle_id):
        import contextlib

        return contextlib.nullcontext()

    def get_raw(self, key, token=None):
        self.said.append(f"read {key.bag_user_state.user_state_id}")
        return self.held.get(key.SerializeToString(), b""), None

    def append_raw(self, key, data):
        self.said.append(f"append {key.bag_user_state.user_state_id}")
        self.held[key.SerializeToString()] = self.held.get(key.SerializeToString(), b"") + data
        return Answer(self.said, key.bag_user_state.user_state_id, self.error)

    def clear(self, key):
        self.said.append(f"clear {key.bag_user_state.user_state_id}")
        self.held.pop(key.SerializeToString(), None)
        return Answer(self.said, key.bag_user_state.user_state_id, self.error)


def key_of(name):
    return beam_fn_api_pb2.StateKey(bag_user_state=beam_fn_api_pb2.StateKey.BagUserState(user_state_id=name, key=b"k"))


def bundle(state, *names):
    coder, seen = BytesCoder().get_impl(), []
    with state.process_instruction_id("b", [TOKEN]):
        for name in names:
            seen.append(list(state.blocking_get(key_of(name), coder)))
            state.clear(key_of(name)).get()
            state.extend(key_of(name), coder, [b"new"]).get()
    return seen


def test_writes_of_a_bundle_are_sent_at_once_and_awaited_at_its_end():
    runner = Runner()
    bundle(PatientState(_Cache(1 << 20), runner), "marker", "deltas")
    sent, awaited = runner.said[:6], runner.said[6:]
    assert sent == ["read marker", "clear marker", "append marker", "read deltas", "clear deltas", "append deltas"]
    assert awaited and all(said.startswith("await") for said in awaited)


def test_only_a_marker_is_remembered_and_it_is_what_was_written_last():
    runner = Runner()
    state = PatientState(_Cache(1 << 20), runner)
    assert bundle(state, "marker", "deltas") == [[], []]
    assert bundle(state, "marker", "deltas") == [[b"new"], [b"new"]]
    assert runner.said.count("read marker") == 1 and runner.said.count("read deltas") == 2


def test_a_refused_write_fails_the_bundle():
    with pytest.raises(RuntimeError, match="state could not be written: no space"):
        bundle(PatientState(_Cache(1 << 20), Runner("no space")), "marker")


def test_what_is_cached_is_weighed_without_looking_at_it(monkeypatch):
    monkeypatch.setattr("apache_beam.runners.worker.statecache.get_deep_size", lambda *_: pytest.fail("walks all modules"))
    cache = _Cache(1 << 20)
    cache.put("a", [b"x"])
    assert cache.peek("a") == [b"x"] and isinstance(cache, StateCache)


def test_a_bundle_tracks_its_step_without_a_thread_that_its_end_would_wait_for():
    sampler, threads = Unsampled("step", CounterFactory()), threading.active_count()
    for _ in range(2):  # a processor is used again
        sampler.start()
        assert statesampler.get_current_tracker() is sampler
        with sampler.scoped_state("users", "process"):
            assert "users" in str(sampler.current_state().name)
        assert threading.active_count() == threads
        sampler.stop_if_still_running()
        assert statesampler.get_current_tracker() is None
        sampler.reset()
