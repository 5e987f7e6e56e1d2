"""Fit the labels with each source of evidence alone, and without it.

    reports = what_each_added(Evidence(...), {"model": ("middle_mean", ...), "file:m": (...)})

All numbers are of held-out margins, with the folds of the audit's own fit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit

from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.replicas.prior import Int
from noisescope.replicas.selected import judge_weight
from noisescope.replicas.solver import Float
from noisescope.scoring.contrasts import agreement
from noisescope.scoring.noise_models import fit_noise
from noisescope.scoring.pair_facts import PairFacts
from noisescope.scoring.sources import SourceReport

#: Name of the audited model among the sources.
MODEL = "model"
#: Sources that are the audited model itself: its features, and its replicas.
INSIDE = (MODEL, "lora")
#: A comparison needs no ranking: few replicas and a short search do.
REPLICAS = 2
STEPS = 10
#: Least difference of two shares of contradicted labels, and in standard errors, that shows that
#: a source's pairs were selected: 1 in 15,000 by chance.
DOUBTED, CLEAR = 0.1, 4.0


@final
@dataclass(frozen=True)
class Evidence:
    """All evidence of an audit, and how replicas are fitted to a part of it."""

    features: Mapping[str, Float]
    numbers: Mapping[str, Float]
    sides: tuple[Int, Int]
    fold_key: NDArray[np.uint64]
    held_out: NDArray[np.uint64]
    config: HeadConfig

    def weight(self, groups: Sequence[str], margins: NDArray[np.float64]) -> float | None:
        """Margin a unit of a source of one column, whose `margins` alone these are; else None."""
        columns = [self.numbers[name] for name in groups if name in self.numbers]
        if len(groups) != 1 or not columns or columns[0].shape[1] != 1 or not columns[0].any():
            return None
        x = columns[0][:, 0].astype(np.float64)
        return float(x @ margins / (x @ x))

    def margins(self, groups: Collection[str]) -> NDArray[np.float64]:
        """Mean held-out margins [N] of replicas that have only these groups."""
        features = {name: x for name, x in self.features.items() if name in groups}
        numbers = {name: x for name, x in self.numbers.items() if name in groups}
        settings = replace(
            self.config,
            replicas=min(REPLICAS, self.config.replicas),
            identity=False,
            search_steps=STEPS,
            test_chance=False,
        )
        fit = fit_heads(
            features,
            *self.sides,
            self.fold_key,
            settings,
            numbers=numbers,
            held_out=self.held_out,
        )
        out: NDArray[np.float64] = fit.margins.mean(axis=0, dtype=np.float64)
        return out


#: Margins [N] of these sources alone.
Fits = Callable[[Collection[str]], NDArray[np.float64]]


def fits_of(evidence: Evidence, groups: Mapping[str, tuple[str, ...]]) -> Fits:
    """Fits of sources, each made once; `groups` has the names of each source's groups."""
    found: dict[frozenset[str], NDArray[np.float64]] = {}

    def margins(sources: Collection[str]) -> NDArray[np.float64]:
        key = frozenset(sources)
        if key not in found:
            found[key] = evidence.margins({name for source in key for name in groups[source]})
        return found[key]

    return margins


def outside_odds(
    evidence: Evidence,
    groups: Mapping[str, tuple[str, ...]],
    margins: Fits,
    facts: PairFacts,
    selected: Collection[str] = (),
) -> NDArray[np.float64] | None:
    """Log odds [N] that labels are right by outside judgements alone; None without any.

    Those are sources of one number a side or pair (judges, reward models, people), but the
    `selected`, which move the margins themselves. Embeddings are none: what they know of a label
    is learnt from the labels, as the policy learns it. w x, x the judgements' own held-out margin
    and w the weight of an answer under the p_wrong of the other evidence (`selected.judge_weight`).
    """
    columns = {**evidence.features, **evidence.numbers}
    judges = [
        source
        for source, names in groups.items()
        if source not in (*INSIDE, *selected) and all(columns[n].shape[1] == 1 for n in names)
    ]
    if not judges:
        return None
    x, rest = margins(judges), margins([one for one in groups if one not in judges])
    p_wrong = fit_noise(rest, facts).p_wrong(rest)
    return judge_weight(p_wrong, x, np.ones(len(x), bool)) * x


def what_each_added(
    evidence: Evidence, groups: Mapping[str, tuple[str, ...]], margins: Fits | None = None
) -> list[SourceReport]:
    """A report for each source; `groups` has the names of its groups."""
    margins = margins or fits_of(evidence, groups)
    everything = margins(groups)
    reports = []
    for source in groups:
        alone = margins([source])
        others = [other for other in groups if other != source]
        rest = margins(others) if others else np.zeros_like(alone)
        judged = (alone != 0) & (rest != 0)
        differs = np.sign(alone[judged]) != np.sign(rest[judged])
        reports.append(
            SourceReport(
                source=source,
                accuracy_alone=_accuracy(alone),
                nats_alone=_nats(alone) - _nats(np.zeros_like(alone)),
                accuracy_added=_accuracy(everything) - _accuracy(rest),
                nats_added=_nats(everything) - _nats(rest),
                disagreement=float(differs.mean()) if judged.any() else None,
                inside=source in INSIDE,
                covered=float((alone != 0).mean()),
                weight=evidence.weight(groups[source], alone),
                doubted=doubted(rest, alone != 0),
            )
        )
    return reports


def doubted(rest: NDArray[np.float64], covered: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Shares of covered and other labels that `rest` [N], the other evidence, contradicts.

    None unless they differ by `DOUBTED` and by `CLEAR` standard errors of the difference.
    """
    against = (rest < 0)[rest != 0]
    on = covered[rest != 0]
    if not on.any() or on.all():
        return None
    shares = float(against[on].mean()), float(against[~on].mean())
    spread = against.mean() * (1 - against.mean())
    error = np.sqrt(spread * (1 / on.sum() + 1 / (~on).sum()))
    apart = abs(shares[0] - shares[1])
    return shares if apart >= DOUBTED and apart >= CLEAR * error else None


def _accuracy(margins: NDArray[np.float64]) -> float:
    """Share of labels that agree with their held-out margin; a margin of 0 counts half."""
    return float(agreement(margins).mean())


def _nats(margins: NDArray[np.float64]) -> float:
    """Mean log likelihood of the labels, nats a pair."""
    return float(log_expit(margins).mean())
