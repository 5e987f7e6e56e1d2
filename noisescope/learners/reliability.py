"""RE-PO's M step: how often each annotator's labels are right, while the policy trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.learners import Int


@final
class Reliability:
    """n of every annotator: (n0 + sum of w) / (1 + pairs met), w the latest posterior of a pair.

    `annotators` [N] names; pairs without one share an n. n0 counts as one pair, so that an
    annotator of few pairs is not believed to be perfect or hopeless.
    """

    def __init__(self, annotators: Sequence[str | None], n0: float) -> None:
        import torch

        names = sorted({name for name in annotators if name is not None})
        index = {name: code for code, name in enumerate(names)}
        codes = [len(names) if name is None else index[name] for name in annotators]
        self.codes = torch.tensor(codes, dtype=torch.long)  # [N]
        self.n0 = n0
        self.posterior = torch.full((len(codes),), torch.nan, dtype=torch.float64)
        self._fresh = torch.zeros(2, len(codes), dtype=torch.float64)  # sum of w, times met
        self.buffers = {"reliability": self.posterior}

    def of(self, pairs: Int) -> Tensor:
        """n of the annotators of some pairs, [B]."""
        import torch

        met = ~torch.isnan(self.posterior)
        count = int(self.codes.max()) + 1
        sums = torch.zeros(2, count, dtype=torch.float64)
        sums[0].index_add_(0, self.codes[met], self.posterior[met])
        sums[1].index_add_(0, self.codes[met], torch.ones_like(self.posterior[met]))
        n = (self.n0 + sums[0]) / (1 + sums[1])
        return n[self.codes[torch.from_numpy(np.asarray(pairs))]]

    def note(self, pairs: Int, posterior: Tensor) -> None:
        """Remember w [B] of some pairs until the step ends."""
        import torch

        where = torch.from_numpy(np.asarray(pairs))
        self._fresh[0, where] = posterior.detach().double().cpu()
        self._fresh[1, where] = 1

    def forget(self) -> None:
        """Drop what this step has noted so far: it is taken again."""
        self._fresh.zero_()

    def finish(self, total: Callable[[Tensor], Tensor]) -> None:
        """Take over what all processes noted in this step."""
        fresh = total(self._fresh)
        met = fresh[1] > 0
        self.posterior[met] = fresh[0, met] / fresh[1, met]
        self._fresh.zero_()
