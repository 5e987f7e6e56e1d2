"""Turn a policy's log-likelihoods into pair values for the loop, and validate on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.models.memory import HINT, OomRetry
from noisescope.training.batch_order import Stream
from noisescope.training.loop import MicroBatch, PairBatch, Piece, right
from noisescope.training.objectives import DPO, REPO, DistilledDPO, Objective, PairValues
from noisescope.training.policy import Int, PairLogps, TrainablePolicy
from noisescope.training.policy.adaptive import Online, Reliability

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

Float = NDArray[np.float64]


@final
@dataclass
class PreferenceLearner:
    """`training.loop.Learner` of a policy: `batch` pairs an optimiser step, over all processes.

    A step is computed in `accumulation` micro-batches; None: as few as the policy's budget
    allows. `weight` and `gamma` [N] are fixed (an audit's) or made online.
    """

    policy: TrainablePolicy
    stream: Stream
    objective: Objective
    batch: int
    accumulation: int | None = None
    processes: int = 1
    weight: Float | None = None
    gamma: Float | None = None
    online: Online | None = None
    reliability: Reliability | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)
    retry: OomRetry[int] = field(init=False)

    def __post_init__(self) -> None:
        ids = self.policy.data.pair_ids
        hint = f"--gradient-checkpointing keeps less. {HINT}"
        self.retry = OomRetry("pairs", lambda pair: f"pair {ids[pair]}", hint=hint)
        for part in (self.online, self.reliability):
            if part is not None:
                self.buffers |= part.buffers

    def trainable(self) -> Mapping[str, Tensor]:
        return self.policy.trainable()

    def clip(self, max_norm: float | None) -> float:
        norm = self.policy.clip(max_norm)
        if self.online is None:
            return norm
        return norm * self.online.config.adapters / len(self.online.trained)  # mean of those

    def batches(self, step: int) -> list[MicroBatch]:
        """The step's pairs in micro-batches, at least one a process if there are enough pairs."""
        pairs = self.stream.batch(step, self.batch)
        if self.accumulation is not None:
            count = max(self.accumulation, self.processes)
            parts = np.array_split(pairs, min(count, len(pairs)))
        else:
            parts = _within(pairs, self.policy.work[pairs], self.policy.budget)
            if len(parts) < min(self.processes, len(pairs)):
                parts = np.array_split(pairs, min(self.processes, len(pairs)))
        return [[PairBatch(0, part, len(part) / len(pairs), step)] for part in parts]

    def pieces(self, batch: MicroBatch) -> Iterator[Piece]:
        """Pair values of a micro-batch; one piece a replica that trains."""
        (part,) = batch
        pairs, online = part.pairs, self.online
        if online is None:
            sides = self.policy.pair_logps(pairs, part.step)
            yield Piece(self._values(sides, pairs), part.share)
            return
        sides = self.policy.pair_logps(pairs, part.step, online.trained, online.watched)
        weight, gamma = online.weigh(sides.logratios.detach())
        for replica in range(len(online.trained)):
            yield Piece(sides.values(replica, weight=weight, gamma=gamma), part.share)

    def forget(self) -> None:
        """Drop what a step has recorded so far, before it is repeated."""
        for part in (self.online, self.reliability):
            if part is not None:
                part.forget()

    def judge(self, pairs: Int, draws: int) -> PairValues:
        """Values of `pairs` under the first replica without gradient, W = 1 and Gamma = 0: what
        validation measures. Images: the mean over `draws` draws that training never meets."""
        import torch

        with torch.no_grad():
            found = [self.policy.pair_logps(pairs, -1 - draw) for draw in range(draws)]
            ones = torch.ones_like(found[0].chosen_tokens, dtype=torch.float32)
            mean = PairLogps(
                torch.stack([one.chosen for one in found]).mean(0),
                torch.stack([one.rejected for one in found]).mean(0),
                torch.stack([one.chosen_reference for one in found]).mean(0),
                torch.stack([one.rejected_reference for one in found]).mean(0),
                found[0].chosen_tokens,
                found[0].rejected_tokens,
            )
            return mean.values(0, weight=ones, gamma=torch.zeros_like(ones))

    def finish(
        self, averages: Mapping[float, Mapping[str, Tensor]], total: Callable[[Tensor], Tensor]
    ) -> None:
        """After an optimiser step: averaged copies, running scales and annotators catch up.

        `total` sums a tensor over processes.
        """
        if self.online is not None:
            for replica, copies in zip(self.online.watched, averages.values(), strict=False):
                self.policy.average(replica, copies)
            self.online.finish(total)
        if self.reliability is not None:
            self.reliability.finish(total)

    def _values(self, sides: PairLogps, pairs: Int) -> PairValues:
        """Values with the pairs' fixed weights, and RE-PO's two half steps."""
        import torch

        device = sides.chosen.device

        def column(values: Float | None) -> Tensor | None:
            if values is None:
                return None
            return torch.from_numpy(values[pairs]).float().to(device)

        known = None if self.reliability is None else self.reliability.of(pairs).float().to(device)
        values = sides.values(
            0, weight=column(self.weight), gamma=column(self.gamma), reliability=known
        )
        if self.reliability is not None and isinstance(self.objective, REPO):
            self.reliability.note(pairs, self.objective.posterior(values))
        return values


def _within(pairs: Int, work: Int, budget: int) -> list[Int]:
    """Pairs in order, in parts of at most `budget` work (or one pair)."""
    parts: list[list[int]] = [[]]
    used = 0
    for pair, cost in zip(pairs.tolist(), work.tolist(), strict=True):
        if parts[-1] and used + cost > budget:
            parts.append([])
            used = 0
        parts[-1].append(pair)
        used += cost
    return [np.array(part, np.int64) for part in parts]


#: Draws that validation averages over: images are noised, text is not.
VALIDATION_DRAWS = {"text": 1, "vision": 1, "image": 4}


def total_over(tensor: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum of a tensor over processes."""
    if accelerator.num_processes == 1:
        return tensor
    summed: Tensor = accelerator.reduce(tensor.to(accelerator.device), "sum").cpu()
    return summed


def judged_by(objective: Objective) -> Objective:
    """The objective that measures labels as they are: dpo for those that learn beliefs."""
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
        found = torch.stack([loss.sum(), margin.sum(), right(margin)]).cpu().double()
        return torch.cat([found, torch.tensor([float(len(margin))])])

    totals = torch.zeros(4, dtype=torch.float64)
    rank, processes = accelerator.process_index, accelerator.num_processes
    mine = pairs[rank::processes].tolist()
    size = max(1, learner.policy.budget // int(learner.policy.work[pairs].max()))
    for start in range(0, len(mine), size):
        for _, found in learner.retry.run(measured, mine[start : start + size]):
            totals += found
    loss_sum, margin_sum, agreed, count = total_over(totals, accelerator).tolist()
    return {
        "validation_loss": loss_sum / count,
        "validation_margin": margin_sum / count,
        "validation_accuracy": agreed / count,
    }
