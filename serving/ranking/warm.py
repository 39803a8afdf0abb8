"""Compiles what ranking runs, before the first request waits for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.inference.bundle import Bundle
from schemas.cells import RankedList, encode_recs
from serving.page_json import items_json
from serving.ranking.listed import read_listed
from serving.ranking.model import Ask, Candidates, Signals
from serving.ranking.on_demand import make
from serving.ranking.overlay import ItemUpsert, Overlay
from serving.ranking.policy import Policies
from serving.ranking.rank import rank
from serving.ranking.rules import rules_of

_ITEMS, _ASKS = 30, 8


def warm_up(policies: Policies, bundle: Bundle) -> None:
    """Ranks a page of every context of a bundle, and makes a list: rules worked out, kernels compiled, pages touched.

    The first call of a machine compiles (20 s); later ones, of any process, read numba's cache (0.3 s).

    Raises:
      BundleError, IndexFormatError: the index cannot be loaded.
    """
    ids = bundle.ids(bundle.by_popularity[:_ITEMS])
    if not ids:
        return
    n = len(ids)
    stored = RankedList(ids, np.linspace(1, 0, n, dtype=np.float32), ["popular"] * n, ["popular"] * n, [""] * n,
                      bundle.manifest.model_version, 0, 1)
    recs = read_listed(encode_recs(stored))
    signals = Signals(known=True, session=[(i, 1.0) for i in ids[:3]], history=[(i, 3.0) for i in ids[:5]],
                      preference=dict.fromkeys(bundle.categories_of(int(bundle.by_popularity[0])), 1.0), low_confidence=True)
    shown = np.zeros(1, np.uint32)
    overlay = Overlay.of([ItemUpsert(ids[0], 0), ItemUpsert("\x00new", 0)])
    candidates = Candidates(recs, bundle.version, "popular", False)
    for policy in policies.contexts.values():
        rules_of(policy, bundle)
        ask = Ask("", policy.name, page_size=10, shown=shown)
        page = rank(ask, candidates, signals, policy, bundle)
        if page.packed is not None:
            items_json(page.packed, page.scores, 1, bundle)
        for number in range(_ASKS):  # of which some get a new item
            rank(replace(ask, request_id=f"{number}"), candidates, signals, policy, bundle, overlay)
    make(Ask(""), signals, bundle, 0)
