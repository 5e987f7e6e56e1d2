"""Cache the activations below the adapted blocks, and the reference log-probabilities.

Both are computed once per distinct item.

Parts are safetensors files of about `PART_TOKENS` tokens, written whole, memory-mapped when
read, and named by the model, the first adapted block and their items: a killed run continues with
the next part, and a part of a different model or dataset is never used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisescope.errors import RunError
from noisescope.models import Item
from noisescope.models.memory import Limit, OomRetry
from noisescope.models.packing import PADDING, Corpus, Packed, pack
from noisescope.models.verify import LEAST
from noisescope.pairs import digest
from noisescope.storage.files import read_sealed, write_sealed
from noisescope.training.lora.split_model import SplitModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Int = NDArray[np.int64]
PART_TOKENS = 16_384
FORWARD_TOKENS = 2048
ROW_TOKENS = 256


@final
class Activations:
    """`corpus` under the frozen blocks below `first`, and the reference log-probabilities [I]."""

    def __init__(
        self, model: PreTrainedModel, first: int, corpus: Corpus, *, checkpointing: bool = False
    ) -> None:
        sizes = corpus.prompt_sizes[corpus.prompt_of] + corpus.response_sizes
        self.split = SplitModel(
            model,
            first,
            checkpointing=checkpointing,
            rows=corpus.rows,
            longest=int(sizes.max(initial=LEAST)),
        )
        self.corpus = corpus
        self.reference = torch.zeros(len(corpus.responses))
        self._where = np.zeros((corpus.slots, 2), np.int32)  # part, row of each slot
        self._parts: list[Tensor] = []
        self._limit = Limit()

    def plan(self, tokens: int) -> list[Int]:
        """All items in groups of about `tokens` tokens (`Corpus.work`), in `Corpus.order`."""
        order = self.corpus.order
        sizes = self.corpus.work[order]
        groups = (np.cumsum(sizes) - sizes) // tokens
        return [order[groups == g] for g in np.unique(groups)]

    def fill(
        self,
        directory: Path,
        fingerprint: str,
        items: Sequence[Item],
        report: Callable[[str, int, int], None] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Compute or read every part; afterwards `states` and `reference` are complete.

        With `share` i of n (from 0) only every n-th part: other processes compute the rest.
        """
        plan = self.plan(PART_TOKENS)[share[0] :: share[1]]
        for done, group in enumerate(plan):
            name = digest(fingerprint, str(self.split.cut), *(items[i].key for i in group))
            path = directory / f"{name}.safetensors"
            if path.exists() and not self._read(path, group):
                logging.getLogger("noisescope").warning("%s is damaged: computing it again", path)
                path.unlink(missing_ok=True)
            if not path.exists():
                write_sealed(path, self._compute(group, items), {})
                self._read(path, group)
            if report is not None:
                report("reference", done + 1, len(plan))

    def _slots(self, group: Int) -> Int:
        """Slots of a part in the flat store: its prompts, then its responses."""
        corpus = self.corpus
        prompts = np.unique(corpus.prompt_of[group])
        spans = [
            *((corpus.prompt_starts[p], corpus.prompt_sizes[p]) for p in prompts),
            *((corpus.response_starts[i], corpus.response_sizes[i]) for i in group),
        ]
        return np.concatenate([np.arange(start, start + size) for start, size in spans])

    def _compute(self, group: Int, items: Sequence[Item]) -> dict[str, Tensor]:
        """Reference log-probabilities of a part's items, and their states at the split."""
        slots = self._slots(group)
        row_of = np.full(self.corpus.slots, PADDING, np.int64)
        row_of[slots] = np.arange(len(slots))
        states: Tensor | None = None
        reference = torch.zeros(len(group))
        sizes = self.corpus.work[group]
        batches = (np.cumsum(sizes) - sizes) // FORWARD_TOKENS
        retry: OomRetry[int] = OomRetry(
            "responses", lambda place: f"response {items[group[place]].key}", self._limit
        )

        def forward(places: Sequence[int]) -> tuple[Packed, Tensor | None, Tensor]:
            packed = pack(self.corpus, group[np.asarray(places)], ROW_TOKENS)
            entering, last = self.split.reference_pass(packed)
            return packed, entering, self.split.item_logps(packed, last).cpu()

        with torch.inference_mode():
            for b in np.unique(batches):
                members = np.flatnonzero(batches == b).tolist()
                for places, (packed, entering, logps) in retry.run(forward, members):
                    reference[places] = logps
                    if entering is None:
                        continue
                    if states is None:
                        states = torch.empty(len(slots), entering.shape[-1], dtype=entering.dtype)
                    filled = packed.slots.ravel() != PADDING
                    rows = torch.from_numpy(row_of[packed.slots.ravel()[filled]])
                    states[rows] = entering.flatten(0, 1)[torch.from_numpy(filled)].cpu()
        held = {"reference": reference}
        return held if states is None else held | {"states": states}

    def _read(self, path: Path, group: Int) -> bool:
        """Map one part; False if it is damaged."""
        try:
            held, _ = read_sealed(path)
        except RunError:
            return False
        self.reference[torch.from_numpy(group)] = held["reference"]
        if self.split.cut:
            slots = self._slots(group)
            self._where[slots, 0] = len(self._parts)
            self._where[slots, 1] = np.arange(len(slots))
            self._parts.append(held["states"])
        return True

    def states(self, packed: Packed) -> Tensor | None:
        """States entering the first adapted block, [R, T, D], zero at padding; None if they are not
        stored."""
        if not self.split.cut:
            return None
        flat = packed.slots.ravel()
        width = self._parts[0].shape[1]
        result = torch.zeros(len(flat), width, dtype=self._parts[0].dtype)
        part, row = self._where[flat, 0], self._where[flat, 1]
        filled = flat != PADDING
        for p in np.unique(part[filled]):
            here = np.flatnonzero(filled & (part == p))
            result[torch.from_numpy(here)] = self._parts[p][torch.from_numpy(row[here])]
        return result.view(*packed.slots.shape, width).to(self.split.device)
