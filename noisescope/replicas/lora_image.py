"""Train LoRA replicas of a diffusion model: M short Diffusion-DPO fine-tunings in one process.

Adapters are on the attention layers of a UNet's up blocks, or of the later half of a transformer's
blocks, so the blocks below run once for all replicas and the reference, which is the model with its
adapters off. l is Eq. 6 of 2503.16921 under shared (t, eps) draws, functions of (seed, pair_id,
draw):

    train_diffusion_lora(policy, dataset.table, DiffusionLoraConfig(replicas=8), run_directory)

writes margins/part-*.parquet and replicas/<m>/pytorch_lora_weights.safetensors, which diffusers
loads as it is, and continues a killed run to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisescope.progress import Progress
from noisescope.replicas.checkpoints import checkpoint_steps
from noisescope.replicas.config import DiffusionLoraConfig
from noisescope.replicas.cost import LoraCost
from noisescope.replicas.groups import replica_pairs
from noisescope.replicas.packed_image import DiffusionReplicas
from noisescope.replicas.partition import boundaries, shard_of
from noisescope.replicas.reference_errors import ReferenceErrors
from noisescope.replicas.train import (
    ReplicaWriter,
    evidence_fingerprint,
    halves,
    initialise,
    largest_half,
    make_streams,
    train_replicas,
)
from noisescope.storage.cache import compute_missing
from noisescope.training.lora.unet import attention_layers
from noisescope.training.noisy_pairs import NoisedPairs, squared_errors
from noisescope.training.pair_data import PairData, Report

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.models.diffusion import DiffusionPolicy

#: Pairs that share images and are drawn together.
CLUSTER = 8


def train_diffusion_lora(
    policy: DiffusionPolicy,
    table: pa.Table,
    config: DiffusionLoraConfig,
    run_directory: Path,
    cache_directory: Path | None = None,
    report: Report | None = None,
    estimate: Callable[[LoraCost], None] | None = None,
    note_down: Callable[[str], None] | None = None,
    *,
    members: range | None = None,
) -> dict[str, Any]:
    """Train, write margins checkpoint by checkpoint, save every replica; facts of what was done.

    Reference errors are kept under `cache_directory` if one is given. `members` are the replicas
    to train if others are trained elsewhere. `estimate` is called with the cost first, `note_down`
    with notes on damaged parts. Raises DataError for too few pairs, EvidenceError for a diverged
    loss, RunError for a directory that holds other evidence.
    """
    learner = diffusion_replicas(policy, table, config, members)

    def progress(done_work: float, total_work: float, note: str | None) -> None:
        if note and note_down is not None:
            note_down(note)
        if report is not None and total_work:
            report("reference", int(done_work), int(total_work))

    try:
        data, draws = learner.data, learner.noised.draws
        numbers = range(learner.first, learner.first + learner.adapters.replicas)
        model = policy.identity.fingerprint
        evidence = evidence_fingerprint(model, data, config, numbers, str(draws))
        plan = config.train_config(largest_half(halves(data, config)), evidence)
        if estimate is not None:
            due = checkpoint_steps(plan.steps, config.checkpoints)
            estimate(diffusion_cost(learner, plan.steps, due, cache_directory))
        learner.measure_reference(cache_directory, progress)
        writer = ReplicaWriter(learner, run_directory, plan.steps, report)
        train_replicas(learner, writer, plan, run_directory / "replicas")
        return {"steps": plan.steps, "draws": draws}
    finally:
        learner.detach()


def fill_reference(
    policy: DiffusionPolicy,
    table: pa.Table,
    config: DiffusionLoraConfig,
    cache_directory: Path,
    share: tuple[int, int],
    progress: Progress,
) -> None:
    """Compute share `i` of `n` (from 0) of the reference's errors, for all trainings."""
    noised = noised_pairs(policy, replica_pairs(table, config.folds_by), config)
    source = ReferenceErrors.of(noised, config.rows)
    cuts = boundaries(source.items, source.sizes(source.items), share[1])
    mine = [item for item in source.items if shard_of(item, cuts) == share[0]]
    compute_missing(source, mine, source.directory(cache_directory), progress, "reference error")


def noised_pairs(
    policy: DiffusionPolicy, data: PairData, config: DiffusionLoraConfig
) -> NoisedPairs:
    """The pairs and the draws that measure all replicas."""
    return NoisedPairs(policy, data, config.seed, config.draws or len(policy.draws.times))


def diffusion_replicas(
    policy: DiffusionPolicy,
    table: pa.Table,
    config: DiffusionLoraConfig,
    members: range | None = None,
) -> DiffusionReplicas:
    """Adapters on the policy's upper blocks, each drawn from its own seed, over the table's pairs.

    The policy's denoiser carries them until `detach`. Raises DataError if a replica has no pair to
    train on.
    """
    from noisescope.training.lora.adapters import Adapters

    members = range(config.replicas) if members is None else members
    data = replica_pairs(table, config.folds_by)
    held = halves(data, config)
    denoiser = policy.pipeline.denoiser
    adapters = Adapters(denoiser.model, len(members), config.rank, 0)
    adapters.attach(attention_layers(denoiser, denoiser.upper_names(None)))
    initialise(adapters, config, members.start, float(config.rank))
    return DiffusionReplicas(
        noised_pairs(policy, data, config),
        adapters,
        config,
        held[members.start : members.stop],
        make_streams(data, held, config.seed, CLUSTER, members),
        first=members.start,
    )


def diffusion_cost(
    learner: DiffusionReplicas, steps: int, due: list[int], cache_directory: Path | None
) -> LoraCost:
    """FLOPs of a run, counted on one pair: E of its lower blocks, D of the rest of the denoiser.

    The reference costs E + D a pair and draw; a replica's training E + 2 D a pair (frozen layers
    pass gradients at the price of a forward); scoring E + M D a pair and draw.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    noised, replicas = learner.noised, learner.adapters.replicas
    first = np.zeros(1, np.int64)
    with torch.inference_mode():
        noised.rows(first, [(0,)])
        with FlopCounterMode(display=False) as below:
            rows = noised.rows(first, [(0,)])
        with FlopCounterMode(display=False) as above:
            squared_errors(noised.policy.pipeline.denoiser, rows)
    e, d = float(below.get_total_flops()), float(above.get_total_flops())
    mine = (~learner.held_out).sum(1)
    trained = steps * float(np.minimum(mine, learner.config.batch).sum())
    unknown = ReferenceErrors.of(noised, learner.config.rows).unknown(cache_directory)
    pairs = len(noised.data.pair_ids)
    return LoraCost(
        reference=unknown * noised.draws * (e + d),
        training=trained * (e + 2 * d),
        scoring=pairs * noised.draws * (e + replicas * d),
        steps=steps,
        due=tuple(due),
    )
