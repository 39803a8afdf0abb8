"""A log to collect into, what it then holds, and a real collector process over it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pyarrow as pa

from schemas.dead_letters import decode_dead_letter
from serving.collector.app import Collector
from serving.collector.settings import CollectorSettings
from serving.eventlog import open_log
from transforms.records import decode
from transforms.records.upserts import decode_upserts


def settings(root, **more):
    return CollectorSettings(f"dir:{root / 'log'}", **more)


def with_router(root, body, **more):
    """Runs ``await body(collector)`` over an open collector; everything is durable afterwards."""

    async def main():
        collector = Collector(settings(root, **more))
        collector.open()
        try:
            return await body(collector)
        finally:
            await collector.flush()
            collector.close()

    return asyncio.run(main())


def polled(uri):
    log = open_log(uri)
    reader = log.reader({p: log.earliest(p) for p in range(log.partitions())})
    left = {p: log.latest(p) for p in range(log.partitions())}
    while reader.positions() != left:
        yield reader.poll(1 << 24, 1.0)
    reader.close()
    log.close()


def events_in(root, name="log"):
    """Rows of every event in the log; the log must hold nothing unreadable."""
    rows = []
    for records in polled(f"dir:{root / name}"):
        found = decode(records, "log")
        assert found.dead.num_rows == 0, found.dead.to_pylist()
        rows += pa.Table.from_batches([found.events]).to_pylist()
    return rows


def dead_in(root, name="log"):
    return [decode_dead_letter(r.record(i)) for r in polled(f"dir:{root / f'{name}-dead'}") for i in range(len(r))]


def upserts_in(root, entity, name="log"):
    rows = []
    for records in polled(f"dir:{root / f'{name}-{entity}s'}"):
        found, dead = decode_upserts(records, entity, "log")
        assert dead.num_rows == 0
        rows += found.to_pylist()
    return rows


class CollectServer:
    """``beamrec collect`` in a process of its own."""

    def __init__(self, workspace: Path, *flags: str, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "beam_pipelines.cli.main", "collect", "--port", str(port), "--workspace", str(workspace),
             *flags],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._wait()
        self.client = httpx.Client(base_url=self.url, timeout=10)

    def _read(self) -> None:
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def _wait(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in list(self.log):
                entry = json.loads(line)
                if entry["event"] == "listening":
                    with contextlib.suppress(httpx.TransportError):
                        if httpx.get(entry["url"] + "/readyz").status_code == 200:
                            return entry["url"]
            time.sleep(0.05)
        self.stop()
        raise AssertionError("the collector did not start:\n" + "\n".join(self.log))

    def post(self, document, **headers):
        return self.client.post("/v1/events", content=document if isinstance(document, bytes) else json.dumps(document),
                                headers=headers)

    def worker(self) -> int:
        return next(json.loads(line)["process"] for line in self.log if json.loads(line)["event"] == "worker started")

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(5)
