"""Run TRL for `benchmarks.replicas`, and scale a slice of TRL to the whole work.

peer = Peer(python, model, config)
answer = peer.run(train, score, layers=None)         # train on `train`, margins of `score`
Rates.of(answer).scaled(task, replicas=8, config=C)  # seconds of eight runs with scores
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import run_peer
from benchmarks.replicas.task import Task
from noisescope.replicas.config import LoraConfig

SCRIPT = Path(__file__).with_name("trl_run.py")
PACKAGES = ("torch==2.13.0", "trl==1.16.0", "datasets", "peft", "accelerate")
#: Pairs a forward of TRL: the fastest of 1, 2, 4, 8 and 16 on one CPU thread (no padding to other
#: pairs, benchmarks/LOG.md); gradients of a batch are accumulated.
MICRO_BATCH = 1
SCORE_BATCH = 8
MAX_LENGTH = 256


@dataclass(frozen=True)
class Peer:
    """The settings to run TRL: interpreter, model and what it shares with ours."""

    python: Path
    model: str
    config: LoraConfig

    def run(self, train: Task, score: Task, *, layers: int | None, **named: Any) -> dict[str, Any]:
        """Train for the config's epochs on `train`, then score `score`."""
        import torch

        config = self.config
        given: dict[str, Any] = {
            "model": self.model,
            "train": train.tokens,
            "score": score.tokens,
            "rank": config.rank,
            "alpha": config.alpha,
            "layers": layers,
            "beta": config.beta,
            "learning_rate": config.learning_rate,
            "batch": config.batch,
            "accumulation": config.batch // MICRO_BATCH,
            "max_steps": max(1, round(config.epochs * len(train.tokens) / config.batch)),
            "max_length": MAX_LENGTH,
            "precompute": False,
            "workers": 0,
            "attention": "sdpa",
            "threads": torch.get_num_threads(),
            "seed": config.seed,
            "save": None,
            "device": "cpu",
            "dtype": "float32",
            **named,
        }
        given["warmup_steps"] = round(config.warmup * given["max_steps"])
        answer = run_peer(self.python, SCRIPT, given)
        if answer["scored"] != len(score.tokens):
            raise RuntimeError(f"TRL scored {answer['scored']} of {len(score.tokens)} pairs")
        return answer


def padded(longest: NDArray[np.int64], size: int, *, shuffled: bool) -> float:
    """Count the tokens TRL computes for these pairs in forwards of `size`, padding included.

    Both sides of all pairs are padded to the longest. Training draws at random (mean of 50
    orders), scoring sorts by length.
    """
    rng = np.random.default_rng(0)
    orders = [rng.permutation(longest) for _ in range(50)] if shuffled else [np.sort(longest)]
    parts = [np.split(order, range(size, len(order), size)) for order in orders]
    return float(np.mean([sum(2 * len(p) * p.max() for p in order) for order in parts]))


def step_rate(answer: Mapping[str, Any], steps: int | None = None, clock: str = "wall") -> float:
    """Return seconds per thousand padded tokens of `steps` steps after the first (None: all)."""
    last = None if steps is None else steps + 1
    spent = answer[f"step_{clock}"]
    chosen = slice(1, last) if len(spent) > 1 else slice(None)
    return 1e3 * sum(spent[chosen]) / sum(answer["step_tokens"][chosen])


@dataclass(frozen=True)
class Rates:
    """Seconds of TRL for a thousand padded tokens, by wall clock and CPU.

    Of a training step, of scoring, and of its reference pass.
    """

    step: tuple[float, float]
    policy: tuple[float, float]
    reference: tuple[float, float]
    peak: float

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Rates:
        """Compute the rates from all steps but the first, and the whole scoring slice."""
        step = (step_rate(answer), step_rate(answer, clock="cpu"))
        spent = answer["score_spent"]
        policy, reference = (
            (1e3 * wall / answer["score_tokens"], 1e3 * cpu / answer["score_tokens"])
            for wall, cpu in (spent["policy"], spent["reference"])
        )
        return cls(step, policy, reference, answer["peak_mib"])

    def scaled(self, task: Task, replicas: int, config: LoraConfig) -> dict[str, Any]:
        """Return the time of `replicas` runs on halves of the task, all its pairs scored."""
        halves = task.halves(replicas, config.seed)
        trained = config.epochs * sum(
            padded(task.longest[h], MICRO_BATCH, shuffled=True) for h in halves
        )
        scored = padded(task.longest, SCORE_BATCH, shuffled=False)

        def seconds(clock: int) -> tuple[float, float]:
            passes = replicas * self.policy[clock] + self.reference[clock]
            return self.step[clock] * trained / 1e3, passes * scored / 1e3

        train, score = seconds(0)
        return {
            "seconds": train + score,
            "how": "scaled",
            "cpu s": sum(seconds(1)),
            "train s": train,
            "score s": score,
            "trained pairs/s": config.epochs * float(halves.sum()) / train,
            "peak MiB": self.peak,
        }


def linearity(layers: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cost of a step over two slice lengths, and of the slice's scoring."""
    rates, steps = Rates.of(answer), max(1, len(answer["step_wall"]) - 1)
    short = max(1, steps // 2)
    return {
        "TRL adapts": layers,
        "short slice, steps": short,
        "short": step_rate(answer, short),
        "long slice, steps": steps,
        "long": rates.step[0],
        "long / short": rates.step[0] / step_rate(answer, short),
        "long, cpu": rates.step[1],
        "scoring": rates.policy[0],
        "its reference": rates.reference[0],
        "scored pairs": answer["scored"],
    }
