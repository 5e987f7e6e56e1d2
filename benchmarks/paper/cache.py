"""Cache the results of finished trainings, so that a stopped run continues.

found = cached(lambda: {"tuned": right}, "text", "seed 0", "flips 0.2", "dpo")
found.arrays["tuned"], found.seconds       # seconds: CPU time of the training when it ran
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import cache
from noisescope.pairs import digest
from noisescope.storage.files import write_atomic

Float = NDArray[np.float64]
#: Arrays [n] of a cell by regime: right answers, or the margins of an audit.
Arrays = dict[str, Float]
#: Raised by hand with any change that changes a number.
EDITION = "2"


@dataclass(frozen=True)
class Cached:
    """The arrays of a cell and the CPU seconds they took."""

    arrays: Arrays
    seconds: float


def cached(make: Callable[[], Arrays], *what: str) -> Cached:
    """Return `make()`, or its stored result for `what` (task, sizes, seed, flips, method)."""
    path = cache().parent / "paper" / f"{digest(EDITION, *what)}.json"
    if not path.is_file():
        began = time.process_time()
        made = make()
        arrays = {name: values.tolist() for name, values in made.items()}
        content = {"what": what, "seconds": time.process_time() - began, "arrays": arrays}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content))
    read = json.loads(path.read_text())
    arrays = {name: np.array(values) for name, values in read["arrays"].items()}
    return Cached(arrays, read["seconds"])
