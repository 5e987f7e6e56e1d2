"""From u to the weight W and margin shift Gamma of Adaptive-DPO (arXiv 2503.16921, Eq. 14-15).

    W = 1 / (1 + k1 u)          Gamma = k2 u^2 + c2,  k2 < 0

and the loss is -W log sigma(beta l - Gamma), W and Gamma detached (Eq. 16): Gamma is in margin
units, beta l. Usage: `w, gamma = adaptive_weights(u, WeightConfig(), beta=0.1, mean_l=2.5)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from noisescope.errors import UsageError
from noisescope.scoring.flip_rate import fit_flip_rate

Float = NDArray[np.float64]

#: Log odds from which a label counts as certain: sigma(12) = 1 - 6e-6.
CERTAIN = 12.0


@final
@dataclass(frozen=True)
class WeightConfig:
    """k1, k2, c2 of Eq. 14-15.

    k1 = 10 is the paper's for SD1.5 (4, 10 and 12 tried in its Table 5); none is stated for text.
    k2 < 0 is stated, but no value of k2 and c2. The released code has k2 = -1 / beta and c2 = the
    batch's mean l, both about 0 at its beta = 1000 but not at text's beta = 0.1, where they would
    push every pair's margin by its mean l. Here k2 = -1 and c2 = 0: a trusted pair (u = 0) is plain
    DPO, and one with u = 1 (W = 1/11) is shifted by one margin unit.
    """

    k1: float = 10.0
    k2: float = -1.0
    c2: float = 0.0

    def __post_init__(self) -> None:
        faults = []
        if not (np.isfinite(self.k1) and self.k1 >= 0):
            faults.append(f"--k1 must be 0 or more, not {self.k1:g}")
        if not (np.isfinite(self.k2) and self.k2 <= 0):
            faults.append(f"--k2 must be 0 or less, not {self.k2:g}")
        if not np.isfinite(self.c2):
            faults.append(f"--c2 must be a finite number, not {self.c2:g}")
        if faults:
            raise UsageError("; ".join(faults), hint="The paper has --k1 10 and --k2 below 0.")


def weight(u: Float, k1: float) -> Float:
    """W = 1 / (1 + k1 u) in (0, 1], Eq. 14; u [N] >= 0, NaN stays NaN."""
    return np.asarray(1.0 / (1.0 + k1 * u), dtype=np.float64)


def margin_shift(u: Float, k2: float, c2: float) -> Float:
    """Gamma = k2 u^2 + c2, Eq. 15, in margin units (beta l); u [N] >= 0, NaN stays NaN."""
    return np.asarray(k2 * np.square(u) + c2, dtype=np.float64)


def adaptive_weights(u: Float, config: WeightConfig) -> tuple[Float, Float]:
    """W [N] and Gamma [N] of u [N] >= 0; NaN stays NaN."""
    return weight(u, config.k1), margin_shift(u, config.k2, config.c2)


def believed_margin(margin: Float) -> Float:
    """Gamma [N] of `distilled-dpo`: g(m) of the mean held-out margins m [N]; NaN stays NaN.

    g is the link of `flip_rate`: the log odds, in the label's direction, that an unflipped label
    agrees. Raises EvidenceError for fewer than ten margins or when all are zero.
    """
    return fit_flip_rate(margin).gap(margin)


def belief(p_wrong: Float) -> Float:
    """log((1 - p)/p) of p [N], at most 12 from 0; NaN stays NaN.

    Gamma of `soft-dpo` (p = p_wrong) and of `forward-dpo` (p = p_prior).
    """
    return np.asarray(np.clip(-logit(p_wrong), -CERTAIN, CERTAIN), dtype=np.float64)


def even(weight: Float, gamma: Float) -> bool:
    """Whether W [N] and Gamma [N] are the same for all pairs, to one in a hundred."""
    spread = max(float(np.ptp(part)) for part in (weight, gamma))
    return spread < 0.01 * max(float(weight.max()), 1e-12)
