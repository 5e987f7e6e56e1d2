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

from noisescope.errors import ModelError
from noisescope.models.packing import Corpus, Packed, corpus_of, pack, stack
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
        """Tokens of each pair, its prompt counted once, [N]."""
        sizes = self.corpus.response_sizes
        prompts = self.corpus.prompt_sizes[self.corpus.prompt_of[self.data.chosen]]
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
    """The corpus of all items, and the pairs whose two sides are the same after truncation.

    Raises ModelError if the model's attention does not support packed rows.
    """
    if not policy.shares_prompts:
        raise ModelError(
            f"{policy.identity.id} has attention of its own kind, which training does not support",
            hint="Choose a model with ordinary causal attention, or lower --max-length to its "
            "sliding window.",
        )
    corpus = corpus_of([(item.prompt, item.response) for item in policy.encode(data.items)])
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
        split, count = self.space.activations.split, len(replicas)
        whole, rows = stack([packed] * count)
        ends = np.cumsum(rows).tolist()
        self.adapters.placement.segments = tuple(
            (m, end - size, end) for m, size, end in zip(replicas, rows, ends, strict=True)
        )
        try:
            last = split.top(whole, self.space.activations.states(whole))
            return split.item_logps(whole, last).view(count, -1)
        finally:
            if not split.checkpointing:  # recomputed blocks need it again in the backward pass
                self.adapters.placement.segments = ()

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
        states = self.space.activations.split.top(packed, None).flatten(0, 1)
        return self.space.pair_logps(pairs, packed, item_logps(self.model, packed, states)[None])

    def save(self, directory: Path) -> list[str]:
        """A transformers directory with its tokenizer."""
        savers = self.model.save_pretrained, self.space.policy.tokenizer.save_pretrained
        return publish(directory, *savers)


def item_logps(model: Any, packed: Packed, states: Tensor) -> Tensor:
    """log pi of each packed item, [items], with gradient to the head too; states [R T, D].

    Logits are computed again in the backward pass, so one chunk of them exists at a time.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    from noisescope.models.forward import LOGITS, token_logps

    device = states.device
    vocabulary = model.get_output_embeddings().weight.shape[0]
    chunk = max(1, LOGITS.get(device.type, 1 << 24) // vocabulary)
    targets = torch.from_numpy(packed.targets).to(device)
    sources = torch.from_numpy(packed.sources).to(device)
    parts = []
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        at = states[sources[part]]
        parts.append(checkpoint(token_logps, model, at, targets[part], use_reentrant=False))
    total = torch.zeros(len(packed.items), device=device)
    owners = torch.from_numpy(packed.owners).to(device)
    summed: Tensor = total.index_add(0, owners, torch.cat(parts))
    return summed


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

    depth = policy.model.config.num_hidden_layers
    first = 0 if layers is None else max(0, depth - layers)
    activations = Activations(policy.model, first, corpus, checkpointing=checkpointing)
    activations.fill(directory, policy.identity.fingerprint, data.items, report)
    return TextSpace(policy, data, activations)
