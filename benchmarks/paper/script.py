"""The command line that every table and figure shares.

if __name__ == "__main__":
    main(Script("table1", __doc__, TITLE, PUBLISHED, tiny, full))
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, shared_data
from benchmarks.paper.full import Step
from benchmarks.paper.results import Result, told
from noisescope.storage.files import write_atomic


@dataclass(frozen=True)
class Small:
    """How big a tiny run is: seeds, pairs of text, pairs of images, optimiser steps.

    `task` "sample" is the sample hh-rlhf with the embedded model; "ukp" is ukp-convarg from `data`
    with SmolLM2-135M; images are always the sample pick-a-pic, and left out with "ukp" where a
    table has both.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    task: str = "sample"
    data: Path = field(default_factory=shared_data)
    pairs: int = 1200
    images: int = 1000
    steps: int = 15


@dataclass(frozen=True)
class Script:
    """One table or figure: what is published of it, its small run, its full commands."""

    name: str
    description: str
    title: str
    published: str
    tiny: Callable[[Small], Result]
    full: Callable[[], Sequence[Step]]


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
    sizes = asdict(small) | {"data": str(small.data)}
    content = {"machine": facts, "seconds": seconds, "sizes": sizes, "results": result.to_json()}
    said = json.dumps(content, indent=2, default=float) + "\n"
    stem = script.name if small.task == "sample" else f"{script.name}-{small.task}"
    for path in (options.out / f"{stem}.json", *([options.json] if options.json else [])):
        write_atomic(path, said)
    write_atomic(options.out / f"{stem}.md", text + "\n")
    for picture in result.pictures:
        name = picture.name if small.task == "sample" else f"{picture.name}-{small.task}"
        write_atomic(options.out / f"{name}.png", picture.encode("png"))
    print(f"written to {options.out}", file=sys.stderr)


def _parse(script: Script, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.paper.{script.name}",
        description=script.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--out", type=Path, default=Path("paper"), help="folder of the results")
    parser.add_argument("--json", type=Path, help="another copy of the results as JSON")
    parser.add_argument("--seeds", type=int, default=3, help="of a tiny run")
    parser.add_argument(
        "--task", choices=("sample", "ukp"), default="sample", help="text pairs of a tiny run"
    )
    parser.add_argument("--data", type=Path, default=shared_data(), help="where ukp-convarg is")
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
    """The table file: what was found, and how."""
    lines = [f"# {script.title}", "", script.published, ""]
    for title, rows in result.tables.items():
        lines += [f"## {title}", "", *table(rows), ""]
    if result.directions:
        rows = [
            {
                "question": one.question,
                "difference": told(one.difference),
                "answer": one.answer,
            }
            for one in result.directions
        ]
        lines += ["## Directions", "", *table(rows), ""]
    for picture in result.pictures:
        lines += [f"{picture.title}. {picture.caption}", ""]
    lines.append(
        f"{len(small.seeds)} seeds; intervals are 90 %. {seconds['wall']:.0f} s, "
        f"{seconds['cpu']:.0f} CPU s (trainings, those kept from earlier runs included: "
        f"{result.trained:.0f} CPU s) on {facts.get('threads', 1)} thread(s) of "
        f"{facts['processor']}, load {facts['load_1min']:.1f}."
    )
    return "\n".join(lines)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table; floats with three digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, ["---"] * len(names)]
    cells += [[_cell(row.get(name)) for name in names] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _print_full(script: Script) -> None:
    """Commands, and the GPU hours they should take."""
    steps = list(script.full())
    print(f"# {script.title}\n# {script.published}")
    for step in steps:
        hours = f"  # about {step.hours:,.2f} GPU hours" if step.hours else ""
        print(f"{step.command}{hours}")
    print(f"# {sum(step.hours for step in steps):,.1f} H100 hours in all, {len(steps)} commands")
    from benchmarks.paper.full import ASSUMED

    print(f"# {ASSUMED}")
