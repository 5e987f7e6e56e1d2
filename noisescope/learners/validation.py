"""Loss, margin and accuracy on held-out pairs, over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from noisescope.learners import Int
from noisescope.learners.preference import PreferenceLearner
from noisescope.objectives import DPO, DistilledDPO, Objective
from noisescope.policies.memory import Halving
from noisescope.training_step import right

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

#: Draws that validation averages over: images are noised, text is not.
VALIDATION_DRAWS = {"text": 1, "image": 4}


def total_over(tensor: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum of a tensor over processes."""
    if accelerator.num_processes == 1:
        return tensor
    summed: Tensor = accelerator.reduce(tensor.to(accelerator.device), "sum").cpu()
    return summed


def judged_by(objective: Objective) -> Objective:
    """What measures labels as they are: the objective, or dpo where it knows only beliefs."""
    return DPO(objective.beta) if isinstance(objective, DistilledDPO) else objective


def validate(
    learner: PreferenceLearner,
    objective: Objective,
    pairs: Int,
    modality: str,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Unweighted loss, margin and accuracy of held-out `pairs`, every process a share of them; a
    margin of 0 counts as half right."""
    import torch

    objective = judged_by(objective)

    def measured(part: Sequence[int]) -> Tensor:
        with accelerator.autocast():
            values = learner.judge(np.asarray(part, np.int64), VALIDATION_DRAWS[modality])
        margin, loss = objective.margin(values), objective(values)
        found = (loss.sum(), margin.sum(), right(margin), len(margin))
        return torch.tensor([float(value) for value in found], dtype=torch.float64)

    totals = torch.zeros(4, dtype=torch.float64)
    rank, processes = accelerator.process_index, accelerator.num_processes
    mine = pairs[rank::processes].tolist()
    size = max(1, learner.trainee.budget // int(learner.trainee.work[pairs].max()))
    halving: Halving[int] = Halving(
        "pairs", lambda pair: f"pair {learner.trainee.data.pair_ids[pair]}"
    )
    for start in range(0, -(-len(pairs) // processes), size):
        part = mine[start : start + size]
        if (
            learner.together
        ):  # as many forwards as the others, one that counts for nothing if need be
            totals += measured(part) if part else 0.0 * measured(pairs[:1].tolist())
            continue
        for _, found in halving.run(measured, part):
            totals += found
    loss_sum, margin_sum, agreed, count = total_over(totals, accelerator).tolist()
    return {
        "validation_loss": loss_sum / count,
        "validation_margin": margin_sum / count,
        "validation_accuracy": agreed / count,
    }
