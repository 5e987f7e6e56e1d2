"""Estimate the floating-point operations of LoRA replicas before they train.

cost = lora_cost(learner, measure(model), depth=30, steps=steps, due=[steps])
cost.total / rate                       # seconds at `rate` FLOP/s
meter = Meter(progress); meter.begin(cost); train_lora(..., report=meter)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from noisescope.models.packing import pack

if TYPE_CHECKING:
    from noisescope.models.forward import Dimensions
    from noisescope.models.packing import Packed
    from noisescope.progress import Progress
    from noisescope.replicas.packed import PackedReplicas

#: Steps whose batches are packed to see how many tokens a step has.
SAMPLED = 5
#: Share of the matrix product rate that a run reaches: operations as counted here over wall seconds
#: and that rate were .39 to .73 in four runs of benchmarks.replicas on a shared machine (over CPU
#: seconds .77 to .84). The middle.
EFFICIENCY = 0.6


@final
@dataclass(frozen=True)
class LoraCost:
    """FLOPs of each stage, and the steps after which `copies` scoring passes are made."""

    reference: float
    training: float
    scoring: float  # one pass: all replicas, all distinct responses
    steps: int
    due: tuple[int, ...]
    copies: int = 1

    @property
    def passes(self) -> int:
        """Scoring passes in all."""
        return len(self.due) * self.copies

    @property
    def total(self) -> float:
        """FLOPs of the whole run."""
        return self.reference + self.training + self.scoring * self.passes

    def after(self, step: int, scored: float) -> float:
        """FLOPs done once `step` steps and `scored` passes beyond the earlier ones are made."""
        earlier = self.copies * sum(due < step for due in self.due)
        trained = self.training * step / self.steps
        return self.reference + trained + self.scoring * (earlier + scored)


def lora_cost(
    learner: PackedReplicas, size: Dimensions, depth: int, steps: int, due: Sequence[int]
) -> LoraCost:
    """Cost of `learner`'s training for `steps` steps with margins after the steps `due`.

    A frozen layer costs 2 FLOPs a weight and token forward, 2 more backward, 2 more if it is
    computed again; a matrix A or B costs 2, 4 and 2. Attention counts what is computed, whole
    rows. The vocabulary head runs at response tokens only and gives its slope in one pass.
    """
    config, corpus = learner.config, learner.corpus
    adapted = sum(
        layer.a[0].numel() + layer.b[0].numel() for layer in learner.adapters.layers.values()
    )
    share = (depth - learner.adapters.first) / depth
    again = 2 if config.checkpointing else 0

    def trained(packed: Packed) -> float:
        seen = packed.ids.shape[0] * packed.ids.shape[1] ** 2
        body = (4 + again) * size.body * packed.tokens + (12 + 2 * again) * size.attention * seen
        rest = 6 * adapted * packed.tokens + 4 * size.head * len(packed.sources)
        return float(share * body + rest)

    sampled = np.unique(np.linspace(0, steps - 1, SAMPLED).round().astype(int)).tolist()
    step_costs = [
        sum(
            trained(pack(corpus, learner.items_of(part.pairs), config.row_tokens))
            for batch in learner.batches(step)
            for part in batch
        )
        for step in sampled
    ]
    tokens = int(corpus.prompt_sizes.sum() + corpus.response_sizes.sum())
    answers = int(corpus.response_sizes.sum())
    body = 2 * size.body * tokens + 4 * size.attention * tokens * config.row_tokens
    head = 2 * size.head * answers
    return LoraCost(
        reference=body + head,
        training=steps * float(np.mean(step_costs)),
        scoring=learner.adapters.replicas * (share * body + 2 * adapted * tokens + head),
        steps=steps,
        due=tuple(due),
        copies=3 if config.ema else 1,
    )


@final
class Meter:
    """Progress over all stages of a run of replicas in units of work, so that its ETA is right."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.cost: LoraCost | None = None
        self.step, self.copies = 0, 0

    def begin(self, cost: LoraCost) -> None:
        """Measure what follows against `cost`."""
        self.cost = cost

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A `Report`: stages reference, training and scoring."""
        cost = self.cost
        if cost is None:
            self.progress(done, total, None)
        elif stage == "reference":
            self.progress(cost.reference * done / total, cost.total, None)
        elif stage == "training":
            self.step, self.copies = done, 0
            self.progress(cost.after(done, 0), cost.total, None)
        else:
            work = cost.after(self.step, self.copies + done / total)
            self.copies += done == total
            self.progress(work, cost.total, None)
