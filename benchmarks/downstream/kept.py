"""Cache finished parts of the training benchmarks, so that a stopped run continues."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import cache
from noisescope.pairs import digest
from noisescope.storage.files import write_atomic

#: By method: accuracies [T, Q] by test group and penalty, and the place of the tuned penalty.
Kept = dict[str, tuple[NDArray[np.float64], int]]
#: Raised by hand with anything that changes a number.
EDITION = "1"


def kept(make: Callable[[], Kept], *what: str) -> Kept:
    """Return `make()`, or its cached result for `what` (model, data, seed, flips)."""
    path = cache().parent / "downstream" / f"{digest(EDITION, *what)}.json"
    if not path.is_file():
        rows = {name: [groups.tolist(), best] for name, (groups, best) in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(rows))
    read = json.loads(path.read_text())
    return {name: (np.array(groups), int(best)) for name, (groups, best) in read.items()}
