"""RE-PO's EM: how reliable each annotator is, and so how sure each label (RE-PO, ICLR 2026).

w = re_po_posterior(sigmoid(margins), annotators)    # 1 - w is its score of a wrong label
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

EM_STEPS = 200
EM_TOLERANCE = 1e-9


def re_po_posterior(p: Float, annotators: NDArray[np.int64] | None = None) -> Float:
    """Posterior w [N] that a label is right, given p [N] = sigma(margin); E and M steps in turn.

    E: w = p n_a / (p n_a + (1-p)(1-n_a)); M: n_a = mean of the w of annotator a (-1: shared).
    """
    group = np.zeros(len(p), np.int64) if annotators is None else annotators - annotators.min()
    count = np.maximum(np.bincount(group), 1)
    reliability = np.full(len(count), 0.9)
    w = p
    for _ in range(EM_STEPS):
        n = reliability[group]
        w = p * n / np.maximum(p * n + (1 - p) * (1 - n), np.finfo(np.float64).tiny)
        fresh = np.bincount(group, w, len(count)) / count
        change = float(np.abs(fresh - reliability).max())
        reliability = fresh
        if change < EM_TOLERANCE:
            break
    return w
