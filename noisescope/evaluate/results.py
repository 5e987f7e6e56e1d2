"""Compute win rates and score differences from verdicts, with intervals.

    win_rate(np.array([1, 0.5, 0, 1]))           # share of wins, ties half, with its interval
    paired_difference(policy, against)           # mean score difference, with its interval
    summarise_verdicts(card, verdicts)                      # both, with counts, as one JudgeResult

Intervals are 90 % intervals over prompts. Simulations of their coverage are in benchmarks/LOG.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import t as student

from noisescope.errors import EvidenceError
from noisescope.evaluate.comparison import (
    FAILED,
    FIRST,
    SECOND,
    UNPARSABLE,
    JudgeCard,
    Verdict,
)
from noisescope.scoring.metrics import MASS, Interval

Float = NDArray[np.float64]


@final
@dataclass(frozen=True)
class WinRate:
    """Counts over N judged prompts, and the win rate (wins + ties / 2) / N with its interval."""

    wins: int
    ties: int
    losses: int
    rate: Interval

    @property
    def judged(self) -> int:
        return self.wins + self.ties + self.losses

    def to_json(self) -> dict[str, Any]:
        """JSON object with the interval beside the counts."""
        counts = {"wins": self.wins, "ties": self.ties, "losses": self.losses}
        return counts | {"win_rate": self.rate.to_json()}


def win_rate(outcomes: Sequence[float] | Float, mass: float = MASS) -> WinRate:
    """Compute the win rate of outcomes [N] in {1, 0.5, 0}; NaN is omitted.

    The interval is Wilson's score interval with ties: an outcome of rate p with share t of ties
    has variance p (1 - p) - t / 4, so the interval is all p with
    (p_hat - p)^2 <= z^2 (p (1 - p) - t / 4) / N, t estimated by ties / (N + z^2). Without ties it
    is Wilson's (1927). Raises EvidenceError if nothing was judged.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if not n:
        raise EvidenceError("no prompt was judged", hint="The judge's counts show why.")
    wins, ties = int((values == 1).sum()), int((values == 0.5).sum())
    z = float(ndtri((1 + mass) / 2))
    rate, tied = (wins + ties / 2) / n, ties / (n + z * z)
    a, b = 1 + z * z / n, 2 * rate + z * z / n
    c = rate * rate + z * z * tied / (4 * n)
    half = float(np.sqrt(max(0.0, b * b - 4 * a * c)))
    low, high = (b - half) / (2 * a), (b + half) / (2 * a)
    interval = Interval(rate, max(0.0, min(rate, low)), min(1.0, max(rate, high)))
    return WinRate(wins, ties, n - wins - ties, interval)


def paired_difference(
    policy: Sequence[float] | Float, against: Sequence[float] | Float, mass: float = MASS
) -> Interval:
    """Compute the mean of policy - against over N prompts with Student's paired interval."""
    gaps = np.asarray(policy, dtype=np.float64) - np.asarray(against, dtype=np.float64)
    gaps = gaps[np.isfinite(gaps)]
    n = len(gaps)
    if not n:
        raise EvidenceError("no prompt was scored", hint="The judge's counts show why.")
    mean = float(gaps.mean())
    if n == 1:
        return Interval(mean, float("-inf"), float("inf"))
    half = float(student.ppf((1 + mass) / 2, n - 1) * gaps.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


@final
@dataclass(frozen=True)
class Order:
    """Position bias of a judge that sees both outputs, in both orders.

    `agreed` of `asked` comparisons got the same answer in both orders. `first` is the rate at
    which the output shown first is named (one half: no position bias), over comparisons with two
    valid answers; None without any. `unparsable` and `failed` count answers, `retries` repeated
    requests.
    """

    asked: int
    agreed: int
    first: Interval | None
    unparsable: int
    failed: int
    retries: int

    def to_json(self) -> dict[str, Any]:
        """JSON object."""
        counts: dict[str, Any] = {"asked": self.asked, "agreed": self.agreed}
        counts["named_first"] = self.first.to_json() if self.first else None
        return counts | {
            "unparsable": self.unparsable,
            "failed": self.failed,
            "retries": self.retries,
        }


@final
@dataclass(frozen=True)
class JudgeResult:
    """One judge's result over all prompts. Means are None for judges that see both outputs."""

    card: JudgeCard
    prompts: int
    unjudged: int
    won: WinRate | None
    policy_mean: float | None
    against_mean: float | None
    difference: Interval | None
    order: Order | None

    def to_json(self) -> dict[str, Any]:
        """JSON object for `--json` and the manifest."""
        content: dict[str, Any] = {
            "judge": self.card.name,
            "model": self.card.model,
            "licence": self.card.licence,
            "fingerprint": self.card.fingerprint,
            "prompts": self.prompts,
            "unjudged": self.unjudged,
        }
        content |= self.won.to_json() if self.won else {"win_rate": None}
        content["mean"] = {"policy": self.policy_mean, "against": self.against_mean}
        content["difference"] = self.difference.to_json() if self.difference else None
        return content | {"order": self.order.to_json() if self.order else None}


def summarise_verdicts(card: JudgeCard, verdicts: Sequence[Verdict]) -> JudgeResult:
    """Summarise one judge's verdicts on N prompts."""
    outcomes = np.array([np.nan if v.outcome is None else v.outcome for v in verdicts], np.float64)
    judged = np.isfinite(outcomes)
    scored = [v for v in verdicts if v.policy is not None and v.against is not None]
    mine = np.array([v.policy for v in scored], np.float64)
    theirs = np.array([v.against for v in scored], np.float64)
    return JudgeResult(
        card=card,
        prompts=len(verdicts),
        unjudged=int((~judged).sum()),
        won=win_rate(outcomes) if judged.any() else None,
        policy_mean=float(mine.mean()) if scored else None,
        against_mean=float(theirs.mean()) if scored else None,
        difference=paired_difference(mine, theirs) if scored else None,
        order=_order(verdicts) if card.is_pairwise else None,
    )


def _order(verdicts: Sequence[Verdict]) -> Order:
    """Compute the position bias from a judge's answers in both orders."""
    answers = [answer for verdict in verdicts for answer in verdict.answers]
    understood = [v.answers for v in verdicts if v.outcome is not None]
    share = {FIRST: 1.0, SECOND: 0.0}
    named = [(share.get(one, 0.5) + share.get(other, 0.5)) / 2 for one, other in understood]
    same = {(FIRST, SECOND), (SECOND, FIRST)}
    return Order(
        asked=len(verdicts),
        agreed=sum(both in same or both[0] == both[1] == "tie" for both in understood),
        first=_mean(np.array(named)) if named else None,
        unparsable=answers.count(UNPARSABLE),
        failed=answers.count(FAILED),
        retries=sum(verdict.retries for verdict in verdicts),
    )


def _mean(values: Float) -> Interval:
    """Compute the mean of values in [0, 1] with Student's interval, clipped to [0, 1]."""
    spread = paired_difference(values, np.zeros(len(values)))
    return Interval(spread.estimate, max(0.0, spread.low), min(1.0, spread.high))
