"""What models trained on noisy labels answer: win rates on prompts that no pair has.

    answers(scene, model, seeds, report)

Greedy answers to `sample_data/prompts/hh-rlhf.jsonl`, scored by `sample_data/judges.py`, which
knows what the sample's maker knows. Two questions: does a trained model win against the one it
started from, and does it win against dpo on the same noisy labels? Ties count half; intervals
resample seeds (trainings) and prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.detect import Float
from benchmarks.downstream.adapters import SAMPLE, Scene, audit, courses, deal, learn
from benchmarks.downstream.kept import EDITION
from benchmarks.downstream.methods import ORACLE, OURS
from benchmarks.downstream.tables import drawn, resamples
from benchmarks.harness import Report
from benchmarks.models import cache
from noisescope.evaluate.generate import GenerationSettings, fill, open_generator, read
from noisescope.evaluate.judges import JudgeOptions, open_judge
from noisescope.evaluate.models import Contender, find_contender
from noisescope.evaluate.prompts import Prompts, read_prompts
from noisescope.evaluate.results import Duel
from noisescope.pairs import digest
from noisescope.training.lora.peft_files import ADAPTER_CONFIG
from noisescope.training.policy.text import TextAdapters

#: Who answers: the flip rate trained at, and the method.
CLEAN, NOISY = (0.0, "dpo"), (0.3, "dpo")
ASKED = (CLEAN, NOISY, (0.3, "adaptive-dpo (paper)"), (0.3, OURS), (0.3, ORACLE))
Cell = tuple[float, str]


def answers(scene: Scene, model: str, seeds: Sequence[int], report: Report) -> None:
    """Train who is asked (once: adapters are kept), generate, judge, tabulate."""
    prompts = read_prompts(str(SAMPLE / "prompts" / "hh-rlhf.jsonl"), modality="text")
    base, rows = quality(find_contender(model), prompts), {}
    for seed in seeds:
        for cell in ASKED:
            place = trained(scene, seed, *cell)
            rows[seed, cell] = quality(find_contender(str(place), base=model), prompts)
    found = {cell: np.array([rows[seed, cell] for seed in seeds]) for cell in ASKED}
    title = f"answers to {len(prompts.kept)} new prompts, {len(seeds)} trainings a row [90 %]"
    report.tables[title] = table(found, base)


def table(found: Mapping[Cell, Float], base: Float) -> list[dict[str, str]]:
    """Win rates [S, N] against the base's scores [N] and against noisy dpo, mean score gained."""
    draws = resamples(*found[NOISY].shape)

    def told(values: Float) -> str:
        low, high = np.quantile([drawn(values, draw) for draw in draws], [0.05, 0.95])
        return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"

    return [
        {
            "method": method,
            "flips": f"{rate:.0%}",
            "wins against the model trained from": told(wins(scores, base)),
            "wins against dpo, 30 % flips": (
                "-" if (rate, method) == NOISY else told(wins(scores, found[NOISY]))
            ),
            "score gained on the model trained from": told(scores - base),
        }
        for (rate, method), scores in found.items()
    ]


def wins(one: Float, other: Float) -> Float:
    """1 where `one` scores higher, 0.5 for a tie, 0 where lower."""
    return (one > other) + 0.5 * (one == other)


def quality(contender: Contender, prompts: Prompts) -> Float:
    """The judge's score of a model's answer to each prompt, [N]; answers are kept."""
    generator = open_generator(contender, GenerationSettings(), "cpu")
    place = cache().parent / "downstream-answers" / generator.fingerprint
    place.mkdir(parents=True, exist_ok=True)
    fill(generator, prompts.kept, place, lambda *_: None, lambda *_: None)
    made = read(place, generator.fingerprint)
    duels = [Duel(prompt, made[prompt.key], "") for prompt in prompts.kept]
    judge = open_judge(f"{SAMPLE / 'judges.py'}:text_quality", "text", JudgeOptions())
    return np.array([verdict.policy for verdict in judge.judge(duels)], np.float64)


def place_of(scene: Scene, seed: int, rate: float, method: str) -> Path:
    """Where the adapter that a method ends with is kept."""
    identity = scene.space.policy.identity.fingerprint, scene.gold.dataset.fingerprint
    name = digest(EDITION, *identity, str(seed), str(rate), method)
    return cache().parent / "downstream-adapters" / name


def keep(scene: Scene, place: Path) -> None:
    """Write the adapters as they are now, the file that makes them complete last."""
    place.mkdir(parents=True, exist_ok=True)
    TextAdapters(scene.space, scene.adapters).save(place)


def trained(scene: Scene, seed: int, rate: float, method: str) -> Path:
    """Directory of the adapter that a method ends with; trained if it is not kept."""
    place = place_of(scene, seed, rate, method)
    if not (place / ADAPTER_CONFIG).is_file():
        print(f"training for answers: seed {seed}, {rate:.0%}, {method}", file=sys.stderr)
        dealt = deal(scene, seed)
        course = dict(courses(dealt, audit(scene, dealt, seed, rate), seed))[method]
        learn(scene, course, seed)
        keep(scene, place)
    return place
