"""Read what the checks need from a finished run and its baseline.

    subject = Subject(Run(Path("runs/pairs-1a2b3c4d")), baseline=Run(Path("runs/pairs-0f0f0f0f")))
    subject.columns["p_wrong"]      # [N], in the order of pairs.parquet

Everything is read at first use; texts stay on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, first_line
from noisescope.gate.verdict import Row
from noisescope.scoring.annotators import coded
from noisescope.scoring.flip_rate import FlipRate, fit_flip_rate
from noisescope.scoring.metrics import Interval
from noisescope.scoring.pair_facts import PairFacts, read_facts
from noisescope.scoring.reviews import RunReviews, reviews_of
from noisescope.scoring.scores import require_scores
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[Any]

#: Characters of a prompt that are shown with a row.
DETAIL = 160

_COLUMNS = """
SELECT length(p.chosen) AS chosen_length, length(p.rejected) AS rejected_length,
       s.margin, s.p_wrong, s.contested
FROM read_parquet($pairs, file_row_number = true) AS p
LEFT JOIN read_parquet($scores) AS s USING (pair_id)
ORDER BY p.file_row_number
"""
_HELD_OUT = "SELECT bool_or(held_out) FROM read_parquet($parts)"
_NEW = """
SELECT (content_id, chosen < rejected) NOT IN (
         SELECT (content_id, chosen < rejected) FROM read_parquet($old)) AS is_new
FROM read_parquet($pairs, file_row_number = true)
ORDER BY file_row_number
"""
_GONE = """
SELECT content_id NOT IN (SELECT content_id FROM read_parquet($new)) AS is_gone
FROM read_parquet($pairs, file_row_number = true)
ORDER BY file_row_number
"""
_ROWS = """
SELECT file_row_number, pair_id, source, row, prompt
FROM read_parquet($pairs, file_row_number = true)
WHERE list_contains($rows, file_row_number)
"""


@final
class Subject:
    """A finished run, and optionally a baseline. Raises RunError if files are damaged."""

    def __init__(self, run: Run, baseline: Run | None = None) -> None:
        self.run = run
        self.baseline = baseline
        for each in (run, baseline):
            if each is not None:
                each.plan()  # refuses a run in another format
        self.manifest: Mapping[str, Any] = run.manifest()
        require_scores(run)
        self.facts: Mapping[str, Any] = self._recorded("facts", "rows")
        self.summary: Mapping[str, Any] = self._recorded("summary", "mislabelled_share")

    def _recorded(self, part: str, key: str) -> Mapping[str, Any]:
        """Return a part of the manifest. Raises RunError where it or its `key` is missing."""
        found = self.manifest.get(part)
        if isinstance(found, Mapping) and key in found:
            return found
        what = {"facts": "what was read from the dataset", "summary": "the audit's summary"}
        raise RunError(
            f"{self.run.manifest_path} does not record {what[part]}",
            hint="Make the run with this version: noisescope score DATASET",
        )

    @property
    def modality(self) -> str:
        return str(self.manifest.get("modality", "text"))

    def rows_of(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run our own SQL over $pairs (if it occurs) and `parameters`."""
        with _connection() as connection:
            rows: list[tuple[Any, ...]] = self._execute(connection, sql, parameters).fetchall()
            return rows

    def _execute(self, connection: Any, sql: str, parameters: Mapping[str, Any]) -> Any:
        import duckdb

        ours = {"pairs": str(self.run.pairs_path)} if "$pairs" in sql else {}
        bound = {**ours, **parameters}
        try:
            return connection.execute(sql, bound)
        except duckdb.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> RunError:
        return RunError(
            f"{self.run.directory} cannot be read: {first_line(error)}",
            hint="Score its dataset again: noisescope score DATASET",
        )

    @cached_property
    def columns(self) -> dict[str, Array]:
        """Lengths of both sides, margin, p_wrong and contested, each [N]."""
        with _connection() as connection:
            found = self._execute(connection, _COLUMNS, {"scores": str(self.run.scores_path)})
            columns: dict[str, Array] = found.fetchnumpy()
        result = {name: _plain(values) for name, values in columns.items()}
        missing = int(np.isnan(result["margin"]).sum())
        if missing:
            raise RunError(
                f"{missing:,} pairs of {self.run.directory} have no score",
                hint="Score its dataset again: noisescope score DATASET",
            )
        return result

    def __len__(self) -> int:
        return len(self.columns["margin"])

    @cached_property
    def annotators(self) -> tuple[list[str], Array]:
        """The sorted names of annotators, and each pair's index into them [N], -1 if unknown."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            names = pq.read_table(self.run.pairs_path, columns=["annotator"]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        return coded(names)

    @cached_property
    def pair_facts(self) -> PairFacts:
        """Prompts, responses and annotators of the pairs: the clusters of every interval."""
        return read_facts(self.run.pairs_path, self.modality)

    @cached_property
    def rate(self) -> FlipRate:
        """The flip rate as the summary states it: its interval covers every noise model that fits
        and a cross-fit that differs. Raises EvidenceError with too few pairs.
        """
        link = fit_flip_rate(self.columns["margin"], self.pair_facts.weights)
        stated = self.summary["flip_rate"]
        estimate, low, high = (float(stated[name]) for name in ("estimate", "low", "high"))
        return replace(link, estimate=estimate, low=low, high=high)

    @cached_property
    def wrong(self) -> tuple[float, float]:
        """The ends of the summary's bracket of wrong labels."""
        stated = self.summary["mislabelled_share"]
        return float(stated["low"]), float(stated["high"])

    @cached_property
    def accuracy(self) -> Interval:
        """Held-out accuracy of the replicas, as the summary states it."""
        low, high = self.summary["held_out_accuracy_interval"]
        return Interval(float(self.summary["held_out_accuracy"]), float(low), float(high))

    @cached_property
    def in_sample(self) -> bool:
        """Whether no margin is held out: the adapters may have trained on these pairs."""
        parts = [str(part) for part in self.run.margin_parts()]
        ((held_out,),) = self.rows_of(_HELD_OUT, parts=parts)
        return not held_out

    @cached_property
    def reviews(self) -> RunReviews | None:
        """What people's judgements of these pairs give; None if there are none."""
        return reviews_of(self.run)

    @property
    def chance(self) -> bool:
        """Whether the replicas are no better than chance, so that their margins prove nothing."""
        return bool(self.summary["chance"])

    @cached_property
    def new(self) -> Array:
        """Whether each pair, with its label, is missing in the baseline, bool [N]."""
        if self.baseline is None:
            return np.zeros(len(self), bool)
        old = str(self.baseline.pairs_path)
        return np.array([row[0] for row in self.rows_of(_NEW, old=old)], dtype=bool)

    def worst(self, among: Array | None = None, count: int = 10) -> tuple[Row, ...]:
        """Return the `count` pairs with the highest p_wrong (within a mask [N]), worst first."""
        order = np.lexsort((self.columns["margin"], -self.columns["p_wrong"]))
        chosen = order if among is None else order[among[order]]
        return self.shown(chosen[:count])

    def shown(self, numbers: Array) -> tuple[Row, ...]:
        """Return the pairs at these rows of pairs.parquet, with p_wrong and prompt."""
        found = self.rows_of(_ROWS, rows=[int(number) for number in numbers])
        texts = {number: rest for number, *rest in found}
        p_wrong = self.columns["p_wrong"]
        return tuple(
            Row(pair_id, source, row, f"p_wrong {p_wrong[n]:.2f}: {prompt[:DETAIL]}")
            for n, (pair_id, source, row, prompt) in ((n, texts[n]) for n in map(int, numbers))
        )

    def place_of(self, source: str) -> str:
        """Return the path of a pair's source relative to the working directory."""
        resolved = Path(str(self.manifest.get("resolved", "")))
        if resolved.is_absolute() and resolved.is_relative_to(Path.cwd()):
            resolved = resolved.relative_to(Path.cwd())
        if resolved.is_file():
            return resolved.as_posix()
        inside = resolved / source
        return inside.as_posix() if inside.is_file() else source


def pairs_without(run: Run, other: Run) -> pa.Table:
    """The pairs of `run` whose content is not in `other`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _connection() as connection:
        paths = {"pairs": str(run.pairs_path), "new": str(other.pairs_path)}
        rows = connection.execute(_GONE, paths).fetchall()
    return pq.read_table(run.pairs_path).filter(pa.array([row[0] for row in rows], pa.bool_()))


def _connection() -> Any:
    from noisescope.scoring.margins import connect

    return connect()


def _plain(values: Array) -> Array:
    """Remove a column's mask: nulls become NaN, or None among objects."""
    if not isinstance(values, np.ma.MaskedArray):
        return np.asarray(values)
    if values.dtype == object:
        filled = np.asarray(values.data, dtype=object).copy()
        filled[np.ma.getmaskarray(values)] = None
        return filled
    return np.where(np.ma.getmaskarray(values), np.nan, values.data.astype(np.float64))
