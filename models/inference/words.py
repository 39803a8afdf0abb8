"""Words of titles: which items hold each. What a new item without a vector is compared by."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.inference.idtable import hashes_of
from schemas.keys import hash64_column
from transforms.catalogue import I32, I64, offsets_of

ITEMS_PER_WORD = 32
"""Of the items that hold a word so many are kept, the most popular: enough for the mean of their vectors."""
MAX_SHARE = 0.05
"""A word in more than this share of all titles (and in more than COMMON of them) says nothing."""
COMMON = 50
_BREAKS = r"[^\p{L}\p{N}]+"
_ASCII_WORDS = re.compile("[a-z0-9]+")


@dataclass(frozen=True)
class WordIndex:
    """Sorted hashes of w words; the items of word i are items[offsets[i]:offsets[i + 1]]."""

    hashes: npt.NDArray[np.uint64]
    offsets: I64
    items: I32


def words_of(texts: pa.Array | pa.ChunkedArray) -> tuple[I64, pa.StringArray]:
    """(row of each word, words) of n texts: lower case, letters and digits of any script, at least two of them."""
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays([pa.array([], pa.string()), *(c.cast(pa.string()) for c in texts.chunks)])
    split = pc.split_pattern_regex(pc.utf8_lower(pc.fill_null(texts.cast(pa.string()), "")), _BREAKS)
    rows, words = pc.list_parent_indices(split), pc.list_flatten(split)
    keep = pc.greater_equal(pc.utf8_length(words), 2)
    return rows.filter(keep).to_numpy(zero_copy_only=False).astype(np.int64), words.filter(keep)


def word_index(titles: pa.ChunkedArray, positions: I32, popularity: npt.NDArray[np.float32]) -> WordIndex:
    """The index of n titles of the items at ``positions``; words of one item only, and of very many, are left out."""
    rows, words = words_of(titles)
    encoded = words.dictionary_encode()
    items = positions[rows]
    # Each (word, item) once, the most popular item of a word first.
    pairs = np.sort(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64) * len(popularity) + items)
    pairs = pairs[np.flatnonzero(np.diff(pairs, prepend=-1))]
    word, item = pairs // max(1, len(popularity)), (pairs % max(1, len(popularity))).astype(np.int32)
    counts = np.bincount(word, minlength=len(encoded.dictionary))
    limit = max(COMMON, int(MAX_SHARE * len(positions)))
    useful = (counts >= 2) & (counts <= limit)
    order = np.lexsort((item, -popularity[item], word))
    rank = np.arange(len(word)) - np.repeat(offsets_of(counts)[:-1], counts)
    keep = useful[word[order]] & (rank < ITEMS_PER_WORD)
    hashes = hash64_column(encoded.dictionary)[np.flatnonzero(useful)] if len(counts) else np.zeros(0, np.uint64)
    by_hash = np.argsort(hashes)
    lengths = np.minimum(counts[useful], ITEMS_PER_WORD)
    starts = offsets_of(lengths)[:-1]
    kept = item[order][keep]
    taken = offsets_of(lengths[by_hash])
    at = np.arange(len(kept)) - np.repeat(taken[:-1] - starts[by_hash], lengths[by_hash])
    return WordIndex(hashes[by_hash], taken, kept[at])


@functools.lru_cache(10_000)
def word_hashes(text: str) -> npt.NDArray[np.uint64]:
    """Sorted hashes of the words of a text; do not change them."""
    if text.isascii():  # Arrow compiles its expression anew at each call: 2 ms
        words = [word for word in _ASCII_WORDS.findall(text.lower()) if len(word) > 1]
    else:
        words = words_of(pa.array([text]))[1].to_pylist()
    return np.unique(hashes_of(words))


def items_of_words(index: WordIndex, text: str) -> Sequence[I32]:
    """Items of each word of a text that the index knows."""
    found = []
    for value in word_hashes(text):
        at = int(np.searchsorted(index.hashes, value))
        if at < len(index.hashes) and index.hashes[at] == value:
            found.append(index.items[index.offsets[at] : index.offsets[at + 1]])
    return found
