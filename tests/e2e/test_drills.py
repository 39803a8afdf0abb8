"""The drills in small: a real server of two workers, flips and real faults under load, every answer looked at."""

import json

import pytest

from beam_pipelines.cli.main import main


@pytest.fixture
def drill(tmp_path, capsys):
    def run(name, *flags):
        code = main(["bench", name, "--work", str(tmp_path), "--users", "400", "--items", "900", "--rate", "120", "--quiet",
                     "--json", *flags])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_flips_and_rollbacks_mix_nothing_and_are_seen_by_everybody(drill):
    code, said = drill("flips", "--flips", "8")
    assert said["flips"] >= 8 and said["requests"] > 100, said
    assert (said["mixed"], said["empty"], said["short"], said["errors"], said["late"]) == (0, 0, 0, 0, 0), said
    assert code == 0 or said["max_flip_s"] > 1, said  # how fast it is is a benchmark's business


def test_losing_lists_index_and_store_costs_no_page_and_it_recovers(drill):
    faults = ["lists", "features", "page", "stream_file", "store_and_index"]
    _, said = drill("outage", "--seconds", "1.5", "--store", "sqlite", "--faults", ",".join(faults))
    assert list(said["faults"]) == ["none", *faults]
    assert (said["empty"], said["short"], said["non_200"], said["shown_again"]) == (0, 0, 0, 0), said
    missing = {name: fault["signals_missing"] for name, fault in said["faults"].items()}
    assert missing["features"] > 50 and missing["store_and_index"] > 50 and missing["none"] == missing["stream_file"] == 0, said
    assert all(fault["recovered_s"] is not None for fault in said["faults"].values()), said
    assert {"list", "on_demand", "popular", "popular_in_memory"} <= set(said["tiers"]), said
