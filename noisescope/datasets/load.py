"""From a source to a PreferenceDataset: stream rows, read their pairs, count what is set aside."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.datasets.adapters.cells import RowFault, shortened, value
from noisescope.datasets.adapters.compose import ends_with
from noisescope.datasets.adapters.labels import canonical
from noisescope.datasets.adapters.mapping import parsed_columns
from noisescope.datasets.adapters.preference import meaning
from noisescope.datasets.adapters.recognise import recognise
from noisescope.datasets.adapters.refuse import beside_prompt, unused
from noisescope.datasets.adapters.schema import Schema
from noisescope.datasets.adapters.table import ADAPTERS
from noisescope.datasets.adapters.vision import (
    empty_of,
    empty_places,
    folders_of,
    late_pictures,
)
from noisescope.datasets.image_store import Gallery
from noisescope.datasets.readers import NO_ROWS, Row
from noisescope.datasets.sources import FLIPS, Source, open_source
from noisescope.errors import DataError, NoisescopeError, UsageError
from noisescope.pairs import (
    PICTURE,
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

    from noisescope.pairs import ImageStore
    from noisescope.storage.run import Run

#: Reasons that are no fault of the file.
SET_ASIDE = ("tie", "identical sides", "empty response", "unlabelled")
#: Below this many usable pairs there is nothing to audit.
FEWEST_PAIRS = 10
#: Decodable rows looked at to recognise a schema.
SAMPLE_ROWS = 100
_EXAMPLES = 5
#: Distinct labels that are counted.
_LABELS = 50
#: Share of labels without a meaning at which they are coded otherwise.
_UNEXPLAINED = 0.01
#: Share of empty prompts at which another column must hold them.
_EMPTY = 0.9
#: Share of prompts that end with the same side at which they are no prompts.
_HELD = 0.5
_TEMPLATE = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]|<\|user\|>|<\|assistant\|>"
    r"|<\|system\|>|<\|User\|>|<" + "\uff5cUser\uff5c>"
)


def load(
    target: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | str | None = None,
    pairs: str | None = None,
    limit: int | None = None,
    split: str | None = None,
    workspace: Workspace | None = None,
    fewest: int = FEWEST_PAIRS,
) -> PreferenceDataset:
    """Read a dataset: a workspace name, path, glob, saved dataset or Hub name (`name:split`).

    `columns` maps roles to columns (`{"prompt": "question"}`, or the text of `--columns`), `format`
    names a known schema; otherwise both are recognised. `pairs` chooses those of ranked or rated
    answers: all, best, adjacent. `limit` reads only the first rows.

    Raises DataError if nothing can be read, no schema fits, or fewer than `fewest` pairs are
    usable; UsageError for an unknown format, role or mode.
    """
    source = open_source(target, split=split, workspace=workspace)
    return read_source(
        source, format=format, columns=columns, pairs=pairs, limit=limit, fewest=fewest
    )


def read_source(
    source: Source,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | str | None = None,
    pairs: str | None = None,
    limit: int | None = None,
    schema: Schema | None = None,
    fewest: int = FEWEST_PAIRS,
) -> PreferenceDataset:
    """Read all pairs of an opened source, by `schema` if it is known. Raises as `load` does."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1", hint="Leave it out to read all.")
    ahead = first_rows(source, limit)
    reading = reading_of(source, format=format, columns=columns, pairs=pairs)
    schema = schema or schema_of(ahead, source, format=format, columns=columns, pairs=pairs)
    known = [row.values for row in ahead if row.values is not None]
    spare = unused(schema, [name for row in known for name in row])
    tally = Tally()
    gallery = Gallery.of(schema)
    wanted = schema.used | empty_of(schema, known)
    rows = late_pictures(islice(source.rows(wanted), limit), schema, known, source.resolved)
    table = to_table(tally.pairs(read_pairs(rows, schema, tally, gallery)))
    facts = replace(tally.facts(table), unused_columns=tuple(spare))
    if schema.modality == "text" and not schema.stated:
        facts = replace(facts, notes=(*facts.notes, *empty_places(table, source.resolved)))
    if path := schema.roles.get("pair_id"):
        facts = replace(facts, notes=(*facts.notes, *_repeated_ids(table, path)))
    if reading.get("columns", {}).get("prompt"):
        beside = beside_prompt(schema, known, source.resolved)
        facts = replace(facts, notes=(*beside, *facts.notes))
    _check_labels(schema, tally, source)
    _check_usable(facts, schema, source, limit, fewest)
    _check_prompts(table, schema, spare, source)
    _check_copies(tally.copied, table.num_rows, schema, source)
    return PreferenceDataset(
        name=slug(source.name),
        resolved=source.resolved,
        adapter=schema.name,
        modality=schema.modality,
        table=table,
        facts=facts,
        fingerprint=dataset_fingerprint(table),
        images=gallery.store() if gallery else None,
        columns=dict(schema.roles),
        pairs=schema.pairs,
        reading=reading | ({"limit": limit} if limit else {}),
        reread=source.rows,
        flipped=source.root is not None and (source.root / FLIPS).is_file(),
    )


def schema_of(ahead: Sequence[Row], source: Source, **options: Any) -> Schema:
    """The schema of a source, by its first rows and `reading_of` it."""
    rows = [row.values for row in ahead if row.values is not None]
    reading = reading_of(source, **options)
    return recognise(rows, name=source.resolved, folders=folders_of(ahead), **reading)


def reading_of(
    source: Source,
    *,
    format: str | None,
    columns: Mapping[str, str] | str | None,
    pairs: str | None,
) -> dict[str, Any]:
    """Format, columns and pairs by which a source is read, of those that the options or the
    workspace's entry name."""
    given = parsed_columns(columns) if isinstance(columns, str) else columns or {}
    found = {
        "format": format or source.format,
        "columns": {**(source.columns or {}), **given},
        "pairs": pairs or source.pairs,
    }
    return {name: value for name, value in found.items() if value}


def load_again(
    target: str, manifest: Mapping[str, Any], workspace: Workspace | None = None
) -> PreferenceDataset:
    """Read the dataset of a run by the schema that its manifest records. Raises as `load` does."""
    source = open_source(target, workspace=workspace)
    schema = restored(manifest)
    format = None if schema else str(manifest["adapter"])
    return read_source(source, format=format, schema=schema)


def images_again(run: Run, note: Callable[[str], None]) -> ImageStore | None:
    """The pictures of a run, read from its dataset; None for text.

    If the dataset has moved, `note` gets the reason and the result is None too.
    """
    manifest = run.manifest()
    if manifest.get("modality", "text") == "text":
        return None
    try:
        return load_again(run.dataset_path(), manifest).images
    except NoisescopeError as error:
        note(f"no images shown: {error.message}")
        return None


def restored(manifest: Mapping[str, Any]) -> Schema | None:
    """The schema that a run was read by, from its manifest; None if it does not record one."""
    name, roles = str(manifest.get("adapter")), manifest.get("columns")
    if not isinstance(roles, dict):
        return None
    base = ADAPTERS.get(name) or Schema(name, {}, modality=manifest.get("modality", "text"))
    modality = manifest.get("modality", base.modality)
    pairs = manifest.get("pairs_of", "all")
    stated = "images" in manifest.get("reading", {}).get("columns", {})
    return replace(base, roles=roles, pairs=pairs, modality=modality, stated=stated)


def first_rows(source: Source, limit: int | None = None) -> list[Row]:
    """Rows until enough of them could be decoded. Raises DataError if none could."""
    name = source.resolved
    ahead: list[Row] = []
    decoded = 0
    for row in islice(source.rows(), limit):
        ahead.append(row)
        decoded += row.values is not None
        if decoded == SAMPLE_ROWS:
            break
    if not ahead:
        raise DataError(f"{name}: holds no rows", hint=NO_ROWS)
    if not decoded:
        first = "; ".join(f"{row.source}:{row.number + 1} ({row.trouble})" for row in ahead[:5])
        hint = "A .jsonl file holds one UTF-8 JSON object a line: check the file's ending."
        if counts := re.fullmatch(r"(\d+) fields under (\d+) columns", ahead[0].trouble):
            file = shlex.quote(ahead[0].source)
            raise DataError(
                f"{name}: the first line names {counts[2]} columns and rows have {counts[1]} "
                "fields: there may be a line above the header (sep=,)",
                hint=f"Delete that line: tail -n +2 {file} > {shlex.quote('copy-of-' + file)}",
            )
        raise DataError(
            f"{name}: none of its {len(ahead):,} rows can be decoded: {first}", hint=hint
        )
    return ahead


@final
@dataclass
class Tally:
    """Counts kept while rows stream by."""

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[Fault] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    ordered: int = 0
    first_chosen: int = 0
    contradicted: int = 0
    copied: Counter[str] = field(default_factory=Counter)

    def pairs(self, outcomes: Iterable[Pair | Fault]) -> Iterator[Pair]:
        """Pass pairs on; count orders of sides, faults by reason, and keep the first five."""
        for outcome in outcomes:
            if isinstance(outcome, Pair):
                self.ordered += outcome.first is not None
                self.first_chosen += outcome.first is True
                self.contradicted += outcome.contradicted
                for side in ("chosen", "rejected"):
                    self.copied[side] += ends_with(outcome.prompt, getattr(outcome, side))
                yield outcome
                continue
            self.rejected[outcome.reason] += 1
            if len(self.examples) < _EXAMPLES:
                self.examples.append(outcome)

    def count_label(self, found: Any) -> None:
        """Count a value of the column that names the better side."""
        text = "" if found is None or found != found else canonical(found)[:40]
        if text in self.labels or len(self.labels) < _LABELS:
            self.labels[text] += 1

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
            contradicted=self.contradicted,
            labels=dict(self.labels.most_common()),
            notes=tuple(_notes(table, self.contradicted, self.copied)),
        )


#: Share of the pairs, labelled by several annotators, from which their votes are worth counting.
_VOTED = 0.05


def _notes(table: pa.Table, contradicted: int, copied: Counter[str]) -> Iterator[str]:
    """What a user should know of pairs that were read, in a sentence each."""
    import numpy as np
    import pyarrow.compute as pc

    from noisescope.datasets.numbers import other_votes

    voted = int(np.isfinite(other_votes(table)).sum())
    if voted > _VOTED * table.num_rows:
        yield (
            f"{voted:,} of {table.num_rows:,} labels are of pairs that other annotators labelled "
            "too: --evidence votes also counts what the others chose"
        )

    if contradicted:
        share = contradicted / max(table.num_rows, 1)
        yield (
            f"in {contradicted:,} of {table.num_rows:,} pairs ({share:.0%}) the dataset's own "
            "scores contradict the label: the chosen side has the lower score"
        )
    if copied.total():
        yield (
            f"{copied.total():,} responses copy the end of their prompt word for word "
            f"({copied['chosen']:,} chosen, {copied['rejected']:,} rejected): read as answers that "
            "change nothing"
        )
    shown = pc.sum(pc.match_substring_regex(table["prompt"], PICTURE.pattern)).as_py() or 0
    if 0 < shown < table.num_rows:
        yield f"{table.num_rows - shown:,} of {table.num_rows:,} prompts show no picture"
    plain = table.filter(table["turns"].is_null()) if table["turns"].null_count else table[:0]
    for name in ("prompt", "chosen"):
        if not plain.num_rows:
            break
        held = pc.match_substring_regex(plain[name], _TEMPLATE.pattern)
        count = pc.sum(held).as_py() or 0
        if count:
            text = plain[name].filter(held)[0].as_py()
            found = _TEMPLATE.search(text)
            yield (
                f"{count:,} {name} texts hold chat-template text already "
                f"({found[0] if found else ''}), which the model's own template would wrap a "
                "second time: give them as messages with role and content, or score them as they "
                "are with --chat-template never"
            )
            break


def _repeated_ids(table: pa.Table, path: str) -> Iterator[str]:
    """Yield a note on the pairs whose own id is that of an earlier pair (`pairs.unused`)."""
    import pyarrow.compute as pc

    ids = table["pair_id"]
    stated = pc.replace_substring_regex(ids, r"~[0-9]+$", "")
    count = pc.sum(pc.and_(pc.not_equal(ids, stated), pc.is_in(stated, ids))).as_py() or 0
    if count:
        yield (
            f"{count:,} of {table.num_rows:,} pairs repeat the id of an earlier one ({path}), so "
            "that theirs ends in ~2, ~3 and so on; a truth file must name them so"
        )


def _distinct(table: pa.Table, *columns: str) -> int:
    """How many different rows these columns hold; `direction` is which side was chosen."""
    import pyarrow.compute as pc

    with_direction = table.append_column("direction", pc.less(table["chosen"], table["rejected"]))
    return int(with_direction.select(columns).group_by(list(columns)).aggregate([]).num_rows)


def _both_ways(table: pa.Table, *columns: str) -> int:
    """How many values of `columns` (those without nulls) occur in both directions."""
    known = table.filter(table["annotator"].is_valid()) if "annotator" in columns else table
    return _distinct(known, *columns, "direction") - _distinct(known, *columns)


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
    if schema.shape == "rows":
        yield from _read_groups(rows, schema, tally)
        return
    label = schema.roles.get("preference")
    for row in rows:
        if tally is not None:
            tally.rows += 1
        if row.values is None:
            yield Fault(row.source, row.number, "unreadable", row.trouble)
            continue
        try:
            if tally is not None and label:
                tally.count_label(value(row.values, label))
            pairs = schema.parse(row.values)
        except RowFault as fault:
            yield _fault(row, fault)
            continue
        for pair in pairs:
            yield _outcome(pair, row, gallery)


def _read_groups(
    rows: Iterable[Row], schema: Schema, tally: Tally | None
) -> Iterator[Pair | Fault]:
    """Pairs of answers in rows of their own, wherever the rows of a prompt are."""
    groups: dict[str, list[Row]] = {}
    opening = [
        schema.roles[role] for role in ("system", "prompt", "context") if role in schema.roles
    ]
    for row in rows:
        if tally is not None:
            tally.rows += 1
        if row.values is None:
            yield Fault(row.source, row.number, "unreadable", row.trouble)
            continue
        try:
            name = repr([value(row.values, path) for path in opening])
        except RowFault as fault:
            yield _fault(row, fault)
            continue
        groups.setdefault(name, []).append(row)
    for group in groups.values():
        try:
            found = schema.parse_group([row.values or {} for row in group])
        except RowFault as fault:
            yield from (_fault(row, fault) for row in group)
            continue
        for at, pair in found:
            yield _outcome(pair, group[at], None)


def _outcome(pair: Pair | RowFault, row: Row, gallery: Gallery | None) -> Pair | Fault:
    """A pair with its place (and the content keys of its images), or its fault."""
    if isinstance(pair, RowFault):
        return _fault(row, pair)
    if not _is_unicode(pair):
        return Fault(row.source, row.number, "unreadable", "not valid Unicode text")
    return _placed(pair, row) if gallery is None else _shown(pair, row, gallery)


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


def _check_labels(schema: Schema, tally: Tally, source: Source) -> None:
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


def _check_prompts(table: pa.Table, schema: Schema, spare: Sequence[str], source: Source) -> None:
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


def _check_copies(copied: Counter[str], pairs: int, schema: Schema, source: Source) -> None:
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


def _check_usable(
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
