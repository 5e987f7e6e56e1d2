"""Fine-tune the embedded diffusion model on labels whose truth is known.

    task = image_task(seed, steps=20)
    wrong = task.plant(0.2)
    right = task.train(wrong, Training("dpo"))   # 0, 1/2 or 1 for each test pair, [n]

Loop, adapters and losses are those of `noisescope train`. All cells share the model and its cached
latents. (Text through the same loop: `benchmarks.downstream.lora`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache as remembered
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import truth, with_sides_swapped
from benchmarks.harness import ROOT
from noisescope.datasets import load
from noisescope.datasets.flip.plan import coins
from noisescope.pairs import PreferenceDataset
from noisescope.training.batch_order import Stream
from noisescope.training.config import EMA_DECAYS, TrainConfig
from noisescope.training.loop import train
from noisescope.training.pair_data import PairData, pair_data
from noisescope.training.policy import TrainablePolicy
from noisescope.training.policy.adaptive import Online, OnlineConfig
from noisescope.training.policy.learner import PreferenceLearner
from noisescope.training.policy.settings import TrainSettings, settled

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

SAMPLES = ROOT / "sample_data"
#: Share of the prompts that are only tested on.
TEST = 0.2
#: Salt of the hash that assigns prompts to training or test.
SPLIT = 31
#: Noise draws that a test averages over.
TEST_DRAWS = 2


@dataclass(frozen=True)
class Training:
    """What a cell of a table trains with: an objective, and the source of its weights.

    `weight`, `gamma` [N] come from an audit; `online` computes them while training. `corrected`
    trains on right labels instead: the best possible outcome.
    """

    objective: str = "dpo"
    weight: Float | None = None
    gamma: Float | None = None
    online: OnlineConfig | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    corrected: bool = False


@dataclass
class ImageTask:
    """N pairs with right labels, a model, and prompts that are never trained on (`test`)."""

    dataset: PreferenceDataset
    data: PairData
    policy: Any
    test: Int
    train_pairs: Int
    settings: TrainSettings
    seed: int
    space: Any
    collected: Bool  # [N] labels that were wrong as collected

    @property
    def group(self) -> Int:
        """Return the prompt of each test pair as a number, [n]."""
        prompts = self.dataset.table.column("prompt").to_pylist()
        return np.unique([prompts[i] for i in self.test], return_inverse=True)[1]

    def plant(self, rate: float) -> Bool:
        """Flip a share of the labels as collected; return which are wrong then, [N].

        Flips are a function of (seed, pair_id). Test pairs keep their right labels.
        """
        wrong = self.collected ^ (coins(self.data.pair_ids, self.seed) < rate)
        wrong[self.test] = False
        return wrong

    def labelled(self, wrong: Bool) -> PairData:
        """Return the pairs with the sides of wrong labels swapped."""
        one, other = self.data.chosen, self.data.rejected
        return replace(
            self.data,
            chosen=np.where(wrong, other, one),
            rejected=np.where(wrong, one, other),
        )

    def train(self, wrong: Bool, training: Training) -> Float:
        """Train on noisy labels; return right answers on the test pairs, [n], ties 1/2."""
        settings = replace(
            self.settings,
            objective=training.objective,
            parameters=tuple(sorted(training.parameters.items())),
        )
        objective = settings.make_objective()
        data = self.data if training.corrected else self.labelled(wrong)
        trainable = self._trainable(data, settings, training.online)
        online = None if training.online is None else Online(training.online)
        pairs = self.train_pairs
        stream = Stream(pairs, data.chosen, data.rejected, seed=(self.seed, 0), cluster=1)
        learner = PreferenceLearner(
            trainable,
            stream,
            objective,
            batch=settings.batch,
            weight=training.weight,
            gamma=training.gamma,
            online=online,
        )
        steps = settings.total_steps(len(pairs))
        config = TrainConfig(
            steps=steps,
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,
            warmup=settings.warmup_share(steps),
            ema=EMA_DECAYS if training.online and training.online.mode == "ema" else (),
        )

        def after_step(progress: Any) -> bool:
            learner.finish(progress.averages, lambda total: total)
            return False

        try:
            train(learner, objective, config, after_step=after_step)
            return self._tested(learner)
        finally:
            trainable.detach()

    def _tested(self, learner: PreferenceLearner) -> Float:
        """Return 1 where the policy's implicit reward prefers the right side, [n]."""
        work = learner.policy.work[self.test]
        size = max(1, learner.policy.budget // int(work.max()))
        parts = [
            learner.judge(self.test[start : start + size], TEST_DRAWS).logratio.cpu().numpy()
            for start in range(0, len(self.test), size)
        ]
        return np.asarray((np.sign(np.concatenate(parts)) + 1) / 2, np.float64)

    def _trainable(
        self, data: PairData, settings: TrainSettings, online: OnlineConfig | None
    ) -> TrainablePolicy:
        """Attach new adapters to the shared model."""
        from noisescope.training.policy.images import image_adapters

        adapters = 1 if online is None else online.adapters
        together = online is not None and online.mode == "ema"
        seeds = [self.seed * 1000 + (0 if together else m) for m in range(adapters)]
        return image_adapters(
            replace(self.space, data=data),
            replicas=adapters,
            rank=settings.lora_r,
            alpha=settings.lora_alpha,
            seeds=seeds,
            layers=settings.layers,
            checkpointing=False,
        )


def right_labels(name: str, limit: int | None = None) -> tuple[PreferenceDataset, Bool]:
    """Load a sample dataset with right labels, and which were wrong as collected, [N]."""
    path = SAMPLES / name
    dataset = load(path, limit=limit)
    wrong = truth(dataset, path / "truth.parquet")
    return with_sides_swapped(dataset, wrong), wrong


def split(dataset: PreferenceDataset, seed: int) -> tuple[Int, Int]:
    """Return (training pairs, test pairs): whole prompts, a function of (seed, prompt)."""
    prompts = np.array(dataset.table.column("prompt").to_pylist())
    names = np.unique(prompts)
    order = np.argsort(coins(names.tolist(), seed, SPLIT), kind="stable")
    kept = np.isin(prompts, names[order[: max(1, round(TEST * len(names)))]])
    return np.flatnonzero(~kept), np.flatnonzero(kept)


def image_task(seed: int, *, limit: int | None = None, **settings: Any) -> ImageTask:
    """Load the sample pick-a-pic and its tiny diffusion pipeline, prompts split by `seed`."""
    from noisescope.training.policy.images import ImageSpace

    dataset, wrong, policy, data = _opened(limit)
    train_pairs, test = split(dataset, seed)
    chosen = settled("image", seed=seed, **settings)
    space = ImageSpace(policy, data, seed)
    return ImageTask(dataset, data, policy, test, train_pairs, chosen, seed, space, wrong)


@remembered
def _opened(limit: int | None) -> tuple[PreferenceDataset, Bool, Any, PairData]:
    """Load dataset, wrong labels, pipeline and pairs once for every seed, latents cached."""
    from noisescope.models.diffusion import DiffusionPolicy

    dataset, wrong = right_labels("pick-a-pic", limit)
    assert dataset.images is not None
    model = str(SAMPLES / "models" / "tiny-sd")
    policy = DiffusionPolicy.load(model, dataset.images, device="cpu", dtype="float32")
    return dataset, wrong, policy, pair_data(dataset.table)
