"""Plan known label errors: which kind of labels is flipped, at what rate and with which seed.

    noisescope flip hh-rlhf --rate 0.2 --seed 7        # flipped/hh-rlhf-uniform-0.2-s7/

A pair is flipped if its coin, a number in [0, 1) that is a hash of (seed, pair_id), is below its
chance (`kinds`), so order never matters; sharding does not either for `uniform`, whose chance is
the pair's own. The other kinds read the dataset once before. Flipping a copy again with the same
plan takes every decision back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.flip.kinds import COIN, KINDS, UP_TO_ONE, Chance, L, Survey
from noisescope.errors import RunError, UsageError, share_hint
from noisescope.pairs import Pair, keys_of, uniform

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.pairs import Modality
    from noisescope.storage.run import Run

Float = NDArray[np.float64]
U64 = NDArray[np.uint64]


@final
@dataclass(frozen=True)
class FlipPlan:
    """Which labels to flip. Raises UsageError for an impossible plan."""

    rate: float
    kind: str = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"--kind {self.kind}: one of {', '.join(KINDS)}")
        most = 1.0 if self.kind in UP_TO_ONE else 0.5
        if not 0 <= self.rate <= most:
            raise UsageError(
                f"--rate {self.rate:g}: between 0 and {most:g} for {self.kind} flips",
                hint=share_hint("--rate", f"{self.rate:g}", most),
            )

    def check(self, modality: Modality) -> None:
        """Raise UsageError if pairs of this modality have no such errors."""
        if self.kind == "long" and modality == "image":
            raise UsageError("long flips compare lengths of texts: these pairs are images")


#: Gives the distance between the sides of each pair, if it is known.
Measure = Callable[["Parsed"], Float] | None


@final
@dataclass(frozen=True)
class Parsed:
    """Some pairs [N], their ids, and the source rows that state them (none when from a run).

    `measure` gives the distance between the sides of each pair. Hashes are made when needed.
    """

    pairs: Sequence[Pair]
    ids: Sequence[str]
    rows: Sequence[Mapping[str, Any]] = ()
    measure: Measure = None

    @cached_property
    def keys(self) -> U64:
        return keys_of(self.ids)

    @property
    def annotators(self) -> U64:
        names = [pair.annotator for pair in self.pairs]
        keys = keys_of([name or "" for name in names])
        return np.where([name is None for name in names], np.uint64(0), keys)

    @property
    def prompts(self) -> U64:
        return keys_of([pair.prompt for pair in self.pairs])

    @property
    def sides(self) -> U64:
        texts = [
            f"{len(pair.prompt)} {pair.prompt}{side}"
            for pair in self.pairs
            for side in (pair.chosen, pair.rejected)
        ]
        return keys_of(texts).reshape(-1, 2)

    @property
    def gaps(self) -> Float:
        if self.measure is None:
            raise UsageError(
                "these flips need to know which pairs are close: this format has no scores",
                hint="Score the dataset first, then name that run with --run.",
            )
        return self.measure(self)

    @property
    def longer(self) -> NDArray[np.bool_]:
        return np.array([len(pair.rejected) > len(pair.chosen) for pair in self.pairs], np.bool_)

    @property
    def second(self) -> NDArray[np.int8]:
        return np.array([-1 if p.first is None else not p.first for p in self.pairs], np.int8)


def coins(names: Sequence[str], seed: int, salt: int = COIN) -> Float:
    """A number in [0, 1) for each name: a hash of (seed, name)."""
    return uniform(keys_of(names), seed, salt)


def chance_of(plan: FlipPlan, survey: Survey[L]) -> Chance[L]:
    """The plan's chance of a flip. `survey` reads all pairs once, if the kind needs that.

    Raises UsageError if these pairs cannot have such errors at that rate.
    """
    return KINDS[plan.kind](plan.rate, plan.seed, survey)


def decide(chunk: L, plan: FlipPlan, chance: Chance[L]) -> NDArray[np.bool_]:
    """Which of these pairs are flipped, [N]."""
    return uniform(chunk.keys, plan.seed, COIN) < chance(chunk)


def score_gaps(columns: tuple[str, str]) -> Callable[[Parsed], Float]:
    """|difference| of two score columns of the source; inf for a row without scores."""

    def gaps(chunk: Parsed) -> Float:
        one, other = (
            np.array([row.get(name) for row in chunk.rows], np.float64) for name in columns
        )
        return np.nan_to_num(np.abs(one - other), nan=np.inf)

    return gaps


def margin_gaps(run: Run) -> Callable[[Parsed], Float]:
    """|margin| of a run's scores; inf for a pair that the run does not know."""
    import pyarrow.parquet as pq

    if not run.scores_path.is_file():
        raise RunError(f"{run.directory} has no scores", hint="Type: noisescope score DATASET")
    table = pq.read_table(run.scores_path, columns=["pair_id", "margin"])
    parts = [keys_of(batch.column(0).to_pylist()) for batch in table.to_batches(8192)]
    keys = np.concatenate([*parts, np.empty(0, np.uint64)])
    order = np.argsort(keys)
    keys, margins = keys[order], np.abs(table.column("margin").to_numpy()[order])

    def gaps(chunk: Parsed) -> Float:
        at = np.minimum(np.searchsorted(keys, chunk.keys), max(len(keys) - 1, 0))
        return np.where(keys[at] == chunk.keys, margins[at], np.inf)

    return gaps


def table_chunks(table: pa.Table, measure: Measure = None) -> Iterator[Parsed]:
    """The pairs of a run's pairs table, in chunks, under the ids they have in their source."""
    known = set(table.column("pair_id").to_pylist())
    names = ["pair_id", "prompt", "chosen", "rejected", "annotator"]
    ordered = "first" in table.schema.names
    for batch in table.select([*names, *["first"] * ordered]).to_batches(8192):
        ids, prompts, chosen, rejected, annotators, *rest = (
            column.to_pylist() for column in batch.columns
        )
        first = rest[0] if rest else [None] * len(ids)
        pairs = [
            Pair(prompt, one, other, annotator=annotator, first=order)
            for prompt, one, other, annotator, order in zip(
                prompts, chosen, rejected, annotators, first, strict=True
            )
        ]
        yield Parsed(pairs, [bare(name, known) for name in ids], measure=measure)


def bare(name: str, known: Collection[str]) -> str:
    """`name` without the `~2`, `~3`, ... that marks a repeat of another pair."""
    base, mark, number = name.rpartition("~")
    return base if mark and number.isdigit() and base in known else name
