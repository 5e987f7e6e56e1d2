"""Share the command line of every table and figure.

if __name__ == "__main__":
    main(Script("table1", __doc__, TITLE, PUBLISHED["table1"], tiny, full))
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, shared_data
from benchmarks.paper.full import ASSUMED, Step
from benchmarks.paper.published import Published
from benchmarks.paper.results import Result, shown
from noisescope.storage.files import write_atomic


@dataclass(frozen=True)
class Small:
    """Sizes of a tiny run: seeds, pairs of text, pairs of images, optimiser steps.

    `task` "sample" is the sample hh-rlhf with the embedded model; "ukp" is ukp-convarg from `data`
    with SmolLM2-135M. Images are always the sample pick-a-pic; "ukp" runs text alone.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    task: str = "sample"
    data: Path = field(default_factory=shared_data)
    pairs: int = 1200
    images: int = 1000
    steps: int = 15


@dataclass(frozen=True)
class Script:
    """One table or figure: what is published of it, its tiny run, its full commands."""

    name: str
    description: str
    title: str
    published: Published
    tiny: Callable[[Small], Result]
    full: Callable[[], Iterable[Step]]


def main(script: Script, argv: Sequence[str] | None = None) -> None:
    """Parse, run, print, write."""
    options = _parse(script, argv)
    if options.scale == "full":
        _print_full(script)
        return
    small = Small(seeds=tuple(range(options.seeds)), task=options.task, data=options.data)
    began, cpu = time.perf_counter(), time.process_time()
    result = script.tiny(small)
    seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    facts = machine()
    text = markdown(script, result, small, seconds, facts)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    suffix = "" if small.task == "sample" else f"-{small.task}"
    write_atomic(options.out / f"{script.name}{suffix}.md", text + "\n")
    for picture in result.pictures:
        write_atomic(options.out / f"{picture.name}{suffix}.png", picture.encode("png"))
    if options.json:
        sizes = asdict(small) | {"data": str(small.data)}
        content = {"machine": facts, "seconds": seconds, "sizes": sizes}
        content["results"] = result.to_json()
        write_atomic(options.json, json.dumps(content, indent=2, default=float) + "\n")
    print(f"written to {options.out}", file=sys.stderr)


def _parse(script: Script, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.paper.{script.name}",
        description=script.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of table, pictures")
    parser.add_argument("--json", type=Path, help="write the results as JSON too")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of a tiny run")
    parser.add_argument(
        "--task", choices=("sample", "ukp"), default="sample", help="text pairs of a tiny run"
    )
    parser.add_argument(
        "--data", type=Path, default=shared_data(), help="folder of ukp-convarg and pandalm"
    )
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    if options.task == "ukp" and not (options.data / "ukp-convarg").is_dir():
        parser.error(f"--task ukp: {options.data} has no folder ukp-convarg; name it with --data")
    return options


def markdown(
    script: Script,
    result: Result,
    small: Small,
    seconds: dict[str, float],
    facts: dict[str, Any],
) -> str:
    """Return the table file: what is published, what was measured here, and how."""
    lines = [f"# {script.title}", "", script.published.markdown(), ""]
    for title, rows in result.tables.items():
        lines += [f"## {title}", "", *table(rows), ""]
    if result.directions:
        rows = [
            {
                "question": one.question,
                "difference here": shown(one.difference),
                "answer here": one.answer,
                "published": one.published or "not in the paper",
            }
            for one in result.directions
        ]
        lines += ["## Questions", "", *table(rows), ""]
    suffix = "" if small.task == "sample" else f"-{small.task}"
    for picture in result.pictures:
        lines += [f"![{picture.alt}]({picture.name}{suffix}.png)", "", picture.caption, ""]
    lines.append(
        f"{len(small.seeds)} seeds; intervals are 90 %. {seconds['wall']:.0f} s, "
        f"{seconds['cpu']:.0f} CPU s ({result.trained:.0f} CPU s of trainings, cached ones "
        f"included) on {facts.get('threads', 1)} thread(s) of {facts['processor']}, load "
        f"{facts['load_1min']:.1f}."
    )
    return "\n".join(lines)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table; floats have three digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, ["---"] * len(names)]
    cells += [[_cell(row.get(name)) for name in names] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _print_full(script: Script) -> None:
    """Print the commands, and the GPU hours they should take."""
    steps = list(script.full())
    print(f"# {script.title}")
    print("\n".join(f"# {line}".rstrip() for line in script.published.markdown().splitlines()))
    for step in steps:
        hours = f"  # about {step.hours:,.2f} GPU hours" if step.hours else ""
        print(f"{step.command}{hours}")
    print(f"# {sum(step.hours for step in steps):,.1f} H100 hours in all, {len(steps)} commands")
    print(f"# {ASSUMED}")
