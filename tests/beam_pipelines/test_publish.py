"""Publishing: the gate over lists and bundle, canaries, expiry, and a publish killed at any point."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recommend_world import AS_OF, LiteralTower, write_world

from beam_pipelines import crashpoints
from beam_pipelines.cli.main import main
from beam_pipelines.errors import KeptPrevious, UserError
from beam_pipelines.jobs import index, pointers, publish, recommend
from beam_pipelines.options import Config
from models.registry import Registry
from serving.stores import open_store
from serving.stores.base import Active
from transforms.candidates import Blend
from transforms.gate import Thresholds

USERS = {"ann": (["i1", "i2"], ["i1", "i2", "i3"]), "bob": (["i4"], ["i4"]), "cat": (["i5"], [])}
LIMITS = Thresholds(coverage=0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config.of(tmp_path / "w", quiet=True)
    config.workspace.freeze_after(AS_OF - 1)
    vectors = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    write_world(config, USERS, vectors, {f"i{n}": 100.0 - n for n in range(12)}, {"i1": {"i7": 0.9}}, inactive=["i0"])
    index.run(config)
    return config


def make(config: Config, length: int = 5, surface: str = "homepage") -> str:
    tower = LiteralTower(str(Registry(config.workspace.models).newest().items))
    settings = recommend.RecommendSettings(surface=surface, blend=Blend(list_length=length))
    return recommend.run(config, AS_OF, settings=settings, handler=tower).version


def active_of(config: Config, surface: str = "homepage") -> Active | None:
    store = open_store(config.store)
    try:
        return store.active(surface)
    finally:
        store.close()


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_canary_is_checked_published_to_a_share_grown_and_promoted(config: Config) -> None:
    first, second = make(config, 5), make(config, 4)
    with pytest.raises(UserError, match="nothing is served yet"):
        publish.run(config, second, thresholds=LIMITS, canary=1)
    publish.run(config, first, thresholds=LIMITS)
    report = publish.run(config, second, thresholds=LIMITS, canary=0.5)
    assert report.percent == 0.5 and report.bundle.canary_recall == 1
    assert active_of(config) == Active(first, second, 0.5)
    assert pointers.share(config, 20).percent == 20
    promoted = pointers.promote(config)
    assert (promoted.version, promoted.previous, promoted.left) == (second, first, first)
    assert active_of(config) == Active(second, previous=first)


def test_a_rollback_ends_the_canary_before_it_ends_anything_else(config: Config) -> None:
    first, second = make(config, 5), make(config, 4)
    publish.run(config, first, thresholds=LIMITS)
    publish.run(config, second, thresholds=LIMITS, canary=10)
    report = pointers.rollback(config)
    assert (report.version, report.challenger, report.left) == (first, None, second)


@pytest.mark.parametrize(("harm", "reason"), [
    (lambda bundle: shutil.rmtree(bundle), "its bundle cannot be used"),
    (lambda bundle: edit(bundle / "manifest.json", index_version="tt-0"), "mixes versions: model tt-1, index tt-0"),
    (lambda bundle: edit(bundle / "manifest.json", embedding_version="tt-0"), "embeddings tt-0"),
    (lambda bundle: edit(bundle / "manifest.json", version="other"), "its bundle is of version other"),
    (lambda bundle: edit(bundle / "manifest.json", model_version="tt-9", index_version="tt-9", embedding_version="tt-9"),
     "index of model tt-1"),
    (lambda bundle: (bundle / "active.npy").write_bytes(b"\x93NUMPY"), "no readable bundle"),
    (lambda bundle: np.save(bundle / "active.npy", np.ones(12, bool)), "12 active items, its lists were made of 11"),
    (lambda bundle: np.save(bundle / "canary_answers.npy", np.full_like(np.load(bundle / "canary_answers.npy"), 99)),
     "of the canary queries' known answers, wanted 90.0%"),
])
def test_a_bundle_that_does_not_fit_keeps_what_was_served(config: Config, harm: Any, reason: str) -> None:
    first, second = make(config, 5), make(config, 4)
    publish.run(config, first, thresholds=LIMITS)
    harm(config.workspace.bundles / second)
    with pytest.raises(KeptPrevious, match=f"still serving {first}.*{reason}"):
        publish.run(config, second, thresholds=LIMITS)
    assert active_of(config) == Active(first)


def test_expired_versions_go_with_their_bundles_and_those_of_other_surfaces_stay(config: Config) -> None:
    cart = make(config, 6, "cart")
    publish.run(config, cart, "cart", LIMITS)
    made = sorted(make(config, length) for length in (3, 4, 5))
    for version in made:
        report = publish.run(config, version, thresholds=LIMITS, keep=2)
    left = {cart, made[1], made[2]}
    assert report.expired == (made[0],) or cart < made[0]
    assert {p.name for p in config.workspace.bundles.iterdir()} == left
    assert {p.stem for p in config.workspace.lists.glob("*.json")} == left
    assert active_of(config, "cart") == Active(cart)


@pytest.mark.parametrize("point", ["publish.gated", "publish.flipped", "publish.dropped"])
def test_a_publish_killed_anywhere_can_be_run_again(config: Config, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sorted(make(config, length) for length in (3, 4, 5))
    for version in made[:2]:
        publish.run(config, version, thresholds=LIMITS, keep=3)

    class Killed(BaseException):
        pass

    def die(name: str) -> None:
        if name == point:
            raise Killed

    monkeypatch.setattr(crashpoints, "reached", die)
    with pytest.raises(Killed):
        publish.run(config, made[2], thresholds=LIMITS, keep=2)
    monkeypatch.undo()
    assert active_of(config) in (Active(made[1], previous=made[0]), Active(made[2], previous=made[1]))
    publish.run(config, made[2], thresholds=LIMITS, keep=1)
    assert active_of(config) == Active(made[2], previous=made[1])
    assert {p.name for p in config.workspace.bundles.iterdir()} == set(made[1:])
    store = open_store(config.store)
    assert store.versions() == made[1:]
    store.close()


def test_the_command_says_what_it_did(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted((make(config, 5), make(config, 4)))
    flags = ["--workspace", str(config.workspace.root), "--quiet"]
    assert main(["publish", first, "--min-coverage", "0", *flags]) == 0
    assert main(["publish", second, "--min-coverage", "0", "--canary", "1%", *flags]) == 0
    assert f"version {second} is now served to 1% of the users" in capsys.readouterr().out
    assert main(["publish", "--percent", "10%", *flags]) == 0
    assert "to 10% of the users" in capsys.readouterr().out
    started = time.monotonic()
    assert main(["rollback", *flags]) == 0
    assert time.monotonic() - started < 1
    assert f"version {first} is served to everybody again" in capsys.readouterr().out
    for words, message in ((["--canary", "0%"], "0.01% to 100%"), (["--promote"], "no challenger runs"),
                           ([second, "--promote"], "leave VERSION out")):
        assert main(["publish", *words, *flags]) == 2
        assert message in capsys.readouterr().err
