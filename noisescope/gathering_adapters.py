"""Evidence from LoRA adapters that somebody else trained: `--from-adapters`.

    facts = gather_adapters(dataset, policy, evidence, run, reporter, watch)

Log-probabilities of every distinct response, under each adapter and under the model itself, are
kept on disk in parts as features are, so that ranks and shards can share them out; margins are
their differences.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisescope.errors import RunError, UsageError
from noisescope.gathering import EvidenceConfig, Reporter, Stopwatch, cache_directory
from noisescope.pairs import Item, PreferenceDataset, digest
from noisescope.parts import fill, gather, missing, scan
from noisescope.policies import Policy
from noisescope.policies.items import distinct_items
from noisescope.run import Plan, Run

if TYPE_CHECKING:
    import pyarrow as pa

#: Where log-probabilities under adapters are kept, beside the features.
CACHE = "adapter_scores"
IN_SAMPLE = (
    "these adapters may have trained on the very pairs they judge: margins count as in-sample "
    "(type --held-out if they did not)"
)


def gather_adapters(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    run: Run,
    reporter: Reporter,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Margins under somebody else's LoRA adapters, one replica a directory, at step 1."""
    began = time.perf_counter()
    if not evidence.held_out:
        reporter.note(IN_SAMPLE)
    fill_scores(policy, distinct_items(dataset.table)[0], evidence, run, reporter)
    margins_of_scores(dataset.table, Plan.of(run.plan()), run)
    watch.time("replicas", began)
    return adapter_facts(evidence)


def adapter_facts(evidence: EvidenceConfig) -> dict[str, Any]:
    """What a manifest says of the adapters. Raises ModelError where their bases differ."""
    from noisescope.replicas.peft_files import stated_base

    names = [str(path) for path in evidence.adapters]
    return {"adapters": names, "adapters_base": stated_base(evidence.adapters)}


def scores_fingerprint(model: str, adapters: Sequence[str]) -> str:
    """What log-probabilities belong to: a model's fingerprint and its adapters'."""
    return digest("adapter scores", model, *adapters)


def scores_place(evidence: EvidenceConfig, model: str, run: Run) -> tuple[Path, str]:
    """Directory of the parts of `evidence`'s adapters on a model, and their fingerprint."""
    prints = evidence.settings("text")["adapters"]
    made_by = scores_fingerprint(model, prints)
    return cache_directory(run).with_name(CACHE) / made_by, made_by


def unscored(
    policy: Policy, items: Sequence[Item], evidence: EvidenceConfig, run: Run
) -> list[Item]:
    """The distinct items that `fill_scores` would have to compute."""
    place, made_by = scores_place(evidence, policy.identity.fingerprint, run)
    return missing(items, scan(place, made_by)[0])


def fill_scores(
    policy: Policy,
    items: Sequence[Item],
    evidence: EvidenceConfig,
    run: Run,
    reporter: Reporter,
    of: str = "",
) -> int:
    """Score those of `items` that are not cached; how many. `of` says whose they are.

    Raises RunError, DataError, and ModelError for adapters that do not fit the model.
    """
    from noisescope.policies.causal_lm import CausalLMPolicy
    from noisescope.replicas.peft_files import stated_base
    from noisescope.replicas.scored import scores_of

    if not isinstance(policy, CausalLMPolicy):
        raise UsageError(f"--from-adapters cannot adapt {policy.identity.id}")
    base = stated_base(evidence.adapters)
    if base is not None and Path(base).name.lower() != Path(policy.identity.id).name.lower():
        reporter.note(
            f"the adapters say they were trained on {base}, and are judged on "
            f"{policy.identity.id}: margins mean nothing unless these are the same weights"
        )
    place, made_by = scores_place(evidence, policy.identity.fingerprint, run)
    todo = unscored(policy, items, evidence, run)
    label = f"{len(evidence.adapters)} adapters over {len(todo):,} distinct responses{of}"
    with scores_of(policy, evidence.adapters) as source, reporter.stage(label) as progress:
        fill(source, items, place, progress, "adapter score", made_by)
    return len(todo)


def margins_of_scores(table: pa.Table, plan: Plan, run: Run) -> None:
    """Write beta * l of every pair under every adapter, from what is kept.

    Raises RunError where responses were not scored.
    """
    from noisescope.margins import write_margins

    items, chosen, rejected = distinct_items(table)
    made_by = scores_fingerprint(plan.model_fingerprint, plan.evidence["adapters"])
    place = cache_directory(run).with_name(CACHE) / made_by
    parts = scan(place, made_by)[0]
    if lost := missing(items, parts):
        raise RunError(
            f"{len(lost):,} responses were not scored",
            hint="Type the command that began the run again: it fills what is missing.",
        )
    rows = gather(parts, [item.key for item in items])
    ratio = rows["logps"] - rows["reference"][:, None]  # [n, M]
    margins = (plan.evidence["beta"] * (ratio[chosen] - ratio[rejected])).T.astype(np.float32)
    held_out = np.full(margins.shape, bool(plan.evidence["held_out"]))
    path = run.margins_directory / "part-000001.parquet"
    ids = table.column("pair_id")
    write_margins(path, ids, np.ascontiguousarray(margins)[:, None], steps=[1], held_out=held_out)
