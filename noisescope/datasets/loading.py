"""From a source to a PreferenceDataset: stream rows, adapt them, count what is set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, final

from noisescope.datasets.adapter import Adapter, RowFault, shortened
from noisescope.datasets.gallery import Gallery
from noisescope.datasets.readers import NO_ROWS, Row
from noisescope.datasets.recognition import recognise
from noisescope.datasets.sources import Source, open_source
from noisescope.errors import DataError, UsageError
from noisescope.pairs import (
    REJECTION_REASONS,
    Facts,
    Fault,
    Pair,
    PreferenceDataset,
    dataset_fingerprint,
    to_table,
)
from noisescope.storage.files import slug
from noisescope.storage.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

#: Below this many usable pairs there is nothing to audit.
FEWEST_PAIRS = 10
_EXAMPLES = 5


def load(
    target: str | Path,
    *,
    format: str | None = None,
    limit: int | None = None,
    split: str | None = None,
    workspace: Workspace | None = None,
) -> PreferenceDataset:
    """Read a dataset: a workspace name, path, glob, saved dataset or Hub name (`name:split`).

    `format` names an adapter instead of recognising one; `limit` reads only the first rows.
    Raises DataError where nothing can be read, no format fits, or fewer than ten pairs are
    usable; UsageError for an unknown format or a limit below 1.
    """
    return read_source(
        open_source(target, split=split, workspace=workspace), format=format, limit=limit
    )


def read_source(
    source: Source, *, format: str | None = None, limit: int | None = None
) -> PreferenceDataset:
    """Read all pairs of an opened source. Raises as `load` does."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1", hint="Leave it out to read all.")
    adapter, rows = recognise(
        islice(source.rows(), limit), format=format or source.format, said=source.resolved
    )
    tally = Tally()
    gallery = Gallery() if adapter.modality == "image" else None
    table = to_table(tally.pairs(read_pairs(rows, adapter, tally, gallery)))
    facts = tally.facts(table)
    _check_usable(facts, source, limit)
    return PreferenceDataset(
        name=slug(source.name),
        resolved=source.resolved,
        adapter=adapter.name,
        modality=adapter.modality,
        table=table,
        facts=facts,
        fingerprint=dataset_fingerprint(table),
        images=gallery.store() if gallery else None,
    )


@final
@dataclass
class Tally:
    """Counts kept while rows stream by."""

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[Fault] = field(default_factory=list)
    ordered: int = 0
    first_chosen: int = 0

    def pairs(self, outcomes: Iterable[Pair | Fault]) -> Iterator[Pair]:
        """Pass pairs on; count orders of sides, faults by reason, and keep the first five."""
        for outcome in outcomes:
            if isinstance(outcome, Pair):
                self.ordered += outcome.first is not None
                self.first_chosen += outcome.first is True
                yield outcome
                continue
            self.rejected[outcome.reason] += 1
            if len(self.examples) < _EXAMPLES:
                self.examples.append(outcome)

    def facts(self, table: pa.Table) -> Facts:
        """What was seen, with the repeats that the finished table holds."""
        order = {reason: place for place, reason in enumerate(REJECTION_REASONS)}
        counts = sorted(self.rejected.items(), key=lambda item: order.get(item[0], len(order)))
        return Facts(
            rows=self.rows,
            pairs=table.num_rows,
            rejected=dict(counts),
            examples=tuple(self.examples),
            duplicates=table.num_rows - _distinct(table, "content_id", "direction"),
            contradictions=_both_ways(table, "content_id"),
            self_contradictions=_both_ways(table, "content_id", "annotator"),
            annotators=len(table["annotator"].unique().drop_null()),
            ordered=self.ordered,
            first_chosen=self.first_chosen,
        )


def _distinct(table: pa.Table, *columns: str) -> int:
    """How many different rows these columns hold; `direction` says which side was chosen."""
    import pyarrow.compute as pc

    with_direction = table.append_column("direction", pc.less(table["chosen"], table["rejected"]))
    return int(with_direction.select(columns).group_by(list(columns)).aggregate([]).num_rows)


def _both_ways(table: pa.Table, *columns: str) -> int:
    """How many of the values of `columns` (those without nulls) stand in both directions."""
    known = table.filter(table["annotator"].is_valid()) if "annotator" in columns else table
    return _distinct(known, *columns, "direction") - _distinct(known, *columns)


def read_pairs(
    rows: Iterable[Row],
    adapter: Adapter,
    tally: Tally | None = None,
    gallery: Gallery | None = None,
) -> Iterator[Pair | Fault]:
    """Yield every pair that the rows state, and a Fault for every row (or pair) that states none.

    Pairs carry the source and row they stood in. Sides of image pairs are content keys, and
    `gallery` keeps their bytes findable. Memory stays constant but for the gallery.
    """
    if adapter.modality == "image" and gallery is None:
        gallery = Gallery()
    for row in rows:
        if tally is not None:
            tally.rows += 1
        if row.values is None:
            yield Fault(row.source, row.number, "unreadable", row.trouble)
            continue
        try:
            pairs = adapter.parse(row.values)
        except RowFault as fault:
            yield _fault(row, fault)
            continue
        for pair in pairs:
            if isinstance(pair, RowFault):
                yield _fault(row, pair)
            elif _is_unicode(pair):
                yield _placed(pair, row) if gallery is None else _shown(pair, row, gallery)
            else:
                yield Fault(row.source, row.number, "unreadable", "not valid Unicode text")


def _fault(row: Row, fault: RowFault) -> Fault:
    """The row's fault, in a few words that can be printed."""
    detail = shortened(fault.detail, 120).encode("utf-8", "replace").decode()
    return Fault(row.source, row.number, fault.reason, detail)


def _shown(pair: Pair, row: Row, gallery: Gallery) -> Pair | Fault:
    """An image pair with its place and content keys, or what is wrong with its images."""
    try:
        return _placed(gallery.admit(row, pair), row)
    except RowFault as fault:
        return _fault(row, fault)


def _placed(pair: Pair, row: Row) -> Pair:
    """The pair with its place; `dataclasses.replace` would take three times as long."""
    return Pair(
        pair.prompt,
        pair.chosen,
        pair.rejected,
        pair.turns,
        pair.annotator,
        pair.pair_id,
        row.source,
        row.number,
        pair.first,
    )


def _is_unicode(pair: Pair) -> bool:
    """Whether all texts can be written as UTF-8 (a lone surrogate cannot)."""
    turns = [turn.role + turn.content for turn in pair.turns or ()]
    names = (pair.annotator or "") + (pair.pair_id or "")
    try:
        "".join((pair.prompt, pair.chosen, pair.rejected, names, *turns)).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_usable(facts: Facts, source: Source, limit: int | None) -> None:
    """Raise DataError where too little is left to audit."""
    if facts.pairs >= FEWEST_PAIRS:
        return
    if not facts.rows:
        raise DataError(f"{source.resolved}: holds no rows", hint=NO_ROWS)
    counts = ", ".join(f"{count:,} {reason}" for reason, count in facts.rejected.items())
    shown = "; ".join(map(str, facts.examples))
    more = sum(facts.rejected.values()) - len(facts.examples)
    shown += f"; and {more:,} more" if more > 0 else ""
    if facts.pairs == 0 and set(facts.rejected) == {"tie"}:
        message = f"every one of its {facts.rows:,} rows is a tie: {shown}"
    elif facts.pairs == 0:
        message = f"none of its {facts.rows:,} rows states a usable preference ({counts}): {shown}"
    else:
        pairs = "1 usable pair" if facts.pairs == 1 else f"{facts.pairs} usable pairs"
        message = f"{pairs}; an audit needs at least {FEWEST_PAIRS}"
        message += f" ({counts}): {shown}" if counts else ""
    if limit and facts.rows >= limit:
        hint = f"--limit {limit} reads {limit:,} rows: raise it."
    elif not counts:
        hint = "Add more pairs: some hundreds make an estimate."
    else:
        hint = "Check the rows shown, or name the right format with --format NAME."
    raise DataError(f"{source.resolved}: {message}", hint=hint)
