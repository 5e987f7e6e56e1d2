"""Log-probabilities of responses under somebody else's adapters and under the model itself.

    with scores_of(policy, directories) as source:
        source.features(items)   # reference [n], logps [n, M]

A source of rows by response (`parts.Source`): kept on disk, resumed and shared out as features
are. A response's blocks below the lowest adapter run once for the reference and all adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.pairs import Item
from noisescope.parts import Array
from noisescope.policies.memory import Halving, Limit
from noisescope.policies.packing import Corpus, pack
from noisescope.replicas.lora import TextPolicy, encoded_corpus
from noisescope.replicas.peft_files import attach_peft
from noisescope.replicas.trunk import FORWARD_TOKENS, ROW_TOKENS

if TYPE_CHECKING:
    from noisescope.replicas.adapters import Adapters
    from noisescope.replicas.cut import CutModel

Int = NDArray[np.int64]


@final
@dataclass(frozen=True)
class AdapterScores:
    """M attached adapters of a policy's model, and the model cut below the lowest of them."""

    policy: TextPolicy
    adapters: Adapters
    cut: CutModel
    limit: Limit = field(default_factory=Limit)

    def sizes(self, items: Sequence[Item]) -> Int:
        """Tokens of each item, prompt included, [n]."""
        return np.array([len(item.tokens) for item in self.policy.encode(items)], np.int64)

    def features(self, items: Sequence[Item]) -> dict[str, Array]:
        """`reference` [n] and `logps` [n, M] of each response, summed over its tokens, float32.

        A batch that does not fit into memory is halved. Raises ModelError naming an item that
        does not fit alone.
        """
        import torch

        corpus = encoded_corpus(self.policy, items)
        halving: Halving[int] = Halving(
            "responses", lambda place: f"response {items[place].key}", self.limit
        )
        found = np.empty((len(items), 1 + self.adapters.replicas), np.float32)
        order = np.lexsort((np.arange(len(items)), corpus.prompt_of))
        done = np.cumsum(corpus.response_sizes[order]) - corpus.response_sizes[order]
        with torch.inference_mode():
            for batch in np.split(order, np.flatnonzero(np.diff(done // FORWARD_TOKENS)) + 1):
                for mine, rows in halving.run(
                    lambda part: self._rows(corpus, part), batch.tolist()
                ):
                    found[mine] = rows
        return {"reference": found[:, 0], "logps": found[:, 1:]}

    def _rows(self, corpus: Corpus, items: Sequence[int]) -> Array:
        """[n, 1 + M]: the model itself, then each adapter."""
        packed = pack(corpus, np.asarray(items, np.int64), ROW_TOKENS)
        entering, last = self.cut.trunk(packed)
        columns = [self.cut.item_logps(packed, last)]
        for replica in range(self.adapters.replicas):
            self.adapters.placement.segments = ((replica, 0, len(packed.ids)),)
            try:
                last = self.cut.top(packed, entering if self.cut.first else None)
                columns.append(self.cut.item_logps(packed, last))
            finally:
                self.adapters.placement.segments = ()
        rows: Array = np.stack([column.cpu().numpy() for column in columns], 1)
        return rows


@contextmanager
def scores_of(policy: TextPolicy, directories: Sequence[Path]) -> Iterator[AdapterScores]:
    """Adapters of PEFT directories on the policy's model, for as long as the block lasts.

    Raises ModelError where they do not fit it, or it cannot be cut.
    """
    from noisescope.replicas.cut import CutModel

    encoded_corpus(policy, [])
    adapters = attach_peft(policy.model, directories)
    try:
        yield AdapterScores(policy, adapters, CutModel(policy.model, adapters.first))
    finally:
        adapters.detach()
