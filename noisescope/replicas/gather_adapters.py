"""Margins of external LoRA adapters: `--from-adapters`.

    facts = AdapterWork(run, plan, table).make(policy, config, reporter, watch)

Log-probabilities of every distinct response, under each adapter and under the model itself, are
cached in chunks as features are, so that ranks and shards can divide them; margins are their
differences.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, UsageError
from noisescope.models.items import distinct_items
from noisescope.models.memory import Limit, OomRetry
from noisescope.models.packing import Corpus, pack
from noisescope.pairs import Item, digest
from noisescope.progress import Reporter, Stopwatch
from noisescope.replicas.gather import EvidenceConfig, Responses, Wait, Worker, cache_directory
from noisescope.replicas.lora_text import TextPolicy, encoded_corpus
from noisescope.replicas.partition import WHOLE, Share
from noisescope.storage.cache import Array, compute_missing, gather, missing, scan
from noisescope.training.lora.activations import FORWARD_TOKENS, ROW_TOKENS
from noisescope.training.lora.peft_files import attach_peft

if TYPE_CHECKING:
    from noisescope.training.lora.adapters import Adapters
    from noisescope.training.lora.split_model import SplitModel

Int = NDArray[np.int64]


@final
@dataclass(frozen=True)
class AdapterScores:
    """M attached adapters of a policy's model, and the model split at the lowest adapted block."""

    policy: TextPolicy
    adapters: Adapters
    split: SplitModel
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
        order = corpus.order
        done = np.cumsum(corpus.work[order]) - corpus.work[order]
        with torch.inference_mode():
            for batch in np.split(order, np.flatnonzero(np.diff(done // FORWARD_TOKENS)) + 1):
                for mine, rows in retry.run(lambda part: self._rows(corpus, part), batch.tolist()):
                    found[mine] = rows
        return {"reference": found[:, 0], "logps": found[:, 1:]}

    def _rows(self, corpus: Corpus, items: Sequence[int]) -> Array:
        """[n, 1 + M]: the model itself, then each adapter."""
        packed = pack(corpus, np.asarray(items, np.int64), ROW_TOKENS)
        entering, last = self.split.reference_pass(packed)
        columns = [self.split.item_logps(packed, last)]
        for replica in range(self.adapters.replicas):
            with self.adapters.placement.of(((replica, 0, len(packed.ids)),)):
                last = self.split.top(packed, entering)
            columns.append(self.split.item_logps(packed, last))
        rows: Array = np.stack([column.cpu().numpy() for column in columns], 1)
        return rows


@contextmanager
def scores_of(policy: TextPolicy, directories: Sequence[Path]) -> Iterator[AdapterScores]:
    """Adapters of PEFT directories on the policy's model, for as long as the block lasts.

    Raises ModelError if they do not fit it, or it cannot be split.
    """
    from noisescope.training.lora.split_model import SplitModel

    adapters = attach_peft(policy.model, directories)
    try:
        rows = policy.rows if policy.pictures is None else "alone"
        split = SplitModel(policy.model, adapters.first, rows=rows)
        yield AdapterScores(policy, adapters, split)
    finally:
        adapters.detach()


#: Cache of log-probabilities under adapters, beside the features.
CACHE = "adapter_scores"
IN_SAMPLE = (
    "these adapters may have trained on the same pairs that they judge: margins count as in-sample "
    "(add --held-out if they did not)"
)


@final
class AdapterWork(Responses):
    """Log-probabilities of every distinct response under external adapters, then margins."""

    without: ClassVar[str] = "have no scores"
    stage: ClassVar[str] = "replicas"

    @property
    def cache(self) -> tuple[Path, str]:
        prints = self.plan.evidence["adapters"]
        made_by = digest("adapter scores", self.plan.model_fingerprint, *prints)
        return cache_directory(self.run).with_name(CACHE) / made_by, made_by

    def compute(
        self, by: Worker, units: Sequence[int], share: Share = WHOLE, wait: Wait | None = None
    ) -> int:
        """Score the responses that are not cached.

        Raises RunError, DataError, and ModelError if the adapters do not fit the model.
        """
        from noisescope.training.lora.peft_files import stated_base

        policy, config, reporter = by.policy, by.config, by.reporter
        if policy.modality == "image":
            raise UsageError(f"--from-adapters cannot adapt {policy.identity.id}")
        if not units:
            return 0
        if not config.held_out and wait is None:
            reporter.note(IN_SAMPLE)
        base = stated_base(config.adapters)
        if base is not None and Path(base).name.lower() != Path(policy.identity.id).name.lower():
            reporter.note(
                f"the adapters name {base} as their base model, and are scored on "
                f"{policy.identity.id}: margins mean nothing unless these are the same weights"
            )
        directory, made_by = self.cache
        items = [self.items[unit] for unit in units]
        todo = missing(items, scan(directory, made_by)[0])
        count = len(config.adapters)
        label = f"{count} adapters over {len(todo):,} distinct responses{share.label}"
        model = cast("TextPolicy", policy)
        with scores_of(model, config.adapters) as source, reporter.stage(label) as progress:
            compute_missing(source, items, directory, progress, "adapter score", made_by)
        return len(todo)

    def facts(self, config: EvidenceConfig) -> dict[str, Any]:
        """Names of the adapters and of their base. Raises ModelError if their bases differ."""
        from noisescope.training.lora.peft_files import stated_base

        names = [str(path) for path in config.adapters]
        return {"adapters": names, "adapters_base": stated_base(config.adapters)}

    def write_margins(
        self, facts: Mapping[str, Any], reporter: Reporter, watch: Stopwatch
    ) -> dict[str, Any]:
        """Write beta * l of every pair under every adapter, one replica each, at step 1.

        Raises RunError if responses were not scored.
        """
        from noisescope.scoring.margins import write_margins

        began, settings = time.perf_counter(), self.plan.evidence
        items, chosen, rejected = distinct_items(self.table)
        parts = scan(*self.cache)[0]
        if lost := missing(items, parts):
            raise RunError(
                f"{len(lost):,} responses were not scored",
                hint="Run the command that began the run again: it fills what is missing.",
            )
        rows = gather(parts, [item.key for item in items])
        ratio = rows["logps"] - rows["reference"][:, None]  # [n, M]
        margins = (settings["beta"] * (ratio[chosen] - ratio[rejected])).T.astype(np.float32)
        write_margins(
            self.run.margins_directory / "part-000001.parquet",
            self.table.column("pair_id"),
            np.ascontiguousarray(margins)[:, None],
            steps=[1],
            held_out=np.full(margins.shape, bool(settings["held_out"])),
        )
        watch.time("replicas", began)
        return dict(facts)
