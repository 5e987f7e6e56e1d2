"""A tiny text task for training tests: a dataset on disk, a model that learns it, an audit."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from helpers.tiny_models import save, tiny_llama, tiny_tokenizer
from noisescope.datasets import load
from noisescope.models.causal_lm import CausalLMPolicy, load_causal_lm
from noisescope.pairs import PreferenceDataset
from noisescope.scoring.margins import write_margins
from noisescope.scoring.score import score_run
from noisescope.storage.run import Plan, Run, create_run
from noisescope.training.policy.settings import TrainSettings, settled

WORDS = "bread dough water oven salt no yes why knead wait hot cold".split()  # noqa: SIM905
QUICK = {"steps": 6, "batch": 8, "lora_r": 4, "save_every": 2, "learning_rate": 5e-3}


def write_pairs(path: Path, count: int = 40) -> Path:
    """Pairs over five prompts whose longer response is preferred, as JSON lines."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        short, long = (
            " ".join(random.choice(WORDS[k : k + 6], size=size)) for k, size in ((0, 2), (5, 5))
        )
        rows.append(
            {
                "pair_id": f"p{i}",
                "prompt": f"Question {i % 5}?",
                "chosen": f"{long} {i}",
                "rejected": f"{short} {i}",
                "annotator": f"ann{i % 3}",
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_checkpoint(directory: Path) -> Path:
    """A tiny Llama with its tokenizer."""
    return save(directory, tiny_llama(), tiny_tokenizer())


def tiny_policy(directory: Path) -> CausalLMPolicy:
    """The policy of a checkpoint, read anew."""
    return load_causal_lm(str(directory), max_length=96, device="cpu", dtype="float32")


def quick(objective: str = "dpo", **changes: Any) -> TrainSettings:
    """Settings of a training of six steps."""
    own = {
        name: value for name, value in QUICK.items() if name != "lora_r" or not changes.get("full")
    }
    return settled("text", objective=objective, **{**own, **changes})


def audited(directory: Path, dataset: PreferenceDataset) -> Run:
    """A finished run of `dataset` by four replicas that hold random opinions."""
    evidence = {"kind": "head", "replicas": 4, "folds": 2, "seed": 0, "beta": 0.1, "pool": True}
    plan = Plan(dataset.name, dataset.fingerprint, "tiny", "0" * 20, evidence)
    run = create_run(directory, plan)
    pq.write_table(dataset.table, run.pairs_path)
    random = np.random.default_rng(0)
    margins = random.normal(0.5, 1, (4, 1, len(dataset))).astype(np.float32)
    write_margins(
        run.margins_directory / "part-0.parquet",
        dataset.table.column("pair_id"),
        margins,
        steps=[1],
        held_out=np.ones((4, len(dataset)), bool),
    )
    summary = score_run(run.directory)
    run.write_manifest(plan.to_json() | {"summary": summary.to_json()})
    return run


class Interrupted:
    """A reporter that calls `act` once `step` training steps were taken."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def note(self, text: str) -> None:
        """Say nothing."""

    def stage(self, label: str) -> Any:
        """Progress that acts."""
        return nullcontext(self.advance if label == "training" else lambda *_: None)

    def advance(self, done: float, total: float, note: str | None) -> None:
        """Act at the step."""
        if done == self.step:
            self.act()


def read(path: Path) -> PreferenceDataset:
    """The pairs of a file."""
    return load(str(path))
