"""The result of an audit in Python: numbers, tables, and the commands that use a finished run.

result = noisescope.audit("pairs.jsonl", model="./model")
result.answer, result.summary.flip_rate.low, result.suspects(20)
result.explain().sentences, result.plot(), result.report(), result.export("clean")
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import DataError, NoisescopeError, UsageError
from noisescope.storage.printable import one_line, plural

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from matplotlib.figure import Figure

    from noisescope.datasets import Source
    from noisescope.pairs import ImageStore
    from noisescope.report.explain import Explanation
    from noisescope.scoring.reviews import RunReviews
    from noisescope.storage.run import Run

#: Suspicious pairs in a notebook, and characters of each text.
SHOWN, LONGEST = 5, 160


@final
@dataclass(frozen=True, repr=False)
class Audited:
    """A finished audit of N pairs, whose files are in `run`."""

    run: Run

    def __post_init__(self) -> None:
        """Keep the run's absolute path, which holds in any working directory."""
        object.__setattr__(self, "run", replace(self.run, directory=self.run.directory.absolute()))

    def to_json(self) -> dict[str, Any]:
        """The object that `noisescope score --json` prints."""
        from noisescope.scoring.reviews import reviews_of

        people = reviews_of(self.run)
        return {**self.run.manifest()["summary"], "reviews": people and people.to_json()}

    @cached_property
    def summary(self) -> SimpleNamespace:
        """The same without the reviews, as attributes: `summary.flip_rate.estimate`."""
        return _attributes(self.run.manifest()["summary"])

    @property
    def answer(self) -> str:
        """How many labels are wrong, in one sentence."""
        from noisescope.scoring.answer import answer
        from noisescope.scoring.reviews import reviews_of

        return answer(self.run.manifest()["summary"], reviews_of(self.run))

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

    def explain(self) -> Explanation:
        """What the suspicious labels have in common: `.sentences`, `.findings`."""
        from noisescope.report.explain import explain_run

        return explain_run(self.run, self._images())

    def plot(self, name: str | None = None) -> Figure:
        """A figure: wrong labels found as pairs are checked, or one of the report's by `name`.

        None is the first that the audit supports. Raises UsageError, with all names, for another.
        """
        from importlib import import_module

        from noisescope.report.contents import gather
        from noisescope.report.curves import finds
        from noisescope.scoring.answer import states_counts

        import_module("matplotlib.pyplot")  # a notebook draws figures only once it is imported
        summary, pictures = self.run.manifest()["summary"], gather(self.run, worst=1).pictures
        if summary["find"] and states_counts(summary):
            pictures = [finds(summary["find"]), *pictures]
        names = [picture.name for picture in pictures]
        if name is not None and name not in names:
            raise UsageError(f"this run has no figure {name!r}", hint=f"It has {', '.join(names)}.")
        return pictures[0 if name is None else names.index(name)].figure

    def report(self, output: str | Path | None = None) -> Path:
        """Write the page, report.html in the run if None, and its figures; return its path."""
        from noisescope.report.html import write_report

        return write_report(self.run, None if output is None else Path(output), self._images())[0]

    def export(
        self,
        format: str = "weights",
        output: str | Path | None = None,
        *,
        force: bool = False,
        **options: Any,
    ) -> Path:
        """Write weights, a TRL dataset, the clean dataset or a queue for review; return the path.

        `options` are those of `noisescope export` for this format: `weight`, `drop_above`,
        `flip_top`, `count`... `output` None is exports/RUN-FORMAT. Raises UsageError for an option
        that the format does not take, EvidenceError for an audit too weak, unless `force`.
        """
        from noisescope.export.local import TAKES, check_format, default_output, export_local
        from noisescope.export.removal import CleanPolicy
        from noisescope.scoring.run_scores import find_run_scores

        check_format(format)
        refuse_unknown(f"export({format!r})", options, TAKES[format])
        kept = ("weight", "source", "count", "threshold")
        given = {name: options.pop(name) for name in kept if name in options}
        done = CleanPolicy(**options, force=force)
        directory = self.run.directory
        decisions = given.get("weight") == "reviews"  # which no audit is needed for
        named = given.pop("source", None)
        try:
            scores = find_run_scores(str(directory), directory.parent, force=force or decisions)
            out = default_output(scores, format) if output is None else Path(output)
            export_local(
                scores,
                format,
                out,
                done,
                source=lambda: self._source(named),
                images=lambda: self._images(named),
                **given,
            )
        except NoisescopeError as error:
            raise type(error)(
                in_python(error.message), hint=error.hint and in_python(error.hint)
            ) from error
        return out

    def review(
        self,
        count: int = 100,
        *,
        purpose: str = "estimate",
        reviewer: str | None = None,
        opened: bool = True,
    ) -> RunReviews | None:
        """Judge pairs in the browser until Finish is pressed or the cell is interrupted.

        `purpose` estimate is a random sample, fix the most suspicious pairs. Returns all reviews of
        the run; `audit` typed again recalibrates p_wrong on them.
        """
        from noisescope.report.review.server import serve
        from noisescope.report.review.session import open_session, user_name
        from noisescope.scoring.reviews import reviews_of

        who = user_name() if reviewer is None else reviewer
        session = open_session(self.run, reviewer=who, purpose=purpose, count=count)
        serve(session, self._images(), self.run, note=print, opened=opened)
        return reviews_of(self.run)

    def _source(self, named: str | Path | None) -> Source:
        """Open the audited dataset, or the files that it is in now. Raises DataError."""
        from noisescope.datasets import open_source
        from noisescope.datasets.in_memory import IN_MEMORY
        from noisescope.storage.workspace import find_workspace

        resolved = self.run.dataset_path()
        try:
            return open_source(named or resolved, workspace=find_workspace())
        except DataError as error:
            if named:
                raise
            in_memory = resolved.endswith(IN_MEMORY)
            first = 'Save the table, such as to "pairs.parquet": ' if in_memory else ""
            raise DataError(
                "a clean copy is made of files, and the audited pairs were a table in memory"
                if in_memory
                else f"the audited dataset cannot be opened from {Path.cwd()}: {error.message}",
                hint=f'{first}result.export("clean", source="PATH"). result.export("trl") writes '
                "the pairs without it.",
            ) from error

    def _images(self, named: str | Path | None = None) -> ImageStore | None:
        """The pictures of a run, from its dataset or the files that it is in now.

        Warns where they cannot be read, unless they are `named`: then raises DataError.
        """
        from noisescope.datasets.load import images_again, load_again

        if named is not None:
            return load_again(str(named), self.run.manifest()).images
        return images_again(self.run, lambda text: warnings.warn(text, stacklevel=3))

    @cached_property
    def annotators(self) -> pa.Table:
        """Annotators, least reliable first: name, labels, agreement, flip_rate, low, high...

        Empty if the dataset names none.
        """
        import pyarrow as pa

        from noisescope.scoring.annotators import annotator_table, coded
        from noisescope.scoring.flip_rate import fit_flip_rate

        names, codes = coded(self.pairs["annotator"])
        margins = self.scores["margin"].to_numpy()
        rows = annotator_table(names, codes, margins, fit_flip_rate(margins)) if names else []
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


def in_python(text: str) -> str:
    """An error's text with options of `noisescope export` as arguments: --drop-top 0.3, --force."""
    text = re.sub(r"--force\b", "force=True", text)

    def argument(found: re.Match[str]) -> str:
        return f"{found[1].replace('-', '_')}={found[2]}"

    return re.sub(r"--([a-z]+(?:-[a-z]+)*) (\d[\d.]*\b)", argument, text)


def _attributes(summary: Any) -> SimpleNamespace:
    """A JSON object with attributes for keys, at every depth."""
    found: SimpleNamespace = json.loads(
        json.dumps(summary), object_hook=lambda keys: SimpleNamespace(**keys)
    )
    return found


def refuse_unknown(
    function: str,
    given: Iterable[str],
    known: Iterable[str],
    elsewhere: Mapping[str, str] | None = None,
) -> None:
    """Raise UsageError for the first argument that a function does not have, with the nearest.

    `elsewhere` has names that belong to another place, and the hint to it.
    """
    names, others = list(known), elsewhere or {}
    for name in given:
        if name not in names:
            close = get_close_matches(name, [*names, *others], n=1)
            hint = f"It has {', '.join(names)}."
            if close:
                hint = others.get(close[0], f"Did you mean {close[0]}?")
            raise UsageError(f"{function} has no argument {name!r}", hint=hint)


def _cell(value: Any) -> str:
    """A value as HTML; text of the dataset is untrusted."""
    if isinstance(value, float):
        return f"{value:.2f}"
    text = one_line(str(value)) if value is not None else ""
    return escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
