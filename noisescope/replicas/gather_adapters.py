"""Evidence from LoRA adapters that somebody else trained: `--from-adapters`.

    facts = gather_adapters(dataset, policy, evidence, run, reporter, watch)

Log-probabilities of every distinct response, under each adapter and under the model itself, are
kept on disk in parts as features are, so that ranks and shards can share them out; margins are
their differences.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, UsageError
from noisescope.models import Policy
from noisescope.models.items import distinct_items
from noisescope.models.memory import Limit, OomRetry
from noisescope.models.packing import Corpus, pack
from noisescope.pairs import Item, PreferenceDataset, digest
from noisescope.progress import Reporter, Stopwatch
from noisescope.replicas.gather import EvidenceConfig, cache_directory
from noisescope.replicas.lora_text import TextPolicy, encoded_corpus
from noisescope.storage.cache import Array, fill, gather, missing, scan
from noisescope.storage.run import Plan, Run
from noisescope.training.lora.activations import FORWARD_TOKENS, ROW_TOKENS
from noisescope.training.lora.peft_files import attach_peft

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.training.lora.adapters import Adapters
    from noisescope.training.lora.split_model import CutModel

Int = NDArray[np.int64]


@final
@dataclass(frozen=True)
class AdapterScores:
    """M attached adapters of a policy's model, and the model cut below the lowest of them."""

    policy: TextPolicy
    adapters: Adapters
    cut: CutModel
    limit: Limit = field(default_factory=Limit)

    def sizes(self, items: Sequence[Item]) -> Int:
        """Tokens of each item, prompt included, [n]."""
        return np.array([len(item.tokens) for item in self.policy.encode(items)], np.int64)

    def features(self, items: Sequence[Item]) -> dict[str, Array]:
        """`reference` [n] and `logps` [n, M] of each response, summed over its tokens, float32.

        A batch that does not fit into memory is halved. Raises ModelError naming an item that
        does not fit alone.
        """
        import torch

        corpus = encoded_corpus(self.policy, items)
        retry: OomRetry[int] = OomRetry(
            "responses", lambda place: f"response {items[place].key}", self.limit
        )
        found = np.empty((len(items), 1 + self.adapters.replicas), np.float32)
        order = np.lexsort((np.arange(len(items)), corpus.prompt_of))
        done = np.cumsum(corpus.response_sizes[order]) - corpus.response_sizes[order]
        with torch.inference_mode():
            for batch in np.split(order, np.flatnonzero(np.diff(done // FORWARD_TOKENS)) + 1):
                for mine, rows in retry.run(lambda part: self._rows(corpus, part), batch.tolist()):
                    found[mine] = rows
        return {"reference": found[:, 0], "logps": found[:, 1:]}

    def _rows(self, corpus: Corpus, items: Sequence[int]) -> Array:
        """[n, 1 + M]: the model itself, then each adapter."""
        packed = pack(corpus, np.asarray(items, np.int64), ROW_TOKENS)
        entering, last = self.cut.trunk(packed)
        columns = [self.cut.item_logps(packed, last)]
        for replica in range(self.adapters.replicas):
            self.adapters.placement.segments = ((replica, 0, len(packed.ids)),)
            try:
                last = self.cut.top(packed, entering if self.cut.first else None)
                columns.append(self.cut.item_logps(packed, last))
            finally:
                self.adapters.placement.segments = ()
        rows: Array = np.stack([column.cpu().numpy() for column in columns], 1)
        return rows


@contextmanager
def scores_of(policy: TextPolicy, directories: Sequence[Path]) -> Iterator[AdapterScores]:
    """Adapters of PEFT directories on the policy's model, for as long as the block lasts.

    Raises ModelError where they do not fit it, or it cannot be cut.
    """
    from noisescope.training.lora.split_model import CutModel

    encoded_corpus(policy, [])
    adapters = attach_peft(policy.model, directories)
    try:
        yield AdapterScores(policy, adapters, CutModel(policy.model, adapters.first))
    finally:
        adapters.detach()


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
    from noisescope.training.lora.peft_files import stated_base

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
    from noisescope.training.lora.peft_files import stated_base

    if policy.modality != "text":
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
    with (
        scores_of(cast("TextPolicy", policy), evidence.adapters) as source,
        reporter.stage(label) as progress,
    ):
        fill(source, items, place, progress, "adapter score", made_by)
    return len(todo)


def margins_of_scores(table: pa.Table, plan: Plan, run: Run) -> None:
    """Write beta * l of every pair under every adapter, from what is kept.

    Raises RunError where responses were not scored.
    """
    from noisescope.scoring.margins import write_margins

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
