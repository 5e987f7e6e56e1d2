"""Compute the cells of a table: every method at every flip rate, seed by seed, with resamples.

text_cells(small, RATES, {"dpo": dpo})["tuned"].value((0.2, "dpo"))
image_cells(small, (0.0, 0.3), {"dpo": image_dpo})

A rate is the share of flips added to the labels as collected, as in the paper: 0 is real data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.detect import BETA, Bool
from benchmarks.downstream.topics import Recipe
from benchmarks.paper.cache import cached
from benchmarks.paper.image_task import ImageTask, Training, image_task
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Outcomes, Resampled
from benchmarks.paper.script import Small
from benchmarks.paper.text_task import REGIMES, TextTask, text_task
from noisescope.scoring.metrics import Interval
from noisescope.scoring.weights import WeightConfig
from noisescope.training.objectives import DPO
from noisescope.training.policy.adaptive import OnlineConfig

RATES = (0.0, 0.1, 0.2, 0.3)
TextMethods = Mapping[str, Callable[[TextTask, Bool], Recipe]]
ImageMethods = Mapping[str, Callable[[ImageTask, Bool], Training]]
#: Names of methods that several tables share.
ADAPTIVE, ONLINE = "adaptive-dpo (audit)", "adaptive-dpo (online ema)"
RIGHT_TEXT, RIGHT_IMAGES = "oracle: dpo on the right labels only", "oracle: dpo on right labels"
WHISKERS = "Whiskers: 90 % over seeds and prompts."


def dpo(task: TextTask, wrong: Bool) -> Recipe:
    """Return DPO on text that trusts every label."""
    return Recipe(DPO(BETA))


def image_dpo(task: ImageTask, wrong: Bool) -> Training:
    """Return DPO on images that trusts every label."""
    return Training("dpo")


def online(
    objective: str = "adaptive-dpo", rho: float = 15.0, k1: float = 10.0
) -> Callable[[ImageTask, Bool], Training]:
    """Return a method whose weights are computed while training, as the released code does."""
    config = OnlineConfig("ema", rho=rho, weights=WeightConfig(k1=k1))
    return lambda task, wrong: Training(objective, online=config)


def image_oracle(task: ImageTask, wrong: Bool) -> Training:
    """Return DPO on images with every label right."""
    return Training("dpo", corrected=True)


def text_cells(small: Small, rates: Sequence[float], methods: TextMethods) -> dict[str, Resampled]:
    """Train log-linear policies on text; return the cells by regime."""
    tasks = [text_task(small, seed) for seed in small.seeds]
    found = {regime: Outcomes([task.group for task in tasks]) for regime in REGIMES}
    began = time.perf_counter()
    for task in tasks:
        for rate in rates:
            wrong = task.plant(rate)
            for name, method in methods.items():
                cell = cached(
                    lambda task=task, wrong=wrong, method=method: task.train(
                        wrong, method(task, wrong)
                    ),
                    *("text", small.task, f"{small.pairs} {task.seed} {rate}", name),
                )
                found[REGIMES[0]].seconds += cell.seconds
                for regime, right in cell.arrays.items():
                    found[regime].add(rate, name, right)
        progress(f"text, seed {task.seed}", began)
    return {regime: outcomes.resampled() for regime, outcomes in found.items()}


def image_cells(small: Small, rates: Sequence[float], methods: ImageMethods) -> Resampled:
    """Train LoRA on the tiny diffusion pipeline through the training loop; return the cells."""
    settings = image_settings(small)
    tasks = [image_task(seed, **settings) for seed in small.seeds]
    found = Outcomes([task.group for task in tasks])
    began = time.perf_counter()
    for task in tasks:
        for rate in rates:
            wrong = task.plant(rate)
            for name, method in methods.items():
                cell = cached(
                    lambda task=task, wrong=wrong, method=method: {
                        "lora": task.train(wrong, method(task, wrong))
                    },
                    *("images", f"{settings} {task.seed} {rate}", name),
                )
                found.seconds += cell.seconds
                found.add(rate, name, cell.arrays["lora"])
            progress(f"images, seed {task.seed}, {labels(rate)}", began)
    return found.resampled()


def image_settings(small: Small) -> dict[str, Any]:
    """Return the settings of the image trainings, chosen on right labels: at most one epoch."""
    return {
        "limit": small.images,
        "steps": small.steps,
        "batch": 32,
        "layers": 1,
        "learning_rate": 1e-3,
    }


def progress(what: str, began: float) -> None:
    """Print one line of progress."""
    print(f"{what}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def cost(found: Resampled, where: str, rate: float, published: str) -> Direction:
    """Test whether added flips hurt DPO; `published` is the paper's answer."""
    contrast = found.contrast((0.0, "dpo"), (rate, "dpo"))
    return Direction(f"Do {rate:.0%} flips hurt DPO? ({where})", contrast, published)


def better(
    found: Resampled,
    where: str,
    method: tuple[float, str],
    than: tuple[float, str],
    published: str = "",
) -> Direction:
    """Test whether one cell is more accurate than another; `published` is the paper's answer."""
    (rate, name), (other, rival) = method, than
    mine, theirs = ("", labels(rate)) if rate == other else (f" {labels(rate)}", labels(other))
    question = f"Is {name}{mine} better than {rival} {theirs}? ({where})"
    return Direction(question, found.contrast(method, than), published)


def above_pretrained(
    found: Resampled, where: str, method: tuple[float, str], published: str
) -> Direction:
    """Test whether a method beats the pretrained model, whose implicit reward is always 0: 1/2."""
    value = found.value(method)
    gap = Interval(value.estimate - 0.5, value.low - 0.5, value.high - 0.5)
    question = f"Is {method[1]} better than the pretrained model, 1/2 by construction? ({where})"
    return Direction(question, gap, published)


def labels(rate: float) -> str:
    """Return the labels trained on, in words."""
    return f"at {rate:.0%} flips" if rate else "without flips"


def win_rates(name: str, **where: Any) -> str:
    """Return the paper's win rates for some rows of a table."""
    return PUBLISHED[name].span(**where)


def rows(found: Resampled, rates: Sequence[float]) -> list[dict[str, Any]]:
    """Return a table: a line for each method, a column for each rate."""
    return [found.row(name, rates) for name in dict.fromkeys(name for _, name in found.keys)]


def series(
    found: Resampled, rates: Sequence[float], prefix: str = ""
) -> dict[str, list[tuple[float, Interval]]]:
    """Return the points of a line chart."""
    names = dict.fromkeys(name for _, name in found.keys)
    return {prefix + name: [(rate, found.value((rate, name))) for rate in rates] for name in names}
