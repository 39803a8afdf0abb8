"""A real streaming job on Flink while its store is away, and while it is slow: it waits, loses nothing, and does not grow."""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time

import pytest
from servers import need

from beam_pipelines.jobs.stream_run import launched
from beam_pipelines.options import Config, StreamConfig
from beam_pipelines.services import flink
from beam_pipelines.services.flink import newest_checkpoint
from beam_pipelines.services.process import poll, resident_mib
from benchmarks.stream_paced import Sender
from schemas.metric_names import CELLS_RETRIED, EVENTS_ACCEPTED
from schemas.stream_cells import extract_rings
from serving.stores import open_store

RATE, USERS = 500, 300


@pytest.fixture
def live(tmp_path, request):
    """A job that takes events of a sender: (cluster, running job, sender, store's folder)."""
    if request.config.getoption("-m") != "slow":
        pytest.skip("takes minutes: pytest -m slow tests/e2e/test_stream_store_away.py")
    need("flink")
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(flink.running(tmp_path / "services" / "flink"))
        folder = tmp_path / "kept"
        folder.mkdir()
        common = Config.of(tmp_path / "workspace", runner="flink", quiet=True, store=f"sqlite:{folder}/store.db")
        common.workspace.root.mkdir()
        uri = f"dir:{tmp_path}/log"
        sender = Sender(uri, RATE, USERS, 50)
        job = stack.enter_context(launched(StreamConfig(common, uri, name="live"), services=tmp_path / "services"))
        sender.start()
        try:
            assert poll(lambda: accepted(job) > 2 * RATE, 120, 0.5), cluster.directory
            yield cluster, job, sender, folder
        finally:
            sender.stop()
            cluster.rest.cancel(job.flink_job)


def counters(job):
    status = job.status()
    return status["counters"] if status is not None and status["run"] == job.run else {}


def accepted(job):
    return counters(job).get(EVENTS_ACCEPTED, 0)


def check_nothing_is_lost(job, sender, folder):
    """All that was sent is in the state once, and in the cells."""
    sender.stop()
    assert poll(lambda: accepted(job) == sender.sent, 120, 0.5), (accepted(job), sender.sent)
    store = open_store(f"sqlite:{folder}/store.db", create=False)

    try:
        assert poll(lambda: counted(store) == sender.sent, 60, 1.0), (counted(store), sender.sent)
    finally:
        store.close()


def counted(store):
    """Events in the users' cells."""
    cells = [cell.value for _, cell in store.scan_features("stream", "user_panes")]
    return int(extract_rings("user_panes", cells, time.time_ns() // 1000)[:, 1::2].sum()) if cells else 0


def resident(cluster):
    """MiB of the Python workers."""
    return sum(map(resident_mib, cluster.worker_pids()))


@pytest.mark.slow
def test_a_store_that_is_away_for_a_minute(live):
    cluster, job, sender, folder = live
    restarts, before = cluster.rest.restored(job.flink_job), accepted(job)
    folder.rename(folder.with_name("away"))
    time.sleep(60)
    assert cluster.rest.state(job.flink_job) == "RUNNING" and not folder.exists()
    folder.with_name("away").rename(folder)
    assert poll(lambda: accepted(job) > before + 50 * RATE, 120, 0.5), (accepted(job), before)
    check_nothing_is_lost(job, sender, folder)
    assert cluster.rest.restored(job.flink_job) == restarts  # no crash loop: not one
    assert 3 < counters(job)[CELLS_RETRIED] < 200  # pauses grow, and one writer tries for all


@pytest.mark.slow
def test_a_slow_store_holds_the_log_back_and_memory_stays(live):
    cluster, job, sender, folder = live
    restarts, start = cluster.rest.restored(job.flink_job), resident(cluster)
    over = threading.Event()

    def hog():
        """Holds the store's write lock nearly all of the time, so that each write of the job waits for seconds."""
        turn, = folder.glob("store.db-stream-*-turn")
        with turn.open("rb") as other:
            while not over.is_set():
                fcntl.flock(other, fcntl.LOCK_EX)
                over.wait(6.0)
                fcntl.flock(other, fcntl.LOCK_UN)
                over.wait(0.02)

    thread = threading.Thread(target=hog)
    thread.start()
    sizes = []
    try:
        for _ in range(15):
            time.sleep(2)
            sizes.append(resident(cluster))
    finally:
        over.set()
        thread.join()
    free = time.time()
    assert poll(lambda: job.status()["written_at"] > free * 1e6, 60, 0.1)
    behind = sender.sent - accepted(job)
    print(f"workers {start} -> {max(sizes)} MiB, {behind} events behind")
    assert behind > 3 * RATE  # the log waits...
    assert max(sizes) < start + 150, (start, sizes)  # ...and the workers do not gather it
    assert poll(lambda: sender.sent - accepted(job) < 4 * RATE, 120, 0.5), "does not catch up"
    check_nothing_is_lost(job, sender, folder)
    assert cluster.rest.restored(job.flink_job) == restarts


@pytest.mark.slow
def test_a_store_that_lost_its_stream_gets_all_of_it_from_a_resumed_job(live):
    cluster, job, sender, folder = live
    check_nothing_is_lost(job, sender, folder)
    points = newest_checkpoint(cluster.checkpoint_dir, job.flink_job)
    assert poll(lambda: newest_checkpoint(cluster.checkpoint_dir, job.flink_job) not in (None, points), 60, 0.5)
    cluster.rest.cancel(job.flink_job)
    assert poll(lambda: cluster.rest.state(job.flink_job) == "CANCELED", 60, 0.5)
    for file in folder.glob("store.db-stream-*"):
        file.unlink()
    again = Sender(job.config.log, RATE, USERS, 50)
    with launched(job.config, resume=True, services=cluster.directory.parent) as resumed:
        again.start()
        store = open_store(f"sqlite:{folder}/store.db", create=False)
        try:
            assert poll(lambda: counted(store) > sender.sent, 120, 1.0), (counted(store), sender.sent)
        finally:
            again.stop()
            store.close()
            cluster.rest.cancel(resumed.flink_job)
