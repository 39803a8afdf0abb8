"""30-day category affinity: the features job beside Polars, PySpark and row-wise Beam, over the same files, results equal.

Each side runs in a process of its own on the same machine, one after the other, warmed on one day (start-up not counted);
the median of --runs counts. Row-wise Beam runs on fewer events (--rowwise-events) and its time is scaled to all of them.
PySpark gets a virtual environment of its own, .bench/pyspark, made on first use (needs a Java runtime).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import polars as pl

from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from benchmarks.peer_python import ROOT, peer_python
from benchmarks.synthetic import add_world_flags, print_measured, write_events

DAYS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    add_world_flags(parser)
    parser.add_argument("--rowwise-events", type=int, default=200_000, help="events of row-wise Beam (default: 200,000)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--without-pyspark", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Runs every side; exit code 1 when their results differ."""
    return print_measured(args, measure)


def measure(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """The figures, by the names that ``--json`` prints."""
    listing, few = work / "events.txt", work / "few.txt"
    work.mkdir(parents=True, exist_ok=True)
    for events, place in ((args.events, listing), (args.rowwise_events, few)):
        shutil.rmtree(work / place.stem, ignore_errors=True)
        place.write_text("\n".join(write_events(Lake.open(work / place.stem), events, DAYS, args.users, args.items)))
    ours = _side("beamrec", args.runs, work / "beamrec.out", listing)
    peer = _side("polars", args.runs, work / "polars.parquet", listing)
    rows = _side("beam_rowwise", 1, work / "rowwise.parquet", few)
    _side("polars", 1, work / "few.parquet", few)
    _side("beamrec", 1, work / "few.out", few)
    found = _read((work / "beamrec.out").read_text().split(), snapshot=True)
    polars_result = _read([str(work / "polars.parquet")])
    few_found = _read((work / "few.out").read_text().split(), snapshot=True)
    equal = {"polars": _equal(found, polars_result),
             "beam_rowwise": all(_equal(few_found, _read([str(work / f"{side}.parquet")])) for side in ("rowwise", "few"))}
    beamrec_s, polars_s = statistics.median(ours["seconds"]), statistics.median(peer["seconds"])
    document: dict[str, object] = {
        "events": args.events, "days": DAYS, "users": len(found), "cores": os.cpu_count(), "runs": args.runs,
        "beamrec_s": round(beamrec_s, 3), "polars_s": round(polars_s, 3),
        "beam_rowwise_s": round(rows["seconds"][0] * args.events / args.rowwise_events, 1),
        "beam_rowwise_note": f"measured on {args.rowwise_events} events in {rows['seconds'][0]:.2f} s, scaled",
        "ratio_vs_polars": round(beamrec_s / polars_s, 2),
        "cpu_s": {"beamrec": round(statistics.median(ours["cpu_s"]), 2), "polars": round(statistics.median(peer["cpu_s"]), 2)},
        "peak_rss_gib": round(ours["peak_rss_gib"], 2),
        "timed": "from Parquet files of a lake to written Parquet; interpreter, imports, sessions and empty tables before it",
        "deduplication": "by the lake when it wrote the events; none on any side",
    }
    if not args.without_pyspark:
        spark = _side("pyspark", args.runs, work / "pyspark", listing, _pyspark())
        spark_s = statistics.median(spark["seconds"])
        equal["pyspark"] = _equal(found, _read([str(p) for p in (work / "pyspark").glob("*.parquet")]))
        document |= {"pyspark_s": round(spark_s, 2), "speedup_vs_pyspark": round(spark_s / beamrec_s, 2)}
    return {**document, "equal_to": equal, "equal": all(equal.values())}


def _side(side: str, runs: int, out: Path, listing: Path, python: str = sys.executable) -> dict:
    done = subprocess.run([python, "-m", "benchmarks.affinity_sides", side, str(runs), str(out), str(listing)], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the {side} side failed: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _pyspark() -> str:
    if not shutil.which("java"):
        raise UserError("PySpark needs a Java runtime; install one or pass --without-pyspark")
    return peer_python("pyspark")


def _read(paths: list[str], snapshot: bool = False) -> pl.DataFrame:
    frame = pl.read_parquet(paths)
    if snapshot:
        frame = frame.select("user_id", pl.col("category_affinity_30d").struct.field("ids"),
                             pl.col("category_affinity_30d").struct.field("scores"))
    return frame.sort("user_id")


def _equal(ours: pl.DataFrame, theirs: pl.DataFrame) -> bool:
    """The same users, the same categories in the same order, shares within 1e-6."""
    if len(ours) != len(theirs) or not (ours["user_id"] == theirs["user_id"]).all() or not (ours["ids"] == theirs["ids"]).all():
        return False
    gap = (ours["scores"].explode() - theirs["scores"].explode()).abs().max()
    return gap is not None and float(gap) < 1e-6  # type: ignore[arg-type]
