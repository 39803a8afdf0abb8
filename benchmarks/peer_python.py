"""Python environments of the engines that benchmarks run beside beamrec, each of its own, in .bench/; made on first use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from beam_pipelines.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def peer_python(name: str) -> str:
    """The interpreter with what benchmarks/requirements-NAME.txt pins.

    Raises:
      UserError: it cannot be installed; one line says why.
    """
    folder, pinned = ROOT / ".bench" / name, ROOT / "benchmarks" / f"requirements-{name}.txt"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists() or ready.read_text() != pinned.read_text():
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        for command in ([uv, "venv", "--clear", "--python", sys.executable, str(folder)],
                        [uv, "pip", "install", "--python", str(python), "-r", str(pinned)]):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise UserError(f"{name} could not be installed: {made.stderr.strip().splitlines()[-1]}")
        ready.write_text(pinned.read_text())
    return str(python)
