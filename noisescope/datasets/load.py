"""From a source to a PreferenceDataset: stream rows, read their pairs, count what is set aside."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.datasets.adapters.mapping import parsed_columns
from noisescope.datasets.adapters.recognise import recognise
from noisescope.datasets.adapters.refuse import beside_prompt, unused
from noisescope.datasets.adapters.schema import Schema
from noisescope.datasets.adapters.table import schema_again
from noisescope.datasets.adapters.vision import (
    empty_of,
    empty_places,
    folders_of,
    late_pictures,
)
from noisescope.datasets.checks import (
    FEWEST_PAIRS,
    check_copies,
    check_labels,
    check_prompts,
    check_usable,
)
from noisescope.datasets.facts import Tally, repeated_ids
from noisescope.datasets.image_store import Gallery
from noisescope.datasets.read_pairs import read_pairs
from noisescope.datasets.readers import NO_ROWS, Row
from noisescope.datasets.sources import FLIPS, Source, open_source
from noisescope.errors import DataError, NoisescopeError, UsageError
from noisescope.pairs import PreferenceDataset, dataset_fingerprint, to_table
from noisescope.storage.files import slug
from noisescope.storage.workspace import Workspace

if TYPE_CHECKING:
    from noisescope.pairs import ImageStore
    from noisescope.storage.run import Run

#: Decodable rows looked at to recognise a schema.
SAMPLE_ROWS = 100


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
    schema = schema or schema_of(ahead, source, reading)
    known = [row.values for row in ahead if row.values is not None]
    spare = unused(schema, [name for row in known for name in row])
    tally = Tally()
    gallery = Gallery.of(schema)
    wanted = schema.used | empty_of(schema, known)
    rows = late_pictures(islice(source.rows(wanted), limit), schema, known, source.resolved)
    table = to_table(tally.pairs(read_pairs(rows, schema, tally, gallery)))
    facts = tally.facts(table)
    notes = [*facts.notes]
    if schema.modality == "text" and not schema.stated:
        notes += empty_places(table, source.resolved)
    if path := schema.roles.get("pair_id"):
        notes += repeated_ids(table, path)
    if reading.get("columns", {}).get("prompt"):
        notes = [*beside_prompt(schema, known, source.resolved), *notes]
    facts = replace(facts, unused_columns=tuple(spare), notes=tuple(notes))
    check_labels(schema, tally, source)
    check_usable(facts, schema, source, limit, fewest)
    check_prompts(table, schema, spare, source)
    check_copies(tally.copied, table.num_rows, schema, source)
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


def schema_of(ahead: Sequence[Row], source: Source, reading: Mapping[str, Any]) -> Schema:
    """The schema of a source, by its first rows and `reading_of` it."""
    rows = [row.values for row in ahead if row.values is not None]
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
    schema = schema_again(name, roles, manifest.get("modality"))
    stated = "images" in manifest.get("reading", {}).get("columns", {})
    return replace(schema, pairs=manifest.get("pairs_of", "all"), stated=stated)


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
