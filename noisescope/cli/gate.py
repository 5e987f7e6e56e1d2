"""noisescope gate [DATASET|RUN]: a dataset's quality against a policy, for CI."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli import completion
from noisescope.cli.console import (
    ERR,
    OUT,
    Terminal,
    print_json,
    print_lines,
    short,
)
from noisescope.cli.launch import audited, finished
from noisescope.cli.options import (
    ColumnsOption,
    DatasetOrRunArgument,
    DeviceOption,
    FormatOption,
    LimitOption,
    PairsOption,
    RunsDirOption,
    SplitOption,
)
from noisescope.cli.resolve import note_run
from noisescope.gate.policy import CHOICES, KEYS, RANGES
from noisescope.gate.verdict import INCONCLUSIVE
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from noisescope.gate.input import Subject
    from noisescope.gate.policy import Policy
    from noisescope.gate.verdict import Result, Verdict
    from noisescope.storage.run import Run

STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "skipped": "dim"}
#: Rows shown below the table for each failed check.
SHOWN = 5


def print_verdict(verdict: Verdict) -> None:
    """Print every check in a table, the rows behind each failure, and the verdict in one line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    table.add_column("found", overflow="fold")
    for result in verdict.ordered:
        status = Text(result.status, style=STYLES[result.status])
        table.add_row(Text(printable(result.check)), status, allowed(result), Text(_found(result)))
    OUT.print(table)
    _print_rows([result for result in verdict.results if result.rows])
    if verdict.exit_code:
        print_lines(next=_next(verdict))
    style = STYLES["fail" if verdict.exit_code else "pass"]
    OUT.print(Text(printable(verdict.summary), style=style), soft_wrap=True)
    if verdict.exit_code == INCONCLUSIVE:
        ERR.print(f"inconclusive is exit {INCONCLUSIVE}; --inconclusive pass or fail changes that")


def _next(verdict: Verdict) -> str:
    """Suggest the next command: show the first bad pair, else the whole run."""
    run = shlex.quote(verdict.run)
    bad = [row.pair_id for result in verdict.of("fail") for row in result.rows if row.pair_id]
    return f"noisescope show {shlex.quote(bad[0])} {run}" if bad else f"noisescope report {run}"


def allowed(result: Result) -> str:
    """Format a threshold with its direction."""
    if result.threshold is None:
        return ""
    floor = result.check in ("accuracy", "reliability", "labels")
    return f"{'≥' if floor else '≤'} {result.threshold:g}"


def _found(result: Result) -> str:
    needed = result.pairs_needed
    more = f"; about {needed:,} pairs are needed" if needed is not None else ""
    return printable(result.message) + more


def _print_rows(results: Sequence[Result]) -> None:
    from rich.text import Text

    for result in results:
        OUT.print(Text(f"\n{printable(result.check)}", style="bold"))
        for row in result.rows[:SHOWN]:
            place = f"  {short(row.source, 60)}:{row.row + 1}  " if row.source else "  "
            text = Text(place, style="dim") + Text(short(row.detail, 200))
            OUT.print(text, no_wrap=True, overflow="ellipsis")


def _number(name: str) -> Any:
    return typer.Option(help=RANGES[name][2], metavar="NUMBER|off", rich_help_panel="Checks")


def _choice(name: str) -> Any:
    choices, text = CHOICES[name]
    return typer.Option(
        help=text,
        metavar="|".join(choices),
        rich_help_panel="Checks",
        autocompletion=completion.among(*choices),
    )


#: Values of a setting as given; a setting given twice is an error.
Typed = list[str] | None


def gate(
    context: typer.Context,
    target: DatasetOrRunArgument = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Finished run to compare with, of the same or of other files."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="TOML file of settings, in addition to noisescope.toml.")
    ] = None,
    sql: Annotated[
        list[str] | None,
        typer.Option(help="Custom rule 'NAME: SELECT ...': every row it returns is a violation."),
    ] = None,
    max_flip_rate: Annotated[Typed, _number("max_flip_rate")] = None,
    flip_rate_bound: Annotated[Typed, _choice("flip_rate_bound")] = None,
    max_mislabelled: Annotated[Typed, _number("max_mislabelled")] = None,
    mislabelled_bound: Annotated[Typed, _choice("mislabelled_bound")] = None,
    max_wrong_share: Annotated[Typed, _number("max_wrong_share")] = None,
    evidence: Annotated[Typed, _choice("evidence")] = None,
    max_suspects: Annotated[Typed, _number("max_suspects")] = None,
    suspect_p: Annotated[Typed, _number("suspect_p")] = None,
    max_contested: Annotated[Typed, _number("max_contested")] = None,
    min_accuracy: Annotated[Typed, _number("min_accuracy")] = None,
    min_reliability: Annotated[Typed, _number("min_reliability")] = None,
    min_labels: Annotated[Typed, _number("min_labels")] = None,
    max_length_auroc: Annotated[Typed, _number("max_length_auroc")] = None,
    max_giveaway_auroc: Annotated[Typed, _number("max_giveaway_auroc")] = None,
    max_side_imbalance: Annotated[Typed, _number("max_side_imbalance")] = None,
    max_ties: Annotated[Typed, _number("max_ties")] = None,
    max_duplicates: Annotated[Typed, _number("max_duplicates")] = None,
    max_contradictions: Annotated[Typed, _number("max_contradictions")] = None,
    max_score_conflicts: Annotated[Typed, _number("max_score_conflicts")] = None,
    max_near_duplicates: Annotated[Typed, _number("max_near_duplicates")] = None,
    max_faults: Annotated[Typed, _number("max_faults")] = None,
    max_encoding_faults: Annotated[Typed, _number("max_encoding_faults")] = None,
    max_growth: Annotated[Typed, _number("max_growth")] = None,
    detect: Annotated[Typed, _number("detect")] = None,
    inconclusive: Annotated[Typed, _choice("inconclusive")] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit XML here.", rich_help_panel="Outputs")
    ] = None,
    sarif: Annotated[
        Path | None, typer.Option(help="Write SARIF 2.1.0 here.", rich_help_panel="Outputs")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write Markdown here.", rich_help_panel="Outputs")
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object on stdout.", rich_help_panel="Outputs"),
    ] = False,
    model: Annotated[str | None, typer.Option(help="Model of the audit, as in score.")] = None,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    pairs: PairsOption = None,
    split: SplitOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Check a dataset against a policy. Exit code: 0 passed, 1 failed, 2 error, 3 inconclusive.

    Settings come from the gate section of noisescope.toml or a policy file; flags override them.
    `off` switches a check off. docs/gate.md gives the defaults and the reason for each.

    Example: noisescope gate hh-rlhf --max-flip-rate 0.1 --junit gate.xml --sarif gate.sarif
    """
    from noisescope.gate.evaluate import check_gate
    from noisescope.gate.input import Subject
    from noisescope.gate.policy import read_policy
    from noisescope.storage.workspace import find_workspace

    workspace = find_workspace()
    settings = read_policy(
        table=workspace.sections.get("gate") if workspace else None,
        file=policy,
        flags={name: context.params[name] or () for name in KEYS},
        rules=sql or (),
    )
    terminal = Terminal(quiet=json)
    if baseline is not None:
        _refuse_vain_baseline(baseline, settings, runs_dir)
    typed: dict[str, Any] = {"model": model, "format": format, "columns": columns, "pairs": pairs}
    typed |= {"split": split, "limit": limit, "device": device}
    run = finished(target, workspace, runs_dir) or audited(target, typed, runs_dir, terminal)
    old = None if baseline is None else _baseline(baseline, run, runs_dir)
    if not json:
        note_run(run, target, runs_dir)
    if old:
        terminal.note(f"baseline: {old.directory}")
    subject = Subject(run, old)
    verdict = check_gate(subject, settings)
    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    if json:
        print_json(verdict.to_json())
    else:
        with _no_commands(on_github):
            print_verdict(verdict)
    if on_github:
        _annotate_github(verdict, subject, to_stderr=json)
    _write_files(verdict, subject, junit, sarif, markdown)
    raise typer.Exit(verdict.exit_code)


def _refuse_vain_baseline(baseline: str, settings: Policy, runs_dir: Path) -> None:
    """Raise, before anything is audited, if the baseline is missing or no check uses it."""
    from noisescope.errors import UsageError
    from noisescope.storage.run import find_run

    if settings.max_growth is None:
        raise UsageError(
            "--baseline is given, but max_growth is off",
            hint="Leave --baseline out, or give --max-growth 0.05.",
        )
    find_run(baseline, runs_dir).manifest()


def _baseline(baseline: str, run: Run, runs_dir: Path) -> Run:
    """Find the run of --baseline; for a dataset's name the latest one that is not `run`.

    Otherwise a repeated gate would compare a run with itself, and pass.
    """
    from noisescope.errors import RunError
    from noisescope.storage.run import Run, find_run, finished_runs

    found = find_run(baseline, runs_dir)
    named = (Path(baseline) / "plan.json").is_file() or found.directory.name == baseline
    if named or found.directory.resolve() != run.directory.resolve():
        return found
    others = [
        other
        for other in finished_runs(runs_dir)
        if other.is_of(baseline) and other.directory.resolve() != run.directory.resolve()
    ]
    if not others:
        raise RunError(
            f"the only finished run called {baseline!r} is the one to be checked",
            hint="Name the run of the pairs before: --baseline DIRECTORY.",
        )
    return Run(others[-1].directory)


@contextlib.contextmanager
def _no_commands(on_github: bool) -> Iterator[None]:
    """Prevent GitHub from executing workflow commands in lines with dataset text."""
    token = secrets.token_hex(16)
    if on_github:
        print(f"::stop-commands::{token}", flush=True)
    try:
        yield
    finally:
        if on_github:
            print(f"::{token}::", flush=True)


def _write_files(
    verdict: Verdict,
    subject: Subject,
    junit: Path | None,
    sarif: Path | None,
    markdown: Path | None,
) -> None:
    """Write the requested files, each atomically."""
    from noisescope.gate.formats import junit as as_junit
    from noisescope.gate.formats import markdown as as_markdown
    from noisescope.gate.formats import sarif as as_sarif
    from noisescope.storage.files import write_atomic

    if junit is not None:
        write_atomic(junit, as_junit(verdict))
    if sarif is not None:
        write_atomic(sarif, as_sarif(verdict, subject.place_of))
    if markdown is not None:
        write_atomic(markdown, as_markdown(verdict))


def _annotate_github(verdict: Verdict, subject: Subject, *, to_stderr: bool) -> None:
    """Print annotations as workflow commands, and write the step summary if there is a file."""
    from noisescope.gate.formats import commands, write_summary

    stream = sys.stderr if to_stderr else sys.stdout
    for line in commands(verdict, subject.place_of):
        print(line, file=stream)
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        write_summary(verdict, Path(path))
