"""Files read as blocks of lines give the same lines whatever the block size, plain or gzipped."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_pipelines.importers import lines
from beam_pipelines.importers.lines import File, read_blocks


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=12).filter(lambda b: b"\n" not in b), max_size=30), st.booleans(), st.integers(1, 40),
       st.integers(1, 17), st.booleans())
def test_lines_and_numbers(tmp_path_factory: pytest.TempPathFactory, content: list[bytes], ended: bool, block: int, read: int,
                           gz: bool) -> None:
    data = b"\n".join(content) + (b"\n" if ended and content else b"")
    path = tmp_path_factory.mktemp("f") / ("a.csv.gz" if gz else "a.csv")
    path.write_bytes(gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :]) if gz else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_READ_BYTES", read)
        found = [(n, line) for b in read_blocks(File.below(path.parent, path), block)
                 for n, line in zip(b.numbers.tolist(), b.lines.to_pylist(), strict=True)]
    assert found == [(n, line) for n, line in enumerate(content, 1) if line not in (b"", b"\r")]


def test_a_line_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(lines, "_READ_BYTES", 10)
    path = tmp_path / "a.csv"
    path.write_bytes(b"x" * 5_000 + b"\nafter\n")
    found = [line for b in read_blocks(File.below(tmp_path, path), 50) for line in b.lines.to_pylist()]
    assert len(found) == 2 and len(found[0]) < 200 and found[1] == b"after"
