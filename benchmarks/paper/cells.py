"""Cells of a table: every method at every flip rate, seeds in turn, ready for intervals.

text_cells(small, RATES, {"dpo": lambda course, flipped: Lesson(DPO(BETA))})["tuned"].value(...)
image_cells(small, (0.0, 0.3), {"dpo": lambda room, flipped: Lesson("dpo")})
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.detect import BETA, Bool
from benchmarks.downstream.topics import Lesson as TextLesson
from benchmarks.paper.classroom import Lesson, Room, image_room
from benchmarks.paper.kept import kept
from benchmarks.paper.loglinear import REGIMES, Course, course
from benchmarks.paper.results import Direction, Outcomes, Resampled
from benchmarks.paper.script import Small
from noisescope.scoring.metrics import Interval
from noisescope.training.objectives import DPO

RATES = (0.0, 0.1, 0.2, 0.3)
#: The labels as collected, in place of a flip rate.
NATURAL = -1.0
TextMethods = Mapping[str, Callable[[Course, Bool], TextLesson]]
ImageMethods = Mapping[str, Callable[[Room, Bool], Lesson]]


def text_cells(small: Small, rates: Sequence[float], methods: TextMethods) -> dict[str, Resampled]:
    """Log-linear policies on text, by regime. Rate `NATURAL`: the wrong labels of the source."""
    courses = [course(small, seed) for seed in small.seeds]
    found = {regime: Outcomes([one.group for one in courses]) for regime in REGIMES}
    began = time.perf_counter()
    for one in courses:
        for rate in rates:
            flipped = one.natural if rate == NATURAL else one.plant(rate)
            for name, lesson in methods.items():
                part = kept(
                    lambda one=one, flipped=flipped, lesson=lesson: one.learn(
                        flipped, lesson(one, flipped)
                    ),
                    *("text", small.task, f"{small.pairs} {one.seed} {rate}", name),
                )
                found[REGIMES[0]].seconds += part.seconds
                for regime, right in part.rights.items():
                    found[regime].add(rate, name, right)
        say(f"text, seed {one.seed}", began)
    return {regime: outcomes.resampled() for regime, outcomes in found.items()}


def image_cells(small: Small, rates: Sequence[float], methods: ImageMethods) -> Resampled:
    """LoRA on the tiny diffusion pipeline, through the training loop."""
    settings = image_settings(small)
    rooms = [image_room(seed, **settings) for seed in small.seeds]
    found = Outcomes([room.group for room in rooms])
    began = time.perf_counter()
    for room in rooms:
        for rate in rates:
            flipped = room.natural if rate == NATURAL else room.plant(rate)
            for name, lesson in methods.items():
                part = kept(
                    lambda room=room, flipped=flipped, lesson=lesson: {
                        "lora": room.teach(flipped, lesson(room, flipped))
                    },
                    *("images", f"{settings} {room.seed} {rate}", name),
                )
                found.seconds += part.seconds
                found.add(rate, name, part.rights["lora"])
            say(f"images, seed {room.seed}, {labels(rate)}", began)
    return found.resampled()


def image_settings(small: Small) -> dict[str, Any]:
    """Settings of the image trainings: chosen on right labels, one epoch or less."""
    return {
        "limit": small.images,
        "steps": small.steps,
        "batch": 32,
        "layers": 1,
        "learning_rate": 1e-3,
    }


def say(what: str, began: float) -> None:
    """One line of progress."""
    print(f"{what}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def plain(course: Course, flipped: Bool) -> TextLesson:
    """DPO that trusts every label."""
    return TextLesson(DPO(BETA))


def costs(found: Resampled, where: str, rates: Sequence[float]) -> list[Direction]:
    """Does noise hurt DPO? One row a rate."""
    return [
        Direction(
            f"Do {rate:.0%} flips hurt DPO? ({where})",
            found.contrast((0.0, "dpo"), (rate, "dpo")),
        )
        for rate in rates
        if rate > 0
    ]


def helps(
    found: Resampled, where: str, rates: Sequence[float], method: str, than: str = "dpo"
) -> list[Direction]:
    """Does a method do better than another on the same labels? One row a rate."""
    return [
        Direction(
            f"Is {method} better than {than} {labels(rate)}? ({where})",
            found.contrast((rate, method), (rate, than)),
        )
        for rate in rates
    ]


def labels(rate: float) -> str:
    """The labels trained on, in words."""
    return "on labels as collected" if rate == NATURAL else f"at {rate:.0%} flips"


def rows(found: Resampled, rates: Sequence[float]) -> list[dict[str, Any]]:
    """A table: a line a method, a column a rate."""
    return [found.row(name, rates) for name in dict.fromkeys(name for _, name in found.keys)]


def series(
    found: Resampled, rates: Sequence[float], prefix: str = ""
) -> dict[str, list[tuple[float, Interval]]]:
    """Points of a line chart."""
    names = dict.fromkeys(name for _, name in found.keys)
    return {prefix + name: [(rate, found.value((rate, name))) for rate in rates] for name in names}
