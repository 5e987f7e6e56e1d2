"""Train LoRA with every method through the real training loop on planted noise, and test it.

    task, cost = load_task(model)
    noise = audit(task, split := split_prompts(task, seed), seed, rate)
    for method, recipe in recipes(split, noise, seed):
        right = judged(task, learn(task, recipe, seed), split.test)

The sample hh-rlhf with right labels; `downstream.lora` describes the comparison.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import truth
from benchmarks.detect import Bool, Float, Material, prepare, uniform
from benchmarks.downstream.methods import OURS, Noisy, audited, methods
from benchmarks.downstream.tables import PAPER
from benchmarks.harness import ROOT
from benchmarks.models import cache
from noisescope.models.causal_lm import load_causal_lm
from noisescope.pairs import digest
from noisescope.training.batch_order import Stream
from noisescope.training.config import TrainConfig
from noisescope.training.loop import train
from noisescope.training.lora.adapters import Adapters, attach_adapters
from noisescope.training.objectives import REPO, Objective
from noisescope.training.pair_data import pair_data
from noisescope.training.policy.adaptive import Reliability
from noisescope.training.policy.learner import PreferenceLearner
from noisescope.training.policy.text import TextAdapters, TextSpace, alike, text_space

Int = NDArray[np.int64]
SAMPLE = ROOT / "sample_data"
PAIRS, LAYERS, RANK, ALPHA, BATCH, EPOCHS, RATE = 1000, 2, 16, 32.0, 32, 2, 1e-3
TEST_SHARE, TEST_GROUPS, JUDGED = 0.2, 4, 64
#: Other ways to use p_flip, which only the log-linear benchmarks compare.
OMITTED = ("p_flip: soft labels", "p_flip: flip-worst")
#: Methods also trained without flips: is one better whatever the noise?
CLEAN = ("dpo", "ipo", "p_flip: weight 1-2p", OURS, *PAPER)


@dataclass(frozen=True)
class LoraTask:
    """Everything that no flip changes: pairs with right labels, the model and its adapters."""

    gold: Material
    space: TextSpace
    adapters: Adapters


@dataclass(frozen=True)
class AdapterRecipe:
    """What a method trains on: an objective, the pairs it keeps, columns [N] of all pairs."""

    objective: Objective
    pairs: Int
    flipped: Bool
    weight: Float | None = None
    gamma: Float | None = None


@dataclass(frozen=True)
class PromptSplit:
    """Pairs of one seed: those to train on, those to test on and the test group of each."""

    on: Int
    test: Int
    group: Int


def load_task(model: str) -> tuple[LoraTask, dict[str, object]]:
    """Compute features, reference log-probabilities and the states below the adapted blocks."""
    policy = load_causal_lm(model)
    path = SAMPLE / "hh-rlhf"
    natural, cost = prepare(path, policy, cache().parent / "features")
    gold = natural.flipped(truth(natural.dataset, path / "truth.parquet"))
    data = pair_data(gold.dataset.table)
    corpus, _ = alike(policy, data)
    kept = cache().parent / "trunks" / policy.identity.fingerprint
    space = text_space(policy, data, corpus, kept, layers=LAYERS, checkpointing=False)
    adapters = attach_adapters(policy.model, 1, RANK, space.activations.split.first)
    return LoraTask(gold, space, adapters), cost


def split_prompts(task: LoraTask, seed: int) -> PromptSplit:
    """Split the prompts by `seed`."""
    prompts = task.gold.dataset.table.column("prompt").to_pylist()
    position = np.array([int(digest(str(seed), text)[:8], 16) / 16**8 for text in prompts])
    test = np.flatnonzero(position < TEST_SHARE)
    group = (position[test] / TEST_SHARE * TEST_GROUPS).astype(np.int64)
    on = np.flatnonzero(position >= TEST_SHARE)
    on = on[np.random.default_rng(seed).permutation(len(on))[:PAIRS]]
    return PromptSplit(on, test, group)


def audit(task: LoraTask, split: PromptSplit, seed: int, rate: float) -> Noisy:
    """Flip labels at `rate`; return the audit by heads on the training pairs alone."""
    flipped = uniform(len(task.gold.dataset), rate, seed)
    return audited(task.gold, split.on, flipped, rate)


def recipes(split: PromptSplit, noise: Noisy, seed: int) -> Iterator[tuple[str, AdapterRecipe]]:
    """Return every method with its settings; without flips, only the methods in CLEAN.

    As in `noisescope train`, pairs of weight 0 are not trained on; all methods take all steps.
    """
    on, size = split.on, len(noise.flipped)
    for name, recipe in methods(on, noise, seed).items():
        if name in OMITTED or (noise.rate == 0 and name not in CLEAN):
            continue
        keep = np.ones(len(on), bool) if recipe.keep is None else recipe.keep
        weight, gamma = spread(recipe.weight, on, size), spread(recipe.gamma, on, size)
        if weight is not None:
            keep = keep & (weight[on] > 0)
        yield name, AdapterRecipe(recipe.objective, on[keep], noise.flipped, weight, gamma)


def spread(values: Float | None, on: Int, size: int) -> Float | None:
    """Return a column [n] of the pairs `on` as one [N] of all pairs."""
    if values is None:
        return None
    whole = np.zeros(size)
    whole[on] = values
    return whole


def learn(task: LoraTask, recipe: AdapterRecipe, seed: int) -> PreferenceLearner:
    """Train; return the learner after its last step."""
    data, flipped = task.space.data, recipe.flipped
    swapped = replace(
        data,
        chosen=np.where(flipped, data.rejected, data.chosen),
        rejected=np.where(flipped, data.chosen, data.rejected),
    )
    task.adapters.initialise([seed], ALPHA)
    trainable = TextAdapters(replace(task.space, data=swapped), task.adapters)
    stream = Stream(recipe.pairs, swapped.chosen, swapped.rejected, seed=(seed, 0), cluster=1)
    objective = recipe.objective
    reliability = None
    if isinstance(objective, REPO):
        annotators = task.gold.dataset.table.column("annotator").to_pylist()
        reliability = Reliability(annotators, objective.reliability)
    learner = PreferenceLearner(
        trainable,
        stream,
        objective,
        BATCH,
        weight=recipe.weight,
        gamma=recipe.gamma,
        reliability=reliability,
    )
    steps = round(EPOCHS * PAIRS / BATCH)
    config = TrainConfig(steps=steps, learning_rate=RATE, save_every=steps + 1)
    with tempfile.TemporaryDirectory() as scratch:
        train(learner, objective, config, Path(scratch))
    return learner


def judged(task: LoraTask, learner: PreferenceLearner, test: Int) -> Float:
    """Return 1 where the trained reward prefers the better side of a test pair, ties 1/2, [n]."""
    judge = replace(learner, policy=TextAdapters(task.space, task.adapters))
    parts = [test[start : start + JUDGED] for start in range(0, len(test), JUDGED)]
    margins = np.concatenate([judge.judge(part, 1).logratio.numpy() for part in parts])
    return ((margins > 0) + 0.5 * (margins == 0)).astype(np.float64)
