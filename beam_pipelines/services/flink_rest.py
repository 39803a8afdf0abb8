"""What Flink's REST interface and checkpoint folders tell and do."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from beam_pipelines.errors import UserError
from beam_pipelines.services.process import poll

ENDED = frozenset({"CANCELED", "FAILED", "FINISHED"})
_QUICK_S = 3.0
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Failure:
    """Why a job failed: when (seconds since 1970), and in one line the error that began it."""

    at: float
    reason: str


@dataclass(frozen=True)
class OnFlink:
    """How Flink says that a job is: its id, its state, how often it was started again, and what it failed of last."""

    job: str
    state: str
    restarts: int
    last_failure: Failure | None


@dataclass(frozen=True)
class Rest:
    """Flink's REST interface at ``url``, such as http://127.0.0.1:8081, which has so many seconds to answer each time. Every
    method but ``on_flink`` raises UserError when it is away."""

    url: str
    seconds: float = 10.0

    def call(self, path: str, method: str = "GET", body: object = None) -> Any:
        """The JSON answer to a request."""
        request = urllib.request.Request(self.url + path, method=method, headers={"Content-Type": "application/json"},
                                         data=None if body is None else json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as response:
                return json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise UserError(f"Flink refuses {method} {path}: {_reason(error.read())}") from error
        except OSError as error:
            raise UserError(f"Flink does not answer at {self.url}: {error}") from error

    def slots(self) -> tuple[int, int]:
        """(TaskManagers, slots of them all)."""
        overview = replace(self, seconds=_QUICK_S).call("/overview")
        return overview["taskmanagers"], overview["slots-total"]

    def jobs(self) -> dict[str, str]:
        """State, such as RUNNING, of every job by its id; the newest last."""
        jobs = sorted(self.call("/jobs/overview")["jobs"], key=lambda job: job["start-time"])
        return {job["jid"]: job["state"] for job in jobs}

    def find(self, name: str) -> str | None:
        """Id of the newest job of a name, running ones before ended ones; None without one."""
        named = [job for job in self.call("/jobs/overview")["jobs"] if job["name"] == name]
        named.sort(key=lambda job: (job["state"] not in ENDED, job["start-time"]))
        return named[-1]["jid"] if named else None

    def state(self, job: str) -> str:
        """CREATED, RUNNING, RESTARTING, FAILING, FAILED, CANCELLING, CANCELED, FINISHED and the like."""
        return str(self.call(f"/jobs/{job}")["state"])

    def restored(self, job: str) -> int:
        """How often a job's state was restored since it was submitted."""
        return int(self.call(f"/jobs/{job}/checkpoints")["counts"]["restored"])

    def restarts(self, job: str) -> int:
        """How often a job was started again after a failure, with state or without."""
        found = self.call(f"/jobs/{job}/metrics?get=numRestarts")
        return int(found[0]["value"]) if found else 0

    def last_failure(self, job: str) -> Failure | None:
        """What a job failed of last; None when it never did."""
        history = self.call(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"]
        if not history:
            return None
        newest = max(history, key=lambda entry: entry["timestamp"])
        return Failure(newest["timestamp"] / 1000, reason_of(newest["stacktrace"]))

    def checkpoints(self, job: str) -> int:
        """How many checkpoints of a job are complete."""
        return int(self.call(f"/jobs/{job}/checkpoints")["counts"]["completed"])

    def on_flink(self, job: str) -> OnFlink | None:
        """How a job is; None while Flink does not answer, for which it has little time, and of a job it does not know."""
        quick = replace(self, seconds=_QUICK_S)
        try:
            return OnFlink(job, quick.state(job), quick.restarts(job), quick.last_failure(job))
        except UserError:
            return None

    def running_tasks(self, job: str) -> bool:
        """Whether every task of a job runs; a job says RUNNING long before its tasks do."""
        counts = [vertex["tasks"] for vertex in self.call(f"/jobs/{job}")["vertices"]]
        return bool(counts) and all(c["RUNNING"] + c["FINISHED"] == sum(c.values()) for c in counts)

    def cancel(self, job: str, seconds: float = 30.0) -> None:
        """Cancels a job and waits until it ended; Beam's ``result.cancel()`` leaves it running."""
        if self.state(job) not in ENDED:
            self.call(f"/jobs/{job}?mode=cancel", "PATCH")
        if not poll(lambda: self.state(job) in ENDED, seconds):
            raise UserError(f"Flink job {job} is not cancelled after {seconds:.0f} s")

    def savepoint(self, job: str, target: Path, stop: bool = False, drain: bool = False, seconds: float = 120.0) -> Path:
        """Writes a savepoint under ``target`` and returns its folder.

        Args:
          stop: the job ends with it; returns when it has.
          drain: with ``stop``, the watermark goes to its maximum first, so that every window closes.
        """
        target.mkdir(parents=True, exist_ok=True)
        where = f"file://{target.absolute()}"
        if stop:
            asked = self.call(f"/jobs/{job}/stop", "POST", {"targetDirectory": where, "drain": drain})
        else:
            asked = self.call(f"/jobs/{job}/savepoints", "POST", {"target-directory": where, "cancel-job": False})
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = self.call(f"/jobs/{job}/savepoints/{asked['request-id']}")
            if answer["status"]["id"] == "COMPLETED":
                operation = answer["operation"]
                if "failure-cause" in operation:
                    raise UserError(f"Flink wrote no savepoint: {operation['failure-cause']['class']}")
                if stop and not poll(lambda: self.state(job) in ENDED, max(deadline - time.monotonic(), 10.0)):
                    raise UserError(f"Flink job {job} wrote a savepoint, {operation['location']}, but does not end")
                return Path(operation["location"].removeprefix("file:"))
            time.sleep(0.2)
        raise UserError(f"Flink wrote no savepoint of job {job} within {seconds:.0f} s")


def newest_checkpoint(folder: Path, job: str | None = None) -> Path | None:
    """The newest complete checkpoint or savepoint under a folder, of one job or of any; None without one.

    One is complete when it has its _metadata, which Flink writes last.
    """
    found = [path.parent for path in (folder / job if job else folder).rglob("_metadata")
             if re.fullmatch(r"chk-\d+|savepoint-.+", path.parent.name)]
    return max(found, key=lambda path: ((path / "_metadata").stat().st_mtime_ns, path.name), default=None)


def reason_of(stacktrace: str) -> str:
    """The line of a Java stack trace that tells the most: the Python error where a worker raised one, else the last cause."""
    _, python, inside = stacktrace.partition(_TRACEBACK)
    if python:
        of_python = re.split(r"\n\s*at |\nCaused by:", inside)[0]
        lines = [line for line in of_python.splitlines() if line and not line[0].isspace()]
    else:
        lines = [line.removeprefix("Caused by: ") for line in stacktrace.splitlines() if line and not line[0].isspace()]
    errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*: ", line)] or lines
    return errors[-1][:300] if errors else "no reason given"


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["errors"][-1]).splitlines()[0][:300]
    except (ValueError, LookupError):
        return body.decode(errors="replace")[:300]
