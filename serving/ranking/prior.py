"""What to expect of a user nobody knows: popular lists of who signed up alike, and of the interests they named.

  prior(i) = .5 alike(i) + .3 segment(i) + .2 everybody(i)

alike is the mean of the popular lists of the user's sign-up attributes that have one in the bundle ("age=25", "country=DE")
and of the popular items of the categories named under "interests"; segment is that of new users (or the user's own). What
there is no list for gives its share to the others, so the best item has about 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from models.inference.bundle import EVERYBODY, Bundle

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

ALIKE, SEGMENT, ANYBODY = 0.5, 0.3, 0.2
INTERESTS = "interests"
"""Sign-up attribute that names categories, with commas between."""
INTEREST_ITEMS = 100
MAX_ATTRIBUTES = 16
NEW = "new"


def prior(bundle: Bundle, attributes: Mapping[str, str], segment: str | None) -> tuple[I32, F32]:
    """(positions, scores in [0, 1]) of the items to expect, best first, ties by position; never empty unless the bundle is."""
    alike = list(_alike(bundle, attributes))
    parts = [(ALIKE / max(1, len(alike)), found) for found in alike]
    name = segment if segment in bundle.manifest.segments and segment != EVERYBODY else NEW
    if name in bundle.manifest.segments:
        parts.append((SEGMENT, bundle.popular(name)))
    parts.append((ANYBODY, bundle.popular()))
    total = sum(weight for weight, _ in parts)
    positions = np.concatenate([found for _, (found, _) in parts])
    shares = np.concatenate([np.float32(weight / total) * scores for weight, (_, scores) in parts])
    items, where = np.unique(positions, return_inverse=True)
    scores = np.bincount(where, shares, len(items)).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    return items[order].astype(np.int32), scores[order]


def attribute_segment(name: str, value: str) -> str:
    """Name of the popular list of users with that sign-up attribute."""
    return f"{name}={value}"


def _alike(bundle: Bundle, attributes: Mapping[str, str]) -> Iterator[tuple[I32, F32]]:
    for name, value in list(attributes.items())[:MAX_ATTRIBUTES]:
        if name == INTERESTS:
            wanted = (part.strip() for part in value.split(",")[:MAX_ATTRIBUTES])
            yield from (found for category in wanted if len((found := _of_category(bundle, category))[0]))
        elif (listed := attribute_segment(name, value)) in bundle.manifest.segments:
            yield bundle.popular(listed)


def _of_category(bundle: Bundle, category: str) -> tuple[I32, F32]:
    """The most popular active items of a category."""
    code = bundle.category_code.get(category, -1)
    owner = np.searchsorted(bundle.category_offsets, np.flatnonzero(bundle.category_codes == code), side="right") - 1
    owner = owner[bundle.active[owner]]
    best = owner[np.argsort(-bundle.popularity[owner], kind="stable")][:INTEREST_ITEMS].astype(np.int32)
    top = max(float(bundle.popularity[best[0]]), 1e-9) if len(best) else 1.0
    return best, (bundle.popularity[best] / np.float32(top)).astype(np.float32)
