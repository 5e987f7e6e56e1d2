"""Options that several commands share, declared once: a dataclass a group, a field an option.

`spread` makes them options of a command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final, get_type_hints

import typer

from noisescope.cli.console import Terminal
from noisescope.errors import UsageError
from noisescope.replicas.config import FLAGS, LoraConfig
from noisescope.replicas.gather import EvidenceConfig

if TYPE_CHECKING:
    from noisescope.models import Policy
    from noisescope.pairs import PreferenceDataset


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each dataclass parameter replaced by one parameter a field."""
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(_keyword(name, kind, parameter.default))
            continue
        assert isinstance(kind, type)
        groups[name] = kind
        inner = get_type_hints(kind, include_extras=True)
        parameters += [_keyword(f.name, inner[f.name], f.default) for f in fields(kind)]

    def run(**values: Any) -> None:
        whole = {
            name: kind(**{f.name: values.pop(f.name) for f in fields(kind) if f.name in values})
            for name, kind in groups.items()
        }
        command(**whole, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


#: Options of every command that reads pairs.
ColumnsOption = Annotated[
    str | None,
    typer.Option(help="Which column plays which role: prompt=question,chosen=best,rejected=worst."),
]
PairsOption = Annotated[
    str | None, typer.Option(help="Pairs of ranked or rated answers: all, best or adjacent.")
]


@final
@dataclass(frozen=True)
class SourceOptions:
    """Which pairs, judged by which model, and where the run is kept."""

    model: Annotated[
        str | None, typer.Option(help="Causal LM or pipeline: directory, GGUF file or Hub name.")
    ] = None
    format: Annotated[
        str | None, typer.Option(help="Dataset format; recognised from the columns if left out.")
    ] = None
    columns: ColumnsOption = None
    pairs: PairsOption = None
    split: Annotated[str | None, typer.Option(help="Split of a dataset that has several.")] = None
    limit: Annotated[int | None, typer.Option(help="Read only the first rows.", min=1)] = None
    max_length: Annotated[
        int | None, typer.Option(help="Tokens kept; 1024 or the model's limit if left out.")
    ] = None
    chat_template: Annotated[
        str | None,
        typer.Option(help="auto, never (plain text), or the name of one of several templates."),
    ] = None
    image_size: Annotated[
        int | None, typer.Option(help="Side of images in pixels; the pipeline's own if left out.")
    ] = None
    draws: Annotated[
        int | None, typer.Option(help="K, (t, eps) draws an image is judged by; 4 if left out.")
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs")
    run_dir: Annotated[
        Path | None, typer.Option(help="This run's own directory, instead of one by name.")
    ] = None

    def read(
        self, dataset: str | None, terminal: Terminal, check: Callable[[PreferenceDataset], None]
    ) -> tuple[PreferenceDataset, Policy]:
        """The pairs and the policy that judges them; `check` sees the pairs before it is loaded."""
        from noisescope.cli.resolve import chosen_dataset, chosen_model
        from noisescope.datasets import load
        from noisescope.models.device import own_device
        from noisescope.models.load import load_policy
        from noisescope.storage.workspace import find_workspace, resolve

        workspace = find_workspace()
        target = chosen_dataset(dataset, workspace)
        terminal.note(resolve(target, workspace).said)
        pairs = load(
            target,
            format=self.format,
            columns=self.columns,
            pairs=self.pairs,
            limit=self.limit,
            split=self.split,
            workspace=workspace,
        )
        terminal.note(f"{len(pairs):,} {pairs.modality} pairs, format {pairs.adapter}")
        for remark in remarks(pairs):
            terminal.note(remark)
        check(pairs)
        pictures = {"image_size": self.image_size, "draws": self.draws}
        policy = load_policy(
            chosen_model(self.model, pairs.modality, workspace),
            pairs,
            max_length=self.max_length,
            chat_template=self.chat_template,
            device=own_device(self.device),
            dtype=self.dtype,
            **{name: value for name, value in pictures.items() if value is not None},
        )
        terminal.note(f"judged by {policy.identity.id}")
        return pairs, policy


def remarks(pairs: PreferenceDataset) -> list[str]:
    """What to note of how a dataset was read: columns without a role, doubts about its labels."""
    unused = pairs.facts.unused_columns
    return ([f"not used: {', '.join(unused)}"] if unused else []) + list(pairs.facts.notes)


@final
@dataclass(frozen=True)
class ConstantOptions:
    """The paper's constants, from margins to u, W and Gamma."""

    rho: Annotated[
        float | None, typer.Option(help="Eq. 11 rho; 1 for text, 15 for images if left out.")
    ] = None
    k1: Annotated[float, typer.Option(help="Eq. 14: W = 1 / (1 + k1 u).")] = 10.0
    k2: Annotated[float, typer.Option(help="Eq. 15: Gamma = k2 u^2 + c2.")] = -1.0
    c2: Annotated[float, typer.Option(help="Eq. 15: c2.")] = 0.0
    released: Annotated[
        bool,
        typer.Option("--released", help="W and Gamma from u_released, as the released code has."),
    ] = False


#: Headings of the help page.
HEADS, LORA, THEIRS = "Heads", "LoRA replicas", "Adapters of others"


def _lora(text: str, default: object) -> Any:
    return typer.Option(help=f"{text}; {default} if left out.", rich_help_panel=LORA)


@final
@dataclass(frozen=True)
class EvidenceOptions:
    """How the replicas are made. None stands for an option that was not given."""

    kind: Annotated[
        str | None,
        typer.Option(
            help="Kind of replica: head (log-linear) or lora (DPO fine-tuned); head if left out."
        ),
    ] = None
    replicas: Annotated[int | None, typer.Option(help="M, how many replicas; 8 if left out.")] = (
        None
    )
    seed: Annotated[int, typer.Option(help="Seed of folds and replicas.")] = 0
    beta: Annotated[
        float | None, typer.Option(help="DPO beta; 0.1 for text, 2500 for images if left out.")
    ] = None
    folds: Annotated[
        int | None, typer.Option(help="Folds of each; 10 if left out.", rich_help_panel=HEADS)
    ] = None
    pool: Annotated[
        bool | None,
        typer.Option(
            "--pool/--no-pool",
            help="Pool by identity, a free ability per recurring response; on if left out.",
            rich_help_panel=HEADS,
        ),
    ] = None
    lora_r: Annotated[int | None, _lora("rank", f"{LoraConfig.rank}, images 8")] = None
    lora_alpha: Annotated[float | None, _lora("alpha", f"{LoraConfig.alpha:g}")] = None
    targets: Annotated[
        str | None,
        _lora("layers adapted, such as q_proj,v_proj", "all linear ones"),
    ] = None
    layers: Annotated[
        str | None,
        _lora("blocks adapted, top-K or all", f"top-{LoraConfig.top_layers}"),
    ] = None
    learning_rate: Annotated[
        float | None, _lora("learning rate", f"{LoraConfig.learning_rate:g}")
    ] = None
    schedule: Annotated[str | None, _lora("constant, linear or cosine", LoraConfig.schedule)] = None
    epochs: Annotated[
        float | None,
        _lora("epochs over a half", f"{LoraConfig.epochs:g}, images 2"),
    ] = None
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps, instead of --epochs.", rich_help_panel=LORA)
    ] = None
    warmup: Annotated[float | None, _lora("share of warm-up steps", f"{LoraConfig.warmup:g}")] = (
        None
    )
    batch_size: Annotated[int | None, _lora("pairs a step", f"{LoraConfig.batch}, images 32")] = (
        None
    )
    accumulation: Annotated[int | None, _lora("parts of a batch", LoraConfig.accumulation)] = None
    checkpoints: Annotated[
        int | None, _lora("T, times margins are taken", LoraConfig.checkpoints)
    ] = None
    early_stopping: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many checkpoints without a better held-out loss; 0, never.",
            rich_help_panel=LORA,
        ),
    ] = None
    ema: Annotated[
        bool,
        typer.Option(
            "--ema", help="Two averaged copies a replica, for u_released.", rich_help_panel=LORA
        ),
    ] = False
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute activations again instead of keeping them: less memory, slower.",
            rich_help_panel=LORA,
        ),
    ] = False
    from_adapters: Annotated[
        list[Path] | None,
        typer.Option(
            help="Score with these PEFT LoRA adapters instead: a directory, or one that holds "
            "several. May be repeated.",
            rich_help_panel=THEIRS,
        ),
    ] = None
    held_out: Annotated[
        bool | None,
        typer.Option(
            "--held-out/--trained-on-these",
            help="Whether the adapters never saw these pairs; taken as seen if left out.",
            rich_help_panel=THEIRS,
        ),
    ] = None

    def config(self) -> EvidenceConfig:
        """What the options say, checked. Raises UsageError, and ModelError for adapters."""
        kind = self.kind or ("adapters" if self.from_adapters else "head")
        lora = self._lora()
        self._refuse_foreign(kind, lora)
        given: dict[str, Any] = {
            "replicas": self.replicas,
            "folds": self.folds,
            "pool": self.pool,
            "held_out": self.held_out,
        }
        if kind == "adapters":
            from noisescope.training.lora.peft_files import adapter_directories

            found = adapter_directories(self.from_adapters or [])
            given |= {"adapters": tuple(found), "replicas": len(found)}
        known = {name: value for name, value in given.items() if value is not None}
        return EvidenceConfig(kind=kind, seed=self.seed, beta=self.beta, lora=lora, **known)

    def _lora(self) -> dict[str, Any]:
        """The LoRA settings given, by field of LoraConfig."""
        said = asdict(self)
        names = {field: flag.removeprefix("--").replace("-", "_") for field, flag in FLAGS.items()}
        given = {
            field: said[name]
            for field, name in names.items()
            if said[name] is not None and said[name] is not False
        }
        if self.targets is not None:
            given["targets"] = _targets(self.targets)
        if self.layers is not None:
            given["top_layers"] = _layers(self.layers)
        return given

    def _refuse_foreign(self, kind: str, lora: dict[str, Any]) -> None:
        """Raise UsageError naming every flag that belongs to another kind."""
        heads = {"--folds": self.folds, "--pool": self.pool}
        theirs = {"--from-adapters": self.from_adapters or None, "--held-out": self.held_out}
        named = {
            "head": [flag for flag, value in heads.items() if value is not None],
            "lora": [FLAGS[name] for name in lora],
            "adapters": [flag for flag, value in theirs.items() if value is not None],
        }
        if kind == "adapters" and self.replicas is not None:
            named["lora"].append("--replicas")
        wrong = [
            f"{', '.join(flags)} cannot be used with {_said(kind)} (only with {_said(owner)})"
            for owner, flags in named.items()
            if flags and owner != kind and kind in named
        ]
        if wrong:
            raise UsageError(
                "; ".join(wrong), hint="`noisescope fine-tune --help` says which is whose."
            )


def _said(kind: str) -> str:
    return "--from-adapters" if kind == "adapters" else f"--kind {kind}"


def _targets(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError(
            f"--targets {text!r} names no layer", hint="Such as --targets q_proj,v_proj, or all."
        )
    return () if names == ("all",) else names


def _layers(text: str) -> int | None:
    """K of `top-K` (or `K`), None for `all`."""
    if text == "all":
        return None
    number = text.removeprefix("top-")
    if not number.isdecimal() or int(number) < 1:
        raise UsageError(
            f"--layers {text}: top-K or all", hint="Such as --layers top-6, or --layers all."
        )
    return int(number)
