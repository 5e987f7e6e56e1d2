"""The same question through the real training loop: LoRA on a language model.

    python -m benchmarks.downstream_lora [--quick] [--json FILE] [--model DIR] [--seed N]

The sample hh-rlhf with its labels as they should be (truth.parquet) and the bundled model, unless
--model names another. Per seed a fifth of the prompts is for testing; a share of the labels of
1,000 training pairs is turned round; heads on those pairs alone are the audit;
`noisescope.training.train` moves rank-16 adapters of the top two blocks for two epochs. Judged:
how often the implicit reward prefers the truly better side of test pairs. All methods take the
same steps from the same adapters; settings were fixed on seed 50. rdpo is told the true rate, the
audit nothing. --quick: 30 % only.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.data import truth
from benchmarks.detect import BETA, Bool, Float, Material, prepare, uniform
from benchmarks.downstream_kept import Kept, kept
from benchmarks.downstream_methods import ORACLE, OURS
from benchmarks.downstream_tables import Key, group_means, tabulate
from benchmarks.harness import ROOT, Options, Report, main
from benchmarks.models import cache
from noisescope.detectors import u
from noisescope.flip_rate import fit_flip_rate
from noisescope.learners.preference import PreferenceLearner
from noisescope.learners.text import TextAdapters, TextSpace, alike, text_space
from noisescope.objectives import DPO, RDPO, AdaptiveDPO, DistilledDPO, Objective
from noisescope.pairs import digest
from noisescope.policies.causal_lm import load_causal_lm
from noisescope.policies.items import fold_keys
from noisescope.replicas.adapters import Adapters, attach_adapters
from noisescope.replicas.draws import Stream
from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.replicas.packed import pair_data
from noisescope.training import TrainConfig, train
from noisescope.weights import WeightConfig, adaptive_weights

Int = NDArray[np.int64]
SAMPLE = ROOT / "sample_data"
PAIRS, LAYERS, RANK, ALPHA, BATCH, EPOCHS, RATE = 1000, 2, 16, 32.0, 32, 2, 1e-3
TEST_SHARE, TEST_GROUPS, JUDGED = 0.2, 4, 64
FIRST_SEED = 60
FLIPS = (0.0, 0.3, 0.2)


@dataclass(frozen=True)
class Scene:
    """Everything that no planting changes: pairs with right labels, the model and its adapters."""

    gold: Material
    space: TextSpace
    adapters: Adapters


@dataclass(frozen=True)
class Course:
    """What a method trains on: an objective, columns [N] of all pairs, the pairs it keeps."""

    objective: Objective
    pairs: Int
    weight: Float | None = None
    gamma: Float | None = None


def run(options: Options) -> Report:
    """All plantings of all seeds."""
    torch.set_num_threads(1)
    report = Report("LoRA on noisy labels, judged on clean pairs of new prompts")
    scene, cost = stage(options.model or str(SAMPLE / "models" / "tiny-lm"))
    report.tables["feature pass"] = [cost]
    first = FIRST_SEED + options.seed
    outcomes: dict[Key, list[Float]] = {}
    for rate in FLIPS[:2] if options.quick else FLIPS:
        for seed in range(first, first + 3):
            for name, (groups, _) in planted(scene, seed, rate).items():
                outcomes.setdefault(("uniform", rate, name, ""), []).append(groups[:, 0])
    cells = {key: np.array(value) for key, value in outcomes.items()}
    tabulate(cells, OURS, ("",), report, "LoRA, new prompts")
    return report


def stage(model: str) -> tuple[Scene, dict[str, object]]:
    """Features, reference log-probabilities and the states below the adapted blocks, once."""
    policy = load_causal_lm(model)
    path = SAMPLE / "hh-rlhf"
    natural, cost = prepare(path, policy, cache().parent / "features")
    gold = natural.flipped(truth(natural.dataset, path / "truth.parquet"))
    data = pair_data(gold.dataset.table)
    corpus, _ = alike(policy, data)
    kept = cache().parent / "trunks" / policy.identity.fingerprint
    space = text_space(policy, data, corpus, kept, layers=LAYERS, checkpointing=False)
    adapters = attach_adapters(policy.model, 1, RANK, space.trunk.cut.first)
    return Scene(gold, space, adapters), cost


def planted(scene: Scene, seed: int, rate: float) -> Kept:
    """Turn labels round, audit, train every method: accuracy by test group [T, 1], by method."""
    prompts = scene.gold.dataset.table.column("prompt").to_pylist()
    dealt = np.array([int(digest(str(seed), text)[:8], 16) / 16**8 for text in prompts])
    test = np.flatnonzero(dealt < TEST_SHARE)
    group = (dealt[test] / TEST_SHARE * TEST_GROUPS).astype(np.int64)
    on = np.flatnonzero(dealt >= TEST_SHARE)
    on = on[np.random.default_rng(seed).permutation(len(on))[:PAIRS]]
    flipped = uniform(len(prompts), rate, seed)
    identity = scene.space.policy.identity.fingerprint, scene.gold.dataset.fingerprint
    out: Kept = {}
    for method, course in courses(scene, flipped, on, rate).items():

        def make(method: str = method, course: Course = course) -> Kept:
            began = time.perf_counter()
            right = learn(scene, flipped, course, test, seed)
            said = f"{right.mean():.4f}, {time.perf_counter() - began:.0f} s"
            print(f"seed {seed}, {rate:.0%}, {method}: {said}", file=sys.stderr)
            return {method: (group_means(right, group)[:, None], 0)}

        out |= kept(make, "lora", *identity, str(seed), str(rate), method)
    return out


def courses(scene: Scene, flipped: Bool, on: Int, rate: float) -> dict[str, Course]:
    """Every method, told what an audit of the training pairs `on` alone says."""
    dpo = DPO(BETA)
    if rate == 0:
        return {"dpo": Course(dpo, on)}
    noisy = scene.gold.flipped(flipped)
    keys = fold_keys(noisy.dataset.table)[on]
    ends = noisy.chosen[on], noisy.rejected[on]
    fit = fit_heads(noisy.features, *ends, keys, HeadConfig(replicas=4))
    margins = fit.margins.astype(np.float64)
    fitted = fit_flip_rate(margins.mean(axis=0))
    p = fitted.p_flip(margins.mean(axis=0))
    weight, gamma = adaptive_weights(u(margins / BETA), WeightConfig())
    columns = np.zeros((3, len(flipped)))
    columns[:, on] = weight, gamma, fitted.gap(margins.mean(axis=0))
    even = np.ones(len(flipped))
    return {
        "dpo": Course(dpo, on),
        "rdpo": Course(RDPO(BETA, flip_rate=rate), on),
        "adaptive-dpo (paper)": Course(AdaptiveDPO(BETA), on, columns[0], columns[1]),
        "p_flip: drop-worst": Course(dpo, on[p < 0.5]),
        OURS: Course(DistilledDPO(BETA), on, even, columns[2]),
        ORACLE: Course(dpo, on[~flipped[on]]),
    }


def learn(scene: Scene, flipped: Bool, course: Course, test: Int, seed: int) -> Float:
    """1 where the trained reward prefers the better side of a test pair, [n]; a tie is a half."""
    data = scene.space.data
    swapped = replace(
        data,
        chosen=np.where(flipped, data.rejected, data.chosen),
        rejected=np.where(flipped, data.chosen, data.rejected),
    )
    scene.adapters.initialise([seed], ALPHA)
    trainee = TextAdapters(replace(scene.space, data=swapped), scene.adapters)
    stream = Stream(course.pairs, swapped.chosen, swapped.rejected, seed=(seed, 0), cluster=1)
    learner = PreferenceLearner(
        trainee, stream, course.objective, BATCH, weight=course.weight, gamma=course.gamma
    )
    steps = round(EPOCHS * PAIRS / BATCH)
    config = TrainConfig(steps=steps, learning_rate=RATE, save_every=steps + 1)
    with tempfile.TemporaryDirectory() as scratch:
        train(learner, course.objective, config, Path(scratch))
    judge = replace(learner, trainee=TextAdapters(scene.space, scene.adapters))
    parts = [test[start : start + JUDGED] for start in range(0, len(test), JUDGED)]
    margins = np.concatenate([judge.judge(part, 1).logratio.numpy() for part in parts])
    return ((margins > 0) + 0.5 * (margins == 0)).astype(np.float64)


if __name__ == "__main__":
    main(__doc__, run)
