"""``beamrec evaluate`` on MovieLens 100K: lists in the published format, nothing seen among them, the two-tower above .22."""

import csv
import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from beam_pipelines.cli.main import main

DATA = Path(os.environ.get("BEAMREC_DATA", "")) / "ml-100k"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not (os.environ.get("BEAMREC_DATA") and DATA.is_dir()), reason="set BEAMREC_DATA to a folder that holds ml-100k")]


def test_fold_in_lists_of_the_two_tower_alone(tmp_path, capsys):
    out = tmp_path / "recs.csv"
    words = ["evaluate", "movielens", str(DATA), "--protocol", "ml_fold", "--out", str(out)]
    assert main([*words, "--workspace", str(tmp_path / "w"), "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = [tuple(map(int, line.split("\t"))) for line in (DATA / "u.data").read_text().splitlines()]
    rows.sort(key=lambda r: (r[3], r[0], r[1]))
    moment = rows[int(len(rows) * 0.8)][3]
    seen, later = defaultdict(set), defaultdict(list)
    for user, item, rating, time in rows:
        if time < moment:
            seen[user].add(item)
        else:
            later[user].append((item, rating))
    lists = defaultdict(list)
    with out.open() as file:
        for row in csv.DictReader(file):
            assert int(row["rank"]) == len(lists[int(row["user"])]) + 1
            lists[int(row["user"])].append(int(row["item"]))
    assert len(lists) == 280
    recalls = []
    for user, ranked in lists.items():
        half = len(later[user]) // 2
        known = seen[user] | {item for item, _ in later[user][:half]}
        targets = {item for item, rating in later[user][half:] if rating >= 4}
        assert targets and len(ranked) >= 20 and len(set(ranked)) == len(ranked) and not known & set(ranked)
        recalls.append(len(targets & set(ranked[:20])) / min(20, len(targets)))
    recall = sum(recalls) / len(recalls)
    assert recall >= 0.22
    assert printed["metrics"]["two_tower"]["recall_20"]["mean"] == pytest.approx(recall, abs=1e-6)
