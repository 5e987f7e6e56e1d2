"""How replicas are made: the settings of an audit's margins, and the work that computes them.

    work = HeadWork(run, plan, dataset.table)                       # of `gather_heads`
    facts = work.make(Worker(policy, config, reporter), watch)      # features, then margins

A new kind is a name in `KINDS`, one class such as `HeadWork`, one line in `audit.WORK`.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from noisescope.errors import UsageError
from noisescope.models import Item, Policy
from noisescope.models.items import distinct_items
from noisescope.pairs import Modality
from noisescope.progress import Reporter, Stopwatch
from noisescope.replicas.config import FLAGS
from noisescope.replicas.partition import WHOLE, Share, boundaries, shard_of
from noisescope.storage.cache import copy_chunks, missing, scan
from noisescope.storage.remote import Place
from noisescope.storage.run import Plan, Run

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.models.latents import Encodings
    from noisescope.replicas.config import DiffusionLoraConfig, LoraConfig
    from noisescope.replicas.sources import Source, Table


#: Kinds of replicas: log-linear, LoRA, external LoRA adapters.
KINDS = ("head", "lora", "adapters")
#: beta of the published runs: 0.1 for text, 2500 for images (SDXL; SD1.5 uses 1000).
DEFAULT_BETA: dict[Modality, float] = {"text": 0.1, "image": 2500.0, "vision": 0.1}


@final
@dataclass(frozen=True)
class EvidenceConfig:
    """How margins are gathered. Anything here changes the run's fingerprint.

    `folds`, `folds_by` (see `groups.held_out_groups`) and `pool` are about kind "head"; what is
    held out whole is prompts, or single pairs with `pool`, unless `folds_by` names it. `lora` holds
    the settings of kind "lora" that differ from their defaults, by field of `LoraConfig` (text)
    or `DiffusionLoraConfig` (images). `adapters` are directories of kind "adapters", one replica
    each; `held_out` is the caller's word that none of them trained on these pairs. `sources` are
    evidence from outside for kind "head", as typed after --evidence, or `sources.Table`s. A judge
    among them is asked with the key in the variable `key_env`, in `budget` calls at most: neither
    is part of the fingerprint, its answers are. Raises UsageError.
    """

    kind: str = "head"
    replicas: int = 8
    folds: int = 10
    seed: int = 0
    beta: float | None = None
    pool: bool = False
    folds_by: str | None = None
    lora: Mapping[str, Any] = field(default_factory=dict)
    adapters: tuple[Path, ...] = ()
    held_out: bool = False
    sources: tuple[str | Source | Table, ...] = ()
    budget: int | None = None
    key_env: str | None = None

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
                    bool(self.lora) and self.kind != "lora" and "lora" not in self.sources,
                    f"{', '.join(FLAGS[name] for name in self.lora)}: only with --kind lora or "
                    "--evidence lora",
                ),
                (
                    bool(self.adapters) != (self.kind == "adapters"),
                    "--from-adapters and --kind adapters need each other",
                ),
                (
                    bool(self.sources) and self.kind != "head",
                    "--evidence needs --kind head, whose features it joins",
                ),
                (
                    self.budget is not None and self.budget < 1,
                    f"--budget must be at least 1 call, not {self.budget}",
                ),
                (
                    (self.budget or self.key_env) is not None and not self.judges,
                    "--budget and --key-env are of a judge: --evidence judge:URL#MODEL",
                ),
            )
            if wrong
        ]
        if faults:
            raise UsageError("; ".join(faults), hint="`noisescope score --help` lists options.")

    @property
    def judges(self) -> list[str]:
        """The sources that are judges, as typed."""
        return [str(one) for one in self.sources if str(one).strip().startswith("judge:")]

    @property
    def held_out_together(self) -> str:
        """What a fold of kind "head" holds out whole."""
        return self.folds_by or ("pair" if self.pool else "prompt")

    def check(self, modality: Modality) -> None:
        """Raise UsageError for settings that `modality` does not have. Loads no model."""
        if self.kind == "adapters" and modality == "image":
            raise UsageError(
                "--from-adapters reads PEFT adapters of causal language models; these are images",
                hint="Leave it out, or use --kind lora.",
            )
        if self.kind == "lora":
            lora_config(self, modality)
        if self.sources:
            from noisescope.replicas.sources import check_modality, parsed

            check_modality(parsed(self.sources), modality)

    def settings(self, modality: Modality) -> dict[str, Any]:
        """All settings that determine a margin, and no others."""
        beta = self.beta or DEFAULT_BETA[modality]
        common: dict[str, Any] = {"kind": self.kind, "replicas": self.replicas, "beta": beta}
        if self.kind == "head":
            folds = {"folds": self.folds, "folds_by": self.held_out_together, "pool": self.pool}
            return common | {"seed": self.seed} | folds
        if self.kind == "lora":
            config = asdict(lora_config(self, modality))
            own = {name: value for name, value in config.items() if name not in (*common, "seed")}
            folds = own.pop("folds_by")
            by = {} if folds == "pair" else {"folds_by": folds}
            return common | {"seed": self.seed, "lora": json.loads(json.dumps(own)), **by}
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
        "folds_by": evidence.folds_by or "pair",
    }
    if modality != "image":
        return LoraConfig(**shared, **known_fields(LoraConfig, evidence.lora, "the pairs are text"))
    given = known_fields(DiffusionLoraConfig, evidence.lora, "the pairs are images")
    return DiffusionLoraConfig(**shared, **given)


#: Waits for the other processes of a job.
Wait = Callable[[], object]
#: The share, from 0, of each unit, and the boundaries between shares that `share_of` needs.
Division = tuple[list[int], tuple[str, ...]]


@final
@dataclass(frozen=True)
class Worker:
    """The model and settings that compute an audit's work, and where progress is reported."""

    policy: Policy
    config: EvidenceConfig
    reporter: Reporter


class Work(ABC):
    """What an audit computes before its margins, in units that shares divide.

    One final class a kind: `HeadWork`, `AdapterWork` (a unit is a response) and `LoraWork` (a unit
    is a replica). Units are named by their number, from 0.
    """

    #: What a unit is, what it is without its result, and what holds results on disk: "responses",
    #: "have no features", "chunks".
    unit: ClassVar[str]
    without: ClassVar[str]
    files: ClassVar[str]

    def __init__(self, run: Run, plan: Plan, table: pa.Table) -> None:
        self.run, self.plan, self.table = run, plan, table

    @abstractmethod
    def __len__(self) -> int:
        """How many units there are."""

    @property
    @abstractmethod
    def directory(self) -> Path:
        """Where results are kept."""

    @abstractmethod
    def missing(self) -> list[int]:
        """The units whose result is not on disk, or damaged."""

    @abstractmethod
    def describe(self, units: Sequence[int]) -> str:
        """A few words for `units` in an error."""

    @abstractmethod
    def copy_missing(self, sources: Sequence[Place]) -> tuple[int, list[str]]:
        """Copy missing results from other run directories; how many files, and faults found."""

    @abstractmethod
    def divide(self, policy: Policy, units: Sequence[int], of: int) -> Division:
        """Divide `units` into `of` shares."""

    @abstractmethod
    def share_of(self, unit: int, of: int, cuts: Sequence[str]) -> int:
        """The share, from 0, of one of all units that `divide` cut at `cuts`."""

    @abstractmethod
    def compute(
        self, by: Worker, units: Sequence[int], share: Share = WHOLE, wait: Wait | None = None
    ) -> int:
        """Compute those of `units` that are missing; how many.

        With `wait`, the other shares are computed at the same time on the same file system.
        """

    def facts(self, config: EvidenceConfig) -> dict[str, Any]:
        """What the manifest records of `config`."""
        return {}

    @abstractmethod
    def write_margins(
        self, facts: Mapping[str, Any], reporter: Reporter, watch: Stopwatch
    ) -> dict[str, Any]:
        """Write the margins from what was computed; what the manifest records of the training."""

    @abstractmethod
    def make(self, by: Worker, watch: Stopwatch) -> dict[str, Any]:
        """Compute everything that is missing and write the margins."""


class Responses(Work):
    """What `HeadWork` and `AdapterWork` share: a cached row for every distinct response."""

    unit: ClassVar[str] = "responses"
    files: ClassVar[str] = "chunks"
    #: Name in the run's timings.
    stage: ClassVar[str]

    @cached_property
    def items(self) -> list[Item]:
        """The distinct responses."""
        return distinct_items(self.table)[0]

    @property
    @abstractmethod
    def cache(self) -> tuple[Path, str]:
        """Directory of the cached chunks, and the fingerprint of what made them."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def directory(self) -> Path:
        return self.cache[0]

    def describe(self, units: Sequence[int]) -> str:
        return f"{len(units):,} responses"

    def missing(self) -> list[int]:
        lost = {item.key for item in missing(self.items, scan(*self.cache)[0])}
        return [unit for unit, item in enumerate(self.items) if item.key in lost]

    def copy_missing(self, sources: Sequence[Place]) -> tuple[int, list[str]]:
        directory, made_by = self.cache
        parts, faulty = scan(directory, made_by)
        faults = [f"{path} is {fault}" for path, fault in faulty.items()]
        wanted = {item.key for item in missing(self.items, parts)}
        inner, copied = directory.relative_to(self.run.directory.parent).as_posix(), 0
        for source in sources:
            theirs = source.parent / inner
            if not theirs.is_at(directory):
                copied += copy_chunks(theirs, directory, made_by, wanted, faults)
        return copied, faults

    def divide(self, policy: Policy, units: Sequence[int], of: int) -> Division:
        items = [self.items[unit] for unit in units]
        cuts = boundaries(items, policy.sizes(items), of)
        return [shard_of(item, cuts) for item in items], cuts

    def share_of(self, unit: int, of: int, cuts: Sequence[str]) -> int:
        return shard_of(self.items[unit], cuts)

    def make(self, by: Worker, watch: Stopwatch) -> dict[str, Any]:
        began = time.perf_counter()
        self.compute(by, range(len(self)))
        watch.time(self.stage, began)
        return self.write_margins(self.facts(by.config), by.reporter, watch)


def kept_encodings(policy: Policy, run: Run) -> Encodings | None:
    """The cache of an image policy's latents and embeddings, opened; None for a text policy."""
    return policy.open_encodings(cache_directory(run).with_name("encodings"))


def cache_directory(run: Run) -> Path:
    """Directory of cached features, shared by all runs in the same directory."""
    return run.directory.parent / ".cache" / "features"
