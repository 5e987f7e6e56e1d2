"""Evidence from outside: what other models and other people's numbers know about the labels.

    opened = [open_source(one, dataset, policy) for one in parsed(["reward:MODEL", "file:M.csv"])]
    fill(opened, run, cache, table, reporter)    # features to the cache, numbers to the run
    outside = read_outside(run, cache, plan.evidence, table, items)
    fit_heads({**features, **outside.features}, ..., numbers=outside.numbers)

A source of responses is one or more groups of features, a source of pairs is a group of numbers
that change sign with the sides. The replicas choose the prior variance of each group by held-out
likelihood, so a source that predicts no label gets no weight. A new kind is a line in `MODELS` or
`NUMBERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import DataError, RunError, UsageError
from noisescope.models import Item, ModelIdentity, Policy
from noisescope.models.features import cached_features
from noisescope.pairs import Modality, PreferenceDataset, digest
from noisescope.progress import Reporter
from noisescope.scoring.sources import VOTES
from noisescope.storage.cache import compute_missing
from noisescope.storage.files import write_atomic
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float32]
Level = Literal["response", "pair"]
#: Folder of a run directory with the numbers of its sources of pairs.
FOLDER = "evidence"


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


#: Columns of a judge's numbers: of pairs drawn at random, and of pairs selected by their label.
DRAWN, SELECTED = "log_odds", "log_odds_selected"


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


def table_numbers(
    path: str, found: pa.Table, columns: str, table: pa.Table
) -> dict[str, NDArray[np.float64]]:
    """Columns of numbers by pair_id in `found`, read from `path`, of each pair; NaN if unknown.

    `columns` are names, separated by commas; all columns of numbers if empty. Numbers are positive
    where the labelled-better side is better. A column `chosen` orients them by its text instead.
    """
    names = _number_columns(path, columns, found)
    ids = [str(one) for one in found.column("pair_id").to_pylist()]
    rows = {one: at for at, one in enumerate(ids)}
    if len(rows) < len(ids):
        raise DataError(
            f"{path}: {len(ids) - len(rows):,} pair ids occur more than once",
            hint="Write one row a pair.",
        )
    known = [rows.get(one) for one in table.column("pair_id").to_pylist()]
    if not any(at is not None for at in known):
        raise DataError(
            f"{path} has none of the {len(known):,} pairs",
            hint="Its pair_id must be that of pairs.parquet in the run directory.",
        )
    signs = _orientation(path, found, known, table) if "chosen" in found.column_names else None
    out = {}
    for name in names:
        values = np.array(found.column(name).to_pylist(), dtype=np.float64)  # None becomes NaN
        picked = np.array([np.nan if at is None else values[at] for at in known], np.float64)
        out[name] = picked if signs is None else picked * signs
    return out


def _number_columns(path: str, columns: str, found: pa.Table) -> list[str]:
    """Columns of `found` to read. Raises DataError."""
    import pyarrow.types as types

    if "pair_id" not in found.column_names:
        raise DataError(
            f"{path} has no column pair_id",
            hint="Write pair_id and one or more columns of numbers.",
        )
    numeric = [
        one.name
        for one in found.schema
        if one.name != "pair_id" and (types.is_floating(one.type) or types.is_integer(one.type))
    ]
    names = [one.strip() for one in columns.split(",")] if columns else numeric
    wrong = [name for name in names if name not in numeric]
    if wrong or not names:
        fault = f"has no numbers in {wrong[0]}" if wrong else "has no column of numbers"
        raise DataError(
            f"{path} {fault}",
            hint=f"Columns of numbers: {', '.join(numeric) or 'none'}; file:{path}#NAME takes "
            "one of them.",
        )
    return names


def _orientation(
    path: str, found: pa.Table, known: Sequence[int | None], table: pa.Table
) -> NDArray[np.float64]:
    """1 where the file's chosen side is the label's, -1 where it is the other side, [N].

    Raises DataError if it is neither.
    """
    theirs = found.column("chosen").to_pylist()
    signs = np.zeros(len(known))
    sides = zip(*(table.column(n).to_pylist() for n in ("chosen", "rejected")), strict=True)
    for row, (at, (chosen, rejected)) in enumerate(zip(known, sides, strict=True)):
        if at is None:
            continue
        if theirs[at] not in (chosen, rejected):
            pair = table.column("pair_id")[row].as_py()
            raise DataError(
                f"{path}: chosen of pair {pair} is neither side of the pair",
                hint="Copy it from pairs.parquet in the run directory, or leave the column out.",
            )
        signs[row] = 1 if theirs[at] == chosen else -1
    return signs


def check_numbers(source: Source | Table, numbers: Mapping[str, NDArray[np.float64]]) -> str:
    """What a reader should know of the numbers. Raises DataError if they cannot be evidence."""
    covered = np.zeros(0)
    for name, values in numbers.items():
        if np.isinf(values).any():
            raise DataError(
                f"--evidence {source}: {name} is infinite for {np.isinf(values).sum():,} pairs",
                hint="Write finite numbers, such as log odds within -20 to 20.",
            )
        known = values[np.isfinite(values)]
        if not known.size or not np.any(known):
            raise DataError(
                f"--evidence {source}: {name} is empty or 0 for every pair",
                hint="Leave it out.",
            )
        if (known >= 0).all() or (known <= 0).all():
            never = "negative" if (known >= 0).all() else "positive"
            raise DataError(
                f"--evidence {source}: {name} is never {never}, so it does not judge the labels",
                hint="A number of a pair is positive where the chosen side is better and negative "
                "where the rejected one is. One that is never negative is a size. The strength of "
                f"a preference is how clear a pair is: {_as_strength(source)}. For a "
                "probability p write its log odds, log(p / (1 - p)), to a file.",
            )
        covered = np.isfinite(values) if not covered.size else covered | np.isfinite(values)
    share = float(covered.mean())
    return f"{source} has numbers of {share:.1%} of the pairs" if share < 1 else ""


def _as_strength(source: Source | Table) -> str:
    """What to type for a source that is the strength of the preference."""
    name = source.name if source.kind == "column" else "NAME, a column of the dataset"
    return f"--columns strength={name}"


def numbers_fingerprint(ids: Sequence[str], numbers: Mapping[str, NDArray[np.float64]]) -> str:
    """20 hex digits over the pairs and their numbers."""
    values = [part for name, x in numbers.items() for part in (name, x.tobytes().hex())]
    return digest("numbers", *ids, *values)


def fill(
    opened: Sequence[Opened], run: Run, cache: Path, table: pa.Table, reporter: Reporter
) -> None:
    """Compute features that are not cached, and write numbers of pairs into the run directory."""
    from noisescope.models.items import distinct_items

    for one in opened:
        if one.remark:
            reporter.note(one.remark)
        if one.model is None:
            _write_numbers(_path(run, one.fingerprint), table, one.numbers)
            continue
        items, made_by = distinct_items(table)[0], one.fingerprint
        with reporter.stage(f"{one.source}: {len(items):,} distinct responses") as progress:
            compute_missing(one.model, items, cache / made_by, progress, "feature", made_by)


def _path(run: Run, fingerprint: str) -> Path:
    return run.directory / FOLDER / f"{fingerprint}.parquet"


def _write_numbers(path: Path, table: pa.Table, numbers: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"pair_id": table.column("pair_id")} | {
        name: pa.array(values, pa.float64()) for name, values in numbers.items()
    }
    whole = pa.table(columns)
    write_atomic(path, lambda to: pq.write_table(whole, to, compression="zstd"))


@final
@dataclass(frozen=True)
class Outside:
    """Groups of all sources: of responses [R, D_g], of pairs [N, E_g], and whose they are.

    `selected` has the log odds [N] of judges that were asked about pairs because of their label,
    and which pairs [N] were drawn at random: of these alone are their `numbers`.
    """

    features: Mapping[str, Float] = field(default_factory=dict)
    numbers: Mapping[str, Float] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    selected: Mapping[str, tuple[NDArray[np.float64], NDArray[np.bool_]]] = field(
        default_factory=dict
    )

    @property
    def fitted(self) -> dict[str, Float]:
        """The numbers that the replicas are fitted to (see `replicas.selected` for the others)."""
        return {name: x for name, x in self.numbers.items() if name not in self.selected}

    def reversed(self, flipped: NDArray[np.bool_]) -> Outside:
        """The numbers of pairs under labels of which some are flipped, [N]."""
        sign = np.where(flipped, np.float32(-1), np.float32(1))[:, None]
        numbers = {name: values * sign for name, values in self.numbers.items()}
        selected = {name: (x * sign[:, 0], drawn) for name, (x, drawn) in self.selected.items()}
        return replace(self, numbers=numbers, selected=selected)


def read_outside(
    run: Run, cache: Path, evidence: Mapping[str, Any], table: pa.Table, items: Sequence[Item]
) -> Outside:
    """Features and numbers of a plan's sources. Raises RunError if any are missing or damaged."""
    features: dict[str, Float] = {}
    numbers: dict[str, Float] = {}
    groups: dict[str, tuple[str, ...]] = {}
    selected: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]] = {}
    for one in evidence.get("sources", ()):
        name, made_by = str(one["source"]), str(one["fingerprint"])
        if one["level"] == "response":
            found = cached_features(items, cache, made_by)
            own = {f"{name} {group}": values for group, values in found.items()}
            features |= own
        else:
            read = _read_numbers(_path(run, made_by), made_by, table)
            if one.get("asked", {}).get("selected"):
                drawn = np.isfinite(read[DRAWN])
                selected[name] = np.where(drawn, read[DRAWN], read[SELECTED]), drawn
            own = {name: _stacked({DRAWN: read[DRAWN]} if "asked" in one else read)}
            numbers |= own
        groups[name] = tuple(own)
    return Outside(features, numbers, groups, selected)


def _stacked(numbers: Mapping[str, NDArray[np.float64]]) -> Float:
    """Columns [N] side by side, 0 for a pair without a number, [N, E]."""
    whole = np.stack(list(numbers.values()), axis=1)
    return np.nan_to_num(whole, nan=0.0).astype(np.float32)


def _read_numbers(path: Path, made_by: str, table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Columns of a source of pairs, NaN for a pair without a number. Raises RunError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = table.column("pair_id").to_pylist()
    try:
        found = pq.read_table(path)
        numbers = {
            name: np.array(found.column(name).to_pylist(), np.float64)
            for name in found.column_names
            if name != "pair_id"
        }
        whole = numbers_fingerprint(found.column("pair_id").to_pylist(), numbers) == made_by
        if not whole or found.column("pair_id").to_pylist() != ids:
            raise ValueError(path)
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
        raise RunError(
            f"{path} is missing or damaged",
            hint="Run the command that made the run again; it writes the file.",
        ) from error
    return numbers
