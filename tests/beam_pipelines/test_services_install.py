"""Installing: each part once, a missing tool in one line, and the rest all the same."""

import os
import shutil

import pytest
from e2e.servers import need

from beam_pipelines.cli.main import main
from beam_pipelines.errors import UserError
from beam_pipelines.services import install, prism
from beam_pipelines.services.flink_rest import newest_checkpoint


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BEAMREC_SERVICES", str(tmp_path / "services"))
    return tmp_path / "services"


def pretend(home, name):
    (home / name).mkdir(parents=True)
    part = next(part for part in install.PARTS if part.name == name)
    (home / name / ".recipe").write_text(part.stamp())


def test_without_any_tool_each_part_says_what_it_needs(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    heard = []
    outcomes = {outcome.name: outcome for outcome in install.install([], heard.append)}
    assert list(outcomes) == ["kafka", "flink", "bigtable", "cbt", "prism"] and len(heard) == 5
    assert {outcome.state for outcome in outcomes.values()} == {"failed"}
    assert outcomes["kafka"].reason.startswith("needs Java 17") and "apt-get install" in outcomes["kafka"].reason
    assert outcomes["prism"].reason.startswith("needs Go")
    assert all("\n" not in outcome.reason for outcome in outcomes.values())


def test_what_is_there_needs_no_tool(home, tmp_path, monkeypatch, capsys):
    pretend(home, "kafka")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["services", "install", "kafka", "prism", "--quiet"]) == 2
    out = capsys.readouterr().out
    assert "kafka     ready" in out and "prism     failed: needs Go" in out


def test_a_changed_recipe_is_installed_again(home, tmp_path, monkeypatch):
    pretend(home, "kafka")
    shutil.copytree(install.RECIPES, tmp_path / "recipes")
    (tmp_path / "recipes" / "kafka" / "pom.xml").write_text("<project/>")
    monkeypatch.setattr(install, "RECIPES", tmp_path / "recipes")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [outcome.state for outcome in install.install(["kafka"], lambda outcome: None)] == ["failed"]


def test_a_failed_build_leaves_nothing_and_says_why(home, tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "go").write_text("#!/bin/sh\necho 'no module to be had' >&2\nexit 1\n")
    (tools / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    outcome, = install.install(["cbt"], lambda outcome: None)
    assert (outcome.state, outcome.reason) == ("failed", "no module to be had")
    assert list(home.iterdir()) == []


def test_names_and_places_are_checked(home):
    with pytest.raises(UserError, match="no service 'kafak'; one of: kafka, flink"):
        install.install(["kafak"], lambda outcome: None)
    with pytest.raises(UserError, match="kafka is not installed; get it with: make services SERVICES=kafka"):
        install.location("kafka")


def test_java_is_looked_for_in_java_home(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match="needs Java 17"):
        install.java()


def test_prism_is_the_one_in_services():
    need("prism")
    assert prism.binary() == install.home() / "prism" / "prism"


def test_without_prism_beams_own_download_is_taken_and_without_that_go_builds_it_once(tmp_path, monkeypatch):
    prism_runner = pytest.importorskip("apache_beam.runners.portability.prism_runner", reason="needs apache-beam")
    monkeypatch.setenv("BEAMREC_SERVICES", str(tmp_path / "services"))
    downloaded = tmp_path / "prism-download"
    downloaded.write_bytes(b"#!")
    monkeypatch.setattr(prism_runner.PrismJobServer, "path_to_binary", lambda _: str(downloaded))
    assert prism.is_here() and prism.binary() == downloaded
    prism.ensure(pytest.fail)  # nothing is built
    monkeypatch.setattr(prism_runner.PrismJobServer, "path_to_binary", lambda _: "http://127.0.0.1:9/prism.zip")
    monkeypatch.setattr(prism_runner.PrismJobServer, "BIN_CACHE", str(tmp_path / "cache"))
    heard, built = [], []
    outcome = install.Outcome("prism", "failed", reason="no compiler")
    monkeypatch.setattr(prism, "install", lambda names, news: built.append(names) or [outcome])
    with pytest.raises(UserError, match="no compiler"):
        prism.ensure(heard.append)
    assert built == [["prism"]] and len(heard) == 1
    monkeypatch.setattr(prism.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="SERVICES=prism") as error:
        prism.ensure(heard.append)
    assert "\n" not in str(error.value)


def test_the_newest_checkpoint_is_a_complete_one(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for at, name in enumerate(["a/chk-9", "a/chk-10", "b/chk-2", "savepoints/savepoint-1"]):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "_metadata").touch()
        os.utime(folder / "_metadata", (1000 + at, 1000 + at))
    (tmp_path / "b" / "chk-3").mkdir()  # killed before its _metadata was written
    assert newest_checkpoint(tmp_path, "a") == tmp_path / "a" / "chk-10"
    assert newest_checkpoint(tmp_path, "b") == tmp_path / "b" / "chk-2"
    assert newest_checkpoint(tmp_path) == tmp_path / "savepoints" / "savepoint-1"
    assert newest_checkpoint(tmp_path, "c") is None
