"""Print the one screen that an audit ends on: how many labels are wrong, how sure, who, which."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from noisescope.cli.console import OUT, duration, short
from noisescope.pairs import PICTURE
from noisescope.scoring.answer import answer, helps, run_word, states_counts
from noisescope.scoring.sources import SourceReport
from noisescope.storage.printable import plural, printable
from noisescope.storage.redact import masked
from noisescope.storage.reviews import has_reviews
from noisescope.storage.run import Run

if TYPE_CHECKING:
    from noisescope.scoring.reviews import RunReviews

#: Widest screen, the longest bar, and the left block, in characters.
WIDEST, BAR, FIND = 100, 10, 36
#: Annotators and pairs shown.
PEOPLE, PAIRS = 4, 3


def reviews_of(run: Run) -> RunReviews | None:
    """People's judgements of a run; scipy is imported only where there are any."""
    if not has_reviews(run):
        return None
    from noisescope.scoring import reviews

    return reviews.reviews_of(run)


def print_summary(audited: Run, seconds: float | None = None) -> None:
    """Print the result of a run on stdout: 24 lines of 80 columns, where nothing is long.

    `seconds` is what the command took; None prints what the run's stages took.
    """
    manifest = audited.manifest()
    summary: dict[str, Any] = manifest["summary"]
    width = min(OUT.console.width, WIDEST)
    people = reviews_of(audited)
    run = run_word(audited)
    _print(_heading(manifest, seconds), width)
    OUT.print(Text())
    _print(Text(answer(summary, people), style="bold"), width)
    _print(_trust(summary["trust"]), width)
    if people is not None:
        _print(Text(printable(people.sentence())), width)
    OUT.print(Text())
    if states_counts(summary):
        _print_findings(summary, manifest, width)
    else:
        _print_helps(summary, helps(audited, summary))
    _print(Text(_remarks(summary)), width)
    OUT.print(Text())
    _print_next(summary, run, manifest, width)


def _print(content: Any, width: int) -> None:
    OUT.print(content, width=width)


def _heading(manifest: Mapping[str, Any], seconds: float | None) -> Text:
    """Dataset, pairs, annotators, judge and time, in one line."""
    facts = manifest["facts"]
    pairs = plural(facts["pairs"], "pair")
    rejected = [plural(count, reason) for reason, count in facts["rejected"].items() if count]
    distinct = [f"{facts['pairs'] - copies:,} distinct"] if (copies := facts["duplicates"]) else []
    remarks = distinct + ([f"without {', '.join(rejected)}"] if rejected else [])
    parts = [pairs + (f" ({'; '.join(remarks)})" if remarks else "")]
    parts += [plural(facts["annotators"], "annotator")] if facts["annotators"] else []
    parts += [f"judge: {short(Path(str(manifest['model'])).name, 30)}"]
    computed = f"{duration(sum(manifest['timings'].values()))} of computing"
    parts += [computed if seconds is None else duration(seconds)]
    name = Text(short(str(manifest["dataset"]), 40), style="bold")
    heading = name + Text(printable(" · " + " · ".join(parts)), style="dim")
    heading.no_wrap = True
    return heading


def _trust(trust: Mapping[str, Any]) -> Text:
    colour = "green" if trust["word"] == "good" else "yellow" if trust["acts"] else "red"
    word = Text(trust["word"].upper(), style=f"bold {colour}")
    return Text("How far to trust this: ") + word + Text(f". {printable(trust['sentence'])}")


def _print_findings(summary: Mapping[str, Any], manifest: Mapping[str, Any], width: int) -> None:
    """What checking the worst pairs finds, who stands out, and the worst pairs."""
    left, right = _find(summary["find"]), _people(summary["annotators"], width - FIND - 3)
    count = manifest["facts"]["annotators"]
    if not right and count > 1:
        right = [Text(f"none of {count:,} annotators stands out", style="dim")]
    for one, two in zip_longest(left, right, fillvalue=Text()):
        one.pad_right(FIND + 3 - len(one))
        OUT.print(one + two, no_wrap=True, overflow="ellipsis")
    for line in _worst(summary["suspects"][:PAIRS], manifest["modality"] == "image", width):
        OUT.print(line, no_wrap=True, overflow="ellipsis")


def _find(find: Sequence[Mapping[str, int]]) -> list[Text]:
    """A line per number of pairs to check, with its range of wrong labels, `FIND` wide."""
    lines = [Text(f"{'check the worst':<{FIND - 17}}find wrong labels", style="bold")]
    for row in find:
        share = (row["low"] + row["high"]) / 2 / row["pairs"]
        bar = Text(f"{'█' * max(round(BAR * share), 1):<{BAR}}", style="red")
        lines.append(
            Text(f"{row['pairs']:>5,} pairs ") + bar + f" {row['low']:>5,} – {row['high']:<6,}"
        )
    return lines


def _people(found: Mapping[str, Any] | None, width: int) -> list[Text]:
    """Annotators or sources that stand out, a line each of `width`; the others in one line."""
    if found is None:
        return []
    name = width - 32
    lines = [Text(f"{found['kind']:<{name}} {'':15} {'flipped':<8} labels", style="bold")]
    for one in found["worst"][:PEOPLE]:
        rates = f"{100 * one['low']:.0f} – {one['high']:.0%}"
        who = f"{short(one['name'], name):<{name}} {one['label']:<15} {rates:<8} "
        lines.append(Text(who + f"{one['labels']:>6,}"))
    more, others = len(found["worst"]) - PEOPLE, found["others"]
    rest = [f"{more:,} more"] if more > 0 else []
    rest += [f"{others['count']:,} others: {others['flip_rate']:.0%} on average"]
    return [*lines, Text("; ".join(rest), style="dim")]


def _worst(rows: Sequence[Mapping[str, Any]], image: bool, width: int) -> list[Text]:
    """The most suspicious pairs, two lines each: who and where, then both sides (text only)."""
    lines = [Text("worst", style="bold")]
    half = (width - 3) // 2
    for index, row in enumerate(rows, 1):
        ending = f":{row['row'] + 1:,}".replace(",", "")
        file = short(row["source"], half - len(ending) - 14)
        who = [short(row["annotator"], 10)] if row["annotator"] else []
        where = " · ".join([*who, file + ending])
        prompt = short(_last_turn(row["prompt"]), width - 5 - len(where))
        gap = " " * (width - 3 - len(prompt) - len(where))
        number = Text(f"{index:>2} ", style="bold")
        lines.append(number + Text(prompt + gap) + Text(where, style="dim"))
        if not image:
            label, judge = (short(row[side], half - 8) for side in ("chosen", "rejected"))
            sides = Text(f"   label: {label}", style="red")
            sides.pad_right(half + 3 - len(sides))
            lines.append(sides + Text(f"judge: {judge}", style="green"))
    return lines


def _last_turn(prompt: str) -> str:
    """The prompt without the speaker that it begins with, and without pictures."""
    return PICTURE.sub("", prompt.removeprefix("Human:")).strip()


def _print_helps(summary: Mapping[str, Any], lines: Sequence[str]) -> None:
    """What would make the audit strong enough, and what it is good for as it is."""
    parts = [line.partition(": ") for line in lines]
    width = max((len(what) for what, _, _ in parts), default=0) + 3
    for index, (what, _, how) in enumerate(parts):
        label = Text(f"{'What helps' if index == 0 else '':12}", style="bold")
        OUT.print(label + Text(f"{what:<{width}}{how}"), soft_wrap=True)
    weak = summary["trust"]["word"].startswith("too")
    use = "choosing which pairs to review" if weak else "nothing yet"
    note = " (export refuses; --force overrules)"
    OUT.print(Text("Use it for  ", style="bold") + Text(use) + Text(note, style="dim"))


def _remarks(summary: Mapping[str, Any]) -> str:
    """Evidence that counts in reverse, pairs without a verdict, and how many notes there are."""
    undecided = round(summary["contested_share"] * summary["pairs"])
    sources = [SourceReport.of(one) for one in summary.get("sources", ())]
    texts = [f"{one.source} is read in reverse: check its sign." for one in sources if one.reversed]
    if undecided:
        share = f"{summary['contested_share']:.0%}"
        texts.append(f"The judge cannot decide {plural(undecided, 'pair')} ({share}).")
    if notes := len(summary["notes"]):
        texts.append(f"{plural(notes, 'note')} in --details.")
    return " ".join(texts)


def _print_next(
    summary: Mapping[str, Any], run: str, manifest: Mapping[str, Any], width: int
) -> None:
    """What to type next, with a reason where there is room; commands are never wrapped."""
    rows = list(next_commands(summary, run, manifest))
    longest = max(len(command) for command, _ in rows) + 3
    room = width - longest - 6
    for index, (command, why) in enumerate(rows):
        label = Text(f"{'next' if index == 0 else '':6}", style="bold")
        reason = Text(why if len(why) <= room else "", style="dim")
        text = Text(printable(masked(f"{command:{longest}}" if reason else command)))
        OUT.print(label + text + reason, soft_wrap=True)


def next_commands(
    summary: Mapping[str, Any], run: str, manifest: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Commands that fit the trust, and what each is for."""
    if states_counts(summary):
        worst = next((row["pairs"] for row in summary["find"][2:]), 100)
        yield f"noisescope review {run} --for fix --count {worst}", "look at these"
        yield f"noisescope report {run}", "a page"
    elif summary["trust"]["word"] != "cannot know":
        yield f"noisescope review {run}", "judge 100 pairs yourself"
    again = str(manifest["command"])
    if not again.startswith("noisescope score"):
        again = f"noisescope score {shlex.quote(str(manifest['resolved']))}"
    yield f"{again} --details", "statistics"


def ceiling(result: Mapping[str, Any]) -> str:
    """What no detector exceeds, in words: of few pairs two estimates may stand the wrong way."""
    best, expected = result["bayes_auroc"], result["expected_auroc"]
    above = None not in (best, expected) and expected > best
    why = f" (both are estimates from {plural(result['pairs'], 'pair')})" if above else ""
    return f"ceiling {'–' if best is None else f'{best:.3f}'}{why}"
