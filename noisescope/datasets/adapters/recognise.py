"""Choose the schema of a dataset from its columns and some sample rows, or refuse it.

    schema = recognise(samples, columns={"prompt": "question"}, name="pairs.jsonl")

A known schema with all its columns there is taken; otherwise the usual names of every role are
tried. Nothing that changes the meaning of a pair is dropped: a column that may be a prompt, a
context or a label and has no role is an error, which gives the mapping to type.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from noisescope.datasets.adapters.cells import (
    RawRow,
    RowFault,
    Undecoded,
    decoded,
    is_missing,
    key,
    kind,
    value,
)
from noisescope.datasets.adapters.compose import is_transcript
from noisescope.datasets.adapters.schema import (
    PAIRS,
    ROLES,
    VALUES,
    PairsMode,
    Schema,
    canonical,
    tags,
    word_side,
)
from noisescope.datasets.adapters.table import ADAPTERS
from noisescope.errors import DataError, UsageError

#: Schemas of the two usual columns, which are recognised by what these hold.
_USUAL = {"hh_rlhf", "ultrafeedback", "ultrafeedback_argilla", "trl", "columnar",
          "columnar_label", "image_columnar"}  # fmt: skip
#: Known schemas whose other columns are looked for by their usual names.
_OPEN = _USUAL | {"image_folder", "openai", "stack_exchange_paired", "ms_swift", "ms_swift_query"}
#: Usual names of a prompt, the likeliest first.
_PROMPTS = (
    "prompt", "question", "instruction", "query", "user_prompt", "prompt_text", "user_input",
    "user_message", "problem", "task", "caption", "post", "input", "inputs", "user", "context",
    "conversation", "conversations", "dialogue", "dialog", "messages", "history", "text_prompt",
    "source_text", "src",
)  # fmt: skip
#: Those that are a prompt whatever stands beside them.
_SURE = frozenset(_PROMPTS[: _PROMPTS.index("task")])
#: Keys of the text of a prompt that is an object.
_INNER = ("full_text", "text", "content", "prompt", "question")
#: Usual names of what else precedes the responses.
_OPENINGS: dict[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt", "system_message", "system_text"),
    "tools": ("tools", "functions", "available_tools", "tool_definitions"),
    "history": ("history", "chat_history", "conversation_history", "dialogue_history"),
    "context": ("context", "background", "passage", "document", "article"),
}
_MORE: dict[str, tuple[str, ...]] = {
    "annotator": ("annotator", "annotator_id", "worker", "worker_id", "rater", "rater_id",
                  "labeler", "labeler_id", "labeller"),
    "pair_id": ("pair_id",),
    "group": ("group", "group_id"),
    "reference": ("reference_jpg",),
}  # fmt: skip
#: Names of text that changes what a response answers to, if it is not read.
_CONTEXTS = re.compile(
    r"(?:^|_)(?:context|history|system|tools?|functions?|document|passage|article|trajectory|"
    r"steps?|prefix|dialogue?|conversations?|messages|background|story|scenario|persona|"
    r"few_shot|turns|post|prompt|question|instruction|query|problem|input)(?:$|_)"
)
_WINS = {"chosen": "rejected", "preferred": "dispreferred", "accepted": "rejected",
         "winner": "loser", "win": "lose", "better": "worse", "winning": "losing",
         "selected": "rejected"}  # fmt: skip
#: Opposites that are offered, not assumed.
_LIKELY = {"good": "bad", "positive": "negative", "pos": "neg", "best": "worst", "j": "k",
           "preferred": "non_preferred", "preferred_": "unpreferred", "right": "wrong",
           "clean": "noisy", "up": "down"}  # fmt: skip
_NOUNS = (
    "", "response", "answer", "output", "completion", "text", "conversation", "conversations",
    "message", "messages", "reply", "summary", "image", "img", "candidate", "option", "generation",
    "model_output", "human_ref", "code", "story", "sample", "jpg", "turn", "content", "summaries",
    "solution", "translation", "picture",
)  # fmt: skip
_TAGS = (("a", "b"), ("1", "2"), ("0", "1"), ("first", "second"), ("left", "right"), ("i", "ii"))
_PREFERENCES = (
    "winner", "preference", "preferred", "preferred_response", "choice", "label", "labels",
    "better", "better_response", "better_response_id", "verdict", "judgement", "judgment",
    "overall_preference", "preference_strength", "human_preference", "preferred_id", "selected",
    "chosen", "winning_response", "winner_model", "result", "outcome", "vote", "best", "answer",
    "preferred_output", "preferred_model", "gold", "gold_label", "target", "human_label",
)  # fmt: skip
_SCORES = {"score", "rating", "reward", "points", "grade", "quality"}
_OF_SCORES = _SCORES | {"avg", "average", "mean", "overall", "final", "human", "gpt4", "value"}
_MARGINS = ("margin", "score_margin", "rating_margin", "reward_margin", "score_diff",
            "score_difference", "rating_difference", "score_gap")  # fmt: skip
_STATUS = ("status", "winner", "outcome", "result", "verdict", "preference", "label")
#: Columns that hold an image (or a film, or sound) that texts may be about.
_MEDIA = re.compile(
    r"(?:^|_)(?:images?|img|pictures?|photos?|pixels?|videos?|audios?|frames?)(?:$|_)"
)
_LISTS = ("responses", "completions", "answers", "outputs", "candidates", "generations",
          "summaries", "images", "image", "replies", "options", "image_path", "file_path",
          "file_paths", "image_paths")  # fmt: skip
_TEXT_KEYS = ("response", "answer", "completion", "text", "content", "output", "summary", "image")
_RANKS = ("rank", "ranks", "ranking", "rankings")
_RATINGS = ("ratings", "scores", "rewards", "score", "rating", "overall_score", "reward",
            "human_preference")  # fmt: skip
#: Our own columns, which tell `columnar` from `trl`.
_OWN = ("annotator", "pair_id", "label")
_IMAGE_NAME = re.compile(r"[^\s<>|*?\"]+\.(?:png|jpe?g|webp|gif|bmp)", re.IGNORECASE)
_URL = re.compile(r"https?://\S+|data:image/\S+")

#: What most people need who meet a refusal for the first time.
PLAINEST = "text needs prompt, chosen, rejected; pictures prompt, chosen_image, rejected_image"
Roles = dict[str, str]


def recognise(
    samples: Sequence[RawRow],
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    pairs: str = "all",
    name: str = "the dataset",
) -> Schema:
    """The schema of some sample rows. Raises DataError if none fits or a meaning would be lost."""
    mode = checked_pairs(pairs)
    mapped = checked_columns(columns or {}, samples, name)
    table = _Table(samples, name)
    if format is not None:
        schema = _bound(named(format), table)
    else:
        schema = _known(table, mapped) or _guessed(table, mapped)
    schema = _completed(schema, table, mapped, explicit=format is not None)
    if format is None:
        _refuse_vision(schema, table, mapped)
        schema = _with_modality(schema, table)
    _refuse_lost(schema, table, mapped)
    family = schema.name if format or mapped else _family(schema, table)
    transcripts = schema.transcripts or family == "hh_rlhf"
    return replace(schema, pairs=mode, name=family, transcripts=transcripts)


def named(format: str) -> Schema:
    """The known schema of a `--format` name. Raises UsageError."""
    name = format.strip().lower().replace("-", "_")
    if name not in ADAPTERS:
        raise UsageError(
            f"--format {format}: no such format", hint=f"One of: {', '.join(ADAPTERS)}."
        )
    return ADAPTERS[name]


def checked_pairs(pairs: str) -> PairsMode:
    """`pairs` as a mode. Raises UsageError."""
    mode = next((mode for mode in PAIRS if mode == pairs), None)
    if mode is None:
        raise UsageError(f"--pairs {pairs}: no such choice", hint=f"One of: {', '.join(PAIRS)}.")
    return mode


def parsed_columns(text: str) -> Roles:
    """`prompt=question,chosen=best` as a mapping. Raises UsageError."""
    found: Roles = {}
    for part in re.split(r",(?=\s*[a-z_]+\s*=)", text):
        role, sign, path = part.partition("=")
        role = role.strip()
        if not sign or role in found:
            raise UsageError(
                f"--columns {text}: {part!r} is not role=column" if not sign
                else f"--columns {text}: {role} is given twice",
                hint="As in: --columns prompt=question,chosen=best,rejected=worst",
            )  # fmt: skip
        found[role] = path.strip()
    return found


def checked_columns(columns: Mapping[str, str], samples: Sequence[RawRow], name: str) -> Roles:
    """The mapping with every path found in the data. Raises UsageError or DataError."""
    wrong = [role for role in columns if role not in ROLES and role not in VALUES]
    if wrong:
        raise UsageError(
            f"--columns: no such role: {', '.join(wrong)}",
            hint=f"Roles: {', '.join([*ROLES, *VALUES])}.",
        )
    names = {name: None for row in samples for name in row}
    out: Roles = {}
    for role, path in columns.items():
        if role in VALUES or not path:
            out[role] = path
            continue
        missing = []
        fixed = []
        for part in re.split(r"([|+])", path) if path not in names else [path]:
            top = part.strip().partition(".")[0]
            found = part.strip()
            if part not in "|+" and part.strip() not in names:
                actual = top if top in names else _same(top, names)
                if actual is None:
                    missing.append(part.strip())
                else:
                    found = actual + found[len(top) :]
            fixed.append(found)
        if missing:
            raise DataError(
                f"{name}: no column {', '.join(missing)} for {role}; "
                f"there are: {', '.join(map(str, names)) or 'none'}",
                hint=f"Give the column's name: --columns {role}=COLUMN",
            )
        out[role] = "".join(fixed)
    return out


def _same(wanted: str, names: Iterable[str]) -> str | None:
    """The column whose name is spelled otherwise: case, hyphens, blanks."""
    return next((name for name in names if key(name) == key(wanted)), None)


class _Table:
    """Sample rows, their columns by comparable name, and what each holds."""

    def __init__(self, samples: Sequence[RawRow], name: str) -> None:
        self.rows = samples
        self.name = name
        self.columns = [str(column) for column in dict.fromkeys(c for row in samples for c in row)]
        self.by_key: dict[str, str] = {}
        for column in self.columns:
            first = self.by_key.setdefault(key(column), column)
            if column == key(column) and first != column:
                self.by_key[key(column)] = column

    def has(self, path: str) -> bool:
        """Whether a path's column is there, under whatever spelling."""
        return any(self.column(part) is not None for part in path.split("|"))

    def column(self, path: str) -> str | None:
        """The path with the spelling of this table, or None."""
        if path in self.columns:
            return path
        parts = re.split(r"([+])", path)
        out = []
        for part in parts:
            top, dot, rest = part.partition(".")
            actual = self.by_key.get(key(top)) if part != "+" else part
            if actual is None:
                return None
            out.append(actual + dot + rest)
        return "".join(out)

    def bind(self, path: str) -> str:
        options = [self.column(part) or part for part in path.split("|")]
        return "|".join(options)

    def values(self, path: str) -> list[Any]:
        """Known values of a path in the samples."""
        out = []
        for row in self.rows:
            try:
                found = value(row, path)
            except RowFault:
                continue
            if found is not None and found == found:
                out.append(found)
        return out

    def numeric(self, path: str) -> bool:
        found = [one for one in self.values(path) if not is_missing(one)]
        return bool(found) and all(
            isinstance(one, (int, float)) or re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", str(one))
            for one in found
        )

    def textual(self, path: str) -> bool:
        """Whether some cell holds text of several words, or messages."""
        return any(
            _is_messages(one) or any(len(text.split()) > 1 for text in _strings(one))
            for one in self.values(path)
        )

    def sides(self, path: str) -> bool:
        """Whether cells may be responses: text, messages or pictures, not labels."""
        return any(
            isinstance(one, (str, bytes)) or _is_messages(one) or _is_picture(one)
            for one in self.values(path)
        ) and not self.numeric(path)


# --- known schemas --------------------------------------------------------------------------


def _known(table: _Table, mapped: Roles) -> Schema | None:
    """The known schema, not of the usual two sides, with most of its columns there."""
    if any(role in mapped for role in ("chosen", "rejected", "a", "b", "responses", "response")):
        return None
    fits = [
        schema for schema in ADAPTERS.values() if schema.name not in _USUAL and _fits(schema, table)
    ]
    best = max(fits, key=lambda schema: len(schema.columns), default=None)
    return None if best is None else _bound(best, table)


def _fits(schema: Schema, table: _Table) -> bool:
    if not all(table.has(path) for path in schema.columns):
        return False
    bound = _bound(schema, table)
    if bound.shape == "list":
        order = bound.roles.get("ranks") or bound.roles["ratings"]
        lists = any(
            isinstance(decoded(one) if isinstance(one, str) else one, list)
            for path in (bound.roles["responses"], order)
            for one in table.values(path)
        )
        return lists and (bound.modality == "text" or _all_pictures(table, bound))
    return any(table.values(bound.roles[role]) for role in bound.required if role in bound.roles)


def _all_pictures(table: _Table, schema: Schema) -> bool:
    """Whether the listed answers can be pictures: bytes, records of them, or single words."""
    found = [one for cell in table.values(schema.roles["responses"]) for one in _items(cell)]
    return not any(isinstance(one, str) and len(one.split()) > 3 for one in found)


def _items(cell: Any) -> list[Any]:
    cell = decoded(cell) if isinstance(cell, str) else cell
    return list(cell) if isinstance(cell, (list, tuple)) else []


def _bound(schema: Schema, table: _Table) -> Schema:
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


# --- usual names ----------------------------------------------------------------------------


def _guessed(table: _Table, mapped: Roles) -> Schema:
    """A schema by the usual names of columns and by what is mapped. Raises DataError."""
    given = {role: path for role, path in mapped.items() if path}
    whole = {"response", "rating"} <= set(given) or (
        "responses" in given and bool({"ranks", "ratings"} & set(given))
    )
    roles = (
        given if whole else _sides(table, given) or _labelled(table, given) or _listed(table, given)
    )
    if roles is None:
        raise _unknown(table, mapped)
    return Schema("columns", roles | given)


def _sides(table: _Table, mapped: Roles) -> Roles | None:
    if any(role in mapped for role in ("a", "b", "preference", "responses", "response")):
        return None
    given = {role: mapped[role] for role in ("chosen", "rejected") if mapped.get(role)}
    if len(given) == 2:
        return given
    two = _two(table)
    for wins, loses in _WINS.items():
        for one, other in _named_pairs(wins, loses):
            a, b = _nested(table, one), _nested(table, other)
            plain = (one, other) == ("chosen", "rejected") and two is None
            if a and b and (plain or (table.sides(a) and table.sides(b))):
                return {"chosen": a, "rejected": b} | given
    return None


def _named_pairs(wins: str, loses: str) -> list[tuple[str, str]]:
    out = []
    for noun in _NOUNS:
        if not noun:
            out.append((wins, loses))
            continue
        out.append((f"{wins}_{noun}", f"{loses}_{noun}"))
        out.append((f"{noun}_{wins}", f"{noun}_{loses}"))
    return out


def _nested(table: _Table, name: str) -> str | None:
    """A column, or a key inside the object (or JSON text of one) of a column."""
    if name in table.by_key:
        return table.by_key[name]
    for column in table.columns:
        for row in table.rows[:3]:
            cell = row.get(column)
            cell = decoded(cell) if isinstance(cell, str) else cell
            if isinstance(cell, Mapping):
                for inner in cell:
                    if key(str(inner)) == name:
                        return f"{column}.{inner}"
    return None


def _labelled(table: _Table, mapped: Roles) -> Roles | None:
    """Two answers and which is better. Raises DataError for a label of unknown coding."""
    if any(role in mapped for role in ("chosen", "rejected", "responses", "response")):
        return None
    found = (mapped["a"], mapped["b"]) if {"a", "b"} <= set(mapped) else _two(table)
    if found is None:
        return None
    roles: Roles = {"a": found[0], "b": found[1]}
    if mapped.get("share_a") or mapped.get("score_a") or "a_wins" in mapped:
        return roles
    if name := mapped.get("preference"):
        coding = _coding(table, name, tags(*found))
        if coding is None:
            raise _ambiguous(table, found, name)
        return roles | coding
    if shares := _shares(table, tags(*found)):
        return roles | shares
    candidates = [table.by_key[name] for name in _PREFERENCES if name in table.by_key]
    candidates = [name for name in candidates if name not in found and table.values(name)]
    for name in candidates:
        coding = _coding(table, name, tags(*found))
        if coding is None:
            coding = _names(table, name, tags(*found))
        if coding is not None:
            return roles | {"preference": name} | coding
    for name in candidates:
        if _is_label(table, name):
            raise _ambiguous(table, found, name)
    if scores := _score_pair(table, *tags(*found)):
        return roles | {"score_a": scores[0], "score_b": scores[1]}
    return None


def _two(table: _Table) -> tuple[str, str] | None:
    """Two columns of answers that differ in a tag: response_a, response_b."""
    for noun in _NOUNS[1:]:
        for one, other in _TAGS:
            for form in ("{0}_{1}", "{0}{1}", "{1}_{0}"):
                a, b = (table.by_key.get(form.format(noun, tag)) for tag in (one, other))
                if a and b and table.sides(a) and table.sides(b):
                    return a, b
    return None


def _shares(table: _Table, tag: tuple[str, str]) -> Roles | None:
    """Two number columns of votes or one-hot winners: winner_model_a, winner_model_b."""
    if not tag[0]:
        return None
    words = {"winner", "preference", "label", "share", "win", "preferred"}
    counts = {"votes", "vote"}
    for name, column in table.by_key.items():
        parts = set(re.findall(r"[a-z]+|\d+", name))
        other = re.sub(rf"(?<![a-z]){tag[0]}(?![a-z0-9])", tag[1], name)
        if tag[0] not in parts or other == name or other not in table.by_key:
            continue
        if not parts & (words | counts):
            continue
        twin = table.by_key[other]
        known = [*table.values(column), *table.values(twin)]
        if not (table.numeric(column) and table.numeric(twin)):
            continue
        if parts & counts and all(float(x) >= 0 and float(x).is_integer() for x in known):
            return {"votes_a": column, "votes_b": twin}
        if all(0 <= float(x) <= 1 for x in known):
            tie = re.sub(rf"(?<![a-z]){tag[0]}(?![a-z0-9])", "tie", name)
            tie = tie if tie in table.by_key else tie.replace("model_tie", "tie")
            more = {"share_tie": table.by_key[tie]} if tie in table.by_key else {}
            return {"share_a": column, "share_b": twin} | more
    return None


def _coding(table: _Table, name: str, tag: tuple[str, str]) -> Roles | None:
    """What the values of a label mean, if there is only one way to read them."""
    values = {canonical(one) for one in table.values(name) if isinstance(one, (str, int, float))}
    values -= {""}
    if not values or any(not isinstance(one, (str, int, float)) for one in table.values(name)):
        return None
    words = [str(one) for one in table.values(name)]
    sides = [word_side(word, tag) for word in words if not is_missing(word)]
    if sides and all(side is not None for side in sides) and any(sides):
        return {}
    own = tag if tag in (("1", "2"), ("0", "1")) else None
    if tag in (("a", "b"), ("first", "second"), ("left", "right")):
        own = ("1", "2")
    ids = {"better_response_id", "preferred_id", "winner", "better", "choice", "preferred", "best"}
    if own == ("1", "2") and "2" in values and values <= {"1", "2"}:
        return {"a_wins": "1", "b_wins": "2"}
    if own == ("0", "1") and values <= {"0", "1"} and key(name) in ids:
        return {"a_wins": "0", "b_wins": "1"}
    return None


def _names(table: _Table, name: str, tag: tuple[str, str]) -> Roles | None:
    """Two columns that hold, in every row, what a label calls the sides: model_a, model_b."""
    for column_key, one in table.by_key.items():
        parts = re.findall(r"[a-z]+|\d+", column_key)
        if tag[0] not in parts or not tag[0]:
            continue
        other = table.by_key.get(
            re.sub(rf"(?<![a-z]){tag[0]}(?![a-z0-9])", tag[1], column_key), one
        )
        rows = [row for row in table.rows if not is_missing(row.get(name))]
        fits = [str(row.get(name)).strip() in (str(row.get(one)), str(row.get(other)))
                or word_side(str(row.get(name)), ("", "")) == 0.0 for row in rows]  # fmt: skip
        named_ = any(str(row.get(name)).strip() == str(row.get(one)) for row in rows)
        if other != one and rows and all(fits) and named_:
            return {"name_a": one, "name_b": other}
    return None


def _is_label(table: _Table, name: str) -> bool:
    """Whether a column may state a preference: few values, numbers or words of sides."""
    known = [one for one in table.values(name) if isinstance(one, (str, int, float))]
    values = {canonical(one) for one in known}
    return bool(values) and len(values) <= _MOST_LABELS and all(len(one) <= 24 for one in values)


def _listed(table: _Table, mapped: Roles) -> Roles | None:
    """Ranked or rated answers in one row."""
    if any(role in mapped for role in ("chosen", "rejected", "a", "b", "response")):
        return None
    for name in _LISTS:
        column = mapped.get("responses") or table.by_key.get(name)
        if not column:
            continue
        cells = [_items(cell) for cell in table.values(column)]
        if not any(cells):
            continue
        first = next(cell[0] for cell in cells if cell)
        if isinstance(first, Mapping) and not _is_picture(first):
            keys = {key(str(inner)): str(inner) for inner in first}
            text = next((keys[name] for name in _TEXT_KEYS if name in keys), None)
            for role, names in (("ranks", _RANKS), ("ratings", _RATINGS)):
                order = next((keys[name] for name in names if name in keys), None)
                if text and order:
                    return {"responses": f"{column}.{text}", role: f"{column}.{order}"}
        for role, names in (("ranks", _RANKS), ("ratings", _RATINGS)):
            order = next((table.by_key[n] for n in names if n in table.by_key), None)
            if order and any(_items(cell) for cell in table.values(order)):
                return {"responses": column, role: order}
    return None


def _score_pair(table: _Table, one: str, other: str) -> tuple[str, str] | None:
    """Two number columns that score the sides, in any spelling, the plainest first."""
    found = []
    for name, column in table.by_key.items():
        parts = re.findall(r"[a-z]+\d*|\d+", name)
        rest = [part for part in parts if part != one]
        singular = {part.rstrip("s") if part.rstrip("s") in _SCORES else part for part in rest}
        if len(rest) == len(parts) or not rest or not singular <= _OF_SCORES:
            continue
        if not singular & _SCORES:
            continue
        twin = "_".join(other if part == one else part for part in parts)
        if twin in table.by_key:
            found.append((len(rest), column, table.by_key[twin]))
    best = min(found, default=None, key=lambda each: each[0])
    return None if best is None else (best[1], best[2])


# --- what goes with the two sides -----------------------------------------------------------


def _completed(schema: Schema, table: _Table, mapped: Roles, *, explicit: bool) -> Schema:
    """The schema with prompt, context, scores, ties and annotators by their usual names."""
    roles = dict(schema.roles)
    taken = set(schema.used)

    def take(role: str, names: Iterable[str]) -> None:
        if role in roles or role in mapped:
            return
        for name in names:
            column = table.by_key.get(name)
            if column and column not in taken and not all(map(is_missing, table.values(column))):
                roles[role] = column
                taken.add(column)
                return

    known = schema.name in ADAPTERS and schema.name not in _OPEN
    transcripts = schema.name == "hh_rlhf"
    if not known and not transcripts and "prompt" not in roles and "prompt" not in mapped:
        prompt = _prompt_of(table, taken, _is_conversation(roles, table))
        if prompt:
            roles["prompt"] = prompt
            taken.update(prompt.split("+"))
    if not known and "prompt" in roles and "prompt" not in mapped:
        roles["prompt"] = _with_input(roles["prompt"], table, taken)
    for role, names in _OPENINGS.items():
        take(role, names)
    for role, names in _MORE.items():
        if not (role == "reference" and schema.modality == "text"):
            take(role, names)
    roles = {role: path for role, path in (roles | mapped).items() if path}
    schema = replace(schema, roles=roles)
    if schema.shape == "sides" and not known:
        roles = _with_ties(schema, table, mapped)
        _refuse_label(schema, table, mapped, explicit)
        copies = [
            column
            for column in _unread(schema, table)
            if table.values(column) and table.values(column) == table.values(roles["chosen"])
        ]
        schema = replace(schema, copies=tuple(dict.fromkeys([*schema.copies, *copies])))
        twins = [
            (column, table.by_key[name.replace("chosen", "rejected")])
            for name, column in table.by_key.items()
            if "chosen" in name.split("_") and "model" in name.split("_")
            and name.replace("chosen", "rejected") in table.by_key
        ]  # fmt: skip
        return replace(schema, roles=roles, twins=tuple(dict.fromkeys([*schema.twins, *twins])))
    if schema.shape == "labelled" and "preference" in roles and "a_wins" not in roles:
        label, tag = roles["preference"], tags(roles["a"], roles["b"])
        if "name_a" not in roles and _coding(table, label, tag) is None:
            roles = roles | (_names(table, label, tag) or {})
    if schema.shape == "labelled" and "score_a" not in roles | mapped:
        scores = _score_pair(table, *tags(roles["a"], roles["b"]))
        roles = roles | ({"score_a": scores[0], "score_b": scores[1]} if scores else {})
    return replace(schema, roles=roles)


def _is_conversation(roles: Mapping[str, str], table: _Table) -> bool:
    """Whether both sides of the samples are conversations with a prompt of their own."""
    sides = [roles.get(role) for role in ("chosen", "rejected", "a", "b")]
    found = [one for path in sides if path for one in table.values(path)]
    return bool(found) and all(
        is_transcript(one) or (_is_messages(one) and len(_items(one)) > 1) for one in found
    )


def _prompt_of(table: _Table, taken: set[str], conversation: bool) -> str | None:
    """The column that is usually called a prompt; inside a cell only beside a taken one."""
    tops = {path.partition(".")[0] for path in taken if "." in path}
    for name in ("prompt",) if conversation else _PROMPTS:
        column = table.by_key.get(name)
        if column is None and (inner := _nested(table, name)):
            column = inner if inner.partition(".")[0] in tops else None
        if not column or column in taken:
            continue
        found = table.values(column)
        if any(isinstance(one, str) or _is_messages(one) for one in found):
            return column
        inner_keys = [
            key_ for one in found if isinstance(one, Mapping) for key_ in _INNER if key_ in one
        ]
        if inner_keys:
            return f"{column}.{inner_keys[0]}"
    return None


def _with_input(prompt: str, table: _Table, taken: set[str]) -> str:
    """An instruction and the input it is about."""
    name = table.by_key.get("input")
    asks = key(prompt) in ("instruction", "prompt", "question", "task")
    if name and name not in taken and asks and any(isinstance(x, str) for x in table.values(name)):
        taken.add(name)
        return f"{prompt}+{name}"
    return prompt


def _with_ties(schema: Schema, table: _Table, mapped: Roles) -> Roles:
    """Roles that state ties and strength beside two sides."""
    roles = dict(schema.roles)
    wins, loses = tags(roles["chosen"], roles["rejected"])
    wins, loses = (wins, loses) if wins else ("chosen", "rejected")
    if not {"score_chosen", "margin", "ratings", "rank_chosen"} & set(mapped | roles):
        for one, other in dict.fromkeys([(wins, loses), ("chosen", "rejected")]):
            if pair := _score_pair(table, one, other):
                return (
                    roles
                    | {"score_chosen": pair[0], "score_rejected": pair[1]}
                    | _status(table, roles, mapped)
                )
            rank = [
                table.by_key.get(form.format(side))
                for form in ("rank_{}", "{}_rank")
                for side in (one, other)
            ]
            for a, b in (rank[:2], rank[2:]):
                if a and b and table.numeric(a):
                    return roles | {"rank_chosen": a, "rank_rejected": b}
        margin = next((table.by_key[n] for n in _MARGINS if n in table.by_key), None)
        if margin and table.numeric(margin):
            roles["margin"] = margin
        else:
            two = [table.by_key[n] for n in ("rating", "ratings", "scores") if n in table.by_key]
            lists = [n for n in two if table.values(n) and all(
                len(_items(cell)) == 2 for cell in table.values(n))]  # fmt: skip
            roles |= {"ratings": lists[0]} if lists else {}
    return roles | _status(table, roles, mapped)


def _status(table: _Table, roles: Roles, mapped: Roles) -> Roles:
    if "status" in mapped or "status" in roles:
        return {}
    for name in _STATUS:
        column = table.by_key.get(name)
        if column and column not in roles.values():
            found = table.values(column)
            words = [word_side(one, ("chosen", "rejected")) for one in map(str, found)]
            if found and (name == "status" or all(word is not None for word in words)):
                return {"status": column}
    return {}


# --- refusals -------------------------------------------------------------------------------


def _refuse_label(schema: Schema, table: _Table, mapped: Roles, explicit: bool) -> None:
    """Raise DataError for a label beside chosen and rejected, which can mean either."""
    if {"chosen", "rejected"} <= set(mapped) or (schema.modality == "image" and explicit):
        return
    for name in ("label", "labels", "preference", "preferred", "winner", "choice", "better",
                 "flipped", "swapped", "is_flipped", "swap"):  # fmt: skip
        column = table.by_key.get(name)
        if not column or column in schema.used - {schema.roles.get("status")}:
            continue
        found = table.values(column)
        words = [
            word_side(str(one), ("chosen", "rejected")) if isinstance(one, str) else None
            for one in found
        ]
        number = bool(found) and table.numeric(column)
        ties_only = all(word is not None and word >= 0 for word in words)
        if found and ties_only:
            continue  # chosen, or a tie
        if number or any(isinstance(one, bool) for one in found) or any(words):
            one, other = schema.roles["chosen"], schema.roles["rejected"]
            counts = Counter(canonical(each) for each in found).most_common(6)
            values = ", ".join(f"{each}: {count}" for each, count in sorted(counts))
            as_written = _flag({"chosen": one, "rejected": other})
            labels = {canonical(each) for each in found}
            flags = [
                f"{_flag({'a': one, 'b': other, 'preference': column} | coding)} if "
                f"{coding['a_wins']} means that {one} is better"
                for coding in (_codings(labels) if number else _WORDS)
            ]
            raise DataError(
                f"{table.name}: {column} ({values}) beside {one} and {other} can "
                f"mean which of them is better, or nothing at all",
                hint="; ".join([f"{as_written} reads {one} as better in every row", *flags]) + ".",
            )


#: More distinct values than this are no labels.
_MOST_LABELS = 9
#: The two ways to read a label in words.
_WORDS = [{"a_wins": "chosen", "b_wins": "rejected"}, {"a_wins": "rejected", "b_wins": "chosen"}]


def _codings(values: set[str]) -> list[Roles]:
    """The likely meanings of some labels, each as roles."""
    if any(one.startswith("-") for one in values):
        return [
            {"a_wins": "negative", "b_wins": "positive", "tie": "0"},
            {"a_wins": "positive", "b_wins": "negative", "tie": "0"},
        ]
    tie = {"tie": "0.5"} if "0.5" in values else {}
    if values <= {"0", "1", "0.5"}:
        return [{"a_wins": "0", "b_wins": "1"} | tie, {"a_wins": "1", "b_wins": "0"} | tie]
    if values <= {"0", "1", "2"}:
        return [
            {"a_wins": "0", "b_wins": "1", "tie": "2"},
            {"a_wins": "1", "b_wins": "2", "tie": "0"},
        ]
    if len(values) > _MOST_LABELS or any("." in one for one in values):
        return []
    first, *_, last = sorted(values) if len(values) > 1 else [*values, "VALUE"]
    return [{"a_wins": first, "b_wins": last}, {"a_wins": last, "b_wins": first}]


def _ambiguous(table: _Table, sides: tuple[str, str], name: str) -> DataError:
    """The error of a label whose values can be read in two ways."""
    known = [canonical(one) for one in table.values(name) if isinstance(one, (str, int, float))]
    values = sorted(set(known))
    roles = {"a": sides[0], "b": sides[1], "preference": name}
    prompt = _prompt_of(table, {*sides, name}, False)
    if prompt:
        roles = {"prompt": prompt} | roles
    flags = [
        f"{_flag(roles | coding)} if {coding['a_wins']} means that {sides[0]} is better"
        for coding in _codings(set(values))
    ]
    return DataError(
        f"{table.name}: {name} holds {', '.join(values[:6])}, which does not tell by itself "
        f"whether {sides[0]} or {sides[1]} is better",
        hint="; ".join(flags) + "." if flags
        else "Give the sides scores, or a column that names the better one: "
        + _flag({"a": sides[0], "b": sides[1], "score_a": "COLUMN", "score_b": "COLUMN"}),
    )  # fmt: skip


def _refuse_vision(schema: Schema, table: _Table, mapped: Roles) -> None:
    """Raise DataError for texts about pictures: an input of a vision-language model."""
    if schema.modality == "image" or _pictures(schema, table):
        return
    for column in table.columns:
        if column in schema.used or not _MEDIA.search(key(column)):
            continue
        found = [one for one in table.values(column) if not is_missing(one)]
        if found and not all(isinstance(one, (int, float)) for one in found):
            raise DataError(
                f"{table.name}: its sides are texts about a picture ({column}), as in TRL's vision "
                "preference format (trl_vision): a vision-language model is shown both, and no "
                "policy here sees them",
                hint="To judge the texts alone, without the pictures: --format trl. If two "
                "pictures are compared: --columns chosen=chosen_image,rejected=rejected_image",
            )


def _with_modality(schema: Schema, table: _Table) -> Schema:
    """The schema as one of images if its sides are pictures."""
    if schema.modality == "text" and _pictures(schema, table):
        return replace(schema, modality="image")
    return schema


def _pictures(schema: Schema, table: _Table) -> bool:
    """Whether the sides are pictures: bytes, records of them, or names of picture files."""
    if schema.shape == "rows":
        return False
    one = {"sides": "chosen", "labelled": "a", "list": "responses"}[schema.shape]
    found = table.values(schema.roles[one])
    if schema.shape == "list":
        found = [item for cell in found for item in _items(cell)]
    found = [each for each in found if not is_missing(each)]
    return bool(found) and all(
        isinstance(each, bytes)
        or _is_picture(each)
        or (isinstance(each, str) and (_IMAGE_NAME.fullmatch(each) or _URL.fullmatch(each)))
        for each in found
    )


def _refuse_lost(schema: Schema, table: _Table, mapped: Roles) -> None:
    """Raise DataError if a column that the responses answer to would not be read."""
    if schema.shape == "sides" and "prompt" not in schema.roles:
        if schema.modality == "image" and not mapped.get("prompt", "x"):
            return
        if "prompt" not in mapped and not _is_conversation(schema.roles, table):
            maybe = [c for c in _unread(schema, table) if _prose(table, c)]
            if schema.modality == "image" or maybe:
                raise _no_prompt(schema, table, maybe)
    elif (schema.shape in ("list", "rows") and "prompt" not in schema.roles) or (
        schema.shape == "labelled"
        and not {"prompt", "history"} & (set(schema.roles) | set(mapped))
        and not _is_conversation(schema.roles, table)
    ):
        raise _no_prompt(schema, table, [c for c in _unread(schema, table) if _prose(table, c)])
    if mapped or (schema.name in ADAPTERS and schema.name not in _OPEN):
        return
    path = schema.roles.get("prompt")
    if path and schema.shape != "rows" and not _sure(table, path):
        maybe = [column for column in _unread(schema, table) if _prose(table, column)]
        if maybe:
            raise _no_prompt(schema, table, maybe)
    if schema.modality == "image":
        return
    for column in _unread(schema, table):
        if (
            _CONTEXTS.search(key(column))
            and table.textual(column)
            and not _held(schema, table, column)
        ):
            prompt = schema.roles.get("prompt")
            shown = f"{column}+{prompt}" if prompt else column
            if re.search(r"step|prefix|trajectory", key(column)) and prompt:
                shown = f"{prompt}+{column}"
            raise DataError(
                f"{table.name}: the responses may answer to {column} too, which has no role",
                hint=f"{_flag(_main(schema) | {'prompt': shown})} reads it with the prompt; "
                f"{_flag(_main(schema))} leaves it out.",
            )


def _sure(table: _Table, path: str) -> bool:
    """Whether a column is a prompt whatever stands beside it: by its name, and not the same text in
    every row; or it holds conversations."""
    found = table.values(path)
    constant = len(found) > 1 and len({str(one) for one in found}) == 1
    named_ = any(key(part.rpartition(".")[2]) in _SURE for part in path.split("+"))
    return not constant and (named_ or all(map(_is_messages, found)))


def _main(schema: Schema) -> Roles:
    """The roles that make a mapping complete."""
    names = (*schema.required, *(name for name in VALUES if name in schema.roles))
    return {role: schema.roles[role] for role in dict.fromkeys(names)}


def _unread(schema: Schema, table: _Table) -> list[str]:
    return [column for column in table.columns if column not in schema.used]


def unused(schema: Schema, columns: Iterable[str]) -> list[str]:
    """Columns that no role needs, in order."""
    return [column for column in dict.fromkeys(columns) if column not in schema.used]


#: Names of columns that describe a row and are never a prompt.
_ABOUT = re.compile(
    r"(?:^|_)(?:id|ids|uid|idx|index|source|model|models|dataset|subset|split|language|lang|"
    r"timestamp|time|date|created|updated|category|type|license|url|tag|tags|domain|score|rating|"
    r"feedback|critique|critiques|rationale|rationales|reason|reasons|reasoning|explanation|"
    r"comment|comments|justification|elaboration|statement|author|title|name|topic)(?:$|_)"
)


def _prose(table: _Table, column: str) -> bool:
    """Whether a column without a role may hold prompts."""
    name = key(column)
    if _ABOUT.search(name) and not name.endswith(("_text", "_prompt", "_question", "_content")):
        return False
    found = table.values(column)
    different = len({str(one) for one in found})
    if table.textual(column):
        return len(found) < 3 or different > 1
    words = [one for one in found if isinstance(one, str) and re.search(r"[^\W\d_]", one)]
    return bool(found) and len(words) == len(found) and different > len(found) / 2


def _held(schema: Schema, table: _Table, column: str) -> bool:
    """Whether what a column says is in the cells that are read, in nearly all samples."""
    held = total = 0
    for row in table.rows:
        pieces = [piece for piece in _strings(row.get(column)) if piece.strip()]
        if not pieces:
            continue
        known = " ".join(
            " ".join(piece.split())
            for name in schema.used
            if name in row
            for piece in _strings(row[name])
        )
        total += 1
        held += all(" ".join(piece.split()) in known for piece in pieces)
    return held >= 0.9 * total


def _strings(cell: Any) -> list[str]:
    """All texts in a cell that say something: contents, not roles."""
    cell = decoded(cell) if isinstance(cell, str) else cell
    if isinstance(cell, str):
        return [cell]
    if isinstance(cell, Mapping):
        return [
            piece
            for name, inner in cell.items()
            if name not in ("role", "from", "type", "name")
            for piece in _strings(inner)
        ]
    if isinstance(cell, (list, tuple)):
        return [piece for inner in cell for piece in _strings(inner)]
    return []


def _no_prompt(schema: Schema, table: _Table, maybe: list[str]) -> DataError:
    """The error of two texts without a column that is known to be their prompt."""
    main = _main(schema)
    taken = main.pop("prompt", "")
    if not maybe:
        spare = next((c for c in _unread(schema, table) if not table.numeric(c)), "COLUMN")
        return DataError(
            f"{table.name}: no column holds the prompt (columns: {', '.join(table.columns)})",
            hint=f"Name it: {_flag({'prompt': spare} | main)}",
        )
    named_ = ", ".join(maybe[:4])
    why = f"{taken} is no sure prompt" if taken else "no column is known to be the prompt"
    rest = f"reads {taken} alone" if taken else "reads pairs without one"
    return DataError(
        f"{table.name}: {why}; it may be {named_}",
        hint=f"{_flag({'prompt': maybe[0]} | main)} reads {maybe[0]} as the prompt; "
        f"{_flag({'prompt': taken} | main)} {rest}.",
    )


def _unknown(table: _Table, mapped: Roles) -> DataError:
    """The error of a table that no schema fits, with the nearest mapping as a flag."""
    found = ", ".join(table.columns) or "none"
    message = f"{table.name}: no known format fits its columns ({found})"
    nearest = _nearest(table, mapped)
    if nearest is None:
        return DataError(
            f"{message}: one answer a row, or none, states no preference between two",
            hint="A pair needs two answers to one prompt: " + PLAINEST + ".",
        )
    flag = _flag(nearest)
    return DataError(message, hint=f"Name its columns: {flag} ({PLAINEST}).")


def _nearest(table: _Table, mapped: Roles) -> Roles | None:
    """The likeliest mapping of an unknown table; None if it has no two answers."""
    roles: Roles = {role: path for role, path in mapped.items() if path}
    for wins, loses in (_WINS | _LIKELY).items():
        for one, other in _named_pairs(wins.rstrip("_"), loses):
            a, b = _nested(table, one), _nested(table, other)
            if a and b:
                return _prompted(table, {"chosen": a, "rejected": b} | roles)
    if two := _two(table):
        known = [table.by_key[n] for n in _PREFERENCES if n in table.by_key]
        known += [n for n in table.columns if not _ABOUT.search(key(n)) and _is_label(table, n)]
        label = next((n for n in known if n not in two), "COLUMN")
        return _prompted(table, {"a": two[0], "b": two[1], "preference": label} | roles)
    texts = [c for c in table.columns if table.textual(c) and not _ABOUT.search(key(c))]
    prompt = _prompt_of(table, set(), False)
    rest = [c for c in texts if c != prompt]
    half = next(
        (role for role in ("chosen", "rejected") if role in table.by_key or roles.get(role)), None
    )
    if half:
        other = "rejected" if half == "chosen" else "chosen"
        name = table.by_key.get(half) or roles[half]
        spare = next((c for c in rest if c != name), "COLUMN")
        return _prompted(table, {half: name, other: spare} | roles)
    if len(rest) >= 2:
        return _prompted(table, {"chosen": rest[0], "rejected": rest[1]} | roles)
    return None


def _prompted(table: _Table, roles: Roles) -> Roles:
    taken = set(roles.values())
    prompt = _prompt_of(table, taken, False) or next(
        (c for c in table.columns if c not in taken and _prose(table, c)), "COLUMN"
    )
    return {"prompt": prompt} | roles


def _flag(roles: Mapping[str, str]) -> str:
    """`--columns ...` for a mapping, as it is typed in a shell."""
    order = sorted(roles, key=lambda role: [*ROLES, *VALUES].index(role))
    return "--columns " + shlex.quote(",".join(f"{role}={roles[role]}" for role in order))


def _family(schema: Schema, table: _Table) -> str:
    """The name of a recognised format of two sides: the known one it is most like."""
    if schema.name != "columns" or schema.shape != "sides":
        return schema.name
    roles = schema.roles
    if schema.modality == "image":
        pair = (roles["chosen"], roles["rejected"])
        return "image_columnar" if pair == ("chosen", "rejected") else "image_folder"
    if (roles["chosen"], roles["rejected"]) != ("chosen", "rejected"):
        return "columns"
    found = [one for side in ("chosen", "rejected") for one in table.values(side)]
    if "prompt" not in roles and any(map(is_transcript, found)):
        return "hh_rlhf"
    if any(_is_messages(one) for one in found):
        scores = roles.get("score_chosen")
        known = {"score_chosen": "ultrafeedback", "chosen-rating": "ultrafeedback_argilla"}
        return known.get(scores or "", "trl")
    own = any(name in table.columns for name in _OWN) and "prompt" in roles
    plain = any(isinstance(one, str) for one in found)
    return "columnar" if own or not plain else "trl"


# --- kinds of cells -------------------------------------------------------------------------


def _is_messages(found: Any) -> bool:
    """A list of messages, one message, or JSON text of these."""
    if isinstance(found, str) and found.lstrip()[:1] in ("[", "{"):
        found = decoded(found)
    if isinstance(found, Mapping):
        return "content" in found or ("from" in found and "value" in found)
    return (
        isinstance(found, (list, tuple))
        and bool(found)
        and isinstance(found[0], Mapping)
        and ("role" in found[0] or "from" in found[0])
    )


def _is_picture(found: Any) -> bool:
    """The undecoded Image value of the `datasets` library."""
    return isinstance(found, Mapping) and set(found) == {"bytes", "path"}


def facts_of_sample(samples: Sequence[RawRow]) -> str:
    """What kinds of values each column holds: for errors."""
    first: dict[str, str] = {}
    for row in samples:
        for name, found in row.items():
            if found is not None and not isinstance(found, Undecoded):
                first.setdefault(str(name), kind(found))
    return ", ".join(f"{name} ({what})" for name, what in first.items())
