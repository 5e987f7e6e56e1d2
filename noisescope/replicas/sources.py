"""Evidence from outside: what other models and other people's numbers know about the labels.

    opened = [open_source(one, dataset, policy) for one in parsed(["reward:MODEL", "file:M.csv"])]
    outside.fill(opened, run, cache, table, reporter)  # features to the cache, numbers to the run
    found = outside.read_outside(run, cache, plan.evidence, table, items)
    fit_heads({**features, **found.features}, ..., numbers=found.numbers)

A source of responses is one or more groups of features, a source of pairs is a group of numbers
that change sign with the sides. The replicas choose the prior variance of each group by held-out
likelihood, so a source that predicts no label gets no weight. A new kind is a line in `MODELS` or
`NUMBERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import DataError, UsageError
from noisescope.models import Item, ModelIdentity, Policy
from noisescope.pairs import Modality, PreferenceDataset
from noisescope.replicas.numbers import check_numbers, numbers_fingerprint, table_numbers
from noisescope.scoring.sources import VOTES

Float = NDArray[np.float32]
Level = Literal["response", "pair"]


class SourceModel(Protocol):
    """A model that gives features of responses."""

    @property
    def identity(self) -> ModelIdentity: ...

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Work of each item, [n]."""

    def features(self, items: Sequence[Item]) -> dict[str, Float]:
        """Groups of features, group -> [n, D_g]."""


@final
@dataclass(frozen=True)
class Source:
    """A source of evidence as it is typed: `reward:MODEL`, `file:MARGINS.parquet`."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read KIND:NAME, or a kind without a name. Raises UsageError."""
        kind, _, name = text.strip().partition(":")
        known = EXAMPLES.get(kind)
        if known is None or bool(name.strip()) != bool(known):
            fault = "is of no known kind" if known is None else "names nothing"
            fault = f"takes no name: --evidence {kind}" if known == "" else fault
            examples = (f"{k}:{about}" if about else k for k, about in EXAMPLES.items())
            raise UsageError(f"--evidence {text}: {fault}", hint=f"One of {', '.join(examples)}.")
        return cls(kind, name.strip())


@final
@dataclass(frozen=True)
class Table:
    """A source of pairs in memory: a pandas, polars or Arrow table of pair_id and numbers."""

    name: str
    frame: object
    kind: str = "table"

    def __str__(self) -> str:
        return f"table:{self.name}"


@final
@dataclass(frozen=True)
class Asked:
    """How many pairs a judge was asked about: drawn at random, and selected by their label."""

    drawn: int
    selected: int

    def settings(self) -> dict[str, int]:
        """JSON object of the run's plan."""
        return {"drawn": self.drawn, "selected": self.selected}


@final
@dataclass(frozen=True)
class Opened:
    """A source whose fingerprint is known: a model, or the numbers [N, E] of pairs."""

    source: Source | Table
    fingerprint: str
    model: SourceModel | None = None
    numbers: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    remark: str = ""
    asked: Asked | None = None

    @property
    def level(self) -> Level:
        return "pair" if self.model is None else "response"

    def settings(self) -> dict[str, Any]:
        """What identifies the source, for the run's plan."""
        return {
            "source": str(self.source),
            "level": self.level,
            "fingerprint": self.fingerprint,
            **({"asked": self.asked.settings()} if self.asked else {}),
        }


def _reward(name: str, dataset: PreferenceDataset, policy: Policy) -> SourceModel:
    from noisescope.models.reward import load_reward

    return load_reward(name, device=str(policy.device))


def _embed(name: str, dataset: PreferenceDataset, policy: Policy) -> SourceModel:
    from noisescope.models.embed import load_encoder
    from noisescope.models.embed_images import load_image_encoder

    device = str(policy.device)
    if dataset.images is not None:
        return load_image_encoder(name, dataset.images, device=device)
    return load_encoder(name, device=device)


def _image_reward(name: str, dataset: PreferenceDataset, policy: Policy) -> SourceModel:
    from noisescope.models.image_scores import load_image_scores

    assert dataset.images is not None  # `check_modality`
    return load_image_scores(name, dataset.images, device=str(policy.device))


def _causal_lm(name: str, dataset: PreferenceDataset, policy: Policy) -> SourceModel:
    from noisescope.models.causal_lm import load_causal_lm

    found = load_causal_lm(name, device=str(policy.device))
    if found.identity.fingerprint == policy.identity.fingerprint:
        raise UsageError(
            f"--evidence lm:{name} is the audited model itself",
            hint="Name another model; the audited one is evidence already.",
        )
    return found


def _column(name: str, dataset: PreferenceDataset, policy: Policy) -> dict[str, Any]:
    from noisescope.datasets.numbers import read_numbers

    columns = tuple(part.strip() for part in name.split(","))
    if not all(columns) or len(columns) > 2:
        raise UsageError(
            f"--evidence column:{name} must name one column or two",
            hint="Such as column:margin, or column:score_a,score_b (of chosen and rejected, or of "
            "the first and second side).",
        )
    return {name: read_numbers(dataset, columns)}


def _file(name: str, dataset: PreferenceDataset, policy: Policy) -> dict[str, Any]:
    from noisescope.datasets.readers import read_table

    path, _, columns = name.partition("#")
    return table_numbers(path, read_table(Path(path).expanduser()), columns, dataset.table)


def _votes(name: str, dataset: PreferenceDataset, policy: Policy) -> dict[str, Any]:
    from noisescope.datasets.numbers import other_votes

    votes = other_votes(dataset.table)
    known = votes[np.isfinite(votes)]
    if not known.size or (known > 0).all():
        fault, hint = "divides its annotators", "Votes that all agree show no wrong label."
        if not known.size:
            fault = "is labelled by two annotators"
            hint = "It needs a row a vote, and annotators (--columns annotator=NAME)."
        raise DataError(
            f"--evidence {VOTES}: no pair of {dataset.resolved} {fault}",
            hint=f"Leave it out. {hint}",
        )
    return {VOTES: votes}


#: Sources of responses: kind -> model(name, dataset, policy).
MODELS: dict[str, Callable[[str, PreferenceDataset, Policy], SourceModel]] = {
    "reward": _reward,
    "lm": _causal_lm,
    "embed": _embed,
    "image-reward": _image_reward,
}
#: Kinds that read one modality, and what to use for the other.
ONLY: dict[str, tuple[Modality, str]] = {
    "reward": ("text", "image-reward:pickscore"),
    "lm": ("text", "embed:google/siglip-base-patch16-224"),
    "image-reward": ("image", "reward:MODEL"),
    "adapters": ("text", "lora"),
    "judge": ("text", "image-reward:pickscore"),
}
#: Sources of pairs: kind -> numbers(name, dataset, policy), column -> [N].
NUMBERS: dict[str, Callable[[str, PreferenceDataset, Policy], dict[str, Any]]] = {
    "column": _column,
    "file": _file,
    VOTES: _votes,
}
#: Kinds whose numbers are margins of replicas, which `auditing.replica_sources` makes.
REPLICAS = ("lora", "adapters")
#: The audited model's features, which are always evidence.
HEADS = "heads"
#: The kind that is opened by `auditing.asking`: it costs calls, and may need an audit first.
JUDGE = "judge"
#: What follows each kind.
EXAMPLES = {
    HEADS: "",
    "lora": "",
    "adapters": "DIRECTORY",
    "reward": "MODEL",
    "lm": "MODEL",
    "embed": "MODEL",
    "image-reward": "NAME",
    "judge": "URL#MODEL",
    "column": "NAME",
    "file": "NUMBERS.parquet",
    VOTES: "",
}


def parsed(given: Sequence[str | Source | Table]) -> tuple[Source | Table, ...]:
    """The sources that are `given`, each once. Raises UsageError."""
    found = tuple(Source.parse(one) if isinstance(one, str) else one for one in given)
    names = [str(source) for source in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(
            f"--evidence {twice[0]} is given more than once", hint="Each source counts once."
        )
    return tuple(source for source in found if source.kind != HEADS)


def check_modality(sources: Sequence[Source | Table], modality: Modality) -> None:
    """Raise UsageError for a source that reads another modality than that of the pairs."""
    for source in sources:
        if modality == "vision":
            if isinstance(source, Source) and source.kind not in (*NUMBERS, *REPLICAS):
                raise UsageError(
                    f"--evidence {source} is not shown the pictures of these prompts",
                    hint="Leave it out, or give numbers of pairs: --evidence file:NUMBERS.parquet",
                )
            continue
        reads, instead = ONLY.get(source.kind, (modality, ""))
        if reads != modality:
            raise UsageError(
                f"--evidence {source} reads {reads}s, and these pairs are {modality}s",
                hint=f"For {modality}s: --evidence {instead}, or numbers of pairs: "
                "--evidence file:NUMBERS.parquet",
            )


def open_source(source: Source | Table, dataset: PreferenceDataset, policy: Policy) -> Opened:
    """Load a source's model or numbers. Raises UsageError, DataError and ModelError."""
    if source.kind in MODELS:
        model = MODELS[source.kind](source.name, dataset, policy)
        return Opened(source, model.identity.fingerprint, model)
    if isinstance(source, Table):
        from noisescope.datasets.in_memory import as_table

        numbers = table_numbers(str(source), as_table(source.frame), "", dataset.table)
    else:
        numbers = NUMBERS[source.kind](source.name, dataset, policy)
    remark = check_numbers(source, numbers)
    ids = dataset.table.column("pair_id").to_pylist()
    return Opened(source, numbers_fingerprint(ids, numbers), None, numbers, remark)
