"""Train a causal language model: packed LoRA adapters, or all weights.

Chosen and rejected go through one forward, each prompt once; logits are computed at response
positions only, a few at a time. The reference's log-probabilities are computed once for each
distinct response by the same model before training, so no second model is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.models.anatomy import anatomy
from noisescope.models.packing import Corpus, Packed, pack
from noisescope.models.vision_batches import whole_corpus
from noisescope.training.pair_data import PairData
from noisescope.training.policy import Int, PairLogps, TrainablePolicy
from noisescope.training.policy.models import AdaptedModel, WholeModel, publish

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from noisescope.models.causal_lm import CausalLMPolicy
    from noisescope.progress import Reporter
    from noisescope.training.lora.activations import Activations
    from noisescope.training.policy.settings import TrainSettings

#: Tokens of a packed row.
ROW_TOKENS = 256
#: Most tokens of one forward by device type, to begin with: a GPU that runs out of memory halves
#: its micro-batches, but a CPU's operating system ends the process instead.
FORWARD_TOKENS = {"cpu": 512, "cuda": 16384}

Report = Callable[[str, int, int], None]


@final
@dataclass(frozen=True)
class TextSpace:
    """The tokens of all pairs, and the reference's log-probabilities of them."""

    policy: CausalLMPolicy
    data: PairData
    activations: Activations

    @property
    def corpus(self) -> Corpus:
        return self.activations.corpus

    @property
    def budget(self) -> int:
        return FORWARD_TOKENS.get(self.policy.device.type, FORWARD_TOKENS["cpu"])

    @cached_property
    def work(self) -> Int:
        """Tokens of each pair, its prompt counted once if it is shared, [N]."""
        sizes = self.corpus.response_sizes
        prompts = self.corpus.prompt_sizes[self.corpus.prompt_of[self.data.chosen]]
        prompts = prompts * (1 if self.corpus.shared else 2)
        total: Int = prompts + sizes[self.data.chosen] + sizes[self.data.rejected]
        return total

    def packed(self, pairs: Int) -> Packed:
        """The distinct items of some pairs, packed."""
        items = np.unique(np.concatenate([self.data.chosen[pairs], self.data.rejected[pairs]]))
        return pack(self.corpus, items, ROW_TOKENS)

    def pair_logps(self, pairs: Int, packed: Packed, logps: Tensor) -> PairLogps:
        """Log-likelihoods of pairs from those of their packed items [K, items]."""
        import torch

        def at(values: Tensor, side: Int) -> Tensor:
            index = torch.from_numpy(np.searchsorted(packed.items, side[pairs]))
            return values[..., index.to(values.device)]

        items = torch.from_numpy(packed.items)
        reference = self.activations.reference[items].to(logps.device)
        tokens = torch.from_numpy(self.corpus.response_sizes)[items].to(logps.device)
        chosen, rejected = self.data.chosen, self.data.rejected
        return PairLogps(
            at(logps, chosen),
            at(logps, rejected),
            at(reference, chosen),
            at(reference, rejected),
            at(tokens, chosen),
            at(tokens, rejected),
        )


def alike(policy: CausalLMPolicy, data: PairData) -> tuple[Corpus, Int]:
    """The corpus of all items, and the pairs whose two sides are the same after truncation."""
    corpus = whole_corpus(policy, data.items)
    sides = zip(data.chosen.tolist(), data.rejected.tolist(), strict=True)
    same = [n for n, (w, r) in enumerate(sides) if corpus.responses[w] == corpus.responses[r]]
    return corpus, np.array(same, np.int64)


@final
@dataclass
class TextAdapters(AdaptedModel[TextSpace]):
    """LoRA on a causal language model (`TrainablePolicy`)."""

    def pair_logps(
        self, pairs: Int, draw: int, trained: Sequence[int] = (0,), watched: Sequence[int] = ()
    ) -> PairLogps:
        import torch

        packed = self.space.packed(pairs)
        with torch.no_grad():
            seen = [self._forward(packed, watched)] if watched else []
        logps = torch.cat([self._forward(packed, trained), *seen])
        return self.space.pair_logps(pairs, packed, logps)

    def _forward(self, packed: Packed, replicas: Sequence[int]) -> Tensor:
        """log pi of every packed item under the given adapters, [K, items]."""
        from noisescope.training.lora.split_model import adapted_logps

        count = len(replicas)
        activations = self.space.activations
        return adapted_logps(activations, self.adapters, [packed] * count, replicas).view(count, -1)

    def save(self, directory: Path) -> list[str]:
        from noisescope.training.lora.peft_files import save_peft

        base = self.space.policy.identity.id
        return save_peft(self.adapters, 0, directory, base=base, weights=self.trainable())


@final
@dataclass
class WholeText(WholeModel[TextSpace]):
    """Full fine-tuning of a causal language model (`TrainablePolicy`)."""

    @property
    def model(self) -> Any:
        return self.space.policy.model

    def pair_logps(
        self, pairs: Int, draw: int, trained: Sequence[int] = (0,), watched: Sequence[int] = ()
    ) -> PairLogps:
        packed = self.space.packed(pairs)
        split = self.space.activations.split
        logps = split.item_logps(packed, split.top(packed, None))
        return self.space.pair_logps(pairs, packed, logps[None])

    def save(self, directory: Path) -> list[str]:
        """A transformers directory with its tokenizer."""
        savers = self.model.save_pretrained, self.space.policy.tokenizer.save_pretrained
        return publish(directory, *savers)


def build(
    policy: CausalLMPolicy,
    data: PairData,
    settings: TrainSettings,
    seeds: Sequence[int],
    directory: Path,
    reporter: Reporter,
    accelerator: Accelerator,
) -> tuple[TrainablePolicy, Int]:
    """Adapters, one from each of `seeds`, or all weights; and the pairs whose two sides are the
    same tokens. Reference log-probabilities are kept in `directory`."""
    from noisescope.training.lora.adapters import attach_adapters

    corpus, same = alike(policy, data)
    with (
        reporter.stage("reference log-probabilities") as advance,
        accelerator.main_process_first(),
        accelerator.autocast(),  # rounded as the policy is: l is then 0 before the first step
    ):
        space = text_space(
            policy,
            data,
            corpus,
            directory,
            layers=None if settings.full else settings.layers,
            checkpointing=settings.checkpointing,
            report=lambda stage, done, total: advance(done, total, None),
        )
    if settings.full:
        policy.model.requires_grad_(True)
        return WholeText(space), same
    first = space.activations.split.first
    adapters = attach_adapters(policy.model, len(seeds), settings.lora_r, first, settings.targets)
    adapters.initialise(seeds, settings.lora_alpha)
    return TextAdapters(space, adapters), same


def text_space(
    policy: CausalLMPolicy,
    data: PairData,
    corpus: Corpus,
    directory: Path,
    *,
    layers: int | None,
    checkpointing: bool,
    report: Report | None = None,
) -> TextSpace:
    """Reference log-probabilities of every item (kept in `directory` until training ends), and
    the states below the adapted blocks if only the top `layers` are adapted."""
    from noisescope.training.lora.activations import Activations

    depth = len(anatomy(policy.model).blocks)
    first = 0 if layers is None else max(0, depth - layers)
    activations = Activations(policy.model, first, corpus, checkpointing=checkpointing)
    activations.fill(directory, policy.identity.fingerprint, data.items, report)
    return TextSpace(policy, data, activations)
