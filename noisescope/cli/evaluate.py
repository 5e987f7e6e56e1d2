"""noisescope evaluate: which of two models is better, by judges, on the same prompts."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisescope.cli.console import Terminal, print_json
from noisescope.cli.evaluate_table import print_evaluation
from noisescope.cli.options import ColumnsOption, DeviceOption, JsonOption

if TYPE_CHECKING:
    from noisescope.evaluate import Judge
    from noisescope.evaluate.judges import JudgeOptions
    from noisescope.evaluate.models import ModelSpec
    from noisescope.evaluate.prompts import Prompts
    from noisescope.pairs import PreferenceDataset
    from noisescope.storage.workspace import Workspace

TEXT, PICTURES, JUDGING = "Generating text", "Generating pictures", "Judging"
#: Default of --limit: prompts compared.
LIMIT = 100
#: Default of --labelled-limit.
LABELLED = 1000


def evaluate(
    policy: Annotated[
        str,
        typer.Option(
            help="Output of `noisescope train`, a model or pipeline directory, a PEFT adapter, "
            "or a Hub name."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(help="Model to compare with.", show_default="the base model of --policy"),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A .txt file (one prompt per line), a table with a `prompt` column, or a dataset.",
            show_default="the dataset that --policy was trained on, or the workspace's",
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="pickscore, hpsv2, aesthetic, image-reward (pictures); reward=MODEL, llm=MODEL "
            "(text); NAME=DIRECTORY for local files; FILE.py:FUNCTION for your own. May be "
            "repeated; none with --labelled alone.",
            show_default="the dataset's judge in noisescope.toml",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible URL for --judge llm, such as http://127.0.0.1:8000/v1.",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the endpoint's key.", rich_help_panel=JUDGING),
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(
            help="Labelled text pairs: ranking and implicit-reward accuracy, without generation.",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    labelled_limit: Annotated[
        int, typer.Option(help="Rows of --labelled to read.", min=1, rich_help_panel=JUDGING)
    ] = LABELLED,
    base: Annotated[
        str | None, typer.Option(help="Base model of the adapter, if it has moved.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", help="Number of prompts, drawn by --seed.", min=1)
    ] = LIMIT,
    seed: Annotated[int, typer.Option(help="Random seed of prompts and noise.", min=0)] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Result directory.",
            show_default="evaluations/POLICY-vs-AGAINST-...",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Maximum new tokens per response.", rich_help_panel=TEXT)
    ] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=TEXT)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.", rich_help_panel=TEXT)] = 1.0,
    steps: Annotated[int, typer.Option(help="Denoising steps.", rich_help_panel=PICTURES)] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance; 1 switches it off.",
            show_default="7.5, SDXL 5",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side in pixels.", show_default="the pipeline's", rich_help_panel=PICTURES
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Prompts per batch.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset of prompts.")] = None,
    columns: ColumnsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Generate with two models from the same prompts and let judges compare the outputs.

    Outputs and verdicts are saved as they are made: the same command continues after a stop, and
    another --judge reuses the outputs.

    Example: noisescope evaluate --policy trained/hh-rlhf-dpo-1a2b3c4d --judge llm=qwen3-8b
    --endpoint http://127.0.0.1:8000/v1
    """
    from noisescope.evaluate.evaluate import check_models, run_evaluation
    from noisescope.evaluate.generate import GenerationSettings
    from noisescope.evaluate.judges import JudgeOptions
    from noisescope.evaluate.models import base_of, find_model
    from noisescope.storage.workspace import find_workspace

    terminal = Terminal(quiet=json)
    settings = GenerationSettings(
        seed, max_new_tokens, temperature, top_p, steps, guidance, image_size, batch_size
    )
    workspace = find_workspace()
    root = workspace.root if workspace else None
    mine = find_model(policy, base=base, root=root)
    theirs = find_model(against, base=base, root=root) if against else base_of(mine)
    terminal.note(f"{mine.name} against {theirs.name}")
    check_models(mine, theirs, [])
    source = _source(prompts, mine, workspace)
    options = JudgeOptions(device, endpoint, key_env)
    judges = _judges(judge, source, mine, workspace, options, terminal, needed=labelled is None)
    check_models(mine, theirs, judges)
    asked = _prompts(source, mine, limit, seed, split, workspace, terminal, generated=bool(judges))
    pairs = _labelled(labelled, labelled_limit, columns, mine, workspace, terminal)
    done = run_evaluation(
        mine,
        theirs,
        asked,
        judges,
        settings,
        reporter=terminal,
        directory=output,
        device=device,
        labelled=pairs,
        command=f"noisescope {shlex.join(sys.argv[1:])}",
    )
    if json:
        print_json(done.to_json() | {"directory": str(done.directory)})
    else:
        print_evaluation(done, sys.argv[1:])


def _source(prompts: str | None, policy: ModelSpec, workspace: Workspace | None) -> str:
    """Where prompts come from: the flag, the policy's own dataset, the workspace's default."""
    from noisescope.storage.workspace import default_dataset

    own = policy.dataset
    if prompts is None and own and workspace and own in workspace.datasets:
        return own
    return default_dataset(prompts, workspace)


def _judges(
    named: list[str] | None,
    source: str,
    policy: ModelSpec,
    workspace: Workspace | None,
    options: JudgeOptions,
    terminal: Terminal,
    *,
    needed: bool,
) -> list[Judge]:
    """The judges asked for, else the one that noisescope.toml gives the dataset."""
    from noisescope.errors import UsageError
    from noisescope.evaluate.judges import JUDGES, open_judge
    from noisescope.storage.workspace import FILE_NAME

    entries = workspace.datasets if workspace else {}
    own = [entries[name].judge for name in (source, policy.dataset) if name in entries]
    names = named or [judge for judge in own if judge][:1]
    names = [] if names == ["none"] else names
    if not names and needed:
        fitting = [name for name, kind in JUDGES.items() if kind.modality == policy.modality]
        raise UsageError(
            "which judge?",
            hint=f"Add --judge: {', '.join(fitting)} or FILE.py:FUNCTION "
            "(`noisescope evaluate --help`).",
        )
    if not named and names:
        terminal.note(f"judged by {names[0]} ({FILE_NAME})")
    return [open_judge(name, policy.modality, options) for name in names]


def _prompts(
    source: str,
    policy: ModelSpec,
    limit: int,
    seed: int,
    split: str | None,
    workspace: Workspace | None,
    terminal: Terminal,
    *,
    generated: bool,
) -> Prompts:
    from noisescope.evaluate.prompts import read_prompts

    found = read_prompts(
        source,
        modality=policy.modality,
        limit=limit,
        seed=seed,
        split=split,
        workspace=workspace,
        generated=generated,
    )
    terminal.note(f"{len(found.kept):,} of {found.distinct:,} prompts of {found.source}")
    if policy.dataset == source:
        terminal.note("the policy was trained on pairs of these prompts: --prompts names others")
    return found


def _labelled(
    dataset: str | None,
    limit: int,
    columns: str | None,
    policy: ModelSpec,
    workspace: Workspace | None,
    terminal: Terminal,
) -> PreferenceDataset | None:
    """The labelled pairs to rank, where they were asked for."""
    if dataset is None:
        return None
    from noisescope.datasets import load

    pairs = load(dataset, columns=columns, limit=limit, workspace=workspace)
    terminal.note(f"{len(pairs):,} labelled pairs of {pairs.resolved}")
    if policy.dataset == pairs.name:
        terminal.note(
            f"the policy was trained on {pairs.name}: its accuracy there shows what it learnt, "
            "wrong labels included; --labelled with right pairs that it has not seen measures it"
        )
    return pairs
