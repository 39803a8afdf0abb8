"""The bundle that the recommend job writes: of the same inputs as its lists, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recommend_world import AS_OF, LiteralTower, listed, rows_of, write_world

from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import index, recommend
from beam_pipelines.options import Config
from models.inference.bundle import Bundle
from models.registry import Registry, write_vectors
from schemas.tables import USER_SNAPSHOTS, USERS
from transforms.candidates import Blend

PEOPLE = {"ann": (["i1", "i2"], ["i1", "i2", "i3"]), "bob": (["i4"], ["i4"]), "new": ([], [])}
SETTINGS = recommend.RecommendSettings(blend=Blend(list_length=5))


def world(folder: Path) -> Config:
    config = Config.of(folder, quiet=True)
    config.workspace.freeze_after(AS_OF - 1)
    vectors = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    write_world(config, PEOPLE, vectors, {f"i{n}": 100.0 - n for n in range(14)}, {"i1": {"i7": 0.9}, "i4": {"i5": 0.5}},
                inactive=["i0"])
    index.run(config)
    return config


def make(config: Config) -> recommend.RecommendReport:
    return recommend.run(config, AS_OF, settings=SETTINGS,
                         handler=LiteralTower(str(Registry(config.workspace.models).newest().items)))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_version_comes_with_its_bundle(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    report = make(config)
    assert report.stages["bundle"] > 0
    bundle = Bundle.open(config.workspace.bundles / report.version)
    assert (bundle.version, bundle.manifest.model_version, bundle.manifest.surface) == (report.version, "tt-1", "homepage")
    assert (bundle.manifest.items, bundle.manifest.vectors, int(bundle.active.sum())) == (14, 12, 13)
    assert bundle.canary_recall() == 1.0
    i1, i13 = bundle.positions(["i1", "i13"]).tolist()
    assert bundle.ids(bundle.neighbours_of(i1)[0]) == ["i7"]
    assert json.loads(bundle.metadata(i1))["title"] == "Title i1"
    assert json.loads(bundle.metadata(i13)) == {"title": None, "image": None, "price": None, "category": None,
                                               "categories": [], "attributes": {}}
    assert bundle.ids(bundle.popular()[0])[:3] == ["i1", "i2", "i3"]


def test_what_a_segment_touched_lately_is_popular_there(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    lake = Lake.open(config.lake)
    stamp = {"as_of": AS_OF, "published_at": AS_OF, "consumed_items": listed([])}
    taken = [(2, ["i7", "i9"]), (2, ["i9", "i0"]), (1, ["i3", "unknown"]), (2, [*(f"i{n}" for n in range(1, 11)), "i11"])]
    rows = [{**stamp, "user_id": f"u{k}", "segment": float(segment), "last_items": listed(items)}
            for k, (segment, items) in enumerate(taken)]
    lake.replace_days("user_snapshots", {AS_OF: [lake.write_file("user_snapshots", rows_of(USER_SNAPSHOTS, rows), AS_OF)]})
    bundle = Bundle.open(config.workspace.bundles / make(config).version)
    power, scores = bundle.popular("power")
    assert bundle.ids(power)[:3] == ["i9", "i7", "i1"] and len(power) == 10  # neither inactive i0 nor the eleventh, i11
    assert scores[:3].tolist() == pytest.approx([1, np.log(3) / np.log(4), np.log(2) / np.log(4)])
    assert bundle.ids(bundle.popular("casual")[0]) == ["i3"]
    assert bundle.ids(bundle.popular("dormant")[0])[:2] == ["i1", "i2"]  # nobody there: everybody's


def test_users_who_signed_up_alike_have_a_popular_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world(tmp_path / "w")
    lake = Lake.open(config.lake)
    stamp = {"as_of": AS_OF, "published_at": AS_OF, "consumed_items": listed([])}
    rows = [{**stamp, "user_id": f"u{k}", "last_items": listed([f"i{1 + k % 2}", "i5"])} for k in range(8)]
    lake.replace_days("user_snapshots", {AS_OF: [lake.write_file("user_snapshots", rows_of(USER_SNAPSHOTS, rows), AS_OF)]})
    before = make(config)
    assert Bundle.open(config.workspace.bundles / before.version).manifest.segments == ("",)
    profiles = [{"user_id": f"u{k}", "country": "NZ" if k == 3 else None, "is_active": True, "updated_at": 0,
                 "attributes": [("age", "25" if k % 2 else "40")], "schema_version": 1} for k in range(9)]
    lake.replace_all("users", rows_of(USERS, profiles))
    monkeypatch.setattr("beam_pipelines.jobs.popular_lists.ATTRIBUTE_USERS", 2)
    report = make(config)
    assert report.version != before.version
    bundle = Bundle.open(config.workspace.bundles / report.version)
    assert bundle.manifest.segments == ("", "age=25", "age=40")  # one user of NZ is no group
    positions, scores = bundle.popular("age=25")
    assert bundle.ids(positions) == ["i2", "i5"] and scores.tolist() == [1.0, 1.0]


def test_a_bundle_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    report = make(config)
    before = files_of(config.workspace.bundles)
    assert make(config).reused
    shutil.rmtree(config.workspace.bundles)
    again = make(config)
    assert (again.version, again.reused) == (report.version, False) and files_of(config.workspace.bundles) == before


def test_vectors_that_are_not_those_of_the_index_are_refused(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    model = Registry(config.workspace.models).newest()
    ids, vectors = model.item_vectors()
    write_vectors(model.items, ids, vectors + 1)
    with pytest.raises(UserError, match=r"mixes versions.*beamrec index --force"):
        make(config)
    assert not config.workspace.bundles.exists() or not list(config.workspace.bundles.iterdir())


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_bundling
from beam_pipelines.options import Config
config = Config.of(Path(sys.argv[1]), quiet=True)
test_bundling.make(config)
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["bundle.start", "bundle.written", "lists.written"])
def test_a_job_killed_anywhere_and_run_again_writes_the_same(tmp_path: Path, point: str) -> None:
    config = world(tmp_path / "w")
    shutil.copytree(tmp_path / "w", tmp_path / "whole")
    report = make(Config.of(tmp_path / "whole", quiet=True))
    here = Path(__file__).parent
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "w"), str(here)], check=False,
                            env={**os.environ, "BEAMREC_CRASH_AT": point}, capture_output=True, cwd=here.parent.parent)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert make(config).version == report.version
    assert files_of(tmp_path / "w" / "bundles") == files_of(tmp_path / "whole" / "bundles")


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    config = world(tmp_path / "w")
    (config.workspace.bundles / ".x.999999999.tmp" / "index").mkdir(parents=True)
    (config.workspace.bundles / f".y.{os.getpid()}.tmp").mkdir()
    report = make(config)
    assert sorted(p.name for p in config.workspace.bundles.iterdir()) == [f".y.{os.getpid()}.tmp", report.version]
