"""Loss, margin and accuracy on held-out pairs, over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisescope.learners import Int
from noisescope.learners.preference import PreferenceLearner
from noisescope.objectives import DPO, DistilledDPO, Objective

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
    """Unweighted loss, margin and accuracy of held-out `pairs`, every process a share of them."""
    import torch

    objective = judged_by(objective)
    totals = torch.zeros(4, dtype=torch.float64)
    mine = pairs[accelerator.process_index :: accelerator.num_processes]
    cost = int(learner.trainee.work[pairs].max())
    size = max(1, learner.trainee.budget // cost)
    for start in range(0, len(mine), size):
        with accelerator.autocast():
            values = learner.judge(mine[start : start + size], VALIDATION_DRAWS[modality])
        margin, loss = objective.margin(values), objective(values)
        found = (loss.sum(), margin.sum(), (margin > 0).sum(), len(margin))
        totals += torch.tensor([float(value) for value in found], dtype=torch.float64)
    loss_sum, margin_sum, right, count = total_over(totals, accelerator).tolist()
    return {
        "validation_loss": loss_sum / count,
        "validation_margin": margin_sum / count,
        "validation_accuracy": right / count,
    }
