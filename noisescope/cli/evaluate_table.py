"""What `noisescope evaluate` prints: a row a judge, and the accuracies on labelled pairs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from noisescope.cli.console import OUT, print_lines, short
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from noisescope.evaluate import JudgeResult
    from noisescope.evaluate.evaluate import Evaluation
    from noisescope.scoring.metrics import Interval


def print_evaluation(done: Evaluation, arguments: Sequence[str]) -> None:
    """Print a table of judges, remarks on their numbers, and the paths of the files.

    `arguments` are the words that were typed: more prompts are asked by the same ones.
    """
    from rich.table import Table
    from rich.text import Text

    title = f"{short(done.plan.policy.name, 40)} against {short(done.plan.against.name, 40)}"
    table = Table(title=Text(title), title_justify="left", header_style="bold")
    for name in ("judge", "win rate", "90 % interval", "won", "tied", "lost", "difference"):
        table.add_column(name, justify="left" if name == "judge" else "right")
    for result in done.results:
        table.add_row(*(Text(cell) for cell in _row(result)))
    if done.results:
        OUT.print(table)
    if done.same_output:
        OUT.print(
            f"{done.same_output:,} of {len(done.comparisons):,} outputs are the same for both"
        )
    for result in done.results:
        for line in remarks(result):
            OUT.print(Text(printable(line)), soft_wrap=True)
    if done.labelled:
        _print_labelled(done.labelled)
    print_lines(
        report=str(done.directory / "report.html"),
        rows=str(done.directory / "results.parquet"),
        **_following(done, arguments),
    )


def _following(done: Evaluation, arguments: Sequence[str]) -> dict[str, str]:
    """Where a judge sees no difference and prompts are left: the command for four times as many."""
    prompts = done.plan.prompts
    most = min(4 * len(prompts.kept), prompts.distinct)
    rates = [found.won.rate for found in done.results if found.won is not None]
    open_ = any(rate.low <= 0.5 <= rate.high for rate in rates)
    again = open_ and most > len(prompts.kept)
    return {"next": with_limit(arguments, most)} if again else {}


def with_limit(arguments: Sequence[str], limit: int) -> str:
    """A command line with another --limit, and without --output, which holds fewer prompts.

    A --limit is of one of the forms `-n 8`, `-n8`, `--limit 8`, `--limit=8`.
    """
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word in ("-n", "--limit", "--output", "-o", "--out"):
            next(rest, None)
        elif not re.match(r"-n\d|--limit=|--out(put)?=", word):
            words.append(word)
    return shlex.join(["noisescope", *words, "--limit", str(limit)])


def _row(result: JudgeResult) -> list[str]:
    won = result.won
    if won is None:
        return [short(result.card.name, 24), "none judged", "–", "0", "0", "0", "–"]
    counts = [f"{won.wins:,}", f"{won.ties:,}", f"{won.losses:,}"]
    return [
        short(result.card.name, 24),
        f"{won.rate.estimate:.1%}",
        f"{won.rate.low:.1%} – {won.rate.high:.1%}",
        *counts,
        _signed(result.difference) if result.difference else "–",
    ]


def _signed(gap: Interval) -> str:
    return f"{gap.estimate:+.3g} ± {(gap.high - gap.low) / 2:.2g}"


def remarks(result: JudgeResult) -> list[str]:
    """Return remarks on a judge's numbers."""
    lines = []
    name, order = result.card.name, result.order
    if order is not None:
        first = f"; names the first {order.first.estimate:.0%} of the time" if order.first else ""
        lines.append(
            f"{name}: the same answer in both orders on {order.agreed:,} of {order.asked:,}{first}"
        )
        if order.retries or order.failed or order.unparsable:
            lines.append(
                f"{name}: {order.retries:,} requests repeated, {order.failed:,} failed, "
                f"{order.unparsable:,} answers could not be read"
            )
        if order.failed:
            lines.append(f"{name}: repeat the command to send the failed ones again")
    if result.unjudged:
        lines.append(
            f"{name}: {result.unjudged:,} of {result.prompts:,} prompts unjudged and omitted"
        )
    return lines


def _print_labelled(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"{found['pairs']:,} labelled pairs", title_justify="left")
    for name in ("accuracy", "policy", "opponent"):
        table.add_column(name, justify="left" if name == "accuracy" else "right")
    table.add_row("implicit reward", _share(found["implicit_reward"]), "the reference")
    for name, key in (("ranking", "ranking"), ("ranking, per token", "ranking_per_token")):
        table.add_row(name, _share(found["policy"][key]), _share(found["against"][key]))
    OUT.print(table)


def _share(value: dict[str, float]) -> str:
    return f"{value['estimate']:.1%} ({value['low']:.1%} – {value['high']:.1%})"
