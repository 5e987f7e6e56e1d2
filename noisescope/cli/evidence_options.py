"""Options of how replicas are made, for every command that audits, and which belong together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from noisescope.cli import completion
from noisescope.cli.options import ADAPTERS, CONSTANTS, HEADS, LORA, in_panel
from noisescope.errors import UsageError
from noisescope.replicas.config import FLAGS, LoraConfig
from noisescope.replicas.gather import EvidenceConfig

#: The shown default of a LoRA replica's option is that of `LoraConfig`.
_heads, _lora, _adapters = in_panel(HEADS), in_panel(LORA), in_panel(ADAPTERS)
_constant = in_panel(CONSTANTS)


@final
@dataclass(frozen=True)
class EvidenceOptions:
    """How the replicas are made. None means that an option was not given."""

    kind: Annotated[
        str | None,
        typer.Option(
            help="Kind of replica: head (log-linear) or lora (DPO fine-tuned).",
            autocompletion=completion.among("head", "lora"),
            show_default=EvidenceConfig.kind,
        ),
    ] = None
    replicas: Annotated[
        int | None,
        typer.Option(help="M, the number of replicas.", show_default=str(EvidenceConfig.replicas)),
    ] = None
    seed: Annotated[int, typer.Option(help="Random seed of folds and replicas.")] = 0
    beta: Annotated[float | None, _constant("DPO beta.", "0.1 for text, 2500 for images")] = None
    folds: Annotated[int | None, _heads("Folds of each replica.", EvidenceConfig.folds)] = None
    pool: Annotated[
        bool | None,
        typer.Option(
            "--pool/--no-pool",
            help="Treat the labels of a response as independent votes: a free ability per "
            "recurring response, single pairs held out.",
            show_default="no-pool",
            rich_help_panel=HEADS,
        ),
    ] = None
    folds_by: Annotated[
        str | None,
        _heads(
            "What a fold (a half, for LoRA) holds out whole: pair, prompt, response or a "
            "column (annotator, source, group).",
            "prompt; pair with --pool",
        ),
    ] = None
    evidence: Annotated[
        list[str] | None,
        _heads(
            "What else knows something of the labels: lora, adapters:DIRECTORY, "
            "reward:MODEL, lm:MODEL, embed:MODEL, image-reward:NAME, judge:URL#MODEL, "
            "column:NAME, file:NUMBERS.parquet or votes. May be repeated."
        ),
    ] = None
    budget: Annotated[
        int | None,
        _heads(
            "Calls to a judge of --evidence at most. Too few for all pairs: those where an "
            "answer changes most, and some at random.",
            "none: state it",
        ),
    ] = None
    key_env: Annotated[
        str | None, _heads("Environment variable with the key of a judge's endpoint.")
    ] = None
    lora_r: Annotated[int | None, _lora("LoRA rank.", f"{LoraConfig.rank}, images 8")] = None
    lora_alpha: Annotated[float | None, _lora("LoRA alpha.", f"{LoraConfig.alpha:g}")] = None
    targets: Annotated[
        str | None, _lora("Linear layers to adapt, such as q_proj,v_proj.", "all")
    ] = None
    layers: Annotated[
        str | None, _lora("Blocks to adapt: top-K or all.", f"top-{LoraConfig.top_layers}")
    ] = None
    learning_rate: Annotated[
        float | None, _lora("Learning rate.", f"{LoraConfig.learning_rate:g}")
    ] = None
    schedule: Annotated[str | None, _lora("constant, linear or cosine.", LoraConfig.schedule)] = (
        None
    )
    epochs: Annotated[
        float | None, _lora("Epochs over half of the pairs.", f"{LoraConfig.epochs:g}, images 2")
    ] = None
    steps: Annotated[int | None, _lora("Optimiser steps, instead of --epochs.")] = None
    warmup: Annotated[
        float | None, _lora("Share of the steps that warm up.", f"{LoraConfig.warmup:g}")
    ] = None
    batch_size: Annotated[
        int | None, _lora("Pairs per optimiser step.", f"{LoraConfig.batch}, images 32")
    ] = None
    accumulation: Annotated[
        int | None, _lora("Micro-batches per step.", LoraConfig.accumulation)
    ] = None
    checkpoints: Annotated[
        int | None, _lora("T, the number of times margins are written.", LoraConfig.checkpoints)
    ] = None
    early_stopping: Annotated[
        int | None,
        _lora("Stop after this many checkpoints without a better held-out loss.", "never"),
    ] = None
    ema: Annotated[
        bool,
        typer.Option(
            "--ema",
            help="Keep two averaged copies per replica, for u_released.",
            rich_help_panel=LORA,
        ),
    ] = False
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Recompute activations instead of keeping them: less memory, slower.",
            rich_help_panel=LORA,
        ),
    ] = False
    from_adapters: Annotated[
        list[Path] | None,
        _adapters(
            "Score with these PEFT LoRA adapters instead: a directory of one or of several. "
            "May be repeated."
        ),
    ] = None
    held_out: Annotated[
        bool | None,
        typer.Option(
            "--held-out/--trained-on-these",
            help="Whether the adapters were trained without these pairs.",
            show_default="trained on these",
            rich_help_panel=ADAPTERS,
        ),
    ] = None

    def config(self) -> EvidenceConfig:
        """Check the options. Raises UsageError, and ModelError for adapters."""
        kind = self.kind or ("adapters" if self.from_adapters else "head")
        lora = self._lora()
        self._refuse_foreign(kind, lora)
        given: dict[str, Any] = {
            "replicas": self.replicas,
            "folds": self.folds,
            "pool": self.pool,
            "folds_by": self.folds_by,
            "held_out": self.held_out,
            "sources": tuple(self.evidence) if self.evidence else None,
            "budget": self.budget,
            "key_env": self.key_env,
        }
        if kind == "adapters":
            from noisescope.training.lora.peft_files import adapter_directories

            found = adapter_directories(self.from_adapters or [])
            given |= {"adapters": tuple(found), "replicas": len(found)}
        known = {name: value for name, value in given.items() if value is not None}
        return EvidenceConfig(kind=kind, seed=self.seed, beta=self.beta, lora=lora, **known)

    def _lora(self) -> dict[str, Any]:
        """The LoRA settings given, by field of LoraConfig."""
        values = asdict(self)
        names = {field: flag.removeprefix("--").replace("-", "_") for field, flag in FLAGS.items()}
        given = {
            field: values[name]
            for field, name in names.items()
            if values[name] is not None and values[name] is not False
        }
        if self.targets is not None:
            given["targets"] = _targets(self.targets)
        if self.layers is not None:
            given["top_layers"] = _layers(self.layers)
        return given

    def _refuse_foreign(self, kind: str, lora: dict[str, Any]) -> None:
        """Raise UsageError naming every flag that belongs to another kind."""
        heads = {
            "--evidence": self.evidence or None,
            "--budget": self.budget,
            "--key-env": self.key_env,
            "--folds": self.folds,
            "--pool": self.pool,
            "--folds-by": None if kind == "lora" else self.folds_by,
        }
        kinds = {one.partition(":")[0] for one in self.evidence or ()}
        adapters = {
            "--from-adapters": self.from_adapters or None,
            "--held-out": None if "adapters" in kinds else self.held_out,
        }
        if kind == "head" and "lora" in kinds:
            lora = {}
        named = {
            "head": [flag for flag, value in heads.items() if value is not None],
            "lora": [FLAGS[name] for name in lora],
            "adapters": [flag for flag, value in adapters.items() if value is not None],
        }
        if kind == "adapters" and self.replicas is not None:
            named["lora"].append("--replicas")
        wrong = [
            f"{', '.join(flags)} cannot be used with {_flag_of(kind)} (only with {_flag_of(owner)})"
            for owner, flags in named.items()
            if flags and owner != kind and kind in named
        ]
        if wrong:
            raise UsageError(
                "; ".join(wrong),
                hint="`noisescope fine-tune --help` lists the options of each kind.",
            )


def _flag_of(kind: str) -> str:
    return "--from-adapters" if kind == "adapters" else f"--kind {kind}"


def _targets(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError(
            f"--targets {text!r} names no layer",
            hint="For example --targets q_proj,v_proj, or all.",
        )
    return () if names == ("all",) else names


def _layers(text: str) -> int | None:
    """K of `top-K` (or `K`), None for `all`."""
    if text == "all":
        return None
    number = text.removeprefix("top-")
    if not number.isdecimal() or int(number) < 1:
        raise UsageError(
            f"--layers {text} must be top-K or all",
            hint="For example --layers top-6, or --layers all.",
        )
    return int(number)
