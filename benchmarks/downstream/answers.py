"""Compare the answers of models trained on noisy labels: win rates on new prompts.

    answers(task, model, seeds, report)

Greedy answers to `sample_data/prompts/hh-rlhf.jsonl`, scored by `sample_data/judges.py`, which has
the rules that the sample was made by. Two questions: does a trained model win against the model it
was trained from, and against dpo on the same noisy labels? Ties count half; intervals resample
seeds (trainings) and prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.detect import Float
from benchmarks.downstream.adapters import SAMPLE, LoraTask, audit, learn, recipes, split_prompts
from benchmarks.downstream.kept import EDITION
from benchmarks.downstream.methods import ORACLE, OURS
from benchmarks.downstream.tables import drawn, resamples
from benchmarks.harness import Report
from benchmarks.models import cache
from noisescope.evaluate.comparison import Comparison
from noisescope.evaluate.generate import (
    GenerationSettings,
    generate_missing,
    open_generator,
    read_outputs,
)
from noisescope.evaluate.judges import JudgeOptions, open_judge
from noisescope.evaluate.models import ModelSpec, find_model
from noisescope.evaluate.prompts import Prompts, read_prompts
from noisescope.pairs import digest
from noisescope.training.lora.peft_files import ADAPTER_CONFIG
from noisescope.training.policy.text import TextAdapters

#: Who answers: the flip rate trained at, and the method.
CLEAN, NOISY = (0.0, "dpo"), (0.3, "dpo")
COMPARED = (CLEAN, NOISY, (0.3, "adaptive-dpo (paper)"), (0.3, OURS), (0.3, ORACLE))
Cell = tuple[float, str]


def answers(task: LoraTask, model: str, seeds: Sequence[int], report: Report) -> None:
    """Train the compared models (adapters are cached), generate, judge, tabulate."""
    prompts = read_prompts(str(SAMPLE / "prompts" / "hh-rlhf.jsonl"), modality="text")
    base, rows = quality(find_model(model), prompts), {}
    for seed in seeds:
        for cell in COMPARED:
            place = trained(task, seed, *cell)
            rows[seed, cell] = quality(find_model(str(place), base=model), prompts)
    found = {cell: np.array([rows[seed, cell] for seed in seeds]) for cell in COMPARED}
    title = f"answers to {len(prompts.kept)} new prompts, {len(seeds)} trainings a row [90 %]"
    report.tables[title] = table(found, base)


def table(found: Mapping[Cell, Float], base: Float) -> list[dict[str, str]]:
    """Return win rates against the base model and noisy dpo, and the mean score gained."""
    draws = resamples(*found[NOISY].shape)

    def shown(values: Float) -> str:
        low, high = np.quantile([drawn(values, draw) for draw in draws], [0.05, 0.95])
        return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"

    return [
        {
            "method": method,
            "flips": f"{rate:.0%}",
            "wins against the model trained from": shown(wins(scores, base)),
            "wins against dpo, 30 % flips": (
                "-" if (rate, method) == NOISY else shown(wins(scores, found[NOISY]))
            ),
            "score gained on the model trained from": shown(scores - base),
        }
        for (rate, method), scores in found.items()
    ]


def wins(one: Float, other: Float) -> Float:
    """Return 1 where `one` scores higher, 0.5 for a tie, 0 where lower."""
    return (one > other) + 0.5 * (one == other)


def quality(spec: ModelSpec, prompts: Prompts) -> Float:
    """Return the judge's score of a model's answer to each prompt, [N]; answers are cached."""
    generator = open_generator(spec, GenerationSettings(), "cpu")
    place = cache().parent / "downstream-answers" / generator.fingerprint
    place.mkdir(parents=True, exist_ok=True)
    generate_missing(generator, prompts.kept, place, lambda *_: None, lambda *_: None, print)
    made = read_outputs(place, generator.fingerprint)
    comparisons = [Comparison(prompt, made[prompt.key], "") for prompt in prompts.kept]
    judge = open_judge(f"{SAMPLE / 'judges.py'}:text_quality", "text", JudgeOptions())
    return np.array([verdict.policy for verdict in judge.judge(comparisons)], np.float64)


def place_of(task: LoraTask, seed: int, rate: float, method: str) -> Path:
    """Return the cache directory of the final adapter of a method."""
    identity = task.space.policy.identity.fingerprint, task.gold.dataset.fingerprint
    name = digest(EDITION, *identity, str(seed), str(rate), method)
    return cache().parent / "downstream-adapters" / name


def keep(task: LoraTask, place: Path) -> None:
    """Write the adapters; the file that marks them complete is last."""
    place.mkdir(parents=True, exist_ok=True)
    TextAdapters(task.space, task.adapters).save(place)


def trained(task: LoraTask, seed: int, rate: float, method: str) -> Path:
    """Return the directory of the final adapter of a method; train it if it is not cached."""
    place = place_of(task, seed, rate, method)
    if not (place / ADAPTER_CONFIG).is_file():
        print(f"training for answers: seed {seed}, {rate:.0%}, {method}", file=sys.stderr)
        split = split_prompts(task, seed)
        recipe = dict(recipes(split, audit(task, split, seed, rate), seed))[method]
        learn(task, recipe, seed)
        keep(task, place)
    return place
