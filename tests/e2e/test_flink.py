"""The Flink cluster runs Beam's Python, and a streaming job goes on where it was after each of its processes is killed."""

import time

import pytest

from beam_pipelines.services.flink import newest_checkpoint
from beam_pipelines.services.process import poll

TICKS, KEYS = 1200, 4


def options(*flags):
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(*flags)


def test_a_bounded_job_with_a_shuffle(flink_cluster, tmp_path):
    import apache_beam as beam

    out = str(tmp_path / "sums")

    def write(pair):  # on workers there are no assertions: they are other processes
        with open(out, "a") as file:  # noqa: PTH123 - pickled by value, so it brings no imports
            file.write(f"{pair[0]} {pair[1]}\n")

    with beam.Pipeline(options=options(flink_cluster.pipeline_options("sums", streaming=False))) as p:
        (p | beam.Create(range(100)) | "by digit" >> beam.Map(lambda n: (n % 3, n)) | beam.CombinePerKey(sum)
         | "write" >> beam.Map(write))
    assert sorted(open(out).read().split("\n")[:-1]) == ["0 1683", "1 1617", "2 1650"]  # noqa: PTH123, SIM115
    assert flink_cluster.rest.state(flink_cluster.rest.find("sums")) == "FINISHED"


def counting(start, out):
    """A stream of ticks, 20 a second, counted per key in state; every count is appended to a file."""
    import apache_beam as beam
    from apache_beam.coders import VarIntCoder
    from apache_beam.transforms.periodicsequence import PeriodicImpulse
    from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

    class Count(beam.DoFn):
        STATE = ReadModifyWriteStateSpec("count", VarIntCoder())

        def process(self, element, count=beam.DoFn.StateParam(STATE)):
            value = (count.read() or 0) + 1
            count.write(value)
            with open(out, "a") as file:  # noqa: PTH123
                file.write(f"{element[0]} {value}\n")

    def build(p):
        (p | "tick" >> PeriodicImpulse(start, start + TICKS * 0.05, 0.05)
         | "by key" >> beam.Map(lambda at: (round((at - start) / 0.05) % KEYS, at)) | "count" >> beam.ParDo(Count()))

    return build


@pytest.mark.slow
def test_a_killed_part_loses_and_doubles_nothing(flink_cluster, tmp_path):
    import apache_beam as beam

    cluster, out = flink_cluster, tmp_path / "counts"
    build = counting(time.time(), str(out))

    def counts():
        lines = out.read_text().split("\n")[:-1] if out.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    def submit(savepoint=None):
        p = beam.Pipeline(options=options(cluster.pipeline_options("count", checkpoint_ms=500, savepoint=savepoint)))
        build(p)
        p.run()
        assert poll(lambda: cluster.rest.find("count") not in (None, *ended), 60, 0.2)
        return cluster.rest.find("count")

    def checkpointed(more):
        done = cluster.rest.checkpoints(job)
        assert poll(lambda: cluster.rest.checkpoints(job) >= done + more, 60, 0.2)

    ended = []
    job = submit()
    assert poll(lambda: len(counts()) > 20, 60, 0.2)
    checkpointed(2)

    restored = cluster.rest.restored(job)
    cluster.kill_worker()
    assert poll(lambda: cluster.rest.restored(job) > restored and cluster.rest.running_tasks(job), 60, 0.2)
    checkpointed(1)
    restored = cluster.rest.restored(job)
    cluster.kill_taskmanager()
    cluster.start_taskmanager()
    assert poll(lambda: cluster.rest.restored(job) > restored and cluster.rest.running_tasks(job), 60, 0.2)
    checkpointed(1)
    assert newest_checkpoint(cluster.checkpoint_dir, job) is not None
    saved = cluster.rest.savepoint(job, tmp_path / "savepoint")
    assert newest_checkpoint(tmp_path / "savepoint") == saved

    cluster.kill_jobmanager()
    cluster.start_jobmanager()
    assert cluster.rest.jobs() == {}
    ended.append(job)
    job = submit(newest_checkpoint(cluster.checkpoint_dir, job))
    last = dict.fromkeys(range(KEYS), TICKS // KEYS)
    assert poll(lambda: dict(sorted(counts())) == last, 120, 0.5), dict(sorted(counts()))
    # Every count was written; one written before a kill may be written again after it, by the restored state.
    assert set(counts()) == {(key, value) for key in range(KEYS) for value in range(1, TICKS // KEYS + 1)}
    cluster.rest.cancel(job)
    assert cluster.rest.state(job) == "CANCELED"


def test_nothing_is_left_when_it_ends(flink_cluster):
    runs = [flink_cluster.part(name) for name in ("jobmanager", "taskmanager", "jobserver", "workers")]
    assert all(run.alive for run in runs)
    flink_cluster.stop()
    assert [run.members() for run in runs] == [[], [], [], []]
