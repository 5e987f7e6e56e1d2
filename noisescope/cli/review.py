"""noisescope review [RUN]: people judge a few pairs, on a local page or in the terminal."""

from __future__ import annotations

import math
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import (
    OUT,
    Stopped,
    print_json,
    print_lines,
    print_note,
    safe_block,
)
from noisescope.cli.options import JsonOption, RunArgument, RunsDirOption
from noisescope.cli.resolve import limited, note_run
from noisescope.errors import UsageError

if TYPE_CHECKING:
    from noisescope.report.review.session import Session, Task
    from noisescope.scoring.reviews import RunReviews
    from noisescope.storage.reviews import Choice
    from noisescope.storage.run import Run

#: What is typed in the terminal for each answer.
TYPED: dict[str, Choice] = {"1": "first", "2": "second", "t": "tie", "s": "skip"}


class Purpose(StrEnum):
    """What the answers are for."""

    estimate = "estimate"
    fix = "fix"


def review(
    run: RunArgument = None,
    count: Annotated[
        int, typer.Option(min=1, help="Pairs to judge, those done before included.")
    ] = 100,
    purpose: Annotated[
        Purpose,
        typer.Option(
            "--for",
            help="estimate: a random sample to estimate how many labels are wrong. "
            "fix: the most suspicious pairs.",
        ),
    ] = Purpose.estimate,
    reviewer: Annotated[
        str | None, typer.Option(help="Who judges.", show_default="your user name")
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Judge here instead of in a browser.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page.", show_default="a free one")
    ] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the page's address, open nothing.")
    ] = False,
    import_file: Annotated[
        Path | None,
        typer.Option(
            "--import", help="Add the answers of a spreadsheet, Label Studio or Argilla file."
        ),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Print what the answers so far give, judge nothing.")
    ] = False,
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Judge a few pairs yourself: how many labels are wrong is then known, whatever the audit says.

    Every answer is saved at once in the run's reviews.jsonl. Stop whenever you like: the same
    command goes on where you stopped.

    Example: noisescope review hh-rlhf --count 100
    """
    from noisescope.report.review.session import check_name, open_session, user_name
    from noisescope.scoring.reviews import reviews_of
    from noisescope.scoring.run_scores import find_run_scores

    if sum((terminal, summary, import_file is not None)) > 1:
        raise UsageError(
            "--terminal, --summary and --import exclude each other", hint="Give one of the three."
        )
    who = user_name() if reviewer is None else reviewer
    check_name(who)
    found = find_run_scores(run, runs_dir, force=True).run
    note_run(found, run, runs_dir)
    if import_file is not None:
        from noisescope.export.answers import import_answers

        done = import_answers(found, import_file, who)
        _finish(found, reviews_of(found), json, imported=done)
        return
    if not summary:
        session = open_session(found, reviewer=who, purpose=purpose, count=count)
        _introduce(session)
        if terminal:
            _in_terminal(session, found)
        else:
            _in_browser(session, found, port, opened=not no_browser)
    _finish(found, reviews_of(found), json)


def _introduce(session: Session) -> None:
    """Say what is to be judged, before the first pair."""
    left = len(session.tasks) - session.done
    if session.purpose == "fix":
        expected = session.expected_wrong()
        print_note(
            f"{left:,} of the {len(session.tasks):,} most suspicious pairs to judge; about "
            f"{expected:.0f} of them are expected to be wrong"
        )
    else:
        print_note(f"{left:,} of a random sample of {len(session.tasks):,} pairs to judge")


def _in_browser(session: Session, run: Run, port: int, *, opened: bool) -> None:
    """Serve the page until it is finished, or the command is stopped."""
    from noisescope.cli.report import images_of
    from noisescope.report.review.server import serve

    try:
        serve(session, images_of(run), run, note=print_note, port=port, opened=opened)
    except Stopped:
        print_note("stopped; every answer is saved")


def _in_terminal(session: Session, run: Run) -> None:
    """Ask about one pair after the other until all are judged, `q`, or the end of stdin."""
    if run.manifest().get("modality", "text") != "text":
        raise UsageError("images cannot be judged in the terminal", hint="Leave out --terminal.")
    try:
        while (task := session.current()) is not None:
            _print_task(session, task)
            typed = _asked()
            if typed in ("q", ""):
                return
            if typed == "u":
                session.undo()
            else:
                session.answer(task.content_id, TYPED[typed])
    except (Stopped, KeyboardInterrupt):
        print_note("stopped; every answer is saved")


def _asked() -> str:
    """One of 1, 2, t, s, u, q; the empty text at the end of stdin."""
    while True:
        print("better: 1, 2, (t)ie, (s)kip, (u)ndo, (q)uit? ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return ""
        typed = line.strip().lower()
        if typed in TYPED or typed in ("u", "q"):
            return typed


def _print_task(session: Session, task: Task) -> None:
    from rich.rule import Rule
    from rich.text import Text

    OUT.print(Rule(Text(f"{session.done + 1} of {len(session.tasks)}"), style="dim"))
    parts = (("prompt", task.prompt), ("1", task.sides[0]), ("2", task.sides[1]))
    for name, text in parts:
        OUT.print(Text(name, style="bold"))
        OUT.print(Text(safe_block(text)))


def _finish(
    run: Run, people: RunReviews | None, json: bool, imported: dict[str, int] | None = None
) -> None:
    """Print what the answers give, and what to type next."""
    from noisescope.scoring.reviews import FEWEST_SAMPLED
    from noisescope.storage.reviews import FILE

    where = shlex.quote(str(run.directory))
    path = run.directory / FILE
    if json:
        found: dict[str, Any] = {"run": str(run.directory), "reviews": str(path)}
        found |= {"imported": imported} if imported is not None else {}
        print_json(found | (people.to_json() if people else {"judgements": 0}))
        return
    if imported is not None:
        print(", ".join(f"{number:,} {what}" for what, number in imported.items()))
    if people is None:
        print("no judgement yet")
        print_lines(next=f"noisescope review {where}")
        return
    print(people.sentence())
    for line in _remarks(people):
        print(line)
    if not _in_scores(run, people):
        print(
            "p_wrong in scores.parquet does not use these answers yet: repeat the run's "
            "noisescope score command, which takes seconds"
        )
    if people.share() is None:
        needed = FEWEST_SAMPLED - people.sampled
        if people.sampled:
            print(f"{needed:,} more answers about the sample give a first estimate")
        print_lines(reviews=str(path), next=f"noisescope review {where}")
        return
    format = "trl" if limited(run.manifest()) else "clean"
    following = f"noisescope export {where} --format {format}" if "wrong" in people.verdicts else ""
    print_lines(reviews=str(path), next=following or f"noisescope review {where} --for fix")


def _in_scores(run: Run, people: RunReviews) -> bool:
    """Whether p_wrong in scores.parquet is recalibrated on exactly these answers."""
    found = people.recalibration_json()
    written = run.manifest()["summary"].get("recalibration")
    if found is None or written is None:
        return found is written
    return all(math.isclose(found[name], written[name], abs_tol=1e-6) for name in found)


def _remarks(people: RunReviews) -> list[str]:
    """What else the answers say: precision of the ranking, and how far to trust the reviewers."""
    from noisescope.scoring.reviews import THRESHOLDS

    lines = []
    for threshold in THRESHOLDS:
        found = people.precision(threshold)
        if found is not None:
            share = found.share
            lines.append(
                f"of {found.pairs:,} pairs with p_wrong_audit >= {threshold:g}: "
                f"{share.estimate:.0%} are wrong ({share.low:.0%} to {share.high:.0%})"
            )
    if people.error.known:
        error = people.error.interval()
        lines.append(
            f"a reviewer takes the wrong side in {error.estimate:.0%} of pairs ({error.low:.0%} to "
            f"{error.high:.0%}); the estimate accounts for that"
        )
    elif people.share() is not None:
        lines.append(
            "nobody has checked the reviewer: somebody else's answers to 30 of the same pairs "
            "show how far to trust them (--reviewer NAME)"
        )
    if people.skipped:
        lines.append(f"{people.skipped:,} skipped answers are left out")
    return lines
