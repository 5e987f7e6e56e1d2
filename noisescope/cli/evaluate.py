"""noisescope evaluate: which of two models is better, by judges, on the same prompts."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisescope.cli.console import Terminal, print_json
from noisescope.cli.evaluate_table import print_evaluation
from noisescope.cli.options import ColumnsOption

if TYPE_CHECKING:
    from noisescope.evaluate import Judge
    from noisescope.evaluate.judges import JudgeOptions
    from noisescope.evaluate.models import ModelSpec
    from noisescope.evaluate.prompts import Prompts
    from noisescope.pairs import PreferenceDataset
    from noisescope.storage.workspace import Workspace

TEXT, PICTURES, JUDGING = "Generating text", "Generating pictures", "Judging"
#: Prompts compared where --limit is left out.
LIMIT = 100
#: Rows of --labelled where --labelled-limit is left out.
LABELLED = 1000


def evaluate(
    policy: Annotated[
        str,
        typer.Option(
            help="What `noisescope train` wrote, a model or pipeline directory, a PEFT adapter, "
            "or a Hub name."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(help="The opponent, likewise; the base of --policy if left out."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A .txt (one a line), a table with a `prompt` column, or a dataset. Left out: "
            "the dataset the policy was trained on, else the workspace's default."
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="pickscore, hpsv2, aesthetic, image-reward (pictures); reward=MODEL, llm=MODEL "
            "(text); NAME=DIRECTORY for local files; FILE.py:FUNCTION of your own. May be "
            "repeated; none for --labelled alone. Left out: the judge that noisescope.toml gives "
            "the dataset.",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Of --judge llm: an OpenAI-compatible URL, such as http://127.0.0.1:8000/v1.",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable that holds the endpoint's key.", rich_help_panel=JUDGING
        ),
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(
            help="Labelled text pairs: ranking and implicit-reward accuracy, nothing generated.",
            rich_help_panel=JUDGING,
        ),
    ] = None,
    labelled_limit: Annotated[
        int, typer.Option(help="First rows of --labelled read.", min=1, rich_help_panel=JUDGING)
    ] = LABELLED,
    base: Annotated[
        str | None, typer.Option(help="The model an adapter stands on, where it is elsewhere.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", help="Prompts compared, drawn by --seed.", min=1)
    ] = LIMIT,
    seed: Annotated[int, typer.Option(help="Of prompts and noise.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Directory; evaluations/POLICY-vs-AGAINST-... if left out.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of a response.", rich_help_panel=TEXT)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=TEXT)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.", rich_help_panel=TEXT)] = 1.0,
    steps: Annotated[int, typer.Option(help="Denoising steps.", rich_help_panel=PICTURES)] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance, 1 is off; 7.5, SDXL 5, if left out.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side in pixels; the pipeline's own if left out.", rich_help_panel=PICTURES
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts generated together.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset of prompts.")] = None,
    columns: ColumnsOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Generate with two models from the same prompts and let judges compare the outputs.

    Outputs and verdicts are kept as they come: the same command continues after a stop, and
    another --judge judges what is already there.

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
        seed, max_new_tokens, temperature, top_p, steps, guidance, image_size, batch
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
    asked = _prompts(source, mine, limit, seed, split, workspace, terminal)
    told = _labelled(labelled, labelled_limit, columns, workspace, terminal)
    done = run_evaluation(
        mine,
        theirs,
        asked,
        judges,
        settings,
        reporter=terminal,
        directory=out,
        device=device,
        labelled=told,
        command=f"noisescope {shlex.join(sys.argv[1:])}",
    )
    if json:
        print_json(done.to_json() | {"directory": str(done.directory)})
    else:
        print_evaluation(done, sys.argv[1:])


def _source(prompts: str | None, policy: ModelSpec, workspace: Workspace | None) -> str:
    """Where prompts come from: the flag, the policy's own dataset, the workspace's default."""
    from noisescope.cli.resolve import chosen_dataset

    own = policy.dataset
    if prompts is None and own and workspace and own in workspace.datasets:
        return own
    return chosen_dataset(prompts, workspace)


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
) -> Prompts:
    from noisescope.evaluate.prompts import read_prompts

    found = read_prompts(
        source, modality=policy.modality, limit=limit, seed=seed, split=split, workspace=workspace
    )
    terminal.note(f"{len(found.kept):,} of {found.distinct:,} prompts of {found.source}")
    if policy.dataset == source:
        terminal.note("the policy was trained on pairs of these prompts: --prompts names others")
    return found


def _labelled(
    dataset: str | None,
    limit: int,
    columns: str | None,
    workspace: Workspace | None,
    terminal: Terminal,
) -> PreferenceDataset | None:
    """The labelled pairs to rank, where they were asked for."""
    if dataset is None:
        return None
    from noisescope.datasets import load

    pairs = load(dataset, columns=columns, limit=limit, workspace=workspace)
    terminal.note(f"{len(pairs):,} labelled pairs of {pairs.resolved}")
    return pairs
