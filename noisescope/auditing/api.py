"""The Python API: `noisescope.audit(dataset, model=...)`, from pairs to scores in one call.

    result = noisescope.audit("pairs.jsonl", model="models/smollm2")
    result.summary.flip_rate.estimate
    result.scores                       # pyarrow Table, one row a pair
    result.to_pandas().sort_values("rank").head(20)

The call is `noisescope score`: the same run directory, reused when it is finished. Parts of it
are in `auditing`, `datasets` and `models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import UsageError

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from noisescope.datasets.in_memory import ArrowStream
    from noisescope.models import Policy
    from noisescope.pairs import PreferenceDataset
    from noisescope.progress import Reporter
    from noisescope.replicas.gather import EvidenceConfig
    from noisescope.scoring.score import ScoreConfig
    from noisescope.scoring.summary import Summary
    from noisescope.storage.run import Run


@final
@dataclass(frozen=True)
class Audited:
    """A finished audit of N pairs: `summary` in words and numbers, and its files in `run`."""

    run: Run
    summary: Summary

    @cached_property
    def pairs(self) -> pa.Table:
        """[N] rows in the dataset's order: pair_id, prompt, turns, chosen, rejected, annotator...

        Sides of image pairs are content keys.
        """
        import pyarrow.parquet as pq

        return pq.read_table(self.run.pairs_path)

    @cached_property
    def scores(self) -> pa.Table:
        """[N] rows in the dataset's order: pair_id, p_flip, u, W, gamma, rank...

        Columns, units and directions: docs/output.md. Rank 1 is the most suspicious pair.
        """
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        scores = pq.read_table(self.run.scores_path)
        return scores.take(pc.index_in(self.pairs["pair_id"], scores["pair_id"]))

    @cached_property
    def table(self) -> pa.Table:
        """[N] rows, the columns of `pairs` and then those of `scores`."""
        joined = self.pairs
        for name in self.scores.column_names:
            if name not in joined.column_names:
                joined = joined.append_column(name, self.scores[name])
        return joined

    def to_pandas(self) -> pd.DataFrame:
        """`table` as a pandas frame [N]."""
        return self.table.to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """`table` as a polars frame [N]. Raises UsageError where polars is not installed."""
        try:
            import polars
        except ModuleNotFoundError as error:
            raise UsageError(
                "to_polars: polars is not installed", hint="pip install polars"
            ) from error
        return polars.DataFrame(self.table)

    def to_dataset(self) -> datasets.Dataset:
        """`table` as a Hugging Face dataset [N]."""
        from datasets import Dataset

        return Dataset(self.table)


def audit(
    dataset: str | Path | PreferenceDataset | ArrowStream | datasets.Dataset | pd.DataFrame,
    model: str | Path | Policy,
    *,
    name: str = "pairs",
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    pairs_of: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    evidence: EvidenceConfig | None = None,
    score: ScoreConfig | None = None,
    runs_directory: str | Path = "runs",
    run_directory: str | Path | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Audited:
    """Audit the pairs of `dataset` with `model`; a finished run of the same plan is reused.

    `dataset` is a path, glob, workspace or Hub name; a table of pandas, polars, Arrow or
    `datasets`, whose run is called after `name`; or what `datasets.load` returned. `model` is a
    directory, GGUF file or Hub name, or a loaded Policy. `format`, `columns` (role to column),
    `pairs_of` (ranked answers: all, best, adjacent), `split` and `limit` choose what is read;
    `settings` are those of the model: device, dtype, max_length, image_size, draws.
    `evidence` says how replicas are made, `score` holds rho, k1, k2 and c2.

    Where the replicas do no better than chance, `summary.chance` is true and the scores say
    nothing. Raises DataError, UsageError, ModelError, RunError or EvidenceError.
    """
    from noisescope.auditing.audit import audit as run_audit
    from noisescope.models.load import load_policy
    from noisescope.replicas.gather import EvidenceConfig

    evidence = evidence or EvidenceConfig()
    reading = {"format": format, "columns": columns, "pairs": pairs_of, "limit": limit}
    pairs = _read(dataset, name, split, reading)
    evidence.check(pairs.modality)
    if isinstance(model, str | Path):
        policy = load_policy(str(model), pairs, **settings)
    elif settings:
        raise UsageError(
            f"{', '.join(settings)}: the model is loaded already",
            hint="Give its name or directory instead, or load it with these settings.",
        )
    else:
        policy = model
    done = run_audit(
        pairs,
        policy,
        evidence=evidence,
        score=score,
        runs_directory=Path(runs_directory),
        run_directory=None if run_directory is None else Path(run_directory),
        command="noisescope.audit",
        reporter=reporter,
    )
    return Audited(done.run, done.summary)


def _read(
    dataset: object, name: str, split: str | None, reading: dict[str, Any]
) -> PreferenceDataset:
    """The pairs that `dataset` stands for. Raises UsageError and DataError."""
    from noisescope.datasets import load
    from noisescope.datasets.in_memory import load_table
    from noisescope.pairs import PreferenceDataset
    from noisescope.storage.workspace import find_workspace

    if isinstance(dataset, str | Path):
        return load(dataset, split=split, workspace=find_workspace(), **reading)
    wrong = {"split": split} | (reading if isinstance(dataset, PreferenceDataset) else {})
    if given := [option for option, value in wrong.items() if value is not None]:
        raise UsageError(
            f"{', '.join(given)}: the dataset is in memory already",
            hint="Leave that out, or choose the rows yourself.",
        )
    if isinstance(dataset, PreferenceDataset):
        return dataset
    return load_table(dataset, name=name, **reading)
