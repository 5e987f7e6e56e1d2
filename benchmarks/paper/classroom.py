"""Real fine-tuning of the embedded diffusion model on labels whose truth is known.

    room = image_room(seed, steps=20)
    flipped = room.plant(0.2)
    right = room.teach(flipped, Lesson("dpo"))   # 0 or 1 a clean pair of a prompt never trained on

The loop is `training.loop`, the adapters and losses are those of `noisescope train`; only
the model and its cached latents are shared by all cells. (Text through the same loop:
`benchmarks.downstream.lora`.)
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
from noisescope.training.loop import TrainConfig, train
from noisescope.training.pair_data import PairData, pair_data
from noisescope.training.policy import Trainee
from noisescope.training.policy.adaptive import EMA_DECAYS, Online, OnlineConfig
from noisescope.training.policy.learner import PreferenceLearner
from noisescope.training.policy.settings import TrainSettings, settled

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

SAMPLES = ROOT / "sample_data"
#: Share of the prompts that only the exam asks.
EXAM = 0.2
#: Salt of the hash that deals prompts to training or exam.
DEAL = 31
#: Draws of noise an exam averages over.
EXAM_DRAWS = 2


@dataclass(frozen=True)
class Lesson:
    """What a cell of a table trains with: an objective, and who weighs the pairs.

    `weight`, `gamma` [N] are an audit's; `online` makes them while training. `corrected` turns
    every label right: the best there is to win.
    """

    objective: str = "dpo"
    weight: Float | None = None
    gamma: Float | None = None
    online: OnlineConfig | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    corrected: bool = False


@dataclass
class Room:
    """N pairs with right labels, the prompts of `exam` kept out of training, and a model."""

    dataset: PreferenceDataset
    data: PairData
    policy: Any
    exam: Int
    train: Int
    settings: TrainSettings
    seed: int
    space: Any
    wrong: Bool  # labels that were wrong as collected

    @property
    def group(self) -> Int:
        """Prompt of each exam pair, as a number."""
        prompts = self.dataset.table.column("prompt").to_pylist()
        return np.unique([prompts[i] for i in self.exam], return_inverse=True)[1]

    @property
    def natural(self) -> Bool:
        """The wrong labels as collected, [N], none in the exam."""
        found = self.wrong.copy()
        found[self.exam] = False
        return found

    def plant(self, rate: float) -> Bool:
        """Training labels turned round, [N]: a function of (seed, pair_id)."""
        flipped = coins(self.data.pair_ids, self.seed) < rate
        flipped[self.exam] = False
        return flipped

    def labelled(self, flipped: Bool) -> PairData:
        """The pairs under those labels."""
        one, other = self.data.chosen, self.data.rejected
        return replace(
            self.data,
            chosen=np.where(flipped, other, one),
            rejected=np.where(flipped, one, other),
        )

    def teach(self, flipped: Bool, lesson: Lesson) -> Float:
        """Train on flipped labels; right answers on the exam's clean pairs, [n], ties a half."""
        settings = replace(
            self.settings,
            objective=lesson.objective,
            parameters=tuple(sorted(lesson.parameters.items())),
        )
        objective = settings.make_objective()
        data = self.data if lesson.corrected else self.labelled(flipped)
        trainee = self._trainee(data, settings, lesson.online)
        online = None if lesson.online is None else Online(lesson.online)
        stream = Stream(self.train, data.chosen, data.rejected, seed=(self.seed, 0), cluster=1)
        learner = PreferenceLearner(
            trainee,
            stream,
            objective,
            batch=settings.batch,
            weight=lesson.weight,
            gamma=lesson.gamma,
            online=online,
        )
        steps = settings.total_steps(len(self.train))
        config = TrainConfig(
            steps=steps,
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,
            warmup=settings.warmup_share(steps),
            ema=EMA_DECAYS if lesson.online and lesson.online.mode == "ema" else (),
        )

        def after_step(progress: Any) -> bool:
            learner.finish(progress.averages, lambda total: total)
            return False

        try:
            train(learner, objective, config, after_step=after_step)
            return self._examine(learner)
        finally:
            trainee.detach()

    def _examine(self, learner: PreferenceLearner) -> Float:
        """1 where the policy's implicit reward prefers the right side, [n]."""
        work = learner.trainee.work[self.exam]
        size = max(1, learner.trainee.budget // int(work.max()))
        parts = [
            learner.judge(self.exam[start : start + size], EXAM_DRAWS).logratio.cpu().numpy()
            for start in range(0, len(self.exam), size)
        ]
        return np.asarray((np.sign(np.concatenate(parts)) + 1) / 2, np.float64)

    def _trainee(
        self, data: PairData, settings: TrainSettings, online: OnlineConfig | None
    ) -> Trainee:
        """Fresh adapters on the shared model."""
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
    """A sample dataset with every label as its truth says, and which of them were wrong, [N]."""
    path = SAMPLES / name
    dataset = load(path, limit=limit)
    wrong = truth(dataset, path / "truth.parquet")
    return with_sides_swapped(dataset, wrong), wrong


def deal(dataset: PreferenceDataset, seed: int) -> tuple[Int, Int]:
    """(training pairs, exam pairs): whole prompts, a function of (seed, prompt)."""
    prompts = np.array(dataset.table.column("prompt").to_pylist())
    names = np.unique(prompts)
    order = np.argsort(coins(names.tolist(), seed, DEAL), kind="stable")
    kept = np.isin(prompts, names[order[: max(1, round(EXAM * len(names)))]])
    return np.flatnonzero(~kept), np.flatnonzero(kept)


def image_room(seed: int, *, limit: int | None = None, **settings: Any) -> Room:
    """The sample pick-a-pic and its tiny diffusion pipeline, prompts dealt by `seed`."""
    from noisescope.training.policy.images import ImageSpace

    dataset, wrong, policy, data = _opened(limit)
    train_pairs, exam = deal(dataset, seed)
    chosen = settled("image", seed=seed, **settings)
    space = ImageSpace(policy, data, seed)
    return Room(dataset, data, policy, exam, train_pairs, chosen, seed, space, wrong)


@remembered
def _opened(limit: int | None) -> tuple[PreferenceDataset, Bool, Any, PairData]:
    """Dataset, wrong labels, pipeline and pairs: the same for every seed, latents cached."""
    from noisescope.models.diffusion import DiffusionPolicy

    dataset, wrong = right_labels("pick-a-pic", limit)
    assert dataset.images is not None
    model = str(SAMPLES / "models" / "tiny-sd")
    policy = DiffusionPolicy.load(model, dataset.images, device="cpu", dtype="float32")
    return dataset, wrong, policy, pair_data(dataset.table)
