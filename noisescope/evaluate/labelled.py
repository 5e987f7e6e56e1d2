"""Compute ranking and implicit-reward accuracy on labelled pairs, without generation.

    found = labelled_accuracy(policy, against, dataset, device="auto")
    found.implicit, found.policy, found.against

Ranking accuracy (arXiv 2405.19534, Def. 2.2): share of pairs with pi(w|c) > pi(l|c), also with
each log-probability divided by its response's length. Implicit-reward accuracy: share of pairs
whose log-ratio l = [log pi(w|c) - log pi_ref(w|c)] - [log pi(l|c) - log pi_ref(l|c)] is above 0,
with the opponent as the reference. Equal values count half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.evaluate.models import ModelSpec
from noisescope.scoring.metrics import Interval, held_out_accuracy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noisescope.models import Item
    from noisescope.pairs import PreferenceDataset
    from noisescope.progress import Reporter

Float = NDArray[np.float64]


@final
@dataclass(frozen=True)
class Ranking:
    """Shares of pairs whose chosen side is more probable, by sums and by means over tokens."""

    sums: Interval
    means: Interval

    def to_json(self) -> dict[str, Any]:
        """JSON object."""
        return {"ranking": self.sums.to_json(), "ranking_per_token": self.means.to_json()}


@final
@dataclass(frozen=True)
class Labelled:
    """Accuracies on `pairs` labelled pairs; Wilson intervals, 90 %."""

    dataset: str
    pairs: int
    implicit: Interval
    policy: Ranking
    against: Ranking

    def to_json(self) -> dict[str, Any]:
        """JSON object."""
        return {
            "dataset": self.dataset,
            "pairs": self.pairs,
            "implicit_reward": self.implicit.to_json(),
            "policy": self.policy.to_json(),
            "against": self.against.to_json(),
        }


def accuracies(chosen: Float, rejected: Float, lengths: NDArray[np.int64]) -> Ranking:
    """Compute ranking accuracy from log-probabilities [N] and lengths [2, N] in tokens."""
    return Ranking(
        held_out_accuracy(chosen - rejected),
        held_out_accuracy(chosen / lengths[0] - rejected / lengths[1]),
    )


def labelled_accuracy(
    policy: ModelSpec,
    against: ModelSpec,
    dataset: PreferenceDataset,
    *,
    device: str,
    reporter: Reporter,
) -> Labelled:
    """Score the dataset's pairs with both models, one in memory at a time. Raises UsageError."""
    from noisescope.models.items import distinct_items

    if dataset.modality != "text" or policy.modality != "text":
        raise UsageError(
            "--labelled needs text models and text pairs",
            hint="For images, `noisescope score --from-adapters` gives margins of pairs.",
        )
    items, chosen, rejected = distinct_items(dataset.table)
    found = []
    for spec in (policy, against):
        with reporter.stage(f"reading pairs with {spec.short}") as progress:
            found.append(log_probabilities(spec, items, device, progress))
    (mine, sizes), (theirs, other_sizes) = found
    ratio = mine - theirs
    return Labelled(
        dataset.resolved,
        len(dataset),
        held_out_accuracy(ratio[chosen] - ratio[rejected]),
        accuracies(mine[chosen], mine[rejected], np.stack([sizes[chosen], sizes[rejected]])),
        accuracies(
            theirs[chosen],
            theirs[rejected],
            np.stack([other_sizes[chosen], other_sizes[rejected]]),
        ),
    )


def log_probabilities(
    spec: ModelSpec, items: Sequence[Item], device: str, progress: Any
) -> tuple[Float, NDArray[np.int64]]:
    """Compute log pi(response | prompt), summed over tokens, and the token counts, both [n]."""
    import torch

    from noisescope.evaluate.text import load_policy
    from noisescope.models.forward import run_batch

    policy = load_policy(spec, device)
    total, sizes = np.zeros(len(items)), np.zeros(len(items), np.int64)
    done = 0
    with torch.inference_mode():
        for batch in policy.batches(items):
            trace = run_batch(policy.model, batch)
            own = trace.own.double().cpu()
            total[batch.items] = (own @ trace.logps.double().cpu()).numpy()
            sizes[batch.items] = own.sum(1).long().numpy()
            done += len(batch.items)
            progress(float(done), float(len(items)), None)
    return total, sizes
