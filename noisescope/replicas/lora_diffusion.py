"""LoRA replicas of a diffusion model: M short Diffusion-DPO fine-tunings in one process.

The twin of `lora.py` for images. Adapters stand on the attention layers (to_q, to_k, to_v,
to_out.0) of the up blocks, so the down blocks run once for all replicas and the reference,
which is the model with its adapters off. l is Eq. 6 of 2503.16921 over shared (t, eps) draws,
functions of (seed, pair_id, draw):

    learner = diffusion_replicas(policy, dataset.table, DiffusionLoraConfig(replicas=8))
    margins, held_out = learner.run()   # [M, N] beta * l and [M, N]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.objectives import DPO, PairValues
from noisescope.policies.denoising import draw_noise, logratio
from noisescope.policies.unet_halves import Half, decode, encode
from noisescope.replicas.draws import Stream, held_out_by
from noisescope.replicas.packed import PairData, Part, Report, pair_data
from noisescope.storage import write_atomic
from noisescope.training import Piece, TrainConfig, train

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from noisescope.policies.diffusion import DiffusionPolicy
    from noisescope.replicas.adapters import Adapters

Int = NDArray[np.int64]
Float = NDArray[np.float32]

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@final
@dataclass(frozen=True)
class DiffusionLoraConfig:
    """M replicas of rank `rank`; `beta` as in Eq. 6 without DiffusionDPO's extra 0.5.

    `draws` is K, the (t, eps) draws a pair is judged by; in training every epoch sees another
    of them, beginning anywhere. `rows` bounds the latents of one forward. Raises UsageError.
    """

    replicas: int = 8
    rank: int = 8
    beta: float = 2500.0
    learning_rate: float = 1e-3
    epochs: float = 2.0
    steps: int | None = None
    batch: int = 32
    draws: int = 8
    rows: int = 64
    warmup: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        low = {"--replicas": 2, "--lora-r": 1, "--batch": 1, "--draws": 1}
        given = (self.replicas, self.rank, self.batch, self.draws)
        faults = [
            f"{flag} must be at least {least}, not {value}"
            for (flag, least), value in zip(low.items(), given, strict=True)
            if value < least
        ]
        if not self.beta > 0:
            faults.append(f"--beta must be above 0, not {self.beta}")
        if faults:
            raise UsageError("; ".join(faults), hint="Run `noisescope fine-tune --help`.")


@final
@dataclass(frozen=True)
class Rows:
    """Both sides of some pairs under some draws, ready to denoise: R = 2 x pairs x draws rows.

    Order: chosen of all (pair, draw), then rejected of the same.
    """

    half: Half
    target: Tensor  # [R, C, h, w]


@final
@dataclass
class DiffusionReplicas:
    """The learner (`training.Learner`): M adapters over one UNet, and their scores."""

    policy: DiffusionPolicy
    adapters: Adapters
    data: PairData
    config: DiffusionLoraConfig
    held_out: NDArray[np.bool_]  # [M, N]
    streams: list[Stream] = field(default_factory=list)
    _step: int = 0
    _known: Float | None = None  # [2, N, K] reference errors, NaN where not yet computed

    def run(self, directory: Path | None = None, report: Report | None = None) -> Float:
        """Train all replicas; their margins [M, N], save adapters where a directory is given."""
        largest = int((~self.held_out).sum(1).max())
        steps = self.config.steps or max(
            1, round(self.config.epochs * largest / min(self.config.batch, largest))
        )
        plan = TrainConfig(
            steps=steps, learning_rate=self.config.learning_rate, warmup=self.config.warmup
        )
        train(
            self,
            DPO(beta=self.config.beta),
            plan,
            directory,
            after_step=lambda progress: (
                report is not None and bool(report("training", progress.step, steps))
            ),
        )
        if directory is not None:
            for replica in range(self.adapters.replicas):
                self.save(replica, directory / str(replica))
        return self.margins(report)

    def trainable(self) -> dict[str, Tensor]:
        return dict(self.adapters.parameters())

    def clip(self, max_norm: float | None) -> float:
        return self.adapters.clip(max_norm)

    def batches(self, step: int) -> list[list[Part]]:
        """Every replica's pairs of a step, in forwards of at most `rows` latents."""
        groups: list[list[Part]] = [[]]
        used = 0
        for replica, stream in enumerate(self.streams):
            pairs = stream.batch(step, self.config.batch)
            size = max(1, self.config.rows // 2)
            for start in range(0, len(pairs), size):
                mine = pairs[start : start + size]
                if groups[-1] and used + 2 * len(mine) > self.config.rows:
                    groups.append([])
                    used = 0
                groups[-1].append(Part(replica, mine, len(mine) / len(pairs)))
                used += 2 * len(mine)
        self._step = step
        return groups

    def pieces(self, batch: list[Part]) -> Iterator[Piece]:
        """l of the batch's pairs, replica by replica, with gradient."""
        pairs = np.concatenate([part.pairs for part in batch])
        epochs = np.repeat([self._epoch(p) for p in batch], [len(p.pairs) for p in batch])
        first = (self.data.fold_key[pairs] >> np.uint64(8)).astype(np.int64)
        draws = (first + epochs) % self.config.draws
        rows = self._rows(pairs, [(draw,) for draw in draws.tolist()])
        reference = self._reference(rows, pairs, draws[:, None])
        ends = np.cumsum([len(part.pairs) for part in batch]).tolist()
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        offset = len(pairs)
        segments = tuple(
            (part.replica, side + start, side + end)
            for side in (0, offset)
            for part, (start, end) in zip(batch, spans, strict=True)
        )
        errors = self._errors(rows, segments)
        ratio = logratio(errors[:offset], reference[:offset], errors[offset:], reference[offset:])
        for part, (start, end) in zip(batch, spans, strict=True):
            yield Piece(PairValues(ratio[start:end]), part.share)

    def margins(self, report: Report | None = None) -> Float:
        """beta * l of every pair under every replica, mean over K draws, [M, N]."""
        import torch

        count, k = len(self.data.pair_ids), self.config.draws
        size = max(1, self.config.rows // (2 * k))
        out = np.zeros((self.adapters.replicas, count), np.float32)
        with torch.inference_mode():
            for start in range(0, count, size):
                pairs = np.arange(start, min(start + size, count))
                rows = self._rows(pairs, [tuple(range(k))] * len(pairs))
                middle = len(rows.target) // 2
                reference = self._reference(rows, pairs, np.tile(np.arange(k), (len(pairs), 1)))
                for replica in range(self.adapters.replicas):
                    errors = self._errors(rows, ((replica, 0, len(rows.target)),))
                    ratio = logratio(
                        errors[:middle], reference[:middle], errors[middle:], reference[middle:]
                    )
                    mean = ratio.view(len(pairs), k).mean(1)
                    out[replica, pairs] = self.config.beta * mean.float().cpu().numpy()
                if report is not None:
                    report("scoring", int(pairs[-1]) + 1, count)
        return out

    def save(self, replica: int, directory: Path) -> None:
        """One replica as `pytorch_lora_weights.safetensors`, which diffusers loads as it is."""
        from safetensors.torch import save_file

        tensors = {}
        for name, layer in self.adapters.layers.items():
            a, b = layer.a[replica].detach(), layer.b[replica].detach() * layer.scales[replica]
            tensors[f"unet.{name}.lora_A.weight"] = a.cpu().contiguous()
            tensors[f"unet.{name}.lora_B.weight"] = b.cpu().contiguous()
        path = directory / "pytorch_lora_weights.safetensors"
        write_atomic(path, lambda place: save_file(tensors, place, metadata={"format": "pt"}))

    def detach(self) -> None:
        """Give the policy its own UNet back."""
        self.adapters.detach()

    def _epoch(self, part: Part) -> int:
        """How often the replica has met all of its pairs before this step."""
        mine = int((~self.held_out[part.replica]).sum())
        return self._step * min(self.config.batch, mine) // mine

    def _rows(self, pairs: Int, draws: Sequence[tuple[int, ...]]) -> Rows:
        """Noised latents of both sides of pairs [P] under each pair's draws, encoded once."""
        import torch

        policy, items = self.policy, self.data.items
        schedule, device = policy.pipeline.schedule, policy.device
        sides = [
            [items[index] for index in side[pairs]]
            for side in (self.data.chosen, self.data.rejected)
        ]
        each = len(draws[0])
        times, noises = [], []
        for pair, wanted in zip(pairs.tolist(), draws, strict=True):
            steps, drawn = draw_noise(
                self.config.seed,
                self.data.pair_ids[pair],
                self.config.draws,
                policy.latent_shape,
                len(schedule.alphas),
            )
            times.append(steps[list(wanted)])
            noises.append(drawn[list(wanted)])
        t = torch.from_numpy(np.concatenate(times)).to(device).repeat(2)
        eps = torch.from_numpy(np.concatenate(noises)).to(device).repeat(2, 1, 1, 1)
        with torch.no_grad():
            whole = [item for side in sides for item in side]
            latents, framings = policy.latents([item.response for item in whole])
            told = policy.conditioning([item.prompt for item in whole], framings)
            index = torch.arange(len(whole), device=device).repeat_interleave(each)
            latents, told = latents[index].clone(), told.rows(index)
            half = encode(policy.pipeline.unet, schedule.noisy(latents, t, eps), t, told)
            return Rows(half, schedule.target(latents, t, eps).float())

    def _reference(self, rows: Rows, pairs: Int, draws: Int) -> Tensor:
        """e of the reference, [R], for pairs [P] and their draws [P, D]: computed once each.

        All replicas meet a pair under the same draws, so most of these are known already.
        """
        import torch

        if self._known is None:
            shape = (2, len(self.data.pair_ids), self.config.draws)
            self._known = np.full(shape, np.nan, np.float32)
        where = np.repeat(pairs, draws.shape[1]), draws.ravel()
        found = self._known[:, *where]  # [2, P x D]
        missing = np.flatnonzero(np.isnan(found))
        if len(missing):
            part = torch.from_numpy(missing).to(rows.target.device)
            fresh = self._errors(Rows(rows.half.rows(part), rows.target[part]), ())
            found.flat[missing] = fresh.detach().float().cpu().numpy()
            self._known[:, *where] = found
        return torch.from_numpy(found.reshape(-1)).to(rows.target.device)

    def _errors(self, rows: Rows, segments: tuple[tuple[int, int, int], ...]) -> Tensor:
        """e of Eq. 6, [R], with adapters by segment (replica, first row, end), or off."""
        import torch

        with torch.set_grad_enabled(bool(segments) and torch.is_grad_enabled()):
            self.adapters.placement.segments = segments
            try:
                guess = decode(self.policy.pipeline.unet, rows.half).float()
            finally:
                self.adapters.placement.segments = ()
            return (guess - rows.target).square().mean(dim=(1, 2, 3))


def diffusion_replicas(
    policy: DiffusionPolicy, table: pa.Table, config: DiffusionLoraConfig
) -> DiffusionReplicas:
    """Adapters on the policy's up blocks, each drawn from its own seed, over the table's pairs.

    The policy's UNet carries them until `detach`.
    """
    from noisescope.replicas.adapters import Adapters

    unet = policy.pipeline.unet
    names = [
        name
        for name, _ in unet.named_modules()
        if name.startswith("up_blocks.") and name.endswith(tuple(f".{end}" for end in TARGETS))
    ]
    adapters = Adapters(unet, config.replicas, config.rank, 0)
    adapters.attach(names)
    adapters.initialise(
        [config.seed * 1000 + m for m in range(config.replicas)], float(config.rank)
    )
    data = pair_data(table)
    held = held_out_by(data.fold_key, seed=config.seed, replicas=config.replicas)
    streams = [
        Stream(
            np.flatnonzero(~held[m]), data.chosen, data.rejected, seed=(config.seed, m), cluster=8
        )
        for m in range(config.replicas)
    ]
    return DiffusionReplicas(policy, adapters, data, config, held, streams)
