"""Compare the methods through the real training loop: LoRA on a language model.

    python -m benchmarks.downstream.lora [--quick] [--json FILE] [--model DIR] [--seed N]

The sample hh-rlhf with right labels (truth.parquet) and the bundled model, unless --model names
another. For each seed a fifth of the prompts is for testing; a share of the labels of 1,000
training pairs is flipped; heads on those pairs alone are the audit; `noisescope.training.loop`
trains rank-16 adapters of the top two blocks for two epochs. Measured: how often the implicit
reward prefers the truly better side of test pairs, and the answers of some trained models to new
prompts (`downstream.answers`). Methods are those of `downstream.methods`, with the losses as
`noisescope train` applies them; all take the same steps from the same adapters; settings were
fixed on seed 50. cdpo and rdpo are given the true rate, the audit is not. --quick: one seed, 30 %
only, dpo alone without flips. Finished trainings are cached.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from benchmarks.detect import Float
from benchmarks.downstream.adapters import (
    SAMPLE,
    AdapterRecipe,
    LoraTask,
    audit,
    judged,
    learn,
    load_task,
    recipes,
    split_prompts,
)
from benchmarks.downstream.answers import COMPARED, answers, keep, place_of
from benchmarks.downstream.kept import Kept, kept
from benchmarks.downstream.methods import HEADS, OURS, heads_right
from benchmarks.downstream.tables import Key, group_means, tabulate
from benchmarks.harness import Options, Report, main

FIRST_SEED, SEEDS = 60, 3
#: Flip rates in the order they are run; with --quick the first two.
FLIPS = (0.0, 0.3, 0.2)


def run(options: Options) -> Report:
    """Run all rates of all seeds."""
    torch.set_num_threads(1)
    report = Report("LoRA on noisy labels, judged on clean pairs of new prompts")
    model = options.model or str(SAMPLE / "models" / "tiny-lm")
    task, cost = load_task(model)
    report.tables["feature pass"] = [cost]
    first = FIRST_SEED + options.seed
    seeds = range(first, first + (1 if options.quick else SEEDS))
    outcomes: dict[Key, list[Float]] = {}
    for rate in FLIPS[:2] if options.quick else FLIPS:
        for seed in seeds:
            for name, (groups, _) in planted(task, seed, rate, options.quick).items():
                outcomes.setdefault(("uniform", rate, name, ""), []).append(groups[:, 0])
    cells = {key: np.array(value) for key, value in outcomes.items()}
    tabulate(cells, OURS, ("",), report, "LoRA, new prompts")
    answers(task, model, seeds, report)
    return report


def planted(task: LoraTask, seed: int, rate: float, quick: bool) -> Kept:
    """Flip labels, audit, train every method; return accuracy by test group [T, 1], by method."""
    split = split_prompts(task, seed)
    identity = task.space.policy.identity.fingerprint, task.gold.dataset.fingerprint
    noise = audit(task, split, seed, rate)

    def heads() -> Kept:
        right = heads_right(task.gold, noise, split.test)
        return {HEADS: (group_means(right, split.group)[:, None], 0)}

    out: Kept = {}
    for method, recipe in recipes(split, noise, seed):
        if quick and rate == 0 and method != "dpo":
            continue

        def make(method: str = method, recipe: AdapterRecipe = recipe) -> Kept:
            began = time.perf_counter()
            right = judged(task, learn(task, recipe, seed), split.test)
            if (rate, method) in COMPARED:
                keep(task, place_of(task, seed, rate, method))
            outcome = f"{right.mean():.4f}, {time.perf_counter() - began:.0f} s"
            print(f"seed {seed}, {rate:.0%}, {method}: {outcome}", file=sys.stderr)
            return {method: (group_means(right, split.group)[:, None], 0)}

        out |= kept(make, "lora", *identity, str(seed), str(rate), method)
    return out | kept(heads, "lora", *identity, str(seed), str(rate), HEADS)


if __name__ == "__main__":
    main(__doc__, run)
