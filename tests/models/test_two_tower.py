"""The towers and their loss, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorflow_transform", reason="needs pip install 'beamrec[train]'")

from models.two_tower import model as towers
from models.two_tower.config import TwoTowerConfig
from models.two_tower.data import batches
from models.two_tower.model import ITEM_COLUMNS, USER_COLUMNS, Sizes, TwoTower, among
from models.two_tower.runtime import tf
from transforms.preprocessing import ITEM_NUMBERS

SIZES = Sizes(items=40, categories=6)
CONFIG = TwoTowerConfig(dim=8, hidden=8)


def batch(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {name: rng.integers(0, 4, n).astype(np.int32) for name in (*USER_COLUMNS, *ITEM_COLUMNS)}
    made |= {name: rng.standard_normal(n).astype(np.float32) for name in ITEM_NUMBERS}
    made["liked_items"] = rng.integers(-1, 40, (n, 5)).astype(np.int32)
    made["liked_ages"] = np.where(made["liked_items"] < 0, -1, rng.integers(0, 9, (n, 5))).astype(np.int32)
    made["affinity_ids"] = rng.integers(-1, 6, (n, 3)).astype(np.int32)
    made["affinity_shares"] = np.where(made["affinity_ids"] < 0, 0, rng.random((n, 3))).astype(np.float32)
    made["categories"] = rng.integers(-1, 6, (n, 2)).astype(np.int32)
    made["item_id"] = rng.integers(0, 40, n).astype(np.int32)
    return made


def model(sampling: np.ndarray | None = None) -> TwoTower:
    tf.keras.utils.set_random_seed(3)
    return TwoTower(CONFIG, SIZES, np.full(40, 1 / 40, np.float32) if sampling is None else sampling)


def tensors(columns: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in columns.items()}


@pytest.mark.parametrize("seed", range(4))
def test_among_finds_which_batch_items_a_list_holds(seed):
    rng = np.random.default_rng(seed)
    lists, ids = rng.integers(-1, 30, (40, 10)).astype(np.int32), rng.integers(0, 40, 25).astype(np.int32)
    expected = (lists[:, :, None] == ids[None, None, :]).any(1)
    assert np.array_equal(among(tf.constant(lists), tf.constant(ids)).numpy(), expected)


def test_loss_is_the_sampling_corrected_softmax_over_the_batch():
    columns = batch(30)
    sampling = np.random.default_rng(1).dirichlet(np.ones(40)).astype(np.float32).clip(1e-4)
    two_tower = model(sampling)
    features = tensors(columns)
    users, items = two_tower.user_tower(features).numpy(), two_tower.item_tower(features).numpy()
    ids = columns["item_id"]
    logits = users @ items.T - np.log(sampling[ids])[None, :]
    other = ~np.eye(30, dtype=bool)
    logits[other & (ids[:, None] == ids[None, :])] = -1e30  # the same item is no negative of itself
    logits[other & (columns["liked_items"][:, :, None] == ids[None, None, :]).any(1)] = -1e30  # nor is what was liked before
    wanted = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert float(two_tower.compute_loss(features)) == pytest.approx(wanted, rel=1e-4)


def test_vectors_carry_the_bias_in_their_last_component_and_a_bounded_direction():
    two_tower, features = model(), tensors(batch(12))
    users, items = two_tower.user_tower(features).numpy(), two_tower.item_tower(features).numpy()
    assert users.shape == items.shape == (12, CONFIG.dim)
    assert (users[:, -1] == 1).all()
    assert np.linalg.norm(users[:, :-1], axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    assert np.linalg.norm(items[:, :-1], axis=1) == pytest.approx(np.full(12, 1 / CONFIG.temperature), rel=1e-5)


def test_padding_and_the_rest_of_the_batch_change_nothing():
    columns = batch(6)
    wide = dict(columns)
    for name, fill in (("liked_items", towers.PADDING), ("liked_ages", towers.PADDING), ("affinity_ids", -1),
                       ("affinity_shares", 0), ("categories", -1)):
        wide[name] = np.pad(columns[name], ((0, 0), (0, 4)), constant_values=fill)
    two_tower = model()
    for tower in (two_tower.user_tower, two_tower.item_tower):
        alone = tower(tensors({name: values[2:3] for name, values in wide.items()})).numpy()
        assert alone == pytest.approx(tower(tensors(columns)).numpy()[2:3], abs=1e-6)


def test_batches_see_every_row_once_an_epoch_in_an_order_of_the_seed():
    columns = batch(40)
    columns["item_id"] = np.arange(40, dtype=np.int32)

    def epoch(data: tf.data.Dataset) -> list[int]:
        return [int(i) for one in data for i in one["item_id"]]

    first = batches(columns, 8, seed=5)
    one, two = epoch(first), epoch(first)
    assert sorted(one) == sorted(two) == list(range(40)) and one != two
    again = batches(columns, 8, seed=5)
    assert [epoch(again), epoch(again)] == [one, two]
    assert epoch(batches(columns, 8, seed=6)) != one
    assert len(epoch(batches(columns, 12, seed=5))) == 36  # whole batches only
