"""Feast's side of ``beamrec bench features``: runs in Feast's own environment, knows nothing of beamrec.

  python features_feast.py FOLDER STORE      FOLDER holds values.npz; STORE is the online_store of feature_store.yaml as JSON

Writes the values to the online store, then answers lines on stdin, "user N SEED" or "item N SEED", with one line of JSON: the
seconds of N reads and a checksum of what they gave. Set as Feast's documentation says for low latency: a registry file that is
cached for ever, a feature service that is looked up once, entities as columns, no feature views that need transformation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float32

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)


def made(folder: Path, online: dict[str, str], values: dict[str, np.ndarray]) -> tuple[FeatureStore, dict[str, FeatureService]]:
    """A store that holds the values, and its feature services by entity."""
    store = FeatureStore(config=RepoConfig(
        project="bench", provider="local", entity_key_serialization_version=3, online_store=online,
        offline_store={"type": "file"},
        registry={"path": str(folder / f"registry-{online['type']}.db"), "cache_ttl_seconds": 0}))
    services, frames, objects = {}, {}, []
    for kind, matrix in values.items():
        names = [f"{kind}_f{i:03}" for i in range(matrix.shape[1])]
        frame = pd.DataFrame(matrix, columns=names)
        frame.insert(0, f"{kind}_id", [f"{kind}-{i:06}" for i in range(len(matrix))])
        frame["event_timestamp"] = datetime.now(UTC) - timedelta(hours=1)
        path = folder / f"{kind}.parquet"
        frame.to_parquet(path)
        entity = Entity(name=kind, join_keys=[f"{kind}_id"], value_type=ValueType.STRING)
        view = FeatureView(name=f"{kind}_stats", entities=[entity], ttl=timedelta(days=7), online=True,
                           schema=[Field(name=name, dtype=Float32) for name in names],
                           source=FileSource(path=str(path), timestamp_field="event_timestamp"))
        services[kind] = FeatureService(name=f"{kind}_service", features=[view])
        frames[view.name] = frame
        objects += [entity, view, services[kind]]
    store.apply(objects)
    for name, frame in frames.items():
        store.write_to_online_store(name, frame)
    return store, {kind: store.get_feature_service(f"{kind}_service") for kind in values}


def main() -> None:
    """See the module."""
    folder, online = Path(sys.argv[1]), json.loads(sys.argv[2])
    values = dict(np.load(folder / "values.npz"))
    store, services = made(folder, online, values)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        kind, count, seed = line.split()
        size = 1 if kind == "user" else 100
        chance, names = np.random.default_rng(int(seed)), [f"{kind}_f{i:03}" for i in range(values[kind].shape[1])]
        took, digest = [], hashlib.sha256()
        for _ in range(int(count)):
            ids = [f"{kind}-{i:06}" for i in chance.choice(len(values[kind]), size, replace=False)]
            began = time.perf_counter()
            found = store.get_online_features(services[kind], {f"{kind}_id": ids}).to_dict()
            took.append(time.perf_counter() - began)
            digest.update(np.array([found[name] for name in names], np.float32).T.tobytes())
        print(json.dumps({"seconds": took, "digest": digest.hexdigest()}), flush=True)


if __name__ == "__main__":
    main()
