"""RE-PO's EM: how reliable each annotator is, and so how sure each label (RE-PO, ICLR 2026).

w = re_po_posterior(sigmoid(margins), annotators)    # 1 - w is its score of a wrong label
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit

from noisescope.errors import EvidenceError
from noisescope.scoring.flip_rate import FlipRate, fit_flip_rate

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Adaptive-DPO's sharpness of the confidence (arXiv 2503.16921, settings).
RHO = {"text": 1.0, "image": 15.0, "vision": 1.0}
#: Pairs of one device's micro-batch in the released code: it divides l by the norm over them.
LOCAL_BATCH = {"text": 4, "image": 16, "vision": 4}


@final
@dataclass(frozen=True)
class Evidence:
    """What the torch half found, plus the cheap facts some baselines need.

    `margins` [M, T, N] (NaN: not judged), `held_out` [M, N] (replica never trained on the pair),
    `lengths` [2, N] of chosen and rejected, `annotators` [N] codes 0.. (-1 unknown). `flip_rate`
    is fitted from held-out margins if None. `released` [N]: u_released of averaged copies.
    `wrong` [N]: p_wrong under the chosen noise model. `opinions` [N]: see `opinions`.
    """

    margins: Float
    held_out: Bool
    beta: float = 1.0
    rho: float = 1.0
    lengths: Float | None = None
    annotators: NDArray[np.int64] | None = None
    flip_rate: FlipRate | None = None
    released: Float | None = None
    wrong: Float | None = None
    opinions: Mapping[str, Float] = field(default_factory=dict)

    @property
    def last(self) -> Float:
        """Margins [M, N] at each replica's last checkpoint."""
        return np.asarray(self.margins[:, -1], dtype=np.float64)

    @property
    def logratios(self) -> Float:
        """l = margin / beta at the last checkpoint, [M, N]."""
        return self.last / self.beta

    @property
    def held_out_margins(self) -> Float:
        """Last margins [M, N], NaN where the replica trained on the pair."""
        return np.where(self.held_out, self.last, np.nan)

    def fitted(self) -> FlipRate:
        """The flip rate given, else fitted on mean held-out margins."""
        return self.flip_rate or fit_flip_rate(mean_over(self.held_out_margins))


def mean_over(values: Float) -> Float:
    """Mean over axis 0 of what is not NaN, [M, N] -> [N]; NaN where nothing is left."""
    seen = np.isfinite(values)
    count = seen.sum(axis=0)
    total = np.where(seen, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def variance_over(values: Float) -> Float:
    """Unbiased variance over axis 0 of what is not NaN; NaN where fewer than two are left."""
    seen = np.isfinite(values)
    count = seen.sum(axis=0)
    squares = np.where(seen, np.square(values - mean_over(values)), 0.0).sum(axis=0)
    return np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan)


def confidence(logratios: Float, rho: float = 1.0) -> Float:
    """c = 1 - mean_m sigma(rho l_m), Eq. 11; l [M, N] -> c [N] in [0, 1]."""
    return 1.0 - mean_over(_sigma(rho * logratios))


def stability(logratios: Float) -> Float:
    """s = unbiased variance over m of l_m, Eq. 12; l [M, N] -> s [N] >= 0, NaN for one replica.

    The paper calls it stability; it grows with instability.
    """
    return variance_over(logratios)


def u(logratios: Float, rho: float = 1.0) -> Float:
    """u = s c, Eq. 13; l [M, N] -> u [N] >= 0."""
    return stability(logratios) * confidence(logratios, rho)


def root_mean_square(logratios: Float) -> Float:
    """Each replica's root mean square over the dataset, l [M, N] -> [M, 1]; 1 for all-zero l."""
    seen = np.isfinite(logratios)
    count = np.maximum(seen.sum(axis=1, keepdims=True), 1)
    total = np.where(seen, np.square(logratios), 0.0).sum(axis=1, keepdims=True)
    scale = np.sqrt(total / count)
    return np.where(scale > 0, scale, 1.0)


def batch_norm(rms: Float, modality: str) -> Float:
    """Expected L2 norm over the release's micro-batch of n pairs: sqrt(n) rms."""
    return np.asarray(np.sqrt(LOCAL_BATCH[modality]) * rms, dtype=np.float64)


def u_released(logratios: Float, rho: float = 1.0, scale: Float | None = None) -> Float:
    """The authors' released variant, offline: x_m = rho l_m / norm_m, u = min(std_m x, 1) c(x).

    The release divides by the L2 norm over a micro-batch. A stored score must not depend on
    batch-mates, so `scale` [M, 1] is that norm's expectation, `batch_norm` of each replica's root
    mean square over the dataset; of text if None. l [M, N] -> u [N] in [0, 1].
    """
    norm = batch_norm(root_mean_square(logratios), "text") if scale is None else scale
    x = rho * logratios / norm
    return np.minimum(np.sqrt(variance_over(x)), 1.0) * (1.0 - mean_over(_sigma(x)))


def _sigma(x: Float) -> Float:
    """Logistic function, float64."""
    return np.asarray(expit(x), dtype=np.float64)


def _over_checkpoints(margins: Float) -> Float:
    """[M, T, N] -> replica means [T, N]."""
    return mean_over(np.asarray(margins, dtype=np.float64))


def _mean(evidence: Evidence) -> Float:
    """-mean_m margin_m (2401.06080)."""
    return -mean_over(evidence.last)


def _std(evidence: Evidence) -> Float:
    """Standard deviation over replicas of the margin (2401.06080)."""
    return np.sqrt(variance_over(evidence.last))


def _loss(evidence: Evidence) -> Float:
    """mean_m -log sigma(margin_m) over replicas that held the pair out (2502.09650)."""
    return mean_over(-np.asarray(log_expit(evidence.held_out_margins), dtype=np.float64))


def _cartography_confidence(evidence: Evidence) -> Float:
    """1 - mean_t sigma(margin_t) (2009.10795)."""
    return 1.0 - mean_over(_sigma(_over_checkpoints(evidence.margins)))


def _cartography_variability(evidence: Evidence) -> Float:
    """Standard deviation over checkpoints of sigma(margin_t) (2009.10795)."""
    p = _sigma(_over_checkpoints(evidence.margins))
    return np.asarray(np.std(p, axis=0), dtype=np.float64)


def _cartography_correctness(evidence: Evidence) -> Float:
    """1 - share of checkpoints whose margin is positive (2009.10795)."""
    return 1.0 - mean_over((_over_checkpoints(evidence.margins) > 0).astype(np.float64))


def _aum(evidence: Evidence) -> Float:
    """-mean_t margin_t, the area under the margin (2001.10528)."""
    return -mean_over(_over_checkpoints(evidence.margins))


def _re_po(evidence: Evidence) -> Float:
    """1 - w, w = p n / (p n + (1-p)(1-n)), n = mean of w, per annotator where known (RE-PO EM).

    p = sigma(g(margin)) is calibrated first: with raw margins, which noise shrinks, the EM runs
    to n = 1 for everybody and ranks nothing.
    """
    p = _sigma(evidence.fitted().gap(mean_over(evidence.held_out_margins)))
    return 1.0 - re_po_posterior(p, evidence.annotators)


def _holder(evidence: Evidence) -> Float:
    """1 - mean_m sigma(margin_m)^g, g = 2: how Hoelder-DPO values data (2505.17859)."""
    return 1.0 - mean_over(np.square(_sigma(evidence.held_out_margins)))


def _confident_learning(evidence: Evidence) -> Float:
    """(1 - p) - t, p = mean held-out sigma(margin), t = mean p: > 0 is a label issue (1911.00068).

    With sides in random order the two classes' thresholds coincide: one threshold t.
    """
    p = mean_over(_sigma(evidence.held_out_margins))
    return (1.0 - p) - float(np.nanmean(p))


def _length(evidence: Evidence) -> Float:
    """log length difference, signed so that most labels look right: the baseline to beat."""
    if evidence.lengths is None:
        raise EvidenceError("the length baseline needs the lengths of both sides")
    gap: Float = np.log1p(evidence.lengths[1]) - np.log1p(evidence.lengths[0])
    return gap if (gap <= 0).mean() >= 0.5 else -gap


def _p_flip(evidence: Evidence) -> Float:
    """P(the label is a flip | mean held-out margin), with the flip rate (docs/method.md 3)."""
    return evidence.fitted().p_flip(mean_over(evidence.held_out_margins))


def _p_wrong(evidence: Evidence) -> Float:
    """P(the label is wrong), under the chosen noise model where one was fitted."""
    if evidence.wrong is not None:
        return evidence.wrong
    return evidence.fitted().p_wrong(mean_over(evidence.held_out_margins))


def _nll_gap(evidence: Evidence) -> Float:
    """NLL a token of chosen - rejected under the audited model (near PerpCorrect's PPLDiff)."""
    return -evidence.opinions["nll_gap"]


def _cdr(evidence: Evidence) -> Float:
    """Density ratio a token of a second model over the audited one, negated (2411.02481)."""
    return -evidence.opinions["cdr"]


@final
@dataclass(frozen=True)
class Detector:
    """A score [N] of `Evidence`, higher = more suspicious, and what it needs to be computed.

    `needs` holds any of: "held_out", "replicas" (two or more), "checkpoints" (two or more),
    "lengths", or the name of an opinion. `axis` is what a high score means: a "wrong" label or a
    "contested" pair.
    """

    score: Callable[[Evidence], Float]
    summary: str
    needs: frozenset[str] = frozenset()
    axis: str = "wrong"


def _needs(*names: str) -> frozenset[str]:
    return frozenset(names)


DETECTORS: dict[str, Detector] = {
    "p_wrong": Detector(_p_wrong, "probability that the label is wrong", _needs("held_out")),
    "p_flip": Detector(
        _p_flip, "calibrated probability that the label is a flip", _needs("held_out")
    ),
    "u": Detector(
        lambda e: u(e.logratios, e.rho), "Adaptive-DPO's u = s c (Eq. 13)", _needs("replicas")
    ),
    "u_released": Detector(
        lambda e: u_released(e.logratios, e.rho) if e.released is None else e.released,
        "Adaptive-DPO's u as its code computes it",
        _needs("replicas"),
    ),
    "confidence": Detector(
        lambda e: confidence(e.logratios, e.rho), "Adaptive-DPO's confidence c (Eq. 11)"
    ),
    "stability": Detector(
        lambda e: stability(e.logratios),
        "Adaptive-DPO's stability s (Eq. 12)",
        _needs("replicas"),
        "contested",
    ),
    "mean": Detector(_mean, "minus the replicas' mean margin"),
    "std": Detector(_std, "spread of the replicas' margins", _needs("replicas"), "contested"),
    "loss": Detector(_loss, "held-out DPO loss", _needs("held_out")),
    "re_po": Detector(_re_po, "RE-PO posterior of a wrong label", _needs("held_out")),
    "holder": Detector(_holder, "Hoelder-DPO data value, reversed", _needs("held_out")),
    "confident_learning": Detector(
        _confident_learning, "confident learning, above 0 is an issue", _needs("held_out")
    ),
    "cartography_confidence": Detector(
        _cartography_confidence, "data map: low mean probability", _needs("checkpoints")
    ),
    "cartography_variability": Detector(
        _cartography_variability,
        "data map: probability varies while training",
        _needs("checkpoints"),
        "contested",
    ),
    "cartography_correctness": Detector(
        _cartography_correctness, "data map: rarely judged right", _needs("checkpoints")
    ),
    "aum": Detector(_aum, "minus the area under the margin", _needs("checkpoints")),
    "nll_gap": Detector(
        _nll_gap, "the model alone: NLL a token, chosen - rejected", _needs("nll_gap")
    ),
    "cdr": Detector(_cdr, "two models alone: their density ratio a token", _needs("cdr")),
    "length": Detector(_length, "length alone, in the labels' own direction", _needs("lengths")),
}


def available(evidence: Evidence) -> dict[str, Detector]:
    """The detectors whose needs `evidence` meets, in the table's order."""
    have = {
        "held_out": bool(np.isfinite(evidence.held_out_margins).any(axis=0).all()),
        "replicas": bool((np.isfinite(evidence.last).sum(axis=0) > 1).all()),
        "checkpoints": evidence.margins.shape[1] > 1,
        "lengths": evidence.lengths is not None,
    } | {name: bool(np.isfinite(values).all()) for name, values in evidence.opinions.items()}
    return {k: d for k, d in DETECTORS.items() if all(have.get(need) for need in d.needs)}


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
