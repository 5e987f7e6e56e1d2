"""Read a run's scores and what people decided about its labels, for exports and training.

    scores = find_run_scores("hh-rlhf", Path("runs"))
    weight, gamma = weigh(scores, "p_wrong")         # scoring/weigh.py

8 bytes per pair and column, no texts in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import EvidenceError, NoisescopeError, RunError, first_five
from noisescope.pairs import keys_of
from noisescope.scoring.reviews import chance_wrong, read_latest
from noisescope.scoring.scores import require_scores
from noisescope.storage.run import Run, find_run

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float64]
U64 = NDArray[np.uint64]

#: Columns of scores.parquet that exports and training use.
NUMBERS = (
    *("p_wrong", "p_prior", "p_flip", "margin", "rank"),
    *("stability", "u", "u_released", "W", "gamma"),
)
#: Column of what people decided, and the columns whose probabilities it replaces.
REVIEWED = "reviewed"
_THEIRS = ("p_wrong", "p_prior", "p_flip")
#: Pairs per batch.
BATCH = 8192


@final
@dataclass(frozen=True)
class RunScores:
    """A finished run and its scores [N], in the order of `keys` (hashed ids, ascending).

    Column `reviewed` is P(label wrong) by people's answers where they decided (`chance_wrong`), 1/2
    for pairs to drop and NaN elsewhere; p_wrong, p_prior and p_flip are the same where it is
    defined. `verdicts` has the verdict (`reviews.Judged`) of each pair that somebody judged, by
    position.
    """

    run: Run
    manifest: dict[str, Any]
    keys: U64
    columns: dict[str, Float]
    verdicts: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def summary(self) -> dict[str, Any]:
        """The audit's summary, as `noisescope score --json` printed it."""
        found = self.manifest.get("summary")
        return found if isinstance(found, dict) else {}

    @property
    def modality(self) -> str:
        """text or image."""
        return str(self.manifest.get("modality", "text"))

    def positions(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the positions of these pairs in `columns`. Raises RunError for unscored ones."""
        wanted = keys_of(ids)
        at = np.minimum(np.searchsorted(self.keys, wanted), max(len(self.keys) - 1, 0))
        if len(self.keys):
            missing = np.flatnonzero(self.keys[at] != wanted).tolist()
        else:
            missing = list(range(len(ids)))
        if missing:
            names = first_five([ids[index] for index in missing])
            raise RunError(
                f"{self.run.directory}: {len(missing):,} pairs have no score: {names}",
                hint="Repeat the `noisescope score` command of this run.",
            )
        return at

    def pairs(self, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, NDArray[np.int64]]]:
        """Yield batches of pairs.parquet (pair_id, then `columns`) and their positions."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.run.pairs_path, pre_buffer=False) as file:
                names = ["pair_id", *columns]
                for batch in file.iter_batches(BATCH, columns=names, use_threads=False):
                    batch = batch.select(names)
                    yield batch, self.positions(batch.column(0).to_pylist())
        except (pa.ArrowException, FileNotFoundError) as error:
            raise RunError(f"{self.run.pairs_path} cannot be read: {error}") from error


def find_run_scores(name: str | None, runs_directory: Path, *, force: bool = False) -> RunScores:
    """Find a run by its directory, name or dataset, or the latest for None.

    Raises RunError if there is none or its scores are damaged, EvidenceError (unless `force`) if
    its replicas were no better than chance, so that its scores are meaningless.
    """
    scores = read_run_scores(_find(name, runs_directory))
    if scores.summary.get("chance") and not force:
        raise EvidenceError(
            f"{scores.run.directory}: its replicas are no better than chance, so its scores do not "
            "show which labels are wrong",
            hint="Score with a better --model, or export them anyway with --force.",
        )
    return scores


def _find(name: str | None, runs_directory: Path) -> Run:
    try:
        return find_run(name, runs_directory)
    except RunError as error:
        called = name and _dataset_name(name)
        if not called or called == name:
            raise
        try:
            return find_run(called, runs_directory)
        except RunError:
            raise error from None


def _dataset_name(name: str) -> str | None:
    """Return the short name of the dataset `name`, or None if it is not one."""
    from noisescope.storage.workspace import find_workspace, resolve

    try:
        return resolve(name, find_workspace()).name
    except NoisescopeError:
        return None


def read_run_scores(run: Run) -> RunScores:
    """Read the scores of a finished run and its reviews.

    Raises RunError if the scores are missing, damaged or of an older version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = run.manifest()
    hint = "Repeat the `noisescope score` command of this run: it makes the scores again."
    require_scores(run)
    unsorted: list[U64] = [np.empty(0, np.uint64)]
    numbers: dict[str, list[Float]] = {name: [np.empty(0)] for name in NUMBERS}
    try:
        with pq.ParquetFile(run.scores_path, pre_buffer=False) as file:
            for batch in file.iter_batches(1 << 16, columns=["pair_id", *NUMBERS]):
                unsorted.append(keys_of(batch.column("pair_id").to_pylist()))
                for name, parts in numbers.items():
                    column = batch.column(name).cast(pa.float64())
                    parts.append(column.to_numpy(zero_copy_only=False))
    except (pa.ArrowException, KeyError) as error:
        raise RunError(f"{run.scores_path} cannot be read: {error}", hint=hint) from error
    keys = np.concatenate(unsorted)
    order = np.argsort(keys, kind="stable")
    columns = {
        name: np.concatenate(parts)[order].astype(np.float64) for name, parts in numbers.items()
    }
    columns[REVIEWED] = np.full(len(keys), np.nan)
    scores = RunScores(run, manifest, keys[order], columns)
    latest = read_latest(run)
    at = scores.positions([one.pair_id for one in latest])
    columns[REVIEWED][at] = chance_wrong(latest)
    decided = np.isfinite(columns[REVIEWED])
    for name in _THEIRS:
        columns[name] = np.where(decided, columns[REVIEWED], columns[name])
    return replace(
        scores, verdicts={a: j.verdict for a, j in zip(at.tolist(), latest, strict=True)}
    )
