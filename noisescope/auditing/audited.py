"""The result of an audit in Python: tables, one sentence, and how a notebook shows it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import UsageError
from noisescope.storage.printable import one_line, plural

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from noisescope.scoring.summary import Summary
    from noisescope.storage.run import Run

#: Suspicious pairs in a notebook, and characters of each text.
SHOWN, LONGEST = 5, 160


@final
@dataclass(frozen=True, repr=False)
class Audited:
    """A finished audit of N pairs: its `summary`, and its files in `run`."""

    run: Run
    summary: Summary

    @property
    def answer(self) -> str:
        """How many labels are wrong, in one sentence."""
        from noisescope.scoring.answer import answer
        from noisescope.scoring.reviews import reviews_of

        return answer(self.summary.to_json(), reviews_of(self.run))

    def __repr__(self) -> str:
        pairs, trust = plural(self.summary.pairs, "pair"), self.summary.trust
        return f"<Audited {pairs}, {self.run.directory}: {self.answer} Trust: {trust.word}>"

    def _repr_html_(self) -> str:
        """The answer, the trust in it, what checking finds, and the worst pairs."""
        trust = self.summary.trust
        finds = "".join(
            f"<tr><td>{found.pairs:,}</td><td>{found.low:,} to {found.high:,}</td></tr>"
            for found in self.summary.find
        )
        names = ("p_wrong", "annotator", "prompt", "chosen", "rejected")
        rows = "".join(
            "<tr>" + "".join(f"<td>{_cell(row[name])}</td>" for name in names) + "</tr>"
            for row in self.suspects(SHOWN).to_pylist()
        )
        header = "".join(f"<th>{name}</th>" for name in names)
        return (
            f"<p><b>{escape(self.answer)}</b><br>Trust: <b>{escape(trust.word)}</b>. "
            f"{escape(trust.sentence)}</p>"
            f"<table><tr><th>check the worst</th><th>find wrong labels</th></tr>{finds}</table>"
            f"<table><tr>{header}</tr>{rows}</table>"
        )

    def suspects(self, count: int = 20) -> pa.Table:
        """The `count` most suspicious pairs, worst first: the columns of `table`."""
        from noisescope.storage.sql import query

        return query(
            self.run,
            "SELECT p.*, s.* EXCLUDE (pair_id) FROM scores s JOIN pairs p USING (pair_id) "
            f"WHERE rank <= {int(count):d} ORDER BY rank",
        )

    @cached_property
    def annotators(self) -> pa.Table:
        """Annotators, least reliable first: name, labels, agreement, flip_rate, low, high...

        Empty if the dataset names none.
        """
        import pyarrow as pa

        from noisescope.scoring.annotators import coded, coded_table

        names, codes = coded(self.pairs["annotator"])
        margins = self.scores["margin"].to_numpy()
        rows = coded_table(names, codes, margins, self.summary.flip_rate) if names else []
        return pa.Table.from_pylist([vars(row) for row in rows])

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
        """`table` as a polars frame [N]. Raises UsageError if polars is not installed."""
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


def _cell(value: Any) -> str:
    """A value as HTML; text of the dataset is untrusted."""
    if isinstance(value, float):
        return f"{value:.2f}"
    text = one_line(str(value)) if value is not None else ""
    return escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
