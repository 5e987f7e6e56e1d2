"""noisescope export RUN|DATASET: what an audit is good for elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import print_json, print_lines, print_note
from noisescope.cli.export_annotators import act_on_annotators, print_annotators
from noisescope.cli.options import JsonOption, RunArgument, RunsDirOption
from noisescope.cli.resolve import note_run, score_again
from noisescope.errors import DataError, NoisescopeError, UsageError
from noisescope.storage.printable import plural, printable

if TYPE_CHECKING:
    from noisescope.datasets import Source
    from noisescope.export.removal import CleanPolicy
    from noisescope.pairs import ImageStore
    from noisescope.scoring.run_scores import RunScores


class Format(StrEnum):
    """What is written."""

    weights = "weights"
    trl = "trl"
    clean = "clean"
    review = "review"
    hub = "hub"


class Annotators(StrEnum):
    """What happens to all pairs of annotators that stand out."""

    review = "review"
    drop = "drop"
    reverse = "reverse"


def export(
    context: typer.Context,
    run: RunArgument = None,
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.weights,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output path.", show_default="exports/RUN-FORMAT"),
    ] = None,
    weight: Annotated[
        str,
        typer.Option(
            help="weights, trl, hub: p_wrong, p_flip, u (W and gamma of the paper), reviews "
            "(people's decisions alone), prior (for forward-dpo), soft (labels for soft-dpo) or "
            "margin."
        ),
    ] = "p_wrong",
    drop_above: Annotated[
        float | None,
        typer.Option(
            help="Drop pairs with at least this p_wrong.", show_default="0.5 (clean, hub)"
        ),
    ] = None,
    drop_top: Annotated[
        float | None, typer.Option(help="Drop this share of the pairs, worst first.")
    ] = None,
    flip_above: Annotated[
        float | None, typer.Option(help="Flip pairs with at least this p_wrong.")
    ] = None,
    flip_top: Annotated[
        float | None, typer.Option(help="Flip this share of the pairs, worst first.")
    ] = None,
    most: Annotated[
        float,
        typer.Option(
            help="Refuse to change a larger share of the pairs, reviewed corrections included."
        ),
    ] = 0.3,
    annotators: Annotated[
        Annotators | None,
        typer.Option(
            help="All pairs of annotators that stand out: drop them, reverse those of annotators "
            "who vote backwards, or (--format review) list them.",
            show_default="no pair for its annotator",
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="review: pairs in the queue.", min=1)] = 200,
    threshold: Annotated[
        float, typer.Option(help="review: p_wrong at which you would drop a pair unseen.")
    ] = 0.5,
    repo_id: Annotated[
        str | None, typer.Option(help="hub: OWNER/NAME of the dataset repository.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="hub: write the directory without uploading it.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="hub: make the repository public.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="The audited dataset, if it has moved.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Exceed --most, or act on an audit that is too weak to change labels."
        ),
    ] = False,
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Write weights, a cleaned dataset, a queue for human review, or a dataset for the Hub.

    Example: noisescope export hh-rlhf --format clean --drop-above 0.7
    """
    from noisescope.export.local import default_output, export_local
    from noisescope.export.removal import CleanPolicy
    from noisescope.scoring.run_scores import find_run_scores

    _refuse_unknown(context, format)
    people = annotators and annotators.value
    policy = CleanPolicy(drop_above, flip_above, drop_top, flip_top, most, force, people)
    scores = find_run_scores(run, runs_dir, force=force or weight == "reviews")
    note_run(scores.run, run, runs_dir)
    acted = act_on_annotators(scores, people, format, force=force) if people else []
    out = output or default_output(scores, format)
    if format is Format.hub:
        done = _hub(scores, out, policy, weight, source, repo_id, dry_run, public)
    else:
        done = export_local(
            scores,
            format,
            out,
            policy,
            weight=weight,
            source=lambda: open_source_of(scores, source, *_command(scores, format)),
            images=lambda: _images(scores, source, format),
            count=count,
            threshold=threshold,
        )
    done |= {"annotators": [asdict(one) for one in acted]} if people else {}
    if json:
        print_json({"format": str(format), "output": str(out), **done})
        return
    if acted:
        print_annotators(acted)
    _print(scores, format, out, done)


def _refuse_unknown(context: typer.Context, format: Format) -> None:
    """Raise UsageError for options that the format would ignore."""
    from noisescope.export.local import TAKES

    every = {name for names in TAKES.values() for name in names}
    given = [
        name
        for name in sorted(every - set(TAKES[format]))
        if (stated := context.get_parameter_source(name)) and stated.name == "COMMANDLINE"
    ]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        takes = ", ".join(f"--{name.replace('_', '-')}" for name in TAKES[format])
        raise UsageError(f"--format {format} takes no {flags}", hint=f"It takes {takes}.")


def _hub(
    scores: RunScores,
    out: Path,
    policy: CleanPolicy,
    weight: str,
    source: str | None,
    repo_id: str | None,
    dry_run: bool,
    public: bool,
) -> dict[str, Any]:
    from noisescope.export.hub import check_repo, export_hub, push

    name = check_repo(repo_id)
    opened = None
    if scores.modality != "text":
        opened = open_source_of(scores, source, *_command(scores, Format.hub))
    facts = export_hub(scores, out, policy, source=opened, scheme=weight)
    done = {"counts": facts["counts"], "policy": facts["policy"], "repo_id": name}
    if dry_run:
        return {**done, "uploaded": None}
    print_note(f"{printable(str(out))} is written; uploading to {printable(name)}")
    return {**done, "uploaded": push(out, name, public=public)}


def _command(scores: RunScores, format: Format) -> tuple[str, str]:
    """The command that exports this run, for hints, and what to use for a dataset on the Hub."""
    command = f"export {shlex.quote(str(scores.run.directory))} --format {format}"
    return command, "--format trl or --format weights"


def open_source_of(scores: RunScores, source: str | None, command: str, instead: str) -> Source:
    """Open the source of a run: the given one, else that of the manifest.

    Hints repeat `command` with --source, or suggest the options `instead` for data on the Hub.
    """
    from noisescope.datasets import open_source
    from noisescope.storage.workspace import find_workspace

    target = source or scores.run.dataset_path()
    with _naming_source(scores, source, command, instead):
        opened = open_source(target, workspace=find_workspace())
    if not source and not opened.files:
        raise _not_found(scores, command, instead, f"{target}: no such file or directory")
    print_note(printable(opened.description))
    return opened


def _images(scores: RunScores, source: str | None, format: Format) -> ImageStore | None:
    """The pictures of an image run; None for text."""
    if scores.modality != "image":
        return None
    from noisescope.datasets.load import load_again
    from noisescope.storage.workspace import find_workspace

    target = source or scores.run.dataset_path()
    with _naming_source(scores, source, *_command(scores, format)):
        return load_again(target, scores.manifest, find_workspace()).images


@contextmanager
def _naming_source(
    scores: RunScores, source: str | None, command: str, instead: str
) -> Iterator[None]:
    """Add --source to the error of a run's dataset that cannot be opened."""
    try:
        yield
    except DataError as error:
        if source:
            raise
        raise _not_found(scores, command, instead, error.message) from error


def _not_found(scores: RunScores, command: str, instead: str, trouble: str) -> NoisescopeError:
    """The error of a run's dataset that cannot be opened from here, or is on the Hub."""
    resolved = str(scores.manifest["resolved"])
    if resolved.startswith("hf://"):
        return UsageError(
            f"{resolved} is on the Hub, and `noisescope {command}` needs local files",
            hint=f"Use {instead}, or give local files with --source PATH.",
        )
    return DataError(
        f"the dataset of {scores.run.directory} cannot be opened from {Path.cwd()}: {trouble}",
        hint="If it has moved, or the run was made in a different directory: noisescope "
        f"{command} --source PATH",
    )


def _print(scores: RunScores, format: Format, out: Path, done: Mapping[str, Any]) -> None:
    """What was written, and what to type next."""
    lines = {}
    if counts := done.get("counts"):
        print(", ".join(f"{number:,} {action}" for action, number in counts.items()))
        if format is Format.clean:
            _print_worth(scores, counts, done)
        lines["policy"] = done["policy"]
    else:
        print(plural(done["pairs"], "pair"))
    lines["output"] = str(out)
    if format is Format.hub:
        lines["uploaded"] = done["uploaded"] or "nothing: a dry run"
    print_lines(**lines, **_following(scores, format, out, done))


def _print_worth(scores: RunScores, counts: Mapping[str, int], done: Mapping[str, Any]) -> None:
    """How many of the changed labels are expected to be wrong, and which rows are no pairs."""
    if changed := counts["drop"] + counts["flip"]:
        sure = scores.summary["flip_rate"]["identifiable"]
        doubt = "" if sure else ", which is no probability here: the flip rate is not identifiable"
        wrong = f"about {done['expected_wrong']:,.0f}"
        print(f"of the {changed:,} {wrong} are expected to be wrong (the sum of p_wrong{doubt})")
    if rows := {reason: number for reason, number in done["unchanged_rows"].items() if number}:
        reasons = ", ".join(plural(number, reason) for reason, number in rows.items())
        print(f"copied unchanged, as they are no pairs to judge: {reasons}")


def _following(
    scores: RunScores, format: Format, out: Path, done: Mapping[str, Any]
) -> dict[str, str]:
    """By label, where the export goes from here."""
    from noisescope.storage.run import dataset_words
    from noisescope.training.policy.settings import objective_for

    where, run = shlex.quote(str(out)), shlex.quote(str(scores.run.directory))
    judge = f" --model {shlex.quote(str(scores.manifest['model']))}"
    if format is Format.weights:
        read = dataset_words(scores.manifest)
        objective = objective_for(str(done.get("weight")))
        return {"next": f"noisescope train {read} --objective {objective} --weights {where}{judge}"}
    if format is Format.trl:
        given = f"model, train_dataset={_reading(out)}"
        trainer = f"noisescope.training.trl.AdaptiveDPOTrainer({given})"
        return {"in TRL": trainer, "next": f"noisescope datasets {where}"}
    if format is Format.review:
        from noisescope.export.review import ARGILLA, SPREADSHEET

        return {
            "in Argilla": f"dataset.records.log(map(json.loads, open({str(out / ARGILLA)!r})))",
            "in Label Studio": f"import {out / 'label-studio' / 'tasks.json'}",
            "next": f"noisescope review {run} --import {shlex.quote(str(out / SPREADSHEET))}",
        }
    if format is Format.hub:
        again = f"noisescope export {run} --format hub --repo-id {done['repo_id']}"
        there = f"noisescope datasets {done['repo_id']}"
        return {"next": there if done["uploaded"] else again}
    return {"next": score_again(scores.run, scores.manifest, str(out))}


def _reading(out: Path) -> str:
    """The expression that reads a TRL export."""
    reader = "from_parquet" if out.suffix == ".parquet" else "load_from_disk"
    return f"datasets.Dataset.{reader}({str(out)!r})"
