"""``beamrec show`` over a real store."""

import json

import pytest
from serving_world import DAY, NOW

from beam_pipelines.cli.main import main
from schemas.cells import encode_list
from schemas.features import FEATURES, group
from schemas.keys import ITEM, row_key
from serving.stores.base import Cell, FeatureWrite


@pytest.fixture
def show(world, capsys):
    """Runs ``beamrec show`` on a world with one known user and item; returns (exit code, stdout, stderr)."""
    world.catalogue("i1", "i2", "p1", heat="Heat (1995) [director's cut]")
    world.put_features("ann", "user_last_items", ["heat", "i1"])
    world.put_stats("user", "ann", at=NOW - 3_600_000_000, count_click_1d=2, count_click_7d=5, segment=2, recency_days=0.25)
    world.put_list("ann", "v1", ["i2", "i1"], reason="because_you_watched", because="heat")
    world.put_list("", "v1", ["p1"], reason="popular")
    world.put_stats("item", "heat", popularity_1d=12)
    times, scores = [0, 0], [0.75, 0.5]
    cell = encode_list(group("item_cooccurrence").id, ["i2", "i1"], times, scores)
    world.store.write_features([FeatureWrite(row_key(ITEM, "heat"), "batch", "item_cooccurrence", Cell(cell, NOW))])

    def run(*words):
        code = main(["show", *words, "--workspace", str(world.workspace.root)])
        return code, *capsys.readouterr()

    run.world = world
    return run


def test_a_user_as_json(show):
    show.world.flip("v1")
    code, out, err = show("user", "ann", "--json")
    assert code == 0 and err == ""
    document = json.loads(out)
    assert set(document) == {"user_id", "low_confidence", "history", "features", "recommendations", "stream"}
    assert document["low_confidence"] is False and document["stream"] is None
    assert document["history"][0] == {
        "item_id": "heat", "title": "Heat (1995) [director's cut]", "at": "2023-11-14T00:00:00Z", "weight": 1.0}
    features = document["features"]
    assert list(features) == [f.name for f in FEATURES if f.entity == "user"]
    assert features["count_click_7d"] == {"value": 5.0, "source": "batch", "age_s": 3600.0, "label": None}
    assert features["segment"] == {"value": 2.0, "source": "batch", "age_s": 3600.0, "label": "power"}
    assert features["count_view_1d"] == {"value": 0.0, "source": "default", "age_s": None, "label": None}
    assert features["price_mean_30d"]["value"] is None and features["category_affinity_30d"]["value"] == []
    answer = document["recommendations"]
    assert [i["item_id"] for i in answer["items"]] == ["i2", "i1"] and answer["served_from"] == "list"
    assert answer["items"][0]["explanation"]["reason"] == "Because you watched Heat (1995) [director's cut]"


def test_a_user_for_people(show):
    show.world.flip("v1")
    code, out, _ = show("user", "ann")
    assert code == 0
    text = " ".join(out.split())
    for part in ("User ann", "History", "2023-11-14 00:00", "Heat (1995) [director's cut]", "count_click_7d 5 batch 1 h",
                 "segment power", "Recommendations (own list; model m1, made 2023-11-15 00:00 UTC)", "Title of i2"):
        assert part in text
    assert "count_view_1d" not in out and "count_view_1d" in show("user", "ann", "--all")[1]


def test_an_unknown_user_gets_the_popular_items(show):
    show.world.flip("v1")
    document = json.loads(show("user", "nobody", "--json")[1])
    assert document["history"] == [] and {f["source"] for f in document["features"].values()} == {"default"}
    assert [i["item_id"] for i in document["recommendations"]["items"]] == ["p1"]
    out = show("user", "nobody")[1]
    assert "not known" in out and "Popular right now" in out


def test_before_the_first_publish_there_is_no_list(show):
    assert json.loads(show("user", "ann", "--json")[1])["recommendations"] is None
    code, out, _ = show("user", "ann")
    assert code == 0 and "nothing is published yet" in out and "count_click_7d" in out


def test_a_feature_past_its_ttl_has_its_default(show):
    show.world.put_stats("user", "late", at=NOW - 8 * DAY, count_click_1d=9)
    features = json.loads(show("user", "late", "--json")[1])["features"]
    assert features["count_click_1d"] == {"value": 0.0, "source": "default", "age_s": None, "label": None}


def test_an_item(show):
    document = json.loads(show("item", "heat", "--json")[1])
    assert document["title"] == "Heat (1995) [director's cut]" and document["catalogue"]["attributes"] == {"year": "1995"}
    assert document["features"]["popularity_1d"]["value"] == 12.0
    assert document["cooccurring"] == [{"item_id": "i2", "title": "Title of i2", "score": 0.75},
                                       {"item_id": "i1", "title": "Title of i1", "score": 0.5}]
    text = " ".join(show("item", "heat")[1].split())
    assert "Item heat Heat (1995) [director's cut]" in text and "1 i2 Title of i2 0.750" in text


def test_what_is_wrong_is_one_line(show, tmp_path, capsys):
    code, out, err = show("item", "nothing")
    assert code == 2 and out == "" and err.startswith("beamrec show: no item 'nothing'") and err.count("\n") == 1
    assert main(["show", "user", "1", "--workspace", str(tmp_path / "nowhere")]) == 2
    assert "no store at" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()
    assert show("user", "1", "--store", "redis://x")[0] == 2
