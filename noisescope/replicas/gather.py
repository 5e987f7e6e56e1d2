"""Gathering evidence: from pairs and a policy to margins on disk, one function a replica kind.

    facts = gather_heads(dataset, policy, evidence, run, reporter, watch)

A new kind is a name in `KINDS`, one function such as `gather_heads`, one line in `audit.GATHER`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import UsageError
from noisescope.models import Item, Policy
from noisescope.models.items import distinct_items, fold_keys
from noisescope.pairs import Modality, PreferenceDataset
from noisescope.progress import Reporter, Stopwatch
from noisescope.replicas.config import FLAGS
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.models.latents import Encodings
    from noisescope.replicas.config import DiffusionLoraConfig, LoraConfig


#: Kinds of evidence: log-linear replicas, packed LoRA replicas, somebody else's LoRA adapters.
KINDS = ("head", "lora", "adapters")
#: beta of the published runs: 0.1 for text, 2500 for images (SDXL; SD1.5 uses 1000).
DEFAULT_BETA: dict[Modality, float] = {"text": 0.1, "image": 2500.0}


@final
@dataclass(frozen=True)
class EvidenceConfig:
    """How margins are gathered. Anything here changes the run's fingerprint.

    `folds` and `pool` are about kind "head". `lora` holds the settings of kind "lora" that
    differ from their defaults, by field of `LoraConfig` (text) or `DiffusionLoraConfig`
    (images). `adapters` are directories of kind "adapters", one replica each; `held_out` is the
    caller's word that none of them trained on these pairs. Raises UsageError.
    """

    kind: str = "head"
    replicas: int = 8
    folds: int = 10
    seed: int = 0
    beta: float | None = None
    pool: bool = True
    lora: Mapping[str, Any] = field(default_factory=dict)
    adapters: tuple[Path, ...] = ()
    held_out: bool = False

    def __post_init__(self) -> None:
        faults = [
            message
            for wrong, message in (
                (self.kind not in KINDS, f"--kind {self.kind}: one of {', '.join(KINDS)}"),
                (
                    self.replicas < 2 and self.kind != "adapters",
                    "--replicas must be at least 2: u needs a variance",
                ),
                (self.folds < 2, "--folds must be at least 2"),
                (
                    self.beta is not None and not 0 < self.beta < float("inf"),
                    "--beta must be positive and finite",
                ),
                (
                    bool(self.lora) and self.kind != "lora",
                    f"{', '.join(FLAGS[name] for name in self.lora)}: only with --kind lora",
                ),
                (
                    bool(self.adapters) != (self.kind == "adapters"),
                    "--from-adapters needs --kind adapters, and the other way round",
                ),
            )
            if wrong
        ]
        if faults:
            raise UsageError("; ".join(faults), hint="`noisescope score --help` lists options.")

    def check(self, modality: Modality) -> None:
        """Raise UsageError for settings that make no sense for `modality`: before any model."""
        if self.kind == "adapters" and modality != "text":
            raise UsageError(
                "--from-adapters reads PEFT adapters of causal language models; these are images",
                hint="Leave it out, or use --kind lora.",
            )
        if self.kind == "lora":
            lora_config(self, modality)

    def settings(self, modality: Modality) -> dict[str, Any]:
        """What identifies the evidence: all that decides a margin, and nothing else."""
        beta = self.beta or DEFAULT_BETA[modality]
        common: dict[str, Any] = {"kind": self.kind, "replicas": self.replicas, "beta": beta}
        if self.kind == "head":
            return common | {"seed": self.seed, "folds": self.folds, "pool": self.pool}
        if self.kind == "lora":
            config = asdict(lora_config(self, modality))
            own = {name: value for name, value in config.items() if name not in (*common, "seed")}
            return common | {"seed": self.seed, "lora": json.loads(json.dumps(own))}
        from noisescope.training.lora.peft_files import adapter_fingerprint

        prints = [adapter_fingerprint(directory) for directory in self.adapters]
        return common | {"adapters": prints, "held_out": self.held_out, "replicas": len(prints)}


def lora_config(evidence: EvidenceConfig, modality: Modality) -> LoraConfig | DiffusionLoraConfig:
    """The settings of `evidence`'s LoRA replicas, checked. Raises UsageError."""
    from noisescope.replicas.config import DiffusionLoraConfig, LoraConfig, known_fields

    shared: dict[str, Any] = {
        "replicas": evidence.replicas,
        "seed": evidence.seed,
        "beta": evidence.beta or DEFAULT_BETA[modality],
    }
    if modality == "text":
        return LoraConfig(**shared, **known_fields(LoraConfig, evidence.lora, "the pairs are text"))
    given = known_fields(DiffusionLoraConfig, evidence.lora, "the pairs are images")
    return DiffusionLoraConfig(**shared, **given)


def gather_heads(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    run: Run,
    reporter: Reporter,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Features of every distinct response, then log-linear replicas: margins in one part."""
    items = distinct_items(dataset.table)[0]
    began = time.perf_counter()
    fill_features(policy, items, run, reporter)
    watch.time("features", began)
    return fit_cached(dataset.table, policy.identity.fingerprint, evidence, run, reporter, watch)


def fill_features(
    policy: Policy, items: list[Item], run: Run, reporter: Reporter, of: str = ""
) -> int:
    """Compute those of `items` that are not cached, telling the cost first; how many those were.

    `of` says whose items they are, where they are not all. Raises RunError, DataError, ModelError.
    """
    from noisescope.models.features import fill_cache, uncached

    cache = cache_directory(run)
    todo = uncached(policy, items, cache)
    encodings = kept_encodings(policy, run)
    reporter.note(_estimate(policy, todo, len(items)))
    if encodings is not None and todo:
        with reporter.stage("latents of images, embeddings of captions") as progress:
            encodings.keep(todo, progress)
    with reporter.stage(f"features of {len(todo):,} distinct responses{of}") as progress:
        fill_cache(policy, items, cache, progress)
    return len(todo)


def fit_cached(
    table: pa.Table,
    model: str,
    evidence: EvidenceConfig,
    run: Run,
    reporter: Reporter,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Log-linear replicas of a pairs table on cached features of `model` (its fingerprint).

    Writes margins/part-0.parquet. Raises RunError where features are missing.
    """
    import numpy as np

    from noisescope.models.features import cached_features
    from noisescope.replicas.head import HeadConfig, fit_heads
    from noisescope.scoring.margins import write_margins

    items, chosen, rejected = distinct_items(table)
    began = time.perf_counter()
    features = cached_features(items, cache_directory(run), model)
    config = HeadConfig(
        replicas=evidence.replicas, folds=evidence.folds, seed=evidence.seed, identity=evidence.pool
    )
    reporter.note(f"fitting {evidence.replicas} replicas x {evidence.folds} folds")
    fit = fit_heads(features, chosen, rejected, fold_keys(table), config)
    watch.time("replicas", began)
    write_margins(
        run.margins_directory / "part-0.parquet",
        table.column("pair_id"),
        fit.margins[:, None, :],
        steps=[1],
        held_out=np.ones(fit.margins.shape, bool),
    )
    return {"pooled": fit.pooled, "held_out_log_likelihood": fit.log_likelihood}


def _estimate(policy: Policy, todo: list[Item], distinct: int) -> str:
    """What the feature pass will cost, from its FLOPs and a timed matrix product."""
    from noisescope.models.device import matmul_rate
    from noisescope.models.features import estimate_seconds

    if not todo:
        return f"features of all {distinct:,} distinct responses are cached"
    flops, rate = policy.flops(todo), matmul_rate(policy.device, policy.dtype)
    seconds = estimate_seconds(policy, todo, rate)
    return (
        f"estimate: {len(todo):,} of {distinct:,} distinct responses to compute, "
        f"{flops / 1e12:.3g} TFLOP at {rate / 1e9:,.0f} GFLOP/s, about {seconds:,.0f} s"
    )


def kept_encodings(policy: Policy, run: Run) -> Encodings | None:
    """The cache of an image policy's latents and embeddings, opened; None for a text policy."""
    return policy.open_encodings(cache_directory(run).with_name("encodings"))


def cache_directory(run: Run) -> Path:
    """Where features are kept, shared by all runs beside this one."""
    return run.directory.parent / ".cache" / "features"
