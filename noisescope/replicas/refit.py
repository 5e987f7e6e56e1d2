"""Head replicas again under other labels, from the features that an audit has cached.

    refit = refitter(run, table)
    first = refit(flipped, None)
    refit(other, first.variance).margins    # of replicas that see those labels flipped

A flip only swaps a pair's two rows among the features, so nothing is read or computed again except
the heads. Most of their cost is the search for how far each group of features may move a margin:
it may begin at what was found for labels with as many flips (`variance`), and then ends sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.models.items import distinct_items, fold_keys
from noisescope.replicas.gather import cache_directory
from noisescope.scoring.margins import RunMargins

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.storage.run import Run

Bool = NDArray[np.bool_]


@final
@dataclass(frozen=True)
class Refitted:
    """Margins of the refitted replicas, and the prior variances their search came to.

    `training` holds the contrasts and triads of the same labels, as a run's manifest does.
    """

    margins: RunMargins
    variance: Mapping[str, float]
    training: Mapping[str, Any]


#: (which labels are flipped [N], where the search begins or None) -> the refitted replicas.
Refit = Callable[[Bool, "Mapping[str, float] | None"], Refitted]


def refitter(run: Run, table: pa.Table, *, second: bool = True) -> Refit:
    """A function that refits the run's replicas to other labels of its pairs.

    Without `second` fits, the pairs of `table` may be others than the run's, if their features are
    in its cache and it has no evidence from outside.

    Raises RunError where the run is not of head replicas or its features are gone.
    """
    from noisescope.models.features import cached_features
    from noisescope.replicas.groups import held_out_groups
    from noisescope.replicas.head import HeadConfig, fit_heads
    from noisescope.replicas.outside import read_outside
    from noisescope.replicas.second_fits import second_fits
    from noisescope.replicas.selected import with_answers
    from noisescope.scoring.pair_facts import facts_of_table
    from noisescope.scoring.sources import VOTES
    from noisescope.scoring.triads import count_triads

    plan = run.plan()
    evidence = plan["evidence"]
    if evidence.get("kind") != "head":
        raise RunError(
            f"{run.directory} has {evidence.get('kind')} replicas, which planting would retrain",
            hint="Audit with --kind head, or flip the dataset and score the copy.",
        )
    for one in evidence.get("sources", ()):
        if one["source"] in ("lora", VOTES):
            raise RunError(
                f"{run.directory} has --evidence {one['source']}, which planting would change",
                hint="Audit without it, or flip the dataset and score the copy.",
            )
    items, chosen, rejected = distinct_items(table)
    features = cached_features(items, cache_directory(run), plan["model_fingerprint"])
    outside = read_outside(run, cache_directory(run), evidence, table, items)
    features |= outside.features
    config = HeadConfig(
        replicas=evidence["replicas"],
        folds=evidence["folds"],
        seed=evidence["seed"],
        identity=evidence["pool"],
    )
    keys = fold_keys(table)
    folds_by = evidence.get("folds_by", "pair")
    held_out = held_out_groups(table, folds_by).keys
    facts = facts_of_table(table, plan.get("modality", "text"))

    def refit(flipped: Bool, start: Mapping[str, float] | None) -> Refitted:
        turned = outside.reversed(flipped)
        one, other = np.where(flipped, rejected, chosen), np.where(flipped, chosen, rejected)
        fit = fit_heads(
            features,
            one,
            other,
            keys,
            config,
            numbers=turned.fitted,
            held_out=held_out,
            sources=facts.sources,
            start=start,
        )
        moved, shift = fit.margins, None
        if turned.selected:
            moved, shift, _ = with_answers(moved, facts.flipped(flipped), turned.selected)
        margins = RunMargins(
            list(range(len(fit.margins))),
            [1],
            moved[:, None, :].astype(np.float32),
            np.ones(moved.shape, bool),
            shift,
        )
        if not second:
            return Refitted(margins, fit.variance, {})
        sides, those = (one, other), facts.flipped(flipped)
        others = second_fits(table, features, sides, folds_by, config, fit, those, turned.fitted)
        training = {
            "contrasts": [contrast.to_json() for contrast in others],
            "triads": vars(count_triads(*sides)),
        }
        return Refitted(margins, fit.variance, training)

    return refit
