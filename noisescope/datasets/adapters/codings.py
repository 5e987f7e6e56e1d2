"""What the values of a label mean: `a_wins`, `b_wins` and `tie`, by how the labels are written."""

from __future__ import annotations

import re

from noisescope.datasets.adapters.cells import is_missing, key
from noisescope.datasets.adapters.labels import (
    LABEL_TYPES,
    canonical,
    is_unlabelled,
    tags,
    word_side,
    words_of,
)
from noisescope.datasets.adapters.mapping import Roles
from noisescope.datasets.adapters.sample import Sample

#: More distinct values than this are no labels.
_MOST_LABELS = 9


def coding_of(table: Sample, name: str, tag: tuple[str, str]) -> Roles | None:
    """What the values of a label mean, if there is only one way to read them."""
    values, found = table.labels(name) - {""}, table.values(name)
    if not values or not all(isinstance(one, LABEL_TYPES) for one in found):
        return None
    sides = [word_side(word, tag) for word in map(str, found) if not is_missing(word)]
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


def names_of(table: Sample, name: str, tag: tuple[str, str]) -> Roles | None:
    """Two columns that hold, in every row, what a label calls the sides: model_a, model_b."""
    for column_key, one in table.by_key.items():
        if not tag[0] or tag[0] not in words_of(column_key):
            continue
        other = table.by_key.get(retagged(column_key, *tag), one)
        rows = [row for row in table.rows if not is_missing(row.get(name))]
        fits = [str(row.get(name)).strip() in (str(row.get(one)), str(row.get(other)))
                or word_side(str(row.get(name)), ("", "")) == 0.0 for row in rows]  # fmt: skip
        named_ = any(str(row.get(name)).strip() == str(row.get(one)) for row in rows)
        if other != one and rows and all(fits) and named_:
            return {"name_a": one, "name_b": other}
    return None


def is_label(table: Sample, name: str) -> bool:
    """Whether a column may state a preference: few values, numbers or words of sides."""
    values = table.labels(name)
    return bool(values) and len(values) <= _MOST_LABELS and all(len(one) <= 24 for one in values)


def codings(values: set[str]) -> list[Roles]:
    """The likely meanings of some labels, each as roles that name every label that occurs."""
    if any(re.search(r"[|,=]", one) for one in values):
        return []
    if not all(re.fullmatch(r"-?\d+(?:\.\d+)?", one) for one in values):
        return _word_codings(values)
    order = sorted(values, key=float)
    if float(order[0]) < 0:
        return [
            {"a_wins": "negative", "b_wins": "positive", "tie": "0"},
            {"a_wins": "positive", "b_wins": "negative", "tie": "0"},
        ]
    if values == {"0", "1", "2"}:
        return [
            {"a_wins": "0", "b_wins": "1", "tie": "2"},
            {"a_wins": "1", "b_wins": "2", "tie": "0"},
        ]
    whole = all("." not in one for one in values) or values <= {"0", "0.5", "1"}
    if len(values) > _MOST_LABELS or not whole:
        return []
    tie = [one for one in order if one == "0.5"]
    if not tie and len(order) % 2 and len(order) > 1:
        tie = [order[len(order) // 2]]
    rest = [one for one in order if one not in tie]
    return _both_ways(rest[: (len(rest) + 1) // 2], rest[(len(rest) + 1) // 2 :], tie)


def _word_codings(values: set[str]) -> list[Roles]:
    """The two ways to read labels in words: those of a side together, or one for each side."""
    sides = {one: word_side(one, ("chosen", "rejected")) for one in sorted(values)}
    tie = [one for one, side in sides.items() if side == 0]
    rest = [one for one in sides if one not in tie and not is_unlabelled(one)]
    if all(sides[one] is not None for one in rest) and len({sides[one] for one in rest}) == 2:
        first = [one for one in rest if (sides[one] or 0) > 0]
        return _both_ways(first, [one for one in rest if one not in first], tie)
    if len(rest) == 3 and not tie:  # two sides and a word that is no side's
        tie = [one for one in rest if sides[one] is None]
        rest = [one for one in rest if sides[one]]
        if {sides[one] for one in rest} != {1.0, -1.0}:
            return []
    return _both_ways(rest[:1], rest[1:], tie) if len(rest) <= 2 else []


def as_written(table: Sample, name: str, coding: Roles) -> Roles:
    """The coding of a label with words spelled as the column has them."""
    texts = [one.strip() for one in table.values(name) if isinstance(one, str)]
    spelled = {text.lower(): text for text in texts if canonical(text) == text.lower()}
    parts = {role: labels.split("|") for role, labels in coding.items()}
    return {role: "|".join(spelled.get(one, one) for one in some) for role, some in parts.items()}


def _both_ways(first: list[str], last: list[str], tie: list[str]) -> list[Roles]:
    if not first and not last:
        return []
    return [coding_roles(first, last, tie), coding_roles(last, first, tie)]


def coding_roles(a_wins: list[str], b_wins: list[str], tie: list[str]) -> Roles:
    """The roles that give labels their meaning."""
    values = {"a_wins": a_wins, "b_wins": b_wins, "tie": tie}
    return {role: "|".join(texts) for role, texts in values.items() if texts}


def described(coding: Roles, one: str, other: str) -> str:
    """What a coding of labels means, in words."""
    tie = coding.get("tie", "")
    unknown = tie and any(word_side(text, ("", "")) != 0 for text in tie.split("|"))
    ties = f" and {tie} a tie" if unknown else ""
    if "a_wins" in coding:
        return f"{coding['a_wins']} means that {one} is better{ties}"
    return f"{coding['b_wins']} means that {other} is better{ties}"


def retagged(name: str, one: str, other: str) -> str:
    """The name of a column with the tag of one side replaced by that of the other."""
    return re.sub(rf"(?<![a-z]){one}(?![a-z0-9])", other, name)


def worse_coding(table: Sample, sides: tuple[str, str], name: str) -> Roles | None:
    """The coding of a label that names the worse side, by the words or tags that occur."""
    tag = tags(*sides)
    wins: dict[float, list[str]] = {-1.0: [], 1.0: [], 0.0: []}
    for text in sorted({str(one).strip() for one in table.values(name) if not is_missing(one)}):
        side = word_side(text, tag)
        if side is None and canonical(text) in tag:
            side = 1.0 if canonical(text) == tag[0] else -1.0
        if side is None or re.search(r"[|,=]", text):
            return None
        wins[side].append(text)
    return coding_roles(wins[-1.0], wins[1.0], wins[0.0]) or None
