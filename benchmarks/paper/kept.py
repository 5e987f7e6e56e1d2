"""What finished cells came to, kept in the cache: a stopped run goes on where it was.

found = kept(lambda: {"tuned": right}, "text", "seed 0", "rate 0.2", "dpo")
found.rights["tuned"], found.seconds       # seconds: the CPU time it took when it was made
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
#: Right answers [n] by regime (or an audit's margins).
Rights = dict[str, Float]
#: Raised by hand with anything that changes a number.
EDITION = "1"


@dataclass(frozen=True)
class Kept:
    """Right answers of a cell and the CPU seconds it took."""

    rights: Rights
    seconds: float


def kept(make: Callable[[], Rights], *what: str) -> Kept:
    """`make()`, or what it came to before for `what` (task, sizes, seed, rate, method)."""
    path = cache().parent / "paper" / f"{digest(EDITION, *what)}.json"
    if not path.is_file():
        began = time.process_time()
        made = make()
        rows = {regime: right.tolist() for regime, right in made.items()}
        content = {"what": what, "seconds": time.process_time() - began, "rights": rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content))
    read = json.loads(path.read_text())
    rights = {regime: np.array(right) for regime, right in read["rights"].items()}
    return Kept(rights, read["seconds"])
