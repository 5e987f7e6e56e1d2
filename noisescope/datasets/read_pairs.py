"""Read pairs from rows: what a schema makes of each row, with its place, or why it states none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from noisescope.datasets.adapters.cells import RawRow, RowFault, shortened, value
from noisescope.datasets.adapters.schema import Schema
from noisescope.datasets.image_store import Gallery
from noisescope.datasets.readers import Row
from noisescope.pairs import Fault, Pair

if TYPE_CHECKING:
    from noisescope.datasets.facts import Tally


def read_pairs(
    rows: Iterable[Row],
    schema: Schema,
    tally: Tally | None = None,
    gallery: Gallery | None = None,
) -> Iterator[Pair | Fault]:
    """Yield every pair that the rows state, and a Fault for every row (or pair) that states none.

    Pairs carry the source and row they came from. Sides of image pairs are content keys, and
    `gallery` keeps their bytes findable. Memory stays constant but for the gallery, and for
    answers rated in rows of their own, which are gathered by prompt.
    """
    gallery = gallery or Gallery.of(schema)
    label = schema.roles.get("preference")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if tally is not None:
            tally.rows += 1
        if row.values is None:
            yield Fault(row.source, row.number, "unreadable", row.trouble)
            continue
        try:
            if schema.shape == "rows":
                groups.setdefault(_prompt_of(schema, row.values), []).append(row)
                continue
            if tally is not None and label:
                tally.count_label(value(row.values, label))
            pairs = schema.parse(row.values)
        except RowFault as fault:
            yield _fault(row, fault)
            continue
        for pair in pairs:
            yield _outcome(pair, row, gallery)
    for group in groups.values():
        try:
            found = schema.parse_group([row.values or {} for row in group])
        except RowFault as fault:
            yield from (_fault(row, fault) for row in group)
            continue
        for at, pair in found:
            yield _outcome(pair, group[at], gallery)


def _prompt_of(schema: Schema, row: RawRow) -> str:
    """What rows that rate answers to the same prompt have in common."""
    roles = ("system", "prompt", "context")
    return repr([value(row, schema.roles[role]) for role in roles if role in schema.roles])


def _outcome(pair: Pair | RowFault, row: Row, gallery: Gallery | None) -> Pair | Fault:
    """A pair with its place (and the content keys of its images), or its fault."""
    if isinstance(pair, RowFault):
        return _fault(row, pair)
    if not _is_unicode(pair):
        return Fault(row.source, row.number, "unreadable", "not valid Unicode text")
    try:
        return _placed(pair if gallery is None else gallery.admit(row, pair), row)
    except RowFault as fault:
        return _fault(row, fault)


def _fault(row: Row, fault: RowFault) -> Fault:
    """The row's fault, in a few words that can be printed."""
    detail = shortened(fault.detail, 120).encode("utf-8", "replace").decode()
    return Fault(row.source, row.number, fault.reason, detail)


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
        pair.strength,
        pair.votes,
        pair.agreement,
        pair.group,
        pair.origin,
        pair.contradicted,
    )


def _is_unicode(pair: Pair) -> bool:
    """Whether all texts can be written as UTF-8 (a lone surrogate cannot)."""
    turns = [turn.role + turn.content for turn in pair.turns or ()]
    names = "".join(filter(None, (pair.annotator, pair.pair_id, pair.group, pair.origin)))
    try:
        "".join((pair.prompt, pair.chosen, pair.rejected, names, *turns)).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
