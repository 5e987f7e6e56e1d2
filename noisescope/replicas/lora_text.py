"""LoRA replicas: M short DPO fine-tunings in one process, and the margins they give.

One base model stands in memory. Blocks below the first adapted one run once per distinct
prompt and response (`trunk.py`), every replica's adapters run in the same forward
(`adapters.py`), log-probabilities exist at response tokens only (`cut.py`), and the reference
is the model with its adapters off, once per distinct response.

    train_lora(policy, pairs_table, LoraConfig(replicas=8, top_layers=6), run_directory)

writes margins/part-*.parquet and replicas/<m>/ (PEFT directories), and continues a killed run;
with `ema` also averages/part-*.parquet, the margins of each replica's two averaged copies.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisescope.errors import DataError, ModelError
from noisescope.models import Item, ModelIdentity
from noisescope.models.device import alone
from noisescope.models.packing import Corpus, corpus_of
from noisescope.pairs import digest
from noisescope.replicas.checkpoints import (
    EvidenceWriter,
    LoraSummary,
    checkpoint_steps,
)
from noisescope.replicas.config import LoraConfig
from noisescope.replicas.oom import FittingReplicas
from noisescope.replicas.packed import PackedReplicas
from noisescope.training.batch_order import Stream, held_out_by
from noisescope.training.loop import Progress, TrainConfig
from noisescope.training.objectives import DPO
from noisescope.training.pair_data import PairData, Report, pair_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from noisescope.models.tokenize import Encoded
    from noisescope.replicas.cost import LoraCost
    from noisescope.training.lora.adapters import Adapters

#: Decays of the two averaged copies in the released code of 2503.16921 (`u_released`).
EMA_TRIO = (0.9999, 0.5)


class TextPolicy(Protocol):
    """What LoRA replicas need of a causal LM policy."""

    @property
    def identity(self) -> ModelIdentity: ...

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def shares_prompts(self) -> bool:
        """Whether the model's attention takes rows where a prompt stands once."""

    def encode(self, items: Sequence[Item]) -> Sequence[Encoded]:
        """Prompt and response ids of each item, both non-empty."""


def encoded_corpus(policy: TextPolicy, items: Sequence[Item]) -> Corpus:
    """Token ids of `items`, prompts stored once; ModelError for a model that cannot pack them."""
    if not policy.shares_prompts:
        raise ModelError(
            f"{policy.identity.id} has attention of its own kind, which LoRA replicas do not know",
            hint="Use --kind head.",
        )
    return corpus_of([(item.prompt, item.response) for item in policy.encode(items)])


def train_lora(
    policy: TextPolicy,
    table: pa.Table,
    config: LoraConfig,
    run_directory: Path,
    report: Report | None = None,
    estimate: Callable[[LoraCost], None] | None = None,
    *,
    members: range | None = None,
    trunk_directory: Path | None = None,
) -> LoraSummary:
    """Train, checkpoint by checkpoint write margins, save every replica; what it did.

    `members` are the replicas to train where others are trained elsewhere: a replica's seed and
    its half of the pairs depend on its number alone. States below the first adapted block are
    kept in `trunk_directory`, which they may share. `estimate` is told the cost before anything
    is computed. Raises DataError for too few pairs, ModelError for a model that cannot be cut,
    EvidenceError for a diverged loss, RunError for a directory that holds other evidence.
    """
    from noisescope.models.forward import measure
    from noisescope.replicas.cost import lora_cost
    from noisescope.training.lora.activations import Trunk

    start = time.perf_counter()
    members = range(config.replicas) if members is None else members
    data = pair_data(table)
    held = halves(data, config)
    corpus = encoded_corpus(policy, data.items)
    plan = train_config(config, held, evidence_fingerprint(policy, data, config, members))
    first, size = first_adapted(policy.model, config), measure(policy.model)
    adapters = None
    try:
        trunk = Trunk(policy.model, first, corpus, checkpointing=config.checkpointing)
        adapters = make_adapters(policy.model, first, config, members)
        streams = make_streams(data, held, config, members)
        learner = PackedReplicas(trunk, adapters, data, config, streams, members.start)
        if estimate is not None:
            due = checkpoint_steps(plan.steps, config.checkpoints)
            depth = policy.model.config.num_hidden_layers
            estimate(lora_cost(learner, size, depth, plan.steps, due))
        place = trunk_directory or run_directory / "trunk"
        trunk.fill(place, policy.identity.fingerprint, data.items, report)
        filled = time.perf_counter()
        writer = EvidenceWriter(
            learner,
            held[members.start : members.stop],
            run_directory,
            policy.identity.id,
            report,
            total=plan.steps,
        )
        progress = train_whole(learner, writer, plan, run_directory / "replicas")
        return writer.summary(progress, trunk=filled - start, train=time.perf_counter() - filled)
    finally:
        if adapters is not None:
            adapters.detach()


def fill_trunk(
    policy: TextPolicy,
    table: pa.Table,
    config: LoraConfig,
    directory: Path,
    share: tuple[int, int],
    report: Report | None = None,
) -> None:
    """Compute share `i` of `n` (from 0) of what lies below the adapters, for all who will train."""
    from noisescope.training.lora.activations import Trunk

    data = pair_data(table)
    halves(data, config)
    corpus = encoded_corpus(policy, data.items)
    trunk = Trunk(policy.model, first_adapted(policy.model, config), corpus)
    trunk.fill(directory, policy.identity.fingerprint, data.items, report, share)


def first_adapted(model: PreTrainedModel, config: LoraConfig) -> int:
    """The lowest block that has adapters."""
    depth: int = model.config.num_hidden_layers
    return 0 if config.top_layers is None else max(0, depth - config.top_layers)


def train_whole(
    learner: PackedReplicas, writer: EvidenceWriter, plan: TrainConfig, directory: Path
) -> Progress:
    """Train to the end, from the saved state if there is one, with all evidence written.

    Where a file that the state says was written is gone, it is written again from the state, or
    the training starts again. torch's own
    random numbers take no part, but they are saved with the state: they start the same, whatever
    the process did before.
    """
    import torch

    from noisescope.training.loop import STATE_FILE, train

    def run() -> Progress:
        torch.manual_seed(learner.config.seed)
        objective = DPO(beta=learner.config.beta)
        return train(
            learner,
            objective,
            plan,
            directory,
            accelerator=alone(),
            after_step=writer,
            fitting=FittingReplicas(learner, learner.data.pair_ids),
        )

    with torch.random.fork_rng(devices=[]):
        progress = run()
        writer.mend(progress)
        if writer.lost(progress):
            (directory / STATE_FILE).unlink()
            initialise(learner.adapters, learner.config, learner.first)
            progress = run()
    return progress


def halves(data: PairData, config: LoraConfig) -> NDArray[np.bool_]:
    """[M, N]: the pairs each replica holds out. Raises DataError where one has none to train on."""
    held = held_out_by(data.fold_key, seed=config.seed, replicas=config.replicas)
    if len(data.pair_ids) < 4 or held.all(1).any():
        raise DataError(
            f"{len(data.pair_ids)} pairs are too few for LoRA replicas",
            hint="Give a dataset with at least 4 pairs, better hundreds, or use --kind head.",
        )
    return held


def evidence_fingerprint(
    policy: TextPolicy, data: PairData, config: LoraConfig, members: range
) -> str:
    """What a saved training state belongs to: model, settings, pairs, and replicas if not all."""
    some = [str(members)] if len(members) < config.replicas else []
    return digest(
        *some,
        policy.identity.fingerprint,
        json.dumps(asdict(config), sort_keys=True),
        *data.pair_ids,
        *(data.items[i].key for i in (*data.chosen, *data.rejected)),
    )


def make_adapters(
    model: PreTrainedModel, first: int, config: LoraConfig, members: range | None = None
) -> Adapters:
    """Attached adapters of all replicas, or of `members`, each drawn from its own seed."""
    from noisescope.training.lora.adapters import attach_adapters

    members = range(config.replicas) if members is None else members
    adapters = attach_adapters(model, len(members), config.rank, first, config.targets)
    initialise(adapters, config, members.start)
    return adapters


def initialise(adapters: Adapters, config: LoraConfig, first: int = 0) -> None:
    """Every replica (the lowest is `first`) at its start: A from its own seed, B zero."""
    seeds = [config.seed * 1000 + first + m for m in range(adapters.replicas)]
    adapters.initialise(seeds, config.alpha)


def make_streams(
    data: PairData, held: NDArray[np.bool_], config: LoraConfig, members: range | None = None
) -> list[Stream]:
    """Each replica's endless order over the pairs it trains on."""
    return [
        Stream(
            np.flatnonzero(~held[m]),
            data.chosen,
            data.rejected,
            seed=(config.seed, m),
            cluster=config.cluster,
        )
        for m in (range(len(held)) if members is None else members)
    ]


def train_config(config: LoraConfig, held: NDArray[np.bool_], evidence: str) -> TrainConfig:
    """The loop's settings: `epochs` over the largest half, unless `steps` says otherwise."""
    largest = int((~held).sum(1).max())
    steps = config.steps or max(1, round(config.epochs * largest / min(config.batch, largest)))
    return TrainConfig(
        steps=steps,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        ema=EMA_TRIO if config.ema else (),
        save_every=config.save_every,
        evidence=evidence,
    )
