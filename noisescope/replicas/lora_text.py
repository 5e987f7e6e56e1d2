"""Train LoRA replicas of a causal language model: M short DPO fine-tunings in one process.

The base model is held in memory once. Blocks below the first adapted one run once per distinct
prompt and response (`training.lora.activations`), the adapters of every replica run in the same
forward (`training.lora.adapters`), log-probabilities are computed at response tokens only
(`training.lora.split_model`), and the reference is the model with its adapters off.

    train_lora(policy, pairs_table, LoraConfig(replicas=8, top_layers=6), run_directory)

writes margins/part-*.parquet and replicas/<m>/ (PEFT directories), and continues a killed run;
with `ema` also averages/part-*.parquet, the margins of each replica's two averaged copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from noisescope.errors import ModelError
from noisescope.models import Item, ModelIdentity
from noisescope.models.anatomy import anatomy
from noisescope.models.packing import Corpus
from noisescope.models.vision_batches import Reader, whole_corpus
from noisescope.progress import Progress
from noisescope.replicas.checkpoints import LoraSummary, checkpoint_steps
from noisescope.replicas.config import LoraConfig
from noisescope.replicas.groups import replica_pairs
from noisescope.replicas.packed import PackedReplicas
from noisescope.replicas.train import (
    ReplicaWriter,
    evidence_fingerprint,
    halves,
    initialise,
    largest_half,
    make_streams,
    train_replicas,
)
from noisescope.training.pair_data import Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from noisescope.replicas.cost import LoraCost
    from noisescope.training.lora.adapters import Adapters


class TextPolicy(Reader, Protocol):
    """What LoRA replicas need of a causal LM policy."""

    @property
    def identity(self) -> ModelIdentity: ...

    @property
    def model(self) -> PreTrainedModel: ...


def encoded_corpus(policy: TextPolicy, items: Sequence[Item]) -> Corpus:
    """Token ids of `items`, prompts stored once, to be run as the model allows.

    Raises ModelError for a model on several devices.
    """
    places = set(vars(policy.model).get("hf_device_map", {}).values())
    if len(places) > 1:
        raise ModelError(
            f"{policy.identity.id} is spread over {len(places)} devices, LoRA replicas need one",
            hint="Leave --device-map out, or use --kind head.",
        )
    return whole_corpus(policy, items)


def train_lora(
    policy: TextPolicy,
    table: pa.Table,
    config: LoraConfig,
    run_directory: Path,
    report: Report | None = None,
    estimate: Callable[[LoraCost], None] | None = None,
    *,
    members: range | None = None,
    activations_directory: Path | None = None,
) -> LoraSummary:
    """Train, write margins checkpoint by checkpoint, save every replica; what was done.

    `members` are the replicas to train if others are trained elsewhere. States below the first
    adapted block are kept in `activations_directory`, which several trainings may share.
    `estimate` is called with the cost before anything is computed. Raises DataError for too few
    pairs, ModelError for a model that cannot be split, EvidenceError for a diverged loss, RunError
    for a directory that holds other evidence.
    """
    from noisescope.models.forward import measure
    from noisescope.replicas.cost import lora_cost
    from noisescope.training.lora.activations import Activations

    start = time.perf_counter()
    members = range(config.replicas) if members is None else members
    data, identity = replica_pairs(table, config.folds_by), policy.identity
    held = halves(data, config)
    corpus = encoded_corpus(policy, data.items)
    evidence = evidence_fingerprint(identity.fingerprint, data, config, members)
    plan = config.train_config(largest_half(held), evidence)
    first, size = first_adapted(policy.model, config), measure(policy.model)
    adapters = None
    try:
        activations = Activations(policy.model, first, corpus, checkpointing=config.checkpointing)
        adapters = make_adapters(policy.model, first, config, members)
        streams = make_streams(data, held, config.seed, config.cluster, members)
        learner = PackedReplicas(
            activations, adapters, data, config, streams, members.start, base=identity.id
        )
        if estimate is not None:
            due = checkpoint_steps(plan.steps, config.checkpoints)
            depth = len(anatomy(policy.model).blocks)
            estimate(lora_cost(learner, size, depth, plan.steps, due))
        kept = activations_directory or run_directory / "trunk"
        activations.fill(kept, identity.fingerprint, data.items, report)
        filled = time.perf_counter()
        writer = ReplicaWriter(learner, run_directory, plan.steps, report, config.patience)
        progress = train_replicas(learner, writer, plan, run_directory / "replicas")
        trained = time.perf_counter() - filled - writer.scoring_seconds
        seconds = {"trunk": filled - start, "train": trained, "score": writer.scoring_seconds}
        return LoraSummary.of(progress, seconds, items=len(data.items), replicas=len(members))
    finally:
        if adapters is not None:
            adapters.detach()


def fill_activations(
    policy: TextPolicy,
    table: pa.Table,
    config: LoraConfig,
    directory: Path,
    share: tuple[int, int],
    progress: Progress,
) -> None:
    """Compute share `i` of `n` (from 0) of the states below the adapters, for all trainings."""
    from noisescope.training.lora.activations import Activations

    def report(stage: str, done: int, total: int) -> None:
        progress(done, total, None)

    data = replica_pairs(table, config.folds_by)
    halves(data, config)
    corpus = encoded_corpus(policy, data.items)
    policy.model.requires_grad_(False)  # as in training: a frozen head rounds differently
    activations = Activations(policy.model, first_adapted(policy.model, config), corpus)
    activations.fill(directory, policy.identity.fingerprint, data.items, report, share)


def first_adapted(model: PreTrainedModel, config: LoraConfig) -> int:
    """The lowest block that has adapters."""
    depth = len(anatomy(model).blocks)
    return 0 if config.top_layers is None else max(0, depth - config.top_layers)


def make_adapters(
    model: PreTrainedModel, first: int, config: LoraConfig, members: range | None = None
) -> Adapters:
    """Attached adapters of all replicas, or of `members`, each drawn from its own seed."""
    from noisescope.training.lora.adapters import attach_adapters

    members = range(config.replicas) if members is None else members
    adapters = attach_adapters(model, len(members), config.rank, first, config.targets)
    initialise(adapters, config, members.start, config.alpha)
    return adapters
