"""Features of every distinct response, computed once, cached, resumable after a kill.

    features = compute_features(policy, items, cache_directory, progress)  # group -> [n, D_g]

The cache is `<cache_directory>/<policy fingerprint>/`, in chunks (`storage/cache.py`). Values are
float32, as computed: half the size would overflow on the middle layers of some models, and a chunk
is small beside the model that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.models import Policy
from noisescope.pairs import Item
from noisescope.progress import Progress as Progress
from noisescope.storage.cache import Chunk, compute_missing, gather, missing, scan

Float = NDArray[np.float32]


def compute_features(
    policy: Policy, items: Sequence[Item], cache_directory: Path, progress: Progress
) -> dict[str, Float]:
    """Feature groups of `items`, in their order: group -> [n, D_g] float32.

    Only keys that no sound chunk holds are computed. A damaged chunk is computed again, with a
    note to `progress`. Raises RunError if the cache cannot be written.
    """
    parts = fill_cache(policy, items, cache_directory, progress)
    return gather(parts, [item.key for item in items])


def fill_cache(
    policy: Policy, items: Sequence[Item], cache_directory: Path, progress: Progress
) -> list[Chunk]:
    """`compute_features` without reading them, for a process that has a share of the items."""
    model = policy.identity.fingerprint
    return compute_missing(policy, items, cache_directory / model, progress, "feature", model)


def cached_features(
    items: Sequence[Item], cache_directory: Path, fingerprint: str
) -> dict[str, Float]:
    """Cached features of `items`, by the policy's `fingerprint`; no policy needed.

    Raises RunError if any is not cached.
    """
    parts = scan(cache_directory / fingerprint, fingerprint)[0]
    if absent := missing(items, parts):
        raise RunError(
            f"features of {len(absent):,} responses are no longer cached",
            hint="Type the command that made the run again; it fills the cache.",
        )
    return gather(parts, [item.key for item in items])


def uncached(policy: Policy, items: Sequence[Item], cache_directory: Path) -> list[Item]:
    """The distinct items that `compute_features` would have to compute."""
    model = policy.identity.fingerprint
    return missing(items, scan(cache_directory / model, model)[0])
