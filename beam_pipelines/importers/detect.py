"""Finds which data set a path holds."""

from __future__ import annotations

from pathlib import Path

from beam_pipelines.errors import UserError
from beam_pipelines.importers.dataset import Dataset
from beam_pipelines.importers.globo import Globo
from beam_pipelines.importers.lines import File
from beam_pipelines.importers.movielens import MovieLens

KINDS = ("movielens", "globo")
_EXPECTED = {
    "movielens": "u.data (MovieLens 100K) or ratings.csv (MovieLens latest)",
    "globo": "clicks_hour_*.csv",
}


def detect(path: Path | str, kind: str = "auto") -> Dataset:
    """The data set at a path: a folder with its files, a folder with one such folder, or one file of events.

    Args:
      path: the folder or file.
      kind: one of KINDS, or "auto" for whichever is found.

    Raises:
      UserError: nothing, or more than one data set, is there.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist")
    wanted = KINDS if kind == "auto" else (kind,)
    if path.is_file():
        found = _in_files(path.parent, [path], wanted)
    else:
        found = _in_folder(path, wanted)
        if not found:
            below = sorted(p for p in path.iterdir() if p.is_dir())
            found = [data for folder in below for data in _in_folder(folder, wanted)]
    if not found:
        expected = "; ".join(f"{k}: {_EXPECTED[k]}" for k in wanted)
        other = [d for d in detect_any(path) if d.name not in wanted]
        hint = f"; it holds {other[0].name} data" if other else ""
        raise UserError(f"no {' or '.join(wanted)} data in {path} (expected {expected}, each also as .gz){hint}")
    if len(found) > 1:
        raise UserError(f"{path} holds several data sets, name one: {', '.join(str(d.root) for d in found)}")
    return found[0]


def detect_any(path: Path) -> list[Dataset]:
    """Data sets of any kind directly in a folder."""
    return _in_folder(path, KINDS) if path.is_dir() else []


def _in_folder(folder: Path, kinds: tuple[str, ...]) -> list[Dataset]:
    return _in_files(folder, sorted(p for p in folder.iterdir() if p.is_file()), kinds)


def _in_files(folder: Path, paths: list[Path], kinds: tuple[str, ...]) -> list[Dataset]:
    files: dict[str, File] = {}
    for path in paths:
        file = File.below(folder, path)
        if file.source not in files or path.suffix != ".gz":  # where both forms lie, the plain one is read
            files[file.source] = file
    found: list[Dataset] = []
    if "movielens" in kinds:
        for ratings, movies, users in (("u.data", "u.item", "u.user"), ("ratings.csv", "movies.csv", None)):
            if ratings in files:
                beside = {n: files.get(n) or _beside(folder, n) for n in (movies, users) if n}
                found.append(MovieLens(folder, files[ratings], beside.get(movies), beside.get(users or "")))
    if "globo" in kinds:
        clicks = [f for name, f in sorted(files.items()) if name.startswith("clicks_hour_") and name.endswith(".csv")]
        if clicks:
            found.append(Globo(folder, clicks))
    return found


def _beside(folder: Path, name: str) -> File | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return File.below(folder, path)
    return None
