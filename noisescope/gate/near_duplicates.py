"""Near-duplicate prompts by MinHash: linear in the number of prompts, 256 bytes a prompt.

Texts are lower-cased and cut into words; a prompt is the set of its word triples (all words at
once where it has fewer than three), of the first 512 words. 64 minimum hashes estimate the
Jaccard similarity of two such sets with standard error 0.05 at 0.8 (Broder 1997). Sixteen bands
of four name candidates: prompts 0.8 alike meet in one with probability 1 - (1 - .8^4)^16 > 0.999.
In a band each prompt is compared with the first of its bucket only.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Estimated Jaccard similarity from which two prompts count as near duplicates.
SIMILAR = 0.8
HASHES, BANDS, WORDS = 64, 16, 512
_WORD = re.compile(r"\w+")
_RNG = np.random.default_rng(0x5EED)
#: Odd multipliers and offsets of the hash family h -> (a h + b) >> 32 on 64 bits.
_A = _RNG.integers(1, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_B = _RNG.integers(0, 1 << 63, HASHES, dtype=np.uint64)


def signature(prompt: str) -> NDArray[np.uint32]:
    """64 minimum hashes of the prompt's word triples, [64]; all ones for a prompt of no words."""
    words = _WORD.findall(prompt.lower())[:WORDS]
    if not words:
        return np.full(HASHES, 0xFFFFFFFF, np.uint32)
    triples = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    hashes = np.array([zlib.crc32(triple.encode("utf-8", "replace")) for triple in triples])
    mixed = hashes.astype(np.uint64)[:, None] * _A + _B  # wraps at 2^64, as intended
    return np.asarray((mixed >> np.uint64(32)).min(axis=0), dtype=np.uint32)


def near_duplicate_mask(prompts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each distinct prompt [n] nearly repeats one before it in some band's bucket."""
    signatures = np.empty((len(prompts), HASHES), np.uint32)
    for index, prompt in enumerate(prompts):
        signatures[index] = signature(prompt)
    near = np.zeros(len(prompts), bool)
    width = HASHES // BANDS
    for band in range(BANDS):
        rows = np.ascontiguousarray(signatures[:, band * width : (band + 1) * width])
        keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * width))).ravel()
        _, first, bucket = np.unique(keys, return_index=True, return_inverse=True)
        other = first[bucket]
        candidates = np.flatnonzero((other != np.arange(len(prompts))) & ~near)
        alike = (signatures[candidates] == signatures[other[candidates]]).mean(axis=1)
        near[candidates[alike >= SIMILAR]] = True
    return near
