"""Items that are newer than a bundle: added, changed and removed since, so that they are shown or gone within minutes.

An Overlay is made of the items' upserts (newest first wins by updated_at) and never changes; whoever reads the upserts makes
the next one with ``with_items`` and swaps the reference. A new item gets a vector of its content:

  vector = unit(ALPHA * content + (1 - ALPHA) * prior),   ALPHA = .7
  content = unit(text + category)

text is the mean, over the title's words, of the mean unit vector of the popular items that hold the word (words in few
items weigh more: 1 / log(1 + items)); category is the mean of its categories' centroids, and prior the same again: nobody has
seen the item yet. Without known words and categories there is no vector.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from models.inference.bundle import Bundle
from models.inference.idtable import hashes_of
from models.inference.words import WordIndex, items_of_words
from serving.ranking.page import set_of

ALPHA = 0.7
CENTROID_ITEMS = 200
"""Popular items of a category that its centroid is the mean of."""
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ItemUpsert:
    """An item as the catalogue has it now."""

    item_id: str
    updated_at: int
    title: str | None = None
    categories: tuple[str, ...] = ()
    price: float | None = None
    image: str | None = None
    attributes: Mapping[str, str | None] = field(default_factory=dict)
    is_active: bool = True

    def metadata(self) -> bytes:
        """As Bundle.metadata."""
        return msgspec.json.encode({
            "title": self.title, "image": self.image, "price": self.price,
            "category": self.categories[0] if self.categories else None, "categories": list(self.categories),
            "attributes": dict(sorted(self.attributes.items()))})


@dataclass(frozen=True, eq=False)
class Overlay:
    """What changed since a bundle was made.

    Attributes:
      items: by id, the newest upsert of each.
      removed: ids that are not active any more.
    """

    items: Mapping[str, ItemUpsert] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, upserts: Iterable[ItemUpsert]) -> Overlay:
        """The overlay of some upserts; of an item the one of the highest updated_at counts, of equal ones the last."""
        items: dict[str, ItemUpsert] = {}
        for upsert in upserts:
            known = items.get(upsert.item_id)
            if known is None or upsert.updated_at >= known.updated_at:
                items[upsert.item_id] = upsert
        return cls(items, frozenset(i for i, u in items.items() if not u.is_active))

    @functools.cached_property
    def removed_hashes(self) -> npt.NDArray[np.uint64]:
        """Of ``removed``."""
        return hashes_of(tuple(self.removed))

    def metadata(self, ids: Iterable[str]) -> dict[str, bytes]:
        """As Bundle.metadata, of those that something newer is known of."""
        return {i: self.items[i].metadata() for i in ids if i in self.items}

    def with_items(self, upserts: Iterable[ItemUpsert]) -> Overlay:
        """This one and more."""
        return Overlay.of([*self.items.values(), *upserts])

    def over(self, bundle: Bundle) -> OverlayRows:
        """Its active items as rows beside a bundle's; worked out once per bundle."""
        return _rows(self, weakref.ref(bundle))


@dataclass(frozen=True, eq=False)
class OverlayRows:
    """k items beside a bundle.

    Attributes:
      ids, row: ids and the row of each.
      units: (k, d) unit vectors, zeros where nothing is known of the words and categories.
      categories: codes of each; those that the bundle does not know follow its own, ``category_code`` names them.
      fresh: rows of items that the bundle does not hold.
    """

    ids: tuple[str, ...]
    row: Mapping[str, int]
    units: F32
    categories: tuple[tuple[int, ...], ...]
    category_code: Mapping[str, int]
    fresh: npt.NDArray[np.int32]

    @functools.cached_property
    def fresh_units(self) -> F32:
        """(f, d) of the fresh ones."""
        return self.units[self.fresh]

    @functools.cached_property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """The set of the ids (serving.ranking.page.set_of)."""
        return set_of(hashes_of(self.ids))


@functools.lru_cache(maxsize=8)
def _rows(overlay: Overlay, reference: weakref.ref[Bundle]) -> OverlayRows:
    bundle = reference()
    if bundle is None:
        raise ReferenceError("the bundle is gone")
    active = [u for u in overlay.items.values() if u.is_active]
    code = dict(bundle.category_code)
    categories = tuple(tuple(code.setdefault(name, len(code)) for name in u.categories) for u in active)
    units, known = np.zeros((len(active), bundle.manifest.dimensions), np.float32), _vectors.setdefault(bundle, {})
    for at, upsert in enumerate(active):
        held = known.get(upsert.item_id)
        if held is None or held[0] is not upsert:
            held = known[upsert.item_id] = upsert, content_vector(bundle, upsert)
        units[at] = held[1]
    if len(known) > 2 * len(active) + 1000:
        _vectors[bundle] = {u.item_id: known[u.item_id] for u in active}
    positions = bundle.positions([u.item_id for u in active])
    added = {name: c for name, c in code.items() if c >= len(bundle.category_names)}
    return OverlayRows(tuple(u.item_id for u in active), {u.item_id: at for at, u in enumerate(active)}, units, categories,
                       added, np.flatnonzero(positions < 0).astype(np.int32))


def content_vector(bundle: Bundle, item: ItemUpsert) -> F32:
    """(d,) unit vector of a new item, see the module; zeros when nothing is known of it."""
    category = _mean([centroid(bundle, name) for name in item.categories], bundle)
    content = _unit(_text_vector(bundle, item.title or "") + category)
    return _unit(ALPHA * content + (1 - ALPHA) * category)


def _text_vector(bundle: Bundle, text: str) -> F32:
    words = items_of_words(WordIndex(bundle.word_hashes, bundle.word_offsets, bundle.word_items), text)
    total = np.zeros(bundle.manifest.dimensions, np.float32)
    for items in words:
        total += bundle.units(items).mean(axis=0) / np.float32(np.log1p(len(items)))
    return _unit(total)


_vectors: weakref.WeakKeyDictionary[Bundle, dict[str, tuple[ItemUpsert, F32]]] = weakref.WeakKeyDictionary()
"""By item id: an overlay that grows by one item has one vector to work out."""
_centroids: weakref.WeakKeyDictionary[Bundle, dict[str, F32]] = weakref.WeakKeyDictionary()


def centroid(bundle: Bundle, category: str) -> F32:
    """(d,) unit mean of the vectors of a category's most popular items; zeros for a category without any."""
    known = _centroids.setdefault(bundle, {})
    if category not in known:
        code = bundle.category_code.get(category, -1)
        members = np.repeat(np.arange(bundle.manifest.items), np.diff(bundle.category_offsets))[bundle.category_codes == code]
        best = members[np.argsort(-bundle.popularity[members], kind="stable")][:CENTROID_ITEMS]
        known[category] = _unit(bundle.units(best).sum(axis=0))
    return known[category]


def _mean(vectors: Sequence[F32], bundle: Bundle) -> F32:
    return _unit(np.sum(vectors, axis=0)) if vectors else np.zeros(bundle.manifest.dimensions, np.float32)


def _unit(vector: npt.NDArray[np.floating]) -> F32:
    length = float(np.sqrt(np.dot(vector, vector)))
    return (vector / length).astype(np.float32) if length > 1e-9 else np.zeros(len(vector), np.float32)
