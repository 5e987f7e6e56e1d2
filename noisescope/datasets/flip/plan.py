"""Plant known label errors: a flipped copy of a dataset and the truth about it.

    noisescope flip hh-rlhf --rate 0.2 --seed 7        # flipped/hh-rlhf-uniform-0.2-s7/

A pair is flipped when its coin, a number in [0, 1) that is a hash of (seed, pair_id), is below
its chance, so order never matters; sharding does not either for `uniform` and `annotator`, whose
chance is the pair's own, but does for `hard` and `long`. With r = `rate`, the chances are

    uniform     r for every pair
    annotator   1/2 where the pair's annotator is careless, a hash of (seed, annotator) below 2 r,
                else 0; a pair without annotator is its own annotator
    hard        2 r (1 - F(g)), g = |score or margin gap| of the pair, F its mid-rank share
    long        r / q where the rejected side is the longer one (a share q of pairs), else 0

each of which is r on average (r at most 1/2 but for `uniform`). `hard` and `long` read the
dataset once before. Flipping a copy again with the same plan takes every decision back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, UsageError
from noisescope.pairs import Pair, keys_of, uniform

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.storage.run import Run

Float = NDArray[np.float64]
U64 = NDArray[np.uint64]

KINDS = ("uniform", "hard", "long", "annotator")
#: Salts that keep the coin of a pair and the care of an annotator independent.
_COIN, _CARE = 11, 12
_BINS = 1 << 16


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
        most = 1.0 if self.kind == "uniform" else 0.5
        if not 0 <= self.rate <= most:
            raise UsageError(f"--rate {self.rate:g}: between 0 and {most:g} for {self.kind} flips")


@final
@dataclass(frozen=True)
class Parsed:
    """Some pairs [N], their ids, and the source rows that state them (none when from a run)."""

    pairs: Sequence[Pair]
    ids: Sequence[str]
    rows: Sequence[Mapping[str, Any]] = ()


#: Probability of a flip for each pair, [N].
Chance = Callable[[Parsed], Float]


def coins(names: Sequence[str], seed: int, salt: int = _COIN) -> Float:
    """A number in [0, 1) for each name: a hash of (seed, name)."""
    return uniform(keys_of(names), seed, salt)


def decide(
    chunk: Parsed, plan: FlipPlan, chance: Chance, keys: U64 | None = None
) -> NDArray[np.bool_]:
    """Which of these pairs are flipped, [N]; `keys` saves hashing the ids again."""
    hashes = keys_of(chunk.ids) if keys is None else keys
    return uniform(hashes, plan.seed, _COIN) < chance(chunk)


def chance_of(
    plan: FlipPlan,
    survey: Callable[[], Iterator[Parsed]],
    gaps: Callable[[Parsed], Float] | None = None,
) -> Chance:
    """The plan's chance of a flip. `survey` reads all pairs once, where the kind needs that;
    `gaps` [N] is the distance between a pair's sides, for `hard`.

    Raises UsageError where `hard` has no gaps or too few labels prefer the shorter side.
    """
    if plan.kind == "annotator":
        return lambda chunk: _careless(chunk, plan)
    if plan.kind == "long":
        return _long(plan, survey())
    if plan.kind == "hard":
        if gaps is None:
            raise UsageError(
                "hard flips need to know which pairs are close: this format has no scores",
                hint="Score the dataset first, then name that run with --run.",
            )
        return _hard(plan, survey(), gaps)
    return lambda chunk: np.full(len(chunk.ids), plan.rate)


def _careless(chunk: Parsed, plan: FlipPlan) -> Float:
    who = [
        pair.annotator or f"pair {name}" for pair, name in zip(chunk.pairs, chunk.ids, strict=True)
    ]
    return np.where(coins(who, plan.seed, _CARE) < 2 * plan.rate, 0.5, 0.0)


def _long(plan: FlipPlan, survey: Iterator[Parsed]) -> Chance:
    eligible = total = 0.0
    for chunk in survey:
        eligible += float(_prefers_short(chunk).sum())
        total += len(chunk.pairs)
    share = eligible / max(total, 1)
    if plan.rate > share:
        raise UsageError(
            f"only {share:.1%} of the labels prefer the shorter response, so "
            f"{plan.rate:.1%} cannot be turned to the longer one",
            hint=f"Use --rate {np.floor(share * 100) / 100:g} or less.",
        )
    return lambda chunk: _prefers_short(chunk) * (plan.rate / max(share, 1e-300))


def _prefers_short(chunk: Parsed) -> Float:
    return np.array([len(pair.rejected) > len(pair.chosen) for pair in chunk.pairs], np.float64)


def _hard(plan: FlipPlan, survey: Iterator[Parsed], gaps: Callable[[Parsed], Float]) -> Chance:
    """2 r (1 - F(g)), F from counts of g in half precision: constant memory, exact with ties."""
    counts = np.zeros(_BINS, np.int64)
    for chunk in survey:
        counts += np.bincount(_bins(gaps(chunk)), minlength=_BINS)
    share = (np.cumsum(counts) - counts / 2) / max(counts.sum(), 1)
    return lambda chunk: 2 * plan.rate * (1 - share[_bins(gaps(chunk))])


def _bins(gaps: Float) -> NDArray[np.int64]:
    """Order-preserving bins of values >= 0: the bits of their half-precision form."""
    return np.minimum(gaps, 65504.0).astype(np.float16).view(np.uint16).astype(np.int64)


def score_gaps(columns: tuple[str, str]) -> Callable[[Parsed], Float]:
    """|difference| of two score columns of the source; a row without scores counts as easy."""

    def gaps(chunk: Parsed) -> Float:
        one, other = (
            np.array([row.get(name) for row in chunk.rows], np.float64) for name in columns
        )
        return np.nan_to_num(np.abs(one - other), nan=np.inf)

    return gaps


def margin_gaps(run: Run) -> Callable[[Parsed], Float]:
    """|margin| of a run's scores; a pair that the run does not know counts as easy."""
    import pyarrow.parquet as pq

    if not run.scores_path.is_file():
        raise RunError(f"{run.directory} has no scores", hint="Type: noisescope score DATASET")
    table = pq.read_table(run.scores_path, columns=["pair_id", "margin"])
    parts = [keys_of(batch.column(0).to_pylist()) for batch in table.to_batches(8192)]
    keys = np.concatenate([*parts, np.empty(0, np.uint64)])
    order = np.argsort(keys)
    keys, margins = keys[order], np.abs(table.column("margin").to_numpy()[order])

    def gaps(chunk: Parsed) -> Float:
        wanted = keys_of(chunk.ids)
        at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        return np.where(keys[at] == wanted, margins[at], np.inf)

    return gaps


def table_chunks(table: pa.Table) -> Iterator[Parsed]:
    """The pairs of a run's pairs table, in chunks, under the ids they have in their source."""
    known = set(table.column("pair_id").to_pylist())
    for batch in table.select(["pair_id", "chosen", "rejected", "annotator"]).to_batches(8192):
        ids, *columns = (column.to_pylist() for column in batch.columns)
        pairs = [
            Pair("", chosen, rejected, annotator=annotator)
            for chosen, rejected, annotator in zip(*columns, strict=True)
        ]
        yield Parsed(pairs, [bare(name, known) for name in ids])


def bare(name: str, known: Collection[str]) -> str:
    """`name` without the `~2`, `~3`, ... that marks a repeat of another pair."""
    base, mark, number = name.rpartition("~")
    return base if mark and number.isdigit() and base in known else name
