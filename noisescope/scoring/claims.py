"""Compare what an audit claims of its labels with the truth about planted errors.

    claims = compare(wrong, columns, summary, noise, Own())
    claims["hits"], verdict(claims)

Errors that were in the data before planting are unknown unless the labels were right. The truth of
a share is then a range: planted p with own errors x give p + x (1 - 2 p), x from the lower to the
upper end of what the audit claimed before, if own errors and planted ones are independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.scoring.find import expected_finds

if TYPE_CHECKING:
    from noisescope.scoring.noise_models import Noise
    from noisescope.scoring.summary import Summary

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@final
@dataclass(frozen=True)
class Own:
    """Claimed ranges of the errors in the data before planting: (0, 0) if its labels were right.

    `flip_rate` is None if the truth is about disagreement of people, of which flips are a part.
    """

    flip_rate: tuple[float, float] | None = (0.0, 0.0)
    wrong: tuple[float, float] = (0.0, 0.0)

    @property
    def none(self) -> bool:
        """Whether every wrong label is known."""
        return self.wrong[1] == 0


def compare(
    wrong: Bool, columns: Mapping[str, Float], summary: Summary, noise: Noise, own: Own
) -> dict[str, Any]:
    """Claims beside the truth, for planted errors `wrong` [N] and columns of scores.parquet.

    `hits` are planted errors among the worst pairs, as many as were planted; `expected_hits` the
    range of wrong labels that the audit expects there (`find`). If the data has errors of its own,
    those are expected too, and only more hits than expected contradict. Pairs without a margin are
    not among the worst. Raises UsageError if no label is wrong, or none has a margin.
    """
    planted, count = float(wrong.mean()), int(wrong.sum())
    ranked = min(count, int(np.isfinite(columns["margin"]).sum()))
    if not ranked:
        raise UsageError(
            f"none of the {len(wrong):,} labels is known to be wrong, so there is nothing to find",
            hint="Plant more with a larger --rate, or name a --truth file with wrong labels.",
        )
    worst = np.lexsort((columns["margin"], -columns["p_wrong"]))[:ranked]
    hits = int(wrong[worst].sum())
    expected = expected_finds(noise, columns["margin"], (ranked,))[0]
    covers = (expected.low if own.none else 0) <= hits <= expected.high
    claims: dict[str, Any] = {
        "planted": count,
        "planted_share": planted,
        "own_errors": not own.none,
        "hits": hits,
        "expected_hits": {"low": expected.low, "high": expected.high, "covers": covers},
        "wrong_share": _claim(summary.mislabelled.to_json(), planted, own.wrong),
        "chance": summary.chance,
    }
    if own.flip_rate is not None:
        claims["flip_rate"] = _claim(summary.flip_rate.to_json(), planted, own.flip_rate)
    return claims


def _claim(claimed: Mapping[str, Any], planted: float, own: tuple[float, float]) -> dict[str, Any]:
    """A claimed interval, the range of the truth, and whether they meet."""
    low, high = sorted(planted + x * (1 - 2 * planted) for x in own)
    covers = claimed["low"] <= high and low <= claimed["high"]
    return {**claimed, "truth": [low, high], "covers": covers}


def mean_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of several comparisons of one kind and rate; `covers` is the share that covers."""
    first = rows[0]
    merged: dict[str, Any] = {}
    for name, value in first.items():
        found = [row[name] for row in rows]
        if isinstance(value, Mapping):
            merged[name] = mean_of(found)
        elif isinstance(value, str):
            merged[name] = value
        else:
            merged[name] = np.mean(np.asarray(found, dtype=np.float64), axis=0).tolist()
    return merged


def verdict(claims: Mapping[str, Any], what: str = "planted errors") -> str:
    """How many errors the worst pairs hold, and whether the claims cover the truth, in words."""
    count, hits = claims["planted"], claims["hits"]
    found = (
        f"Of {count:,.0f} {what} the worst {count:,.0f} pairs contain {hits:,.0f} "
        f"({hits / count:.0%})."
    )
    wrong = [
        words
        for name, words in (
            ("expected_hits", "expected hits"),
            ("flip_rate", "flip rate"),
            ("wrong_share", "share of wrong labels"),
        )
        if name in claims and claims[name]["covers"] < 1
    ]
    if claims["chance"]:
        return f"{found} The replicas are no better than chance, which the audit reports."
    if wrong:
        return f"{found} The claimed {' and '.join(wrong)} did not cover the truth."
    return f"{found} Every claim covers the truth."
