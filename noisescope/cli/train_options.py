"""Options of `noisescope train`: a dataclass a group, a field an option (`cli.options.spread`).

Fields of `LoopOptions` and `AdapterOptions` have the names of `TrainSettings`, but for
`batch_size`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import typer

from noisescope.cli.options import in_panel
from noisescope.training.policy.settings import TrainSettings

LOOP, ADAPTER, NOISE = "Optimisation", "What trains", "Weights"


#: The shown default of the loop is that of `TrainSettings`.
_loop, _adapter, _noise = in_panel(LOOP), in_panel(ADAPTER), in_panel(NOISE)


@final
@dataclass(frozen=True)
class WeightOptions:
    """How far each label is trusted."""

    weights: Annotated[
        str | None,
        _noise(
            "RUN, FILE (pair_id and W, gamma; for forward-dpo p_prior, for soft-dpo p_wrong) "
            "or none.",
            "forward-dpo, soft-dpo, distilled-dpo, adaptive-*: the dataset's audit, "
            "made first if missing",
        ),
    ] = None
    weighting: Annotated[
        str | None,
        _noise(
            "How a run's scores become weights: p_wrong or p_flip (W = max(0, 1 - 2 p)), u "
            "(the paper's W and Gamma), reviews (people's decisions alone), prior (for "
            "forward-dpo), soft (for soft-dpo) or margin (for distilled-dpo).",
            "p_wrong; adaptive-* u; forward-dpo prior; soft-dpo soft; distilled-dpo margin",
        ),
    ] = None
    online: Annotated[
        str | None,
        _noise(
            "Compute weights during training: replicas (M co-trained adapters, as in the "
            "paper) or ema (live and two averaged copies, as in its code)."
        ),
    ] = None
    online_replicas: Annotated[
        int | None, _noise("M of --online replicas.", TrainSettings.online_replicas)
    ] = None
    rho: Annotated[float | None, _noise("Eq. 11 rho.", "1 for text, 15 for images")] = None
    k1: Annotated[float | None, _noise("Eq. 14: W = 1/(1 + k1 u).", "as scored, or 10")] = None
    k2: Annotated[float | None, _noise("Eq. 15: Gamma = k2 u² + c2.", "as scored, or -1")] = None
    c2: Annotated[float | None, _noise("Eq. 15.", "as scored, or 0")] = None
    flip_rate: Annotated[float | None, _noise("e of cdpo and rdpo.", "0.1")] = None
    parameter: Annotated[
        list[str] | None,
        _noise(
            "Another number of the objective, NAME=VALUE: ropo a, rpo a, dr-dpo "
            "temperature, holder-dpo g, re-po reliability."
        ),
    ] = None
    runs_dir: Annotated[Path, _noise("Directory of all runs.")] = Path("runs")


@final
@dataclass(frozen=True)
class LoopOptions:
    """How to optimise."""

    beta: Annotated[
        float | None, _loop("DPO beta.", "0.1 for text, 1000 for SD1.5, 2500 for SDXL")
    ] = None
    learning_rate: Annotated[
        float | None, _loop("Learning rate.", "2e-4; with --full 5e-6 for text, 1e-5 for images")
    ] = None
    epochs: Annotated[
        float | None, _loop("Passes over the pairs.", f"{TrainSettings.epochs:g}")
    ] = None
    steps: Annotated[int | None, _loop("Optimiser steps, instead of epochs.")] = None
    batch_size: Annotated[
        int | None, _loop("Pairs per optimiser step, over all processes.", TrainSettings.batch)
    ] = None
    accumulation: Annotated[
        int | None, _loop("Micro-batches per step.", "as many as memory requires")
    ] = None
    warmup: Annotated[
        float | None,
        _loop("Share of the steps (below 1) or number of steps.", TrainSettings.warmup),
    ] = None
    schedule: Annotated[
        str | None, _loop("linear, cosine or constant after warm-up.", TrainSettings.schedule)
    ] = None
    weight_decay: Annotated[
        float | None, _loop("Weight decay of AdamW.", f"{TrainSettings.weight_decay:g}")
    ] = None
    max_grad_norm: Annotated[
        float | None, _loop("Gradient clipping.", f"{TrainSettings.max_grad_norm:g}")
    ] = None
    seed: Annotated[
        int | None, _loop("Random seed of adapters, data order and noise.", TrainSettings.seed)
    ] = None
    validation: Annotated[
        float | None,
        _loop(
            "Share of pairs held out to validate, all pairs of a prompt together.",
            TrainSettings.validation,
        ),
    ] = None
    save_every: Annotated[
        int | None, _loop("Steps between checkpoints and validations.", TrainSettings.save_every)
    ] = None


@final
@dataclass(frozen=True)
class AdapterOptions:
    """Which tensors train, and on what device."""

    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--lora",
            help="Train every weight, or LoRA adapters.",
            show_default="lora",
            rich_help_panel=ADAPTER,
        ),
    ] = None
    lora_r: Annotated[int | None, _adapter("LoRA rank.", "16 for text, 8 for images")] = None
    lora_alpha: Annotated[
        float | None, _adapter("LoRA alpha.", "twice the rank for text, the rank for images")
    ] = None
    targets: Annotated[
        str | None, _adapter("Linear layers of a text model's blocks, comma-separated.", "all")
    ] = None
    layers: Annotated[
        int | None,
        _adapter(
            "Adapt only the last K blocks (text) or up blocks (images). Blocks below run once "
            "for the policy and its reference.",
            "all",
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Less memory for about a third more time.",
            rich_help_panel=ADAPTER,
        ),
    ] = False
    dtype: Annotated[
        str,
        _adapter(
            "auto, float32, bfloat16 or (GPU) float16; adapters stay float32. auto takes "
            "accelerate's mixed precision where its launcher set one."
        ),
    ] = "auto"
    device: Annotated[str, _adapter("auto, cpu, cuda, cuda:1, mps.")] = "auto"

    @property
    def target_names(self) -> tuple[str, ...] | None:
        """`targets` one by one."""
        return None if self.targets is None else tuple(self.targets.replace(" ", "").split(","))
