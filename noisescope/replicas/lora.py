"""LoRA replicas: M short DPO fine-tunings in one process, and the margins they give.

One base model stands in memory. Blocks below the first adapted one run once per distinct
prompt and response (`trunk.py`), every replica's adapters run in the same forward
(`adapters.py`), log-probabilities exist at response tokens only (`cut.py`), and the reference
is the model with its adapters off, once per distinct response.

    train_lora(policy, pairs_table, LoraConfig(replicas=8, top_layers=6), run_directory)

writes margins/part-*.parquet and replicas/<m>/ (PEFT directories), and continues a killed run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisescope.errors import DataError, ModelError
from noisescope.objectives import DPO
from noisescope.pairs import digest
from noisescope.policies import Item, ModelIdentity
from noisescope.policies.packing import Corpus, corpus_of
from noisescope.replicas.checkpoints import (
    EvidenceWriter,
    LoraSummary,
    write_step,
)
from noisescope.replicas.draws import Stream, held_out_by
from noisescope.replicas.packed import LoraConfig, PackedReplicas, PairData, Report, pair_data
from noisescope.training import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from noisescope.policies.encoding import Encoded
    from noisescope.replicas.adapters import Adapters

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
) -> LoraSummary:
    """Train, checkpoint by checkpoint write margins, save every replica; what it did.

    Raises DataError below 4 pairs, ModelError for a model that cannot be cut, EvidenceError for
    a diverged loss, RunError for a directory that holds other evidence.
    """
    from noisescope.replicas.trunk import Trunk
    from noisescope.training import train

    clock = {"start": time.perf_counter()}
    data = pair_data(table)
    if len(data.pair_ids) < 4:
        raise DataError(
            f"{len(data.pair_ids)} pairs are too few for LoRA replicas",
            hint="Give a dataset with at least 4 pairs.",
        )
    corpus = encoded_corpus(policy, data.items)
    evidence = digest(
        policy.identity.fingerprint,
        json.dumps(asdict(config), sort_keys=True),
        *data.pair_ids,
        *(data.items[i].key for i in (*data.chosen, *data.rejected)),
    )
    depth = policy.model.config.num_hidden_layers
    first = 0 if config.top_layers is None else max(0, depth - config.top_layers)
    adapters = None
    try:
        trunk = Trunk(policy.model, first, corpus, checkpointing=config.checkpointing)
        trunk.fill(run_directory / "trunk", policy.identity.fingerprint, data.items, report)
        clock["trunk"] = time.perf_counter()
        adapters = make_adapters(policy.model, first, config)
        held = held_out_by(data.fold_key, seed=config.seed, replicas=config.replicas)
        learner = PackedReplicas(trunk, adapters, data, config, make_streams(data, held, config))
        evidence_writer = EvidenceWriter(learner, held, run_directory, policy.identity.id, report)
        plan = train_config(config, held, evidence)
        evidence_writer.total = plan.steps
        progress = train(
            learner,
            DPO(beta=config.beta),
            plan,
            run_directory / "replicas",
            after_step=evidence_writer,
        )
        clock["train"] = time.perf_counter()
        return evidence_writer.summary(progress, clock)
    finally:
        if adapters is not None:
            adapters.detach()


def make_adapters(model: PreTrainedModel, first: int, config: LoraConfig) -> Adapters:
    """Attached adapters, each drawn from its own seed."""
    from noisescope.replicas.adapters import attach_adapters

    adapters = attach_adapters(model, config.replicas, config.rank, first, config.targets)
    adapters.initialise([config.seed * 1000 + m for m in range(config.replicas)], config.alpha)
    return adapters


def make_streams(data: PairData, held: NDArray[np.bool_], config: LoraConfig) -> list[Stream]:
    """Each replica's endless order over the pairs it trains on."""
    return [
        Stream(
            np.flatnonzero(~held[m]),
            data.chosen,
            data.rejected,
            seed=(config.seed, m),
            cluster=config.cluster,
        )
        for m in range(len(held))
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


def score_adapters(
    policy: TextPolicy,
    table: pa.Table,
    directories: Sequence[Path],
    run_directory: Path,
    *,
    beta: float = 0.1,
    held_out: bool = True,
    report: Report | None = None,
) -> int:
    """Margins of somebody else's LoRA directories, one replica each, at step 1; their number.

    `held_out` is the caller's word on whether they trained on these pairs.
    """
    from noisescope.replicas.adapters import attach_peft
    from noisescope.replicas.trunk import Trunk

    data = pair_data(table)
    corpus = encoded_corpus(policy, data.items)
    adapters = attach_peft(policy.model, directories)
    try:
        trunk = Trunk(policy.model, adapters.first, corpus)
        trunk.fill(run_directory / "trunk", policy.identity.fingerprint, data.items, report)
        config = LoraConfig(replicas=max(2, len(directories)), beta=beta)
        margins = PackedReplicas(trunk, adapters, data, config).margins(report)
    finally:
        adapters.detach()
    held = np.full(margins.shape, held_out)
    write_step(run_directory, data.pair_ids, margins, held, 1)
    return len(directories)
