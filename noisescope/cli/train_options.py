"""Options of `noisescope train`: a dataclass a group, a field an option (`cli.options.spread`).

Fields of `LoopOptions` and `AdapterOptions` have the names of `TrainSettings`, but for
`batch_size`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from noisescope.cli.options import (
    ChatTemplateOption,
    ColumnsOption,
    FormatOption,
    ImageSizeOption,
    LimitOption,
    MaxLengthOption,
    PairsOption,
    SplitOption,
)
from noisescope.training.policy.settings import TrainSettings

LOOP, ADAPTER, NOISE = "Optimisation", "What trains", "Weights"


def _loop(text: str, default: object) -> Any:
    """An option of the loop; its shown default is that of `TrainSettings`."""
    return typer.Option(help=text, show_default=str(default), rich_help_panel=LOOP)


@final
@dataclass(frozen=True)
class WeightOptions:
    """How far each label is trusted."""

    weights: Annotated[
        str | None,
        typer.Option(
            help="RUN, FILE (pair_id and W, gamma; for forward-dpo p_prior, for soft-dpo p_wrong) "
            "or none.",
            show_default="forward-dpo, soft-dpo, distilled-dpo, adaptive-*: the dataset's audit, "
            "made first if missing",
            rich_help_panel=NOISE,
        ),
    ] = None
    weighting: Annotated[
        str | None,
        typer.Option(
            help="How a run's scores become weights: p_wrong or p_flip (W = max(0, 1 - 2 p)), u "
            "(the paper's W and Gamma), prior (for forward-dpo), soft (for soft-dpo) or margin "
            "(for distilled-dpo).",
            show_default="p_wrong; adaptive-* u; forward-dpo prior; soft-dpo soft; distilled-dpo "
            "margin",
            rich_help_panel=NOISE,
        ),
    ] = None
    online: Annotated[
        str | None,
        typer.Option(
            help="Compute weights during training: replicas (M co-trained adapters, as in the "
            "paper) or ema (live and two averaged copies, as in its code).",
            rich_help_panel=NOISE,
        ),
    ] = None
    online_replicas: Annotated[
        int | None,
        typer.Option(
            help="M of --online replicas.",
            show_default=str(TrainSettings.online_replicas),
            rich_help_panel=NOISE,
        ),
    ] = None
    rho: Annotated[
        float | None,
        typer.Option(
            help="Eq. 11 rho.", show_default="1 for text, 15 for images", rich_help_panel=NOISE
        ),
    ] = None
    k1: Annotated[
        float | None,
        typer.Option(
            help="Eq. 14: W = 1/(1 + k1 u).",
            show_default="as scored, or 10",
            rich_help_panel=NOISE,
        ),
    ] = None
    k2: Annotated[
        float | None,
        typer.Option(
            help="Eq. 15: Gamma = k2 u² + c2.",
            show_default="as scored, or -1",
            rich_help_panel=NOISE,
        ),
    ] = None
    c2: Annotated[
        float | None,
        typer.Option(help="Eq. 15.", show_default="as scored, or 0", rich_help_panel=NOISE),
    ] = None
    flip_rate: Annotated[
        float | None,
        typer.Option(help="e of cdpo and rdpo.", show_default="0.1", rich_help_panel=NOISE),
    ] = None
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            help="Another number of the objective, NAME=VALUE: ropo a, rpo a, dr-dpo "
            "temperature, holder-dpo g, re-po reliability.",
            rich_help_panel=NOISE,
        ),
    ] = None
    runs_dir: Annotated[
        Path, typer.Option(help="Directory of all runs.", rich_help_panel=NOISE)
    ] = Path("runs")


@final
@dataclass(frozen=True)
class LoopOptions:
    """How to optimise."""

    beta: Annotated[
        float | None,
        typer.Option(
            help="DPO beta.",
            show_default="0.1 for text, 1000 for SD1.5, 2500 for SDXL",
            rich_help_panel=LOOP,
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate.",
            show_default="2e-4; --full 5e-6, images 1e-5",
            rich_help_panel=LOOP,
        ),
    ] = None
    epochs: Annotated[
        float | None, _loop("Passes over the pairs.", f"{TrainSettings.epochs:g}")
    ] = None
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps, instead of epochs.", rich_help_panel=LOOP)
    ] = None
    batch_size: Annotated[
        int | None,
        _loop("Pairs per optimiser step, over all processes.", TrainSettings.batch),
    ] = None
    accumulation: Annotated[
        int | None,
        _loop("Micro-batches per step.", "as many as memory requires"),
    ] = None
    warmup: Annotated[
        float | None,
        _loop("Share of the steps (below 1) or number of steps.", TrainSettings.warmup),
    ] = None
    schedule: Annotated[
        str | None,
        _loop("linear, cosine or constant after warm-up.", TrainSettings.schedule),
    ] = None
    weight_decay: Annotated[
        float | None, _loop("Weight decay of AdamW.", f"{TrainSettings.weight_decay:g}")
    ] = None
    max_grad_norm: Annotated[
        float | None, _loop("Gradient clipping.", f"{TrainSettings.max_grad_norm:g}")
    ] = None
    seed: Annotated[
        int | None,
        _loop("Random seed of adapters, data order and noise.", TrainSettings.seed),
    ] = None
    validation: Annotated[
        float | None,
        _loop(
            "Share of pairs held out to validate, all pairs of a prompt together.",
            TrainSettings.validation,
        ),
    ] = None
    save_every: Annotated[
        int | None,
        _loop("Steps between checkpoints and validations.", TrainSettings.save_every),
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
    lora_r: Annotated[
        int | None,
        typer.Option(
            help="LoRA rank.", show_default="16 for text, 8 for images", rich_help_panel=ADAPTER
        ),
    ] = None
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            help="LoRA alpha.",
            show_default="twice the rank for text, the rank for images",
            rich_help_panel=ADAPTER,
        ),
    ] = None
    targets: Annotated[
        str | None,
        typer.Option(
            help="Linear layers of a text model's blocks, comma-separated.",
            show_default="all",
            rich_help_panel=ADAPTER,
        ),
    ] = None
    layers: Annotated[
        int | None,
        typer.Option(
            help="Adapt only the last K blocks (text) or up blocks (images). Blocks below run once "
            "for the policy and its reference.",
            show_default="all",
            rich_help_panel=ADAPTER,
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
        typer.Option(
            help="auto, float32, bfloat16 or (GPU) float16; adapters stay float32. auto takes "
            "accelerate's mixed precision where its launcher set one.",
            rich_help_panel=ADAPTER,
        ),
    ] = "auto"
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=ADAPTER)
    ] = "auto"

    @property
    def target_names(self) -> tuple[str, ...] | None:
        """`targets` one by one."""
        return None if self.targets is None else tuple(self.targets.replace(" ", "").split(","))


@final
@dataclass(frozen=True)
class ReadingOptions:
    """How pairs are read."""

    format: FormatOption = None
    columns: ColumnsOption = None
    pairs: PairsOption = None
    split: SplitOption = None
    limit: LimitOption = None
    chat_template: ChatTemplateOption = None
    max_length: MaxLengthOption = None
    image_size: ImageSizeOption = None
