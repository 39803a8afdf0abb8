"""The JSON of a page, put together from pieces that are ready: what never changes of an item is encoded once per version."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from models.inference.bundle import Bundle
from schemas.keys import hash64
from serving.api.cursors import encode_cursor
from serving.page_json import items_json
from serving.ranking.listed import LOW
from serving.ranking.model import Ask, Ranked
from serving.recommender import Answer
from serving.responses import reason_sentence, rfc3339

MAX_PIECES = 50_000
"""Items, and explanations, whose JSON a worker keeps per version: about 500 bytes each."""
_VERSIONS = 4
NO_METADATA = b'{"title":null,"image":null,"price":null,"category":null,"categories":[],"attributes":{}}'
_encode = msgspec.json.Encoder().encode


class _Titled(msgspec.Struct):
    title: str | None = None


_titled = msgspec.json.Decoder(_Titled)


def title_in(metadata: bytes) -> str | None:
    """The title in the JSON of an item's metadata."""
    return _titled.decode(metadata).title


class Pieces:
    """Ready JSON of one version's items and explanations.

    Args:
      bundle: of the version; None: all metadata is brought along.
    """

    def __init__(self, bundle: Bundle | None) -> None:
        self._bundle = bundle
        self._items: dict[str, tuple[bytes, bytes]] = {}
        self._explanations: dict[tuple[str, str], bytes] = {}
        self._titled: set[str] = set()
        """Items of ``_explanations``."""

    def missing(self, item_ids: Sequence[str], because: Sequence[str]) -> list[str]:
        """Those whose metadata must be brought along: the bundle does not hold them."""
        unseen = [i for i in item_ids if i not in self._items]
        unseen += [i for i in because if i and i not in self._titled]
        if self._bundle is None:
            return unseen
        positions = self._bundle.positions(unseen).tolist() if unseen else []
        return [i for i, at in zip(unseen, positions, strict=True) if at < 0]

    def metadata(self, item_id: str, extra: Mapping[str, bytes]) -> bytes:
        """JSON of an item's metadata: what is brought along is newer than the bundle."""
        if item_id not in extra and self._bundle is not None:
            at = int(self._bundle.positions([item_id])[0])
            if at >= 0:
                return self._bundle.metadata(at)
        return extra.get(item_id, NO_METADATA)

    def item(self, item_id: str, extra: Mapping[str, bytes]) -> tuple[bytes, bytes]:
        """What stands before the rank of an item, and what after its explanation."""
        found = self._items.get(item_id) if item_id not in extra else None
        if found is None:
            metadata = self.metadata(item_id, extra)
            found = b'{"item_id":%b,"rank":' % _encode(item_id), b',"metadata":%b}' % metadata
            if item_id not in extra and metadata is not NO_METADATA:  # what is brought along may be newer next time, or come
                if len(self._items) >= MAX_PIECES:
                    self._items.clear()
                self._items[item_id] = found
        return found

    def explanation(self, kind: str, because: str, extra: Mapping[str, bytes]) -> bytes:
        """JSON of why an item is in a list."""
        found = self._explanations.get((kind, because)) if because not in extra else None
        if found is None:
            sentence = reason_sentence(kind, (title_in(self.metadata(because, extra)) or because) if because else None)
            found = _encode({"type": kind, "reason": sentence, "source_item_id": because or None})
            if because not in extra and (self._bundle is not None or not because):
                if len(self._explanations) >= MAX_PIECES:
                    self._explanations.clear()
                    self._titled.clear()
                self._explanations[kind, because] = found
                self._titled.add(because)
        return found

    def page(self, ranked: Ranked, rank: int, extra: Mapping[str, bytes]) -> bytes:
        """The items of a page, ``rank`` of the first one first."""
        parts: list[bytes] = []
        scores = ranked.scores.tolist()
        total = sum(scores)
        if total - total != 0:  # one is no number, or endless: JSON has none of these
            scores = np.nan_to_num(ranked.scores).tolist()
        for item_id, score, source, kind, because in zip(ranked.item_ids, scores, ranked.sources, ranked.reasons,
                                                         ranked.because, strict=True):
            (head, tail), why = self.item(item_id, extra), self.explanation(kind, because, extra)
            parts.append(b'%b%d,"score":%.7g,"rec_source":"%b","explanation":%b%b' % (
                head, rank, score, source.encode(), why, tail))
            rank += 1
        return b",".join(parts)


class Pages:
    """Encodes answers of the versions in use."""

    def __init__(self) -> None:
        self._pieces: dict[str, Pieces] = {}

    def pieces(self, version: str, bundle: Bundle | None) -> Pieces:
        """The ready pieces of a version."""
        name = version if bundle is not None else f"{version}#"
        found = self._pieces.get(name)
        if found is None:
            if len(self._pieces) >= _VERSIONS:
                del self._pieces[next(iter(self._pieces))]
            found = self._pieces[name] = Pieces(bundle)
        return found

    def packed(self, ask: Ask, answer: Answer) -> bytes | None:
        """The items of a packed page; None where they are to be put together from pieces."""
        page = answer.ranked.packed
        if page is None or answer.bundle is None:
            return None
        return items_json(page, answer.ranked.scores, len(ask.shown) + 1, answer.bundle)

    def items(self, ask: Ask, answer: Answer, extra: Mapping[str, bytes]) -> bytes:
        """The items of any page; ``extra``: metadata of those that are missing, or newer than the bundle's."""
        return self.pieces(answer.candidates.version, answer.bundle).page(answer.ranked, len(ask.shown) + 1, extra)

    def missing(self, answer: Answer) -> list[str]:
        """Items of an answer whose metadata must be brought along."""
        ranked = answer.ranked
        return self.pieces(answer.candidates.version, answer.bundle).missing(ranked.item_ids, ranked.because)

    def encode(self, ask: Ask, answer: Answer, items: bytes) -> bytes:
        """The body of 200 around its items: a serving.responses.Recommendations."""
        ranked, recs, version = answer.ranked, answer.candidates.recs, answer.candidates.version
        cursor = encode_cursor(version, ask.shown, _lows(ranked)) if ranked.more and len(ranked.item_ids) else None
        return b'{"request_id":%b,"items":[%b],"model_version":%b,"generated_at":"%b","expires_at":"%b","served_from":"%b",' \
               b'"next_cursor":%b,"signals":"%b"}' % (_encode(ask.request_id), items, _encode(recs.model_version),
                                       _moment(recs.generated_at), _moment(recs.expires_at),
                                       answer.candidates.tier.encode(), b'"%b"' % cursor.encode() if cursor else b"null",
                                       b"missing" if answer.signals.missing else b"read")


def _lows(ranked: Ranked) -> npt.NDArray[np.uint32]:
    """What stands for the items of a page in Ask.shown."""
    if ranked.packed is not None:
        return ranked.packed.numbers[LOW].view(np.uint32)
    return np.array([hash64(item) for item in ranked.item_ids], np.uint64).astype(np.uint32)


@functools.lru_cache(4096)
def _moment(micros: int) -> bytes:
    return rfc3339(micros).encode()
