"""Options that several commands share, declared once: a dataclass a group, a field an option.

`spread` makes them options of a command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final, get_type_hints

import typer
from typer.core import TyperCommand

from noisescope.cli import completion
from noisescope.cli.console import Terminal

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


READING, HEADS, LORA, ADAPTERS = "Dataset", "Heads", "LoRA replicas", "External adapters"
MACHINE, CONSTANTS = "Machine", "Constants of the paper"
#: Panels of the help that come last.
LATE = (MACHINE, HEADS, LORA, ADAPTERS, CONSTANTS)


@final
class Command(TyperCommand):
    """A command whose help has rare options last, and flags without a type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, those of no panel first and those of `LATE` panels last."""
        panels = {None: 0} | {name: place for place, name in enumerate(LATE, 2)}
        found = super().get_params(ctx)
        for option in found:
            if getattr(option, "is_flag", False):
                option.metavar = ""
        return sorted(
            found,
            key=lambda one: panels.get(getattr(one, "rich_help_panel", None), 1),
        )


def in_panel(panel: str) -> Callable[..., Any]:
    """A maker of options in one panel of the help: (help, the default shown, choices)."""

    def option(text: str, shown: object = True, choices: Sequence[str] = (), **more: Any) -> Any:
        if choices:
            more["autocompletion"] = completion.among(*choices)
        shown = shown if isinstance(shown, bool) else str(shown)
        return typer.Option(help=text, show_default=shown, rich_help_panel=panel, **more)

    return option


_reading, _machine, _constant = in_panel(READING), in_panel(MACHINE), in_panel(CONSTANTS)

#: Arguments and options that several commands share.
DatasetArgument = Annotated[
    str | None,
    typer.Argument(
        help="Workspace name, path, glob, or Hub name of a dataset.",
        autocompletion=completion.datasets,
        show_default="the workspace's dataset",
    ),
]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        help="Run directory or name, or a scored dataset.",
        show_default="the latest run",
        autocompletion=completion.datasets_and_runs,
    ),
]
RunsDirOption = Annotated[Path, typer.Option(help="Directory of all runs.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Causal LM or text-to-image pipeline: directory, GGUF file or Hub name.",
        show_default="the workspace's model",
        autocompletion=completion.models,
    ),
]
DeviceOption = Annotated[
    str, _machine("auto, cpu, cuda, cuda:1 or mps.", choices=("auto", "cpu", "cuda", "mps"))
]
DtypeOption = Annotated[
    str,
    _machine(
        "auto, float32, bfloat16 or float16.", choices=("auto", "float32", "bfloat16", "float16")
    ),
]
DatasetOrRunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[DATASET|RUN]",
        help="A dataset (audited first) or a finished run.",
        autocompletion=completion.datasets_and_runs,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
FormatOption = Annotated[
    str | None,
    _reading("Dataset format.", "recognised by its columns", autocompletion=completion.formats),
]
ColumnsOption = Annotated[
    str | None,
    _reading("Which column plays which role: prompt=question,chosen=best,rejected=worst."),
]
PairsOption = Annotated[
    str | None,
    _reading(
        "Pairs of ranked or rated answers: all, best or adjacent.",
        choices=("all", "best", "adjacent"),
    ),
]
SplitOption = Annotated[str | None, _reading("Split of a dataset that has several.")]
LimitOption = Annotated[int | None, _reading("Read only the first rows.", min=1)]
MaxLengthOption = Annotated[
    int | None, _reading("Tokens kept of a prompt and response.", "1024, or the model's limit")
]
ImageSizeOption = Annotated[int | None, _reading("Side of images in pixels.", "the pipeline's")]
ChatTemplateOption = Annotated[
    str | None,
    _reading("auto, never (plain text), or the name of one of several templates.", "auto"),
]


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


@final
@dataclass(frozen=True)
class SourceOptions(ReadingOptions):
    """Which pairs, which model, and where the run is written."""

    model: ModelOption = None
    draws: Annotated[int | None, _reading("K, the number of (t, eps) draws per image.", "4")] = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    device_map: Annotated[
        str | None,
        _machine(
            "auto spreads a language model's layers over all GPUs, then memory.", "one device"
        ),
    ] = None
    quantize: Annotated[
        str | None,
        _machine("4bit loads a language model's weights in bitsandbytes' NF4.", "as stored"),
    ] = None
    runs_dir: RunsDirOption = Path("runs")
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Directory of this run.", show_default="RUNS_DIR/DATASET-FINGERPRINT"),
    ] = None

    def read(
        self, dataset: str | None, terminal: Terminal, check: Callable[[PreferenceDataset], None]
    ) -> tuple[PreferenceDataset, Policy]:
        """Load the pairs, pass them to `check`, then load the model."""
        from noisescope.auditing.reading import read_dataset
        from noisescope.models.device import own_device
        from noisescope.models.load import load_policy, packaged_model
        from noisescope.storage.workspace import default_model, find_workspace

        names = ("format", "columns", "pairs", "split", "limit")
        pairs = read_dataset(dataset, {name: vars(self)[name] for name in names}, terminal)
        check(pairs)
        pictures = {"image_size": self.image_size, "draws": self.draws}
        named = default_model(self.model, pairs.modality, find_workspace())
        if named is None and (named := packaged_model(pairs.modality)):
            terminal.note("no --model: taking the model of an installed package")
        with terminal.stage("loading the model"):
            policy = load_policy(
                named,
                pairs,
                max_length=self.max_length,
                chat_template=self.chat_template,
                device=own_device(self.device),
                dtype=self.dtype,
                device_map=self.device_map,
                quantize=self.quantize,
                **{name: value for name, value in pictures.items() if value is not None},
            )
        terminal.note(f"model: {policy.identity.id}")
        return pairs, policy


@final
@dataclass(frozen=True)
class ConstantOptions:
    """The paper's constants, from margins to u, W and Gamma."""

    rho: Annotated[float | None, _constant("Eq. 11 rho.", "1 for text, 15 for images")] = None
    k1: Annotated[float, _constant("Eq. 14: W = 1 / (1 + k1 u).")] = 10.0
    k2: Annotated[float, _constant("Eq. 15: Gamma = k2 u^2 + c2.")] = -1.0
    c2: Annotated[float, _constant("Eq. 15: c2.")] = 0.0
    released: Annotated[
        bool | None,
        typer.Option(
            "--released/--literal",
            help="Compute W and Gamma from u_released, as in the released code, or from u.",
            show_default="released for images, literal for text",
            rich_help_panel=CONSTANTS,
        ),
    ] = None
