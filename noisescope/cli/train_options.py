"""Options of `noisescope train`: a dataclass a group, a field an option (`cli.spread`).

Fields of `LoopOptions` and `AdapterOptions` bear the names of `learners.settings.TrainSettings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import typer

LOOP, ADAPTER, NOISE, READING = "Optimisation", "What trains", "Weights", "Reading and judging"


@final
@dataclass(frozen=True)
class WeightOptions:
    """How far each label is trusted."""

    weights: Annotated[
        str | None,
        typer.Option(
            help="RUN, FILE (pair_id, W, gamma) or none. Left out: the dataset's own audit for "
            "adaptive objectives, made first if missing; none for the others.",
            rich_help_panel=NOISE,
        ),
    ] = None
    weighting: Annotated[
        str | None,
        typer.Option(
            help="How a run's scores become weights: u (the paper's W and Gamma; if left out), "
            "p_flip (W = max(0, 1 - 2 p_flip)) or margin (distilled-dpo's, if left out).",
            rich_help_panel=NOISE,
        ),
    ] = None
    online: Annotated[
        str | None,
        typer.Option(
            help="Weights made while training: replicas (M co-trained adapters, as the paper "
            "writes it) or ema (live and two averaged copies, as its code does).",
            rich_help_panel=NOISE,
        ),
    ] = None
    online_replicas: Annotated[
        int | None,
        typer.Option(help="M of --online replicas; 4 if left out.", rich_help_panel=NOISE),
    ] = None
    rho: Annotated[
        float | None, typer.Option(help="Eq. 11; 1 (text), 15 (images).", rich_help_panel=NOISE)
    ] = None
    k1: Annotated[
        float | None,
        typer.Option(
            help="Eq. 14: W = 1/(1 + k1 u). As scored, or 10.",
            rich_help_panel=NOISE,
        ),
    ] = None
    k2: Annotated[
        float | None,
        typer.Option(help="Eq. 15: Gamma = k2 u² + c2. As scored, or -1.", rich_help_panel=NOISE),
    ] = None
    c2: Annotated[
        float | None, typer.Option(help="Eq. 15. As scored, or 0.", rich_help_panel=NOISE)
    ] = None
    flip_rate: Annotated[
        float | None,
        typer.Option(help="e of cdpo and rdpo; 0.1 if left out.", rich_help_panel=NOISE),
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
        Path, typer.Option(help="Where audits are kept.", rich_help_panel=NOISE)
    ] = Path("runs")

    def restating(self) -> list[str]:
        """Flags given about an audit's scores."""
        values = {
            "--weighting": self.weighting,
            "--rho": self.rho,
            "--k1": self.k1,
            "--k2": self.k2,
            "--c2": self.c2,
        }
        return [flag for flag, value in values.items() if value is not None]


@final
@dataclass(frozen=True)
class LoopOptions:
    """How to optimise."""

    beta: Annotated[
        float | None,
        typer.Option(
            help="0.1 for text, 1000 (SD1.5) or 2500 (SDXL) for images if left out.",
            rich_help_panel=LOOP,
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="2e-4; --full 5e-6.", rich_help_panel=LOOP),
    ] = None
    epochs: Annotated[float | None, typer.Option(help="1 if left out.", rich_help_panel=LOOP)] = (
        None
    )
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps, instead of epochs.", rich_help_panel=LOOP)
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(help="Pairs an optimiser step, over all processes; 32.", rich_help_panel=LOOP),
    ] = None
    accumulation: Annotated[
        int | None,
        typer.Option(
            help="Micro-batches of a step; as memory asks if left out.", rich_help_panel=LOOP
        ),
    ] = None
    warmup: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps (below 1) or number of steps; 0.1.", rich_help_panel=LOOP
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(help="linear, cosine or constant after warm-up.", rich_help_panel=LOOP),
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option(help="AdamW's; 0.", rich_help_panel=LOOP)
    ] = None
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Gradient clipping; 1.", rich_help_panel=LOOP)
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of adapters, data order, noise; 0.", rich_help_panel=LOOP),
    ] = None
    validation: Annotated[
        float | None,
        typer.Option(
            help="Share of pairs held out to validate, all pairs of a prompt together; 0.05.",
            rich_help_panel=LOOP,
        ),
    ] = None
    save_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints (and validations); 50.", rich_help_panel=LOOP),
    ] = None


@final
@dataclass(frozen=True)
class AdapterOptions:
    """Which tensors train, and where they are computed."""

    full: Annotated[
        bool | None,
        typer.Option("--full/--lora", help="Every weight, not LoRA.", rich_help_panel=ADAPTER),
    ] = None
    lora_r: Annotated[
        int | None,
        typer.Option(help="LoRA rank; 16 (text), 8 (images).", rich_help_panel=ADAPTER),
    ] = None
    lora_alpha: Annotated[
        float | None,
        typer.Option(help="LoRA alpha; twice the rank (text), the rank.", rich_help_panel=ADAPTER),
    ] = None
    targets: Annotated[
        str | None,
        typer.Option(
            help="Linear layers of a text model's blocks, comma-separated; all if left out.",
            rich_help_panel=ADAPTER,
        ),
    ] = None
    layers: Annotated[
        int | None,
        typer.Option(
            help="Adapt the last K blocks (text) or up blocks (images) only: what lies below "
            "runs once for the policy and its reference.",
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

    max_length: Annotated[
        int | None,
        typer.Option(
            help="Tokens kept; 1024 or the model's limit if left out.", rich_help_panel=READING
        ),
    ] = None
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="auto, never (plain text), or the name of one of several templates.",
            rich_help_panel=READING,
        ),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side of images in pixels; the pipeline's own if left out.",
            rich_help_panel=READING,
        ),
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            help="Dataset format; recognised from the columns if left out.",
            rich_help_panel=READING,
        ),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(
            help="Which column plays which role: prompt=question,chosen=best,rejected=worst.",
            rich_help_panel=READING,
        ),
    ] = None
    pairs: Annotated[
        str | None,
        typer.Option(
            help="Pairs of ranked or rated answers: all, best or adjacent.",
            rich_help_panel=READING,
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(help="Split of a dataset that has several.", rich_help_panel=READING),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(help="Read only the first rows.", min=1, rich_help_panel=READING),
    ] = None
