"""What suspicious labels have in common: who, where, and which traits of a response.

    for finding in explain(Labels(margins, p_wrong, sides, groups, clusters), noise):
        print(finding.sentence)

P_i is the probability of the observed label under the fitted noise model, from its held-out
margin. Three kinds of finding, each a mean of N_f values with cluster-robust errors (`clusters`):

| kind    | mean of                                                    | is 0 if |
|---------|------------------------------------------------------------|---------|
| group   | -sign(m_i) (1 - P_i) in the group, less that of all others | its labels are as good |
| excess  | s_i (1 - P_i), s_i = 1 where the label takes the side with more of a trait, else -1 \
| labels take it as often as the model expects |
| follows | s_i / 2                                | labels take that side as often as the other |

The held-out model learns a bias only in part, so one that makes labels wrong shows in `excess`; so
does taste that the model underrates. Taste moves the log odds of every pair, and hardly touches
pairs that the model is sure of. Labels that take a side whatever the content take it there too:

    P(label takes side s | m) = (1 - b) [(1 - e) F + e (1 - F)] + b,    F = sigma(s g + D)

with D the taste, e errors that know no side, and b the share of labels that take the side blindly
(of those that shun it, for b < 0). `excess` is only stated if its b has the same sign and b = 0 is
rejected (likelihood ratio, one-sided 5 %). Findings have a false discovery rate of 5 % (Benjamini,
Hochberg 1995) over all tests of means together, and an effect that is worth a look (`LEAST`). A
group must also have a flip rate above the crowd's. `follows` may be taste; the side that labels
take or shun most surely comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtr, ndtri

from noisescope.scoring.annotators import Annotator, annotator_table
from noisescope.scoring.clusters import share_interval, widest
from noisescope.scoring.flip_rate import OVERDISPERSION
from noisescope.scoring.metrics import MASS, Interval
from noisescope.scoring.noise_models import Noise
from noisescope.scoring.scores import SUSPICIOUS
from noisescope.scoring.traits import Trait

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

Kind = Literal["group", "excess", "follows"]
#: False discovery rate over all tests.
LEVEL = 0.05
#: Smallest effects worth a look, as shares of labels: a model's misfit reaches 2 or 3 points.
LEAST: Mapping[Kind, float] = {"group": 0.03, "excess": 0.03, "follows": 0.1}
#: Largest shift D of the log odds, and share b, that are fitted.
WIDEST_SHIFT, WIDEST_SHARE = 6.0, 0.95
#: Nearest that a probability comes to 0 or 1 in a likelihood.
TINY = 1e-9
#: Fewest pairs behind a finding.
FEWEST = 20


@final
@dataclass(frozen=True)
class Finding:
    """One thing that suspicious labels, or all labels, have in common.

    `effect` is in shares of labels (see the module) with a 90 % interval, `pairs` are those it is
    about, `p` is its p value. Of `suspicious_pairs` among them, `shown` show it.
    """

    kind: Kind
    trait: str
    value: str
    effect: Interval
    pairs: int
    suspicious_pairs: int
    shown: int
    p: float
    sentence: str

    @property
    def labels(self) -> int:
        """How many labels it accounts for: |effect| * pairs."""
        return round(abs(self.effect.estimate) * self.pairs)

    def to_json(self) -> dict[str, Any]:
        """JSON object of `explain --json`."""
        return {**vars(self), "effect": self.effect.to_json(), "labels": self.labels}


@final
@dataclass(frozen=True)
class Labels:
    """N labels: mean held-out `margins`, `p_wrong`, and what may explain them.

    `sides`: for each trait s [N], 1 where the labelled side has more of it, -1 where the other
    has, else 0. `groups`: name -> codes [N], -1 for none, and the values' names; "annotator june"
    names a group in a sentence. `clusters` are groupings of pairs that are not independent.
    """

    margins: Float
    p_wrong: Float
    sides: Mapping[Trait, NDArray[np.int8]] = field(default_factory=dict)
    groups: Mapping[str, tuple[Int, Sequence[str]]] = field(default_factory=dict)
    clusters: Sequence[Int] = ()

    @property
    def suspicious(self) -> NDArray[np.bool_]:
        return np.asarray(self.p_wrong >= SUSPICIOUS)


def explain(labels: Labels, noise: Noise) -> list[Finding]:
    """Findings at the false discovery rate `LEVEL`: of wrong labels first, of most labels first.

    Then what all labels follow, by the end of its interval that is nearest to 0.

    The rates of `noise` are those of the same N pairs.
    """
    tests: list[Finding] = []
    for trait, signs in labels.sides.items():
        tests += _of_side(trait, signs.astype(np.float64), labels, noise)
    for name, (codes, values) in labels.groups.items():
        tests += _of_group(name, codes, values, labels, noise)
    found = [test for test in _discovered(tests) if abs(test.effect.estimate) >= LEAST[test.kind]]
    stated = {test.trait for test in found if test.kind == "excess"}
    kept = [test for test in found if test.kind != "follows" or test.trait not in stated]
    return sorted(kept, key=_place)


def _place(found: Finding) -> tuple[bool, float]:
    """The sort key of a finding."""
    follows = found.kind == "follows"
    nearest = min(abs(found.effect.low), abs(found.effect.high))
    return follows, -nearest if follows else -found.labels


def _rates(noise: Noise, name: str = "") -> Float:
    """The rates [2, N] of the chosen noise model; one rate if that is a model of `name`."""
    rates = np.stack([noise.this, noise.other])
    return np.full_like(rates, noise.single.estimate) if noise.chosen == name else rates


def _probability(labels: Labels, noise: Noise, name: str = "") -> Float:
    """P(label | m) [N] under these rates."""
    share, (this, other) = expit(noise.single.gap(labels.margins)), _rates(noise, name)
    return np.asarray((1 - this) * share + other * (1 - share))


def _of_side(trait: Trait, signs: Float, labels: Labels, noise: Noise) -> list[Finding]:
    """Whether labels take the side with a trait more often than expected, and than the other."""
    use = (signs != 0) & np.isfinite(labels.margins)
    count = int(use.sum())
    if count < FEWEST:
        return []
    s, clusters = signs[use], [codes[use] for codes in labels.clusters]
    suspicious = labels.suspicious[use]
    values = {"excess": s * (1 - _probability(labels, noise)[use]), "follows": s / 2}
    taken = share_interval((1 + s) / 2, clusters)
    found = []
    for kind in ("excess", "follows"):
        effect, p = _mean(values[kind], clusters)
        if trait.merit * effect.estimate > 0:
            continue  # readers want that: it is no bias
        if kind == "excess" and abs(effect.estimate) >= LEAST[kind] and p < LEVEL:
            most = max(noise.single.high, float(_rates(noise)[:, use].mean()))
            way = np.sign(effect.estimate)
            odds = way * s * noise.single.gap(labels.margins[use])
            if not _blind(way * s > 0, odds, most, _design(values[kind], clusters)):
                p = 1.0
        if kind == "follows" and taken.low <= 0.5 <= taken.high:
            p = 1.0  # so few clusters that the stated interval holds one half
        bad, way = int(suspicious.sum()), np.sign(effect.estimate)
        shown = int((suspicious & (s == way)).sum())
        more = _beyond(effect, shown, bad) if kind == "excess" else ""
        sentence = f"Labels choose {trait.side} in {_range(taken)} of {count:,} pairs{more}."
        found.append(Finding(kind, trait.name, "", effect, count, bad, shown, p, sentence))
    return found


def _blind(taken: Bool, odds: Float, most: float, design: float) -> bool:
    """Whether some labels take a side whatever the content: b = 0 is rejected (see the module).

    `taken` [n] marks pairs whose label takes the side, `odds` [n] are the model's log odds of that;
    e is at most `most`. The log likelihood ratio is divided by `design`.
    """

    def loss(theta: Float) -> float:
        errors, shift, share = theta
        odd = expit(odds + shift)
        p = np.clip((1 - share) * (errors + (1 - 2 * errors) * odd) + share, TINY, 1 - TINY)
        return -float(np.log(np.where(taken, p, 1 - p)).sum())

    def fitted(start: Sequence[float], widest: float) -> Any:
        bounds = [(0.0, most), (-WIDEST_SHIFT, WIDEST_SHIFT), (0.0, widest)]
        return minimize(loss, start, bounds=bounds, method="L-BFGS-B")

    taste = fitted([most / 2, 0.0, 0.0], 0.0)
    starts = (taste.x, [0.0, taste.x[1] / 2, 0.1], [0.0, -0.5, 0.4])
    blind = min((fitted(start, WIDEST_SHARE) for start in starts), key=lambda fit: float(fit.fun))
    ratio = 2 * max(float(taste.fun - blind.fun), 0.0) / design
    return bool(ndtr(-np.sqrt(ratio)) < LEVEL)


def _design(values: Float, clusters: Sequence[Int]) -> float:
    """How much more than single pairs the clusters make a mean of `values` [n] vary."""
    centred = values - values.mean()
    single = widest(centred, [])
    return max(OVERDISPERSION, (widest(centred, clusters) / single) ** 2 if single else 1.0)


def _beyond(effect: Interval, shown: int, bad: int) -> str:
    more = "more" if effect.estimate > 0 else "less"
    do = "do" if effect.estimate > 0 else "do not"
    points = f"{100 * abs(effect.estimate):.0f} points {more} often than the model expects"
    return f", {points}; {shown:,} of the {bad:,} suspicious ones {do}" if bad else f", {points}"


def _range(share: Interval) -> str:
    return f"{share.estimate:.0%} ({share.low:.0%} to {share.high:.0%})"


def _of_group(
    name: str, codes: Int, values: Sequence[str], labels: Labels, noise: Noise
) -> list[Finding]:
    """Which groups of pairs have more wrong labels than all others."""
    known = np.isfinite(labels.margins)
    against = -np.sign(labels.margins) * (1 - _probability(labels, noise, name))
    bad = int((labels.suspicious & known).sum())
    rows: dict[str, Annotator] = {}
    found = []
    for code, value in enumerate(values):
        inside, outside = known & (codes == code), known & (codes != code)
        count = int(inside.sum())
        if min(count, int(outside.sum())) < FEWEST:
            continue
        rows = rows or {
            r.name: r for r in annotator_table(values, codes, labels.margins, noise.single)
        }
        if not (rows[value].careless or rows[value].contrarian):
            continue
        clusters = [own for own in labels.clusters if len(np.unique(own[inside])) > 1]
        one, two = (_mean(against[u], [own[u] for own in clusters])[0] for u in (inside, outside))
        effect, p = _difference(one, two)
        if effect.estimate > 0:
            shown = int((inside & labels.suspicious).sum())
            sentence = _group_sentence(f"{name} {value}", rows[value])
            found.append(Finding("group", name, value, effect, count, bad, shown, p, sentence))
    return found


def _group_sentence(group: str, row: Annotator) -> str:
    what = "are reversed" if row.contrarian else "are wrong more often than others"
    share = _range(Interval(row.flip_rate, row.low, row.high))
    return f"Labels of {group} {what}: {share} of {row.labels:,} look flipped."


def _mean(values: Float, clusters: Sequence[Int]) -> tuple[Interval, float]:
    """Mean with its cluster interval, and the two-sided p value of 0.

    Equal values have the variance that they have about 0: that of all labels on one side.
    """
    mean = float(values.mean())
    half = widest(values - mean if np.ptp(values) else values, clusters)
    return Interval(mean, mean - half, mean + half), _p_value(mean, half)


def _difference(one: Interval, two: Interval) -> tuple[Interval, float]:
    mean = one.estimate - two.estimate
    half = float(np.hypot(one.high - one.estimate, two.high - two.estimate))
    return Interval(mean, mean - half, mean + half), _p_value(mean, half)


def _p_value(mean: float, half: float) -> float:
    error = half / float(ndtri((1 + MASS) / 2))
    return float(2 * ndtr(-abs(mean) / error)) if error > 0 else 1.0


def _discovered(tests: Sequence[Finding]) -> list[Finding]:
    """The tests up to the largest p with p <= LEVEL * rank / count."""
    ordered = sorted(tests, key=lambda test: test.p)
    passed = [i for i, test in enumerate(ordered) if test.p <= LEVEL * (i + 1) / len(ordered)]
    return ordered[: passed[-1] + 1] if passed else []
