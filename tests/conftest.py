"""Shared by all tests: property tests have no deadline, for machines are shared and a first call may compile."""

import re
from pathlib import Path

import pytest
from e2e.servers import bigtable_emulator, flink_cluster, kafka_broker, prism_server  # noqa: F401 - fixtures for every folder
from hypothesis import settings

settings.register_profile("beamrec", deadline=None)
settings.load_profile("beamrec")
_ROOT = Path(__file__).parents[1]
_IMPORT = re.compile(r"^from ((?:schemas|transforms|models|serving|beam_pipelines|benchmarks)[\w.]*) import ([\w, ]+)", re.M)


def pytest_configure(config: pytest.Config) -> None:
    """Drops compiled loops that are older than a file with loops that theirs imports: numba looks only at a loop's own file,
    so that after an edit whoever calls the edited loop from elsewhere would go on with the old one."""
    if hasattr(config, "workerinput"):  # once, before the workers start
        return
    newest: dict[Path, float] = {}
    for folder in ("schemas", "transforms", "models", "serving", "beam_pipelines", "benchmarks"):
        for index in (_ROOT / folder).rglob("__pycache__/*.nbi"):
            source = index.parents[1] / f"{index.name.partition('.')[0]}.py"
            if source.exists() and index.stat().st_mtime < _newest(source, newest):
                index.unlink(missing_ok=True)


def _newest(source: Path, known: dict[Path, float]) -> float:
    """When a file, or one that it imports, was changed last, of those with compiled loops."""
    if source not in known:
        text = source.read_text()
        known[source] = source.stat().st_mtime if "njit" in text else 0.0
        for module, names in _IMPORT.findall(text):
            folder = _ROOT.joinpath(*module.split("."))
            for path in (folder.with_suffix(".py"), *(folder / f"{name.strip()}.py" for name in names.split(","))):
                if path.exists():
                    known[source] = max(known[source], _newest(path, known))
    return known[source]
