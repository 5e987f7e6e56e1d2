"""Choose the schema of a dataset from its columns and some sample rows, or refuse it.

    schema = recognise(samples, columns={"prompt": "question"}, name="pairs.jsonl")

A known schema with all its columns there is taken; otherwise the usual names of every role are
tried. Nothing that changes the meaning of a pair is dropped: a column that may be a prompt, a
context or a label and has no role is an error, which gives the mapping to type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from noisescope.datasets.adapters.cells import RawRow, decoded, is_missing
from noisescope.datasets.adapters.codings import coding_of, names_of
from noisescope.datasets.adapters.compose import is_transcript
from noisescope.datasets.adapters.guess import (
    listed,
    prompt_of,
    score_pair,
    tie_column,
    two_answers,
    two_sides,
    with_input,
    with_ties,
)
from noisescope.datasets.adapters.labels import tags
from noisescope.datasets.adapters.mapping import Roles, checked_columns, checked_pairs, named
from noisescope.datasets.adapters.names import IMAGE_NAME, MORE, OPENINGS, OWN, URL, USUAL
from noisescope.datasets.adapters.nearest import unknown
from noisescope.datasets.adapters.refuse import (
    refuse_halves,
    refuse_incomplete,
    refuse_label,
    refuse_lost,
    unused,
)
from noisescope.datasets.adapters.sample import (
    Sample,
    is_conversation,
    is_messages,
    is_picture,
    items,
)
from noisescope.datasets.adapters.schema import VALUES, Schema
from noisescope.datasets.adapters.table import ADAPTERS, is_closed
from noisescope.datasets.adapters.vision import of_vision, with_pictures


def recognise(
    samples: Sequence[RawRow],
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    pairs: str = "all",
    name: str = "the dataset",
    folders: tuple[Path, ...] = (),
) -> Schema:
    """The schema of some sample rows, whose pictures may be files in the folders.

    Raises DataError if none fits or a meaning would be lost.
    """
    mode = checked_pairs(pairs)
    mapped = checked_columns(columns or {}, samples, name)
    table = Sample(samples, name, folders)
    if format is not None:
        schema = _bound(named(format), table)
    else:
        schema = _known(table, mapped) or _guessed(table, mapped)
    schema = _completed(schema, table, mapped, explicit=format is not None)
    if format is None and schema.modality == "text" and _shows_pictures(schema, table):
        schema = replace(schema, modality="image")
    schema = with_pictures(schema, table, mapped, explicit=format is not None)
    schema = of_vision(schema, table)
    refuse_lost(schema, table, mapped)
    family = schema.name if format or mapped else _family(schema, table)
    transcripts = schema.transcripts or family == "hh_rlhf"
    return replace(schema, pairs=mode, name=family, transcripts=transcripts)


def _known(table: Sample, mapped: Roles) -> Schema | None:
    """The known schema, not of the usual two sides, with most of its columns there."""
    if any(role in mapped for role in ("chosen", "rejected", "a", "b", "responses", "response")):
        return None
    fits = [
        schema for schema in ADAPTERS.values() if schema.name not in USUAL and _fits(schema, table)
    ]
    best = max(fits, key=lambda schema: len(schema.columns), default=None)
    return None if best is None else _bound(best, table)


def _fits(schema: Schema, table: Sample) -> bool:
    if not all(table.has(path) for path in schema.columns):
        return False
    bound = _bound(schema, table)
    if bound.shape == "list":
        order = bound.roles.get("ranks") or bound.roles["ratings"]
        lists = any(
            isinstance(decoded(one), list)
            for path in (bound.roles["responses"], order)
            for one in table.values(path)
        )
        return lists and (bound.modality == "text" or _all_pictures(table, bound))
    return any(table.values(bound.roles[role]) for role in bound.required if role in bound.roles)


def _all_pictures(table: Sample, schema: Schema) -> bool:
    """Whether the listed answers can be pictures: bytes, records of them, or single words."""
    found = [one for cell in table.values(schema.roles["responses"]) for one in items(cell)]
    return not any(isinstance(one, str) and len(one.split()) > 3 for one in found)


def _bound(schema: Schema, table: Sample) -> Schema:
    """The schema with the spelling of this table's columns; optional ones only if present."""
    roles = {}
    for role, path in schema.roles.items():
        if role in VALUES:
            roles[role] = path
        elif table.has(path):
            roles[role] = table.bind(path)
        elif role in schema.required and not (role == "prompt" and schema.shape == "sides"):
            roles[role] = path
    return replace(
        schema,
        roles=roles,
        keys=tuple(table.bind(name) for name in schema.keys),
        twins=tuple((table.bind(a), table.bind(b)) for a, b in schema.twins),
        copies=tuple(table.bind(name) for name in schema.copies),
    )


def _guessed(table: Sample, mapped: Roles) -> Schema:
    """A schema by the usual names of columns and by what is mapped. Raises DataError."""
    given = {role: path for role, path in mapped.items() if path}
    refuse_halves(given, table)
    whole = {"response", "rating"} <= set(given) or (
        "responses" in given and bool({"ranks", "ratings"} & set(given))
    )
    roles = (
        given
        if whole
        else two_sides(table, given) or two_answers(table, given) or listed(table, given)
    )
    if roles is None:
        raise unknown(table, mapped)
    return Schema("columns", roles | given)


def _completed(schema: Schema, table: Sample, mapped: Roles, *, explicit: bool) -> Schema:
    """The schema with prompt, context, scores, ties and annotators by their usual names."""
    schema = _with_opening(schema, table, mapped)
    refuse_halves(dict(schema.roles), table)
    if mapped:
        refuse_incomplete(schema, table)
    if schema.shape == "labelled":
        return _with_label(schema, table, mapped)
    if schema.shape == "sides" and not is_closed(schema):
        return _with_scores(schema, table, mapped, explicit)
    return schema


def _with_opening(schema: Schema, table: Sample, mapped: Roles) -> Schema:
    """The schema with what precedes the responses, and the names of the pair and its annotator."""
    roles = dict(schema.roles)
    taken = set(schema.used)
    if not is_closed(schema) and "prompt" not in mapped:
        if "prompt" not in roles and schema.name != "hh_rlhf":
            prompt = prompt_of(table, taken, is_conversation(roles, table))
            if prompt:
                roles["prompt"] = prompt
                taken.update(prompt.split("+"))
        if "prompt" in roles:
            roles["prompt"] = with_input(roles["prompt"], table, taken)
    for role, names in (OPENINGS | MORE).items():
        if role in roles or role in mapped or (role == "reference" and schema.modality == "text"):
            continue
        for column in table.named(names):
            if column not in taken and not all(map(is_missing, table.values(column))):
                roles[role] = column
                taken.add(column)
                break
    roles = {role: path for role, path in (roles | mapped).items() if path}
    return replace(schema, roles=roles)


def _with_scores(schema: Schema, table: Sample, mapped: Roles, explicit: bool) -> Schema:
    """The schema of two sides with their scores, ties, and columns that repeat or describe one."""
    roles = with_ties(schema, table, mapped)
    refuse_label(schema, table, mapped, explicit)
    copies = [
        column
        for column in unused(schema, table.columns)
        if table.values(column) and table.values(column) == table.values(roles["chosen"])
    ]
    twins = [
        (column, table.by_key[name.replace("chosen", "rejected")])
        for name, column in table.by_key.items()
        if "chosen" in name.split("_") and "model" in name.split("_")
        and name.replace("chosen", "rejected") in table.by_key
    ]  # fmt: skip
    return replace(
        schema,
        roles=roles | tie_column(table, roles),
        copies=tuple(dict.fromkeys([*schema.copies, *copies])),
        twins=tuple(dict.fromkeys([*schema.twins, *twins])),
    )


def _with_label(schema: Schema, table: Sample, mapped: Roles) -> Schema:
    """The schema of two sides and a label, with names of the sides, scores and ties."""
    roles = dict(schema.roles)
    tag = tags(roles["a"], roles["b"])
    label = None if {"a_wins", "name_a"} & set(roles) else roles.get("preference")
    if label and coding_of(table, label, tag) is None:
        roles |= names_of(table, label, tag) or {}
    if "score_a" not in roles | mapped and (scores := score_pair(table, *tag)):
        roles |= {"score_a": scores[0], "score_b": scores[1]}
    return replace(schema, roles=roles if is_closed(schema) else roles | tie_column(table, roles))


def _family(schema: Schema, table: Sample) -> str:
    """The name of a recognised format of two sides: the known one it is most like."""
    if schema.name != "columns" or schema.shape != "sides":
        return schema.name
    roles = schema.roles
    if schema.modality == "image":
        pair = (roles["chosen"], roles["rejected"])
        return "image_columnar" if pair == ("chosen", "rejected") else "image_folder"
    if (roles["chosen"], roles["rejected"]) != ("chosen", "rejected"):
        return "columns"
    if schema.modality == "vision":
        return "trl_vision" if roles["images"] == "images" else "columns"
    found = [one for side in ("chosen", "rejected") for one in table.values(side)]
    if "prompt" not in roles and any(map(is_transcript, found)):
        return "hh_rlhf"
    if any(is_messages(one) for one in found):
        scores = roles.get("score_chosen")
        known = {"score_chosen": "ultrafeedback", "chosen-rating": "ultrafeedback_argilla"}
        return known.get(scores or "", "trl")
    own = any(name in table.columns for name in OWN) and "prompt" in roles
    plain = any(isinstance(one, str) for one in found)
    return "columnar" if own or not plain else "trl"


def _shows_pictures(schema: Schema, table: Sample) -> bool:
    """Whether the sides are pictures: bytes, records of them, or names of picture files."""
    if schema.shape == "rows":
        return False
    one = {"sides": "chosen", "labelled": "a", "list": "responses"}[schema.shape]
    found = table.values(schema.roles[one])
    if schema.shape == "list":
        found = [item for cell in found for item in items(cell)]
    found = [each for each in found if not is_missing(each)]
    return bool(found) and all(
        isinstance(each, bytes)
        or is_picture(each)
        or (isinstance(each, str) and (IMAGE_NAME.fullmatch(each) or URL.fullmatch(each)))
        for each in found
    )
