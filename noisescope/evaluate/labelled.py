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
    from noisescope.models.causal_lm import CausalLMPolicy
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
    from noisescope.evaluate.text import load_policy
    from noisescope.models.items import distinct_items
    from noisescope.models.readable import judged_by

    if dataset.modality == "image" or policy.modality != "text":
        raise UsageError(
            "--labelled needs text models and text pairs",
            hint="For images, `noisescope score --from-adapters` gives margins of pairs.",
        )
    items, chosen, rejected = distinct_items(dataset.table)
    found, judged = [], np.ones(len(dataset), bool)
    for spec in (policy, against):
        shown = dataset.images if dataset.modality == "vision" else None
        model = load_policy(spec, device, shown)
        kept = judged_by(model, dataset)
        for note in kept.facts.notes[len(dataset.facts.notes) :]:
            reporter.note(f"{spec.short}: {note}")
        ids = dataset.table["pair_id"].to_pylist()
        judged &= np.isin(ids, kept.table["pair_id"].to_pylist())
        used = np.unique(np.concatenate([chosen[judged], rejected[judged]]))
        with reporter.stage(f"reading pairs with {spec.short}") as progress:
            found.append(log_probabilities(model, items, used, progress))
        del model  # before the next is loaded
    chosen, rejected = chosen[judged], rejected[judged]
    (mine, sizes), (theirs, other_sizes) = found
    ratio = mine - theirs
    return Labelled(
        dataset.resolved,
        int(judged.sum()),
        held_out_accuracy(ratio[chosen] - ratio[rejected]),
        accuracies(mine[chosen], mine[rejected], np.stack([sizes[chosen], sizes[rejected]])),
        accuracies(
            theirs[chosen],
            theirs[rejected],
            np.stack([other_sizes[chosen], other_sizes[rejected]]),
        ),
    )


def log_probabilities(
    policy: CausalLMPolicy, items: Sequence[Item], used: NDArray[np.int64], progress: Any
) -> tuple[Float, NDArray[np.int64]]:
    """Compute log pi(response | prompt), summed over tokens, and the token counts, both [n].

    Items that are not `used` (their indices) are 0 in both.
    """
    import torch

    from noisescope.models.forward import run_batch

    total, sizes = np.zeros(len(items)), np.zeros(len(items), np.int64)
    done = 0
    with torch.inference_mode():
        for batch in policy.batches([items[index] for index in used]):
            trace = run_batch(policy.model, batch)
            own = trace.own.cpu().double()
            total[used[batch.items]] = (own @ trace.logps.cpu().double()).numpy()
            sizes[used[batch.items]] = own.sum(1).long().numpy()
            done += len(batch.items)
            progress(float(done), float(len(used)), None)
    return total, sizes
