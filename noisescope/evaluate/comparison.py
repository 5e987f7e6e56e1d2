"""Who wins, how often, and how sure that is: pure functions of verdicts.

    win_rate(np.array([1, 0.5, 0, 1]))           # share of wins, ties half, with its interval
    paired_difference(policy, against)           # mean score difference, with its interval
    compare(card, verdicts)                      # both, with counts, as one Comparison

Intervals hold 90 %, over prompts. The simulations behind them are in benchmarks/LOG.md.
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
from noisescope.evaluate.results import (
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
    """Counts of N judged prompts and the win rate (wins + ties / 2) / N with its interval."""

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
    """Win rate of outcomes [N] in {1, 0.5, 0}; NaN is left out.

    The interval is Wilson's score interval with ties: an outcome of rate p with share t of ties
    has variance p (1 - p) - t / 4, so the interval is all p with
    (p_hat - p)^2 <= z^2 (p (1 - p) - t / 4) / N, t estimated by ties / (N + z^2). Without ties it
    is Wilson's (1927). Raises EvidenceError where nothing was judged.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if not n:
        raise EvidenceError("no prompt was judged", hint="See why in the counts of the judge.")
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
    """Mean of policy - against over N prompts with Student's interval of paired differences."""
    gaps = np.asarray(policy, dtype=np.float64) - np.asarray(against, dtype=np.float64)
    gaps = gaps[np.isfinite(gaps)]
    n = len(gaps)
    if not n:
        raise EvidenceError("no prompt was scored", hint="See why in the counts of the judge.")
    mean = float(gaps.mean())
    if n == 1:
        return Interval(mean, float("-inf"), float("inf"))
    half = float(student.ppf((1 + mass) / 2, n - 1) * gaps.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


@final
@dataclass(frozen=True)
class Order:
    """How a judge of two outputs answered when asked both ways round.

    `agreed` of `asked` duels got the same answer both ways. `first` is the rate at which the
    output shown first is named (one half: no position bias), over duels understood both ways;
    None where none was. `unparsable` and `failed` count answers, `retries` repeated requests.
    """

    asked: int
    agreed: int
    first: Interval | None
    unparsable: int
    failed: int
    retries: int

    def to_json(self) -> dict[str, Any]:
        """JSON object."""
        told: dict[str, Any] = {"asked": self.asked, "agreed": self.agreed}
        told["named_first"] = self.first.to_json() if self.first else None
        return told | {
            "unparsable": self.unparsable,
            "failed": self.failed,
            "retries": self.retries,
        }


@final
@dataclass(frozen=True)
class Comparison:
    """One judge's result over all prompts. Means are None for judges that only compare."""

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
        told: dict[str, Any] = {
            "judge": self.card.name,
            "model": self.card.model,
            "licence": self.card.licence,
            "fingerprint": self.card.fingerprint,
            "prompts": self.prompts,
            "unjudged": self.unjudged,
        }
        told |= self.won.to_json() if self.won else {"win_rate": None}
        told["mean"] = {"policy": self.policy_mean, "against": self.against_mean}
        told["difference"] = self.difference.to_json() if self.difference else None
        return told | {"order": self.order.to_json() if self.order else None}


def compare(card: JudgeCard, verdicts: Sequence[Verdict]) -> Comparison:
    """Everything one judge's verdicts say, [N] prompts."""
    outcomes = np.array([np.nan if v.outcome is None else v.outcome for v in verdicts], np.float64)
    judged = np.isfinite(outcomes)
    scored = [v for v in verdicts if v.policy is not None and v.against is not None]
    mine = np.array([v.policy for v in scored], np.float64)
    theirs = np.array([v.against for v in scored], np.float64)
    return Comparison(
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
    """Position bias from the answers themselves: who was named when shown first, and second."""
    answers = [answer for verdict in verdicts for answer in verdict.told]
    understood = [v.told for v in verdicts if v.outcome is not None]
    share = {FIRST: 1.0, SECOND: 0.0}
    named = [(share.get(one, 0.5) + share.get(other, 0.5)) / 2 for one, other in understood]
    same = {(FIRST, SECOND), (SECOND, FIRST)}
    return Order(
        asked=len(verdicts),
        agreed=sum(told in same or told[0] == told[1] == "tie" for told in understood),
        first=_mean(np.array(named)) if named else None,
        unparsable=answers.count(UNPARSABLE),
        failed=answers.count(FAILED),
        retries=sum(verdict.retries for verdict in verdicts),
    )


def _mean(values: Float) -> Interval:
    """Mean of values in [0, 1] with Student's interval, cut to [0, 1]."""
    spread = paired_difference(values, np.zeros(len(values)))
    return Interval(spread.estimate, max(0.0, spread.low), min(1.0, spread.high))
