"""Prepare the pairs of `benchmarks.replicas`, and measure margins on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.data import truth, with_sides_swapped
from benchmarks.resampling import bootstrap
from noisescope.datasets import load
from noisescope.models.causal_lm import CausalLMPolicy
from noisescope.models.items import distinct_items, fold_keys
from noisescope.pairs import PreferenceDataset
from noisescope.scoring.metrics import auroc
from noisescope.training.batch_order import held_out_by

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Pairs with known wrong labels, [N], and the token ids TRL is given for them."""

    dataset: PreferenceDataset
    wrong: Bool
    tokens: list[dict[str, list[int]]]
    longest: Int  # tokens of the longer side, prompt included

    def take(self, kept: Int) -> Task:
        """Return some of the pairs."""
        dataset = replace(self.dataset, table=self.table.take(kept))
        tokens = [self.tokens[i] for i in kept]
        return Task(dataset, self.wrong[kept], tokens, self.longest[kept])

    @property
    def table(self) -> pa.Table:
        """Return the table of the pairs."""
        return self.dataset.table

    def some(self, count: int, shortest: int, seed: int) -> Task:
        """Draw `count` pairs at random from the `shortest` shortest."""
        order = np.argsort(self.longest, kind="stable")[:shortest]
        return self.take(np.random.default_rng(seed).permutation(order)[:count])

    def halves(self, replicas: int, seed: int) -> Bool:
        """Return [M, N]: True where a replica trains on the pair."""
        return ~held_out_by(fold_keys(self.table), seed=seed, replicas=replicas)


def ukp_convarg(data: Path, policy: CausalLMPolicy) -> Task:
    """Load ukp-convarg with its natural crowd noise."""
    dataset = load(data / "ukp-convarg" / "natural.parquet")
    return task_of(dataset, truth(dataset, data / "ukp-convarg" / "truth.parquet"), policy)


def hh_harmless(data: Path, policy: CausalLMPolicy) -> Task:
    """Load hh-harmless with 20 % of its labels flipped (its own errors are unknown)."""
    dataset = load(data / "hh-harmless" / "test.jsonl.gz")
    planted = np.random.default_rng(1000).random(len(dataset)) < 0.2
    return task_of(with_sides_swapped(dataset, planted), planted, policy)


def task_of(dataset: PreferenceDataset, wrong: Bool, policy: CausalLMPolicy) -> Task:
    """Keep the pairs whose sides fit the policy's token limit: TRL silently drops the others."""
    items, chosen, rejected = distinct_items(dataset.table)
    encoded = policy.encode(items)
    sizes = np.array([len(e.prompt) + len(e.response) for e in encoded])
    cut = np.array([bool(e.cut_prompt or e.cut_response) for e in encoded])
    tokens = [
        {
            "prompt_ids": list(encoded[a].prompt),
            "chosen_ids": list(encoded[a].response),
            "rejected_ids": list(encoded[b].response),
        }
        for a, b in zip(chosen, rejected, strict=True)
    ]
    task = Task(dataset, wrong, tokens, np.maximum(sizes[chosen], sizes[rejected]))
    return task.take(np.flatnonzero(~(cut[chosen] | cut[rejected])))


def judged(margins: Float, wrong: Bool) -> str:
    """Return the AUROC of minus the margin with its 90 % bootstrap interval."""
    found = bootstrap(auroc, -np.asarray(margins, np.float64), wrong)
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


def margins_of(task: Task, run: Path, replicas: range) -> Float:
    """Return the mean held-out margin of some replicas at the last step, in task order."""
    table = pq.read_table(run / "margins").to_pandas()
    last = table.held_out & (table.step == table.step.max())
    mean = table[last & table.replica.isin(replicas)].groupby("pair_id").margin.mean()
    ordered: Float = mean.reindex(task.table.column("pair_id").to_pylist()).to_numpy(np.float64)
    return ordered
