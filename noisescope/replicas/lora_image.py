"""LoRA replicas of a diffusion model: M short Diffusion-DPO fine-tunings in one process.

The twin of `lora.py` for images. Adapters stand on the attention layers (to_q, to_k, to_v,
to_out.0) of the up blocks, so the down blocks run once for all replicas and the reference,
which is the model with its adapters off. l is Eq. 6 of 2503.16921 over shared (t, eps) draws,
functions of (seed, pair_id, draw):

    train_diffusion_lora(policy, dataset.table, DiffusionLoraConfig(replicas=8), run_directory)

writes margins/part-*.parquet and replicas/<m>/pytorch_lora_weights.safetensors, which diffusers
loads as it is, and continues a killed run to the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.errors import DataError
from noisescope.models.device import alone
from noisescope.pairs import digest
from noisescope.progress import Progress as PartsProgress
from noisescope.replicas.checkpoints import checkpoint_steps, part_name, write_step
from noisescope.replicas.cost import LoraCost
from noisescope.replicas.oom import FittingReplicas
from noisescope.replicas.packed_image import WEIGHTS, DiffusionReplicas
from noisescope.replicas.packed_image import DiffusionLoraConfig as DiffusionLoraConfig
from noisescope.replicas.partition import cut, share_of
from noisescope.replicas.reference_errors import ReferenceErrors
from noisescope.storage.cache import fill
from noisescope.training.batch_order import Stream, held_out_by
from noisescope.training.loop import STATE_FILE, Progress, TrainConfig, train
from noisescope.training.noisy_pairs import NoisedPairs, squared_errors
from noisescope.training.objectives import DPO
from noisescope.training.pair_data import PairData, Report, pair_data

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.models.diffusion import DiffusionPolicy

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@final
@dataclass
class Checkpoints:
    """Called after every step: writes margins and adapters at T of them."""

    learner: DiffusionReplicas
    directory: Path  # of the run
    steps: int
    report: Report | None = None

    @property
    def due(self) -> list[int]:
        """Steps after which margins are written."""
        return checkpoint_steps(self.steps, self.learner.config.checkpoints)

    def __call__(self, progress: Progress) -> bool:
        """Never stops the training early."""
        if self.report is not None:
            self.report("training", progress.step, self.steps)
        if progress.step in self.due:
            learner, first = self.learner, self.learner.first
            margins = learner.margins(self.report)
            self.save()
            ids, place = learner.data.pair_ids, self.directory / "margins"
            write_step(place, ids, margins, learner.held_out, progress.step, first)
        return False

    def save(self) -> None:
        """Write every replica's adapter."""
        for replica in range(self.learner.adapters.replicas):
            place = self.directory / "replicas" / str(self.learner.first + replica)
            self.learner.save(replica, place)

    def lost(self) -> bool:
        """Whether margins that a finished training has written are gone; gone adapters are
        written again from what it ended with."""
        first, count = self.learner.first, self.learner.adapters.replicas
        adapters = [self.directory / "replicas" / str(first + m) / WEIGHTS for m in range(count)]
        if not all(file.is_file() for file in adapters):
            self.save()
        margins = [self.directory / "margins" / part_name(step) for step in self.due]
        return not all(file.is_file() for file in margins)


def train_diffusion_lora(
    policy: DiffusionPolicy,
    table: pa.Table,
    config: DiffusionLoraConfig,
    run_directory: Path,
    cache_directory: Path | None = None,
    report: Report | None = None,
    estimate: Callable[[LoraCost], None] | None = None,
    say: Callable[[str], None] | None = None,
    *,
    members: range | None = None,
) -> dict[str, Any]:
    """Train, write margins checkpoint by checkpoint, save every replica; facts of what it did.

    Reference errors are kept under `cache_directory` where one is given. `members` are the
    replicas to train where others are trained elsewhere. `estimate` is told the cost first, `say`
    of damaged parts. Raises DataError for too few pairs, EvidenceError for a diverged loss,
    RunError for a directory that holds other evidence.
    """
    learner = diffusion_replicas(policy, table, config, members)

    def judging(done_work: float, total_work: float, note: str | None) -> None:
        if note and say is not None:
            say(note)
        if report is not None and total_work:
            report("reference", int(done_work), int(total_work))

    try:
        plan = learner.plan(_evidence(learner))
        writer = Checkpoints(learner, run_directory, plan.steps, report)
        if estimate is not None:
            estimate(diffusion_cost(learner, plan.steps, writer.due, cache_directory))
        learner.judge(cache_directory, judging)
        _train_whole(learner, writer, plan)
        return {"steps": plan.steps, "draws": learner.noised.draws}
    finally:
        learner.detach()


def _train_whole(learner: DiffusionReplicas, writer: Checkpoints, plan: TrainConfig) -> None:
    """Train to the end, from the saved state if there is one; again where its evidence is gone.

    torch's own random numbers take no part, but they are saved with the state: they start the
    same, whatever the process did before.
    """
    import torch

    objective, place = DPO(beta=learner.config.beta), writer.directory / "replicas"
    fitting = FittingReplicas(learner, learner.data.pair_ids)

    def run() -> None:
        torch.manual_seed(learner.config.seed)
        train(
            learner,
            objective,
            plan,
            place,
            accelerator=alone(),
            after_step=writer,
            fitting=fitting,
        )

    with torch.random.fork_rng(devices=[]):
        run()
        if writer.lost():
            (place / STATE_FILE).unlink()
            learner.initialise()
            run()


def fill_reference(
    policy: DiffusionPolicy,
    table: pa.Table,
    config: DiffusionLoraConfig,
    cache_directory: Path,
    share: tuple[int, int],
    progress: PartsProgress,
) -> None:
    """Compute share `i` of `n` (from 0) of the reference's errors, for all who will train."""
    noised = noised_pairs(policy, pair_data(table), config)
    source = ReferenceErrors.of(noised, config.rows)
    cuts = cut(source.items, source.sizes(source.items), share[1])
    mine = [item for item in source.items if share_of(item, cuts) == share[0]]
    fill(source, mine, source.directory(cache_directory), progress, "reference error")


def noised_pairs(
    policy: DiffusionPolicy, data: PairData, config: DiffusionLoraConfig
) -> NoisedPairs:
    """The pairs and the draws that all replicas are judged by."""
    return NoisedPairs(policy, data, config.seed, config.draws or len(policy.draws.times))


def diffusion_replicas(
    policy: DiffusionPolicy,
    table: pa.Table,
    config: DiffusionLoraConfig,
    members: range | None = None,
) -> DiffusionReplicas:
    """Adapters on the policy's up blocks, each drawn from its own seed, over the table's pairs.

    The policy's UNet carries them until `detach`. Raises DataError where a replica would have no
    pair to train on.
    """
    from noisescope.training.lora.adapters import Adapters

    members = range(config.replicas) if members is None else members
    data = pair_data(table)
    held = held_out_by(data.fold_key, seed=config.seed, replicas=config.replicas)
    if len(data.pair_ids) < 4 or held.all(1).any():
        raise DataError(
            f"{len(data.pair_ids)} pairs are too few for LoRA replicas",
            hint="Give a dataset with at least 4 pairs, better hundreds, or use --kind head.",
        )
    unet = policy.pipeline.unet
    names = [
        name
        for name, _ in unet.named_modules()
        if name.startswith("up_blocks.") and name.endswith(tuple(f".{end}" for end in TARGETS))
    ]
    adapters = Adapters(unet, len(members), config.rank, 0)
    adapters.attach(names)
    streams = [
        Stream(
            np.flatnonzero(~held[m]), data.chosen, data.rejected, seed=(config.seed, m), cluster=8
        )
        for m in members
    ]
    learner = DiffusionReplicas(
        noised_pairs(policy, data, config),
        adapters,
        config,
        held[members.start : members.stop],
        streams,
        first=members.start,
        largest=int((~held).sum(1).max()),
    )
    learner.initialise()
    return learner


def diffusion_cost(
    learner: DiffusionReplicas, steps: int, due: list[int], cache_directory: Path | None
) -> LoraCost:
    """FLOPs of a run, counted on one pair: E of its down blocks, D of the rest of the denoiser.

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
            squared_errors(noised.policy.pipeline.unet, rows)
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


def _evidence(learner: DiffusionReplicas) -> str:
    """What a saved training state belongs to: model, settings, draws and pairs."""
    data = learner.data
    return digest(
        learner.noised.policy.identity.fingerprint,
        json.dumps(asdict(learner.config), sort_keys=True),
        str(learner.noised.draws),
        *data.pair_ids,
        *(data.items[i].key for i in (*data.chosen, *data.rejected)),
    )
