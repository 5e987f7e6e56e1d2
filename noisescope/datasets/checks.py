"""Refuse a dataset that was read otherwise than its author meant, or is too small to audit."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from noisescope.datasets.adapters.preference import meaning
from noisescope.datasets.adapters.schema import Schema
from noisescope.datasets.facts import Tally
from noisescope.datasets.readers import NO_ROWS
from noisescope.datasets.sources import Source
from noisescope.errors import DataError
from noisescope.pairs import Facts

if TYPE_CHECKING:
    import pyarrow as pa

#: Reasons that are no fault of the file.
SET_ASIDE = ("tie", "identical sides", "empty response", "unlabelled")
#: Below this many usable pairs there is nothing to audit.
FEWEST_PAIRS = 10
#: Share of labels without a meaning at which they are coded otherwise.
_UNEXPLAINED = 0.01
#: Share of empty prompts at which another column must hold them.
_EMPTY = 0.9
#: Share of prompts that end with the same side at which they are no prompts.
_HELD = 0.5


def check_labels(schema: Schema, tally: Tally, source: Source) -> None:
    """Raise DataError if labels occur that the schema's coding cannot explain."""
    if "preference" not in schema.roles or "name_a" in schema.roles:
        return
    odd = {
        text: count
        for text, count in tally.labels.items()
        if text and isinstance(meaning(schema, text), str)
    }
    if sum(odd.values()) <= _UNEXPLAINED * sum(tally.labels.values()):
        return
    path = schema.roles["preference"]
    counts = ", ".join(f"{text!r} {count:,} times" for text, count in tally.labels.items())
    one, other = schema.roles["a"], schema.roles["b"]
    names = ("prompt", "a", "b", "preference")
    roles = ",".join(f"{name}={schema.roles[name]}" for name in names if name in schema.roles)
    raise DataError(
        f"{source.resolved}: {path} holds {counts}; {', '.join(map(repr, odd))} names neither "
        f"{one} nor {other}",
        hint=f"Give the values their meaning: --columns '{roles},a_wins=VALUE,b_wins=VALUE,"
        "tie=VALUE'",
    )


def check_prompts(table: pa.Table, schema: Schema, spare: Sequence[str], source: Source) -> None:
    """Raise DataError if nearly all prompts are empty and another column may hold them."""
    import pyarrow.compute as pc

    path = schema.roles.get("prompt")
    if path is None or schema.shape == "rows":
        return
    empty = pc.sum(pc.equal(pc.utf8_trim_whitespace(table["prompt"]), "")).as_py() or 0
    if empty <= _EMPTY * table.num_rows:
        return
    sides = ",".join(f"{r}={p}" for r, p in schema.roles.items() if r in ("chosen", "rejected"))
    if spare:
        raise DataError(
            f"{source.resolved}: {path} is empty in {empty:,} of {table.num_rows:,} pairs; "
            f"the prompt may be in {', '.join(spare[:4])}",
            hint=f"--columns 'prompt={spare[0]}{',' if sides else ''}{sides}' reads it there; "
            f"--columns 'prompt={',' if sides else ''}{sides}' reads pairs without prompts.",
        )


def check_copies(copied: Counter[str], pairs: int, schema: Schema, source: Source) -> None:
    """Raise DataError if most prompts end with one of the sides: they hold the answer."""
    side = max(copied, key=copied.__getitem__, default="")
    if not copied[side] > _HELD * pairs:
        return
    raise DataError(
        f"{source.resolved}: the prompt contains one of the responses ({side}) in "
        f"{copied[side]:,} of {pairs:,} pairs, so it gives the label away",
        hint=f"{schema.roles.get('prompt', 'Its column')} is not the prompt alone: name the "
        "column that is, with --columns prompt=COLUMN",
    )


def check_usable(
    facts: Facts, schema: Schema, source: Source, limit: int | None, fewest: int
) -> None:
    """Raise DataError if too little is left to audit."""
    if facts.pairs >= fewest:
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
    elif schema.modality == "vision":
        path = schema.roles["images"]
        hint = f"If {path} holds no pictures of the prompts: --columns images= reads texts alone."
    elif facts.pairs and not set(facts.rejected) - {*SET_ASIDE}:
        hint = "Add more pairs: some hundreds make an estimate."
    else:
        hint = f"See how its rows are read: noisescope datasets {shlex.quote(source.resolved)}"
    raise DataError(f"{source.resolved}: {message}", hint=hint)
