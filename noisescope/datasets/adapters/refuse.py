"""Refuse a table whose pairs would mean something else: the cause, and the mapping to type.

A lost prompt or context, a label of unclear meaning, unknown columns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from noisescope.datasets.adapters.cells import RawRow, decoded, is_missing, key
from noisescope.datasets.adapters.codings import codings, described, is_label
from noisescope.datasets.adapters.labels import canonical, word_side
from noisescope.datasets.adapters.mapping import Roles, flag
from noisescope.datasets.adapters.names import (
    ABOUT,
    CONTEXTS,
    INNER,
    PREFERENCES,
    PROMPTS,
    STATUS,
    SURE,
    TEXT_KEYS,
)
from noisescope.datasets.adapters.sample import (
    Sample,
    is_conversation,
    is_messages,
    strings,
)
from noisescope.datasets.adapters.schema import VALUES, Schema, Shape
from noisescope.datasets.adapters.table import is_closed
from noisescope.errors import DataError

#: A column that states how the sides are to be read, if it holds booleans or 0 and 1.
_FLAGS = re.compile(
    r"(?:^|_)(?:is_)?(?:flipped|swap|swapped|reversed)$|(?:^|_)(?:better|preferred|best)$"
    r"|^is_.*(?:chosen|rejected|correct|wrong|valid|winner)|^(?:agree|agrees|correct|wrong)$"
)
#: Names of labels that also name other things: a number there may be a reference answer.
_WORDS_ONLY = frozenset({"answer", "target", "gold", "gold_label", "selected", "best", "chosen"})
_AGAINST = {"wrong", "incorrect", "no", "disagree", "swap", "swapped", "flipped", "reversed",
            "false", "worse", "loser", "lose"}  # fmt: skip


def refuse_label(schema: Schema, table: Sample, mapped: Roles, explicit: bool) -> None:
    """Raise DataError for a label beside chosen and rejected, which can mean either."""
    if {"chosen", "rejected"} <= set(mapped) or (schema.modality == "image" and explicit):
        return
    for name, column in table.by_key.items():
        labels_it = name in PREFERENCES or name in STATUS or name.endswith("_label")
        if column in schema.used - {schema.roles.get("status")}:
            continue
        if not labels_it and not _FLAGS.search(name):
            continue
        found = [one for one in table.values(column) if not is_missing(one)]
        if not found or not is_label(table, column):
            continue
        words = [
            word_side(str(one), ("chosen", "rejected")) if isinstance(one, str) else None
            for one in found
        ]
        if all(word is not None and word >= 0 for word in words) or _confirms(name, found):
            continue  # chosen, or a tie
        number = table.numeric(column) and (labels_it or _boolean(found))
        number = number and name not in _WORDS_ONLY
        against = any(key(str(one)) in _AGAINST for one in found)
        if number or any(isinstance(one, bool) for one in found) or any(words) or against:
            one, other = schema.roles["chosen"], schema.roles["rejected"]
            counts = Counter(canonical(each) for each in found).most_common(6)
            values = ", ".join(f"{each}: {count}" for each, count in sorted(counts))
            as_written = flag({"chosen": one, "rejected": other})
            labels = {canonical(each) for each in found}
            flags = [
                f"{flag({'a': one, 'b': other, 'preference': column} | coding)} if "
                f"{described(coding, one, other)}"
                for coding in codings(labels)
            ]
            raise DataError(
                f"{table.name}: {column} ({values}) beside {one} and {other} can "
                f"mean which of them is better, or nothing at all",
                hint="; ".join([f"{as_written} reads {one} as better in every row", *flags]) + ".",
            )


def _boolean(found: list[object]) -> bool:
    return {canonical(one) for one in found} <= {"0", "1"}


def _confirms(name: str, found: list[object]) -> bool:
    """Whether booleans whose name states what they mean confirm chosen in every row."""
    words = name.split("_")
    if not any(isinstance(one, bool) for one in found) or not _boolean(found):
        return False
    values = {canonical(one) for one in found}
    if "chosen" in words and {"better", "preferred", "best"} & set(words):
        return values == {"1"}
    if {"flipped", "swap", "swapped", "reversed"} & set(words):
        return values == {"0"}
    return (
        "rejected" in words
        and {"better", "preferred", "best"} & set(words) != set()
        and (values == {"0"})
    )


#: Roles that mean something only with another one.
_TWINS = (("share_a", "share_b"), ("votes_a", "votes_b"), ("score_a", "score_b"),
          ("name_a", "name_b"), ("score_chosen", "score_rejected"),
          ("rank_chosen", "rank_rejected"), ("a", "b"))  # fmt: skip


#: Roles without which no row of a shape states a pair: one of each.
_NEEDED: dict[Shape, tuple[tuple[str, ...], ...]] = {
    "sides": (("chosen",), ("rejected",)),
    "labelled": (("b",), ("preference", "share_a", "votes_a", "score_a")),
    "list": (("ranks", "ratings"),),
    "rows": (("rating",),),
}


def refuse_halves(roles: Roles, table: Sample) -> None:
    """Raise DataError for one of two roles that need each other, or a coding without a label."""
    for pair in _TWINS:
        half = [role for role in pair if role in roles]
        if len(half) == 1:
            other = next(role for role in pair if role != half[0])
            raise DataError(
                f"{table.name}: {half[0]} ({roles[half[0]]}) needs {other} beside it "
                f"(columns: {', '.join(table.columns)})",
                hint=f"Name both: {flag({half[0]: roles[half[0]], other: 'COLUMN'})}",
            )
    coding = {role: roles[role] for role in VALUES if role in roles}
    if coding and "preference" not in roles:
        named_ = table.first(PREFERENCES) or "COLUMN"
        raise DataError(
            f"{table.name}: {', '.join(coding)} without preference: no column holds these values",
            hint=f"Name the column: {flag({'preference': named_} | coding)}",
        )


def refuse_incomplete(schema: Schema, table: Sample) -> None:
    """Raise DataError if a role is missing without which no row states a pair."""
    for roles in _NEEDED[schema.shape]:
        if not set(roles) & set(schema.roles):
            main = _main(schema)
            given = ", ".join(role for role in main if role not in VALUES)
            raise DataError(
                f"{table.name}: no column has the role {' or '.join(roles)}, which "
                f"{given} need (columns: {', '.join(table.columns)})",
                hint=f"Name it: {flag(main | {roles[0]: 'COLUMN'})}",
            )


def refuse_lost(schema: Schema, table: Sample, mapped: Roles) -> None:
    """Raise DataError if a column that the responses answer to would not be read."""
    if schema.shape == "sides" and "prompt" not in schema.roles:
        if schema.modality == "image" and not mapped.get("prompt", "x"):
            return
        if "prompt" not in mapped and not is_conversation(schema.roles, table):
            maybe = [c for c in unused(schema, table.columns) if is_prose(table, c)]
            if schema.modality == "image" or maybe:
                raise _no_prompt(schema, table, maybe)
    elif (schema.shape in ("list", "rows") and "prompt" not in schema.roles) or (
        schema.shape == "labelled"
        and not {"prompt", "history"} & (set(schema.roles) | set(mapped))
        and not is_conversation(schema.roles, table)
    ):
        raise _no_prompt(
            schema, table, [c for c in unused(schema, table.columns) if is_prose(table, c)]
        )
    _refuse_encoded(schema, table, mapped)
    if {"prompt", "context"} & set(mapped):
        return
    if is_closed(schema):
        return
    path = schema.roles.get("prompt")
    if path and schema.modality == "text":
        _refuse_siblings(schema, table, path)
    if path and schema.shape != "rows" and not _sure(table, path):
        constant = len({str(one) for one in table.values(path)}) == 1
        maybe = [
            column
            for column in unused(schema, table.columns)
            if is_prose(table, column) or (constant and _is_source(table, column))
        ]
        if maybe:
            raise _no_prompt(schema, table, maybe)
    if schema.modality == "image":
        return
    for column in unused(schema, table.columns):
        if (CONTEXTS.search(key(column)) or _is_unknown_prose(table, column)) and _answered(
            schema, table, column
        ):
            raise DataError(
                f"{table.name}: the responses may answer to {column} too, which has no role",
                hint=f"{_with_prompt(schema, column)} reads it with the prompt; "
                f"{flag(_main(schema))} leaves it out.",
            )


def _answered(schema: Schema, table: Sample, column: str) -> bool:
    """Whether a column holds text that is in no cell that is read."""
    return table.textual(column) and not _held(schema, table, column)


def _with_prompt(schema: Schema, column: str) -> str:
    """The `--columns` that reads a column with the prompt: before it, or after it as its input."""
    prompt = schema.roles.get("prompt")
    shown = f"{column}+{prompt}" if prompt else column
    if re.search(r"step|prefix|trajectory|input", key(column)) and prompt:
        shown = f"{prompt}+{column}"
    return flag(_main(schema) | {"prompt": shown})


def beside_prompt(schema: Schema, rows: Sequence[RawRow], name: str) -> list[str]:
    """A note for each column like `input` that a prompt named by the user leaves unread."""
    table = Sample(rows, name)
    if "prompt" not in schema.roles or schema.modality == "image":
        return []
    return [
        f"{column} is not read, and the responses may answer to it: to read it with the prompt, "
        f"{_with_prompt(schema, column)}"
        for column in unused(schema, table.columns)
        if CONTEXTS.search(key(column)) and _answered(schema, table, column)
    ]


def _refuse_encoded(schema: Schema, table: Sample, mapped: Roles) -> None:
    """Raise DataError for responses that are JSON text of objects with a text among other keys."""
    pair = {"sides": ("chosen", "rejected"), "labelled": ("a", "b")}.get(schema.shape)
    if pair is None or schema.modality == "image" or set(pair) & set(mapped):
        return
    if is_closed(schema):
        return
    paths = [schema.roles[role] for role in pair]
    texts = [one for path in paths for one in table.values(path) if not is_missing(one)]
    cells = [decoded(one) if isinstance(one, str) else None for one in texts]
    objects = [cell for cell in cells if isinstance(cell, Mapping) and not is_messages(cell)]
    inner = next((name for name in TEXT_KEYS if all(name in cell for cell in objects)), None)
    if not objects or len(objects) != len(cells) or inner is None:
        return
    roles = _main(schema)
    stepped = {role: f"{schema.roles[role]}.{inner}" for role in pair}
    raise DataError(
        f"{table.name}: {paths[0]} and {paths[1]} hold JSON text of objects with {inner}",
        hint=f"{flag(roles | stepped)} reads {inner} alone; {flag(roles)} reads the JSON text.",
    )


def _refuse_siblings(schema: Schema, table: Sample, path: str) -> None:
    """Raise DataError for keys beside the prompt's own in an object that would not be read."""
    column, dot, own = path.partition(".")
    cells = map(decoded, table.values(column))
    objects = [one for one in cells if isinstance(one, Mapping) and not is_messages(one)]
    if not objects:
        return
    if not dot:
        own = next((name for name in (*INNER, *PROMPTS) if name in objects[0]), "")
    keys = [str(name) for name in dict.fromkeys(name for one in objects for name in one)]
    lost = [
        name
        for name in keys
        if own
        and name != own
        and f"{column}.{name}" not in schema.used
        and any(not is_missing(one.get(name)) for one in objects)
        and (CONTEXTS.search(key(name)) or _differs(table, f"{column}.{name}"))
    ]
    if lost:
        parts = "+".join(f"{column}.{name}" for name in [*lost, own])
        main = _main(schema)
        raise DataError(
            f"{table.name}: {column} is an object, and the responses may answer to "
            f"{', '.join(lost)} in it too",
            hint=f"{flag(main | {'prompt': parts})} reads them with the prompt; "
            f"{flag(main | {'prompt': f'{column}.{own}'})} leaves them out.",
        )


def _sure(table: Sample, path: str) -> bool:
    """Whether a column is a prompt whatever other columns there are: by its name, and not the same
    text in every row; or it holds conversations."""
    found = table.values(path)
    constant = len(found) > 1 and len({str(one) for one in found}) == 1
    named_ = any(key(part.rpartition(".")[2]) in SURE for part in path.split("+"))
    whole = key(path) in ("conversation", "conversations", "dialogue", "dialog")
    return not constant and (named_ or (whole and all(map(is_messages, found))))


def _main(schema: Schema) -> Roles:
    """The roles that make a mapping complete."""
    names = (*schema.required, *(name for name in VALUES if name in schema.roles))
    return {role: schema.roles[role] for role in dict.fromkeys(names)}


def unused(schema: Schema, columns: Iterable[str]) -> list[str]:
    """Columns that no role needs, in order."""
    return [column for column in dict.fromkeys(columns) if column not in schema.used]


def is_prose(table: Sample, column: str) -> bool:
    """Whether a column without a role may hold prompts."""
    name = key(column)
    if ABOUT.search(name) and not name.endswith(("_text", "_prompt", "_question", "_content")):
        return False
    found = table.values(column)
    different = len({str(one) for one in found})
    if table.textual(column):
        return len(found) < 3 or different > 1
    words = [one for one in found if isinstance(one, str) and re.search(r"[^\W\d_]", one)]
    return bool(found) and len(words) == len(found) and different > len(found) / 2


def _is_source(table: Sample, column: str) -> bool:
    """Whether a column called source or text holds sentences, not names, that differ by row."""
    named_ = {"source", "title", "topic", "statement"} & set(key(column).split("_"))
    return bool(named_) and _differs(table, column)


def _is_unknown_prose(table: Sample, column: str) -> bool:
    """Whether a column that no list knows holds sentences that differ in every row."""
    return not ABOUT.search(key(column)) and _differs(table, column)


def _differs(table: Sample, column: str) -> bool:
    """Whether every row has a text of several words, and each another one."""
    found = table.values(column)
    words = [one for one in found if isinstance(one, str) and len(one.split()) > 2]
    return len(found) > 2 and len(words) == len(found) == len(set(words))


def _held(schema: Schema, table: Sample, column: str) -> bool:
    """Whether the text of a column is in the cells that are read, in nearly all samples."""
    held = total = 0
    for row in table.rows:
        pieces = [piece for piece in strings(row.get(column)) if piece.strip()]
        if not pieces:
            continue
        known = " ".join(
            " ".join(piece.split())
            for name in schema.used
            if name in row
            for piece in strings(row[name])
        )
        total += 1
        held += all(" ".join(piece.split()) in known for piece in pieces)
    return held >= 0.9 * total


def _no_prompt(schema: Schema, table: Sample, maybe: list[str]) -> DataError:
    """The error of two texts without a column that is known to be their prompt."""
    main = _main(schema)
    taken = main.pop("prompt", "")
    if not maybe:
        spare = next((c for c in unused(schema, table.columns) if not table.numeric(c)), "COLUMN")
        return DataError(
            f"{table.name}: no column holds the prompt (columns: {', '.join(table.columns)})",
            hint=f"Name it: {flag({'prompt': spare} | main)}",
        )
    named_ = ", ".join(maybe[:4])
    why = f"{taken} is no sure prompt" if taken else "no column is known to be the prompt"
    rest = f"reads {taken} alone" if taken else "reads pairs without one"
    return DataError(
        f"{table.name}: {why}; it may be {named_}",
        hint=f"{flag({'prompt': maybe[0]} | main)} reads {maybe[0]} as the prompt; "
        f"{flag({'prompt': taken} | main)} {rest}.",
    )
