"""Make pairs of the rows of a schema: sides as written, sides with a label, or answers in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

from noisescope.datasets.adapters import labels
from noisescope.datasets.adapters.cells import (
    MISSING,
    RawRow,
    RowFault,
    decoded,
    identifier,
    is_missing,
    key,
    number,
    numbers,
    shortened,
    unexpected,
    value,
)
from noisescope.datasets.adapters.compose import Composed, Opening, compose
from noisescope.datasets.adapters.preference import difference, is_tie, preference, statement
from noisescope.datasets.adapters.vision import with_places
from noisescope.pairs import Pair, digest

if TYPE_CHECKING:
    from noisescope.datasets.adapters.schema import Schema

_OPENING = ("system", "tools", "history", "context")
_NAMES = ("annotator", "pair_id", "group", "origin")


def pairs_of(schema: Schema, row: RawRow) -> list[Pair | RowFault]:
    """Pairs that a row states; in the place of one that is a tie, its RowFault. Raises RowFault."""
    if schema.shape == "sides":
        return [_in_order(schema, row)]
    if schema.shape == "labelled":
        return [_labelled(schema, row)]
    if schema.shape == "list":
        return _listed(schema, row)
    raise RowFault("unlabelled", "the only rated answer to its prompt")


def pairs_of_rows(schema: Schema, rows: Sequence[RawRow]) -> list[tuple[int, Pair | RowFault]]:
    """Pairs of several rows that rate answers to one prompt, each with its row's index."""
    if len(rows) == 1:
        return [(0, RowFault("unlabelled", "the only rated answer to its prompt"))]
    ratings = [number(row, schema.roles["rating"]) for row in rows]
    answers = [_text(schema, row, "response") for row in rows]
    return _ordered(schema, rows[0], answers, ratings, None)


def _in_order(schema: Schema, row: RawRow) -> Pair:
    """The pair of a row with chosen and rejected."""
    gap = _gap(schema, row)
    composed = _composed(schema, row, "chosen", "rejected")
    if gap == 0:
        raise RowFault("tie", _equal(schema, row))
    if is_tie(schema, row):
        raise RowFault("tie", f"{schema.roles['share_tie']} is true")
    status = schema.roles.get("status")
    if status and key(str(value(row, status))) in labels.TIES:
        raise RowFault("tie", f"{status} is {value(row, status)}")
    strength, votes = schema.number(row, "strength"), schema.number(row, "votes")
    return _pair(
        schema,
        row,
        composed,
        strength=gap if strength is None else strength,
        votes=None if votes is None else round(votes),
        contradicted=gap is not None and gap < 0,
    )


def _gap(schema: Schema, row: RawRow) -> float | None:
    """Score of chosen less that of rejected, by whichever columns hold it; None if unknown."""
    roles = schema.roles
    if "score_chosen" in roles:
        return difference(schema, row, "score_chosen", "score_rejected")
    if "rank_chosen" in roles:
        gap = difference(schema, row, "rank_chosen", "rank_rejected")
        return None if gap is None else -gap
    if "margin" in roles:
        return number(row, roles["margin"])
    if "ratings" in roles and not is_missing(found := value(row, roles["ratings"])):
        a, b = (*numbers(found, roles["ratings"]), None, None)[:2]
        return None if a is None or b is None else abs(a - b)
    return None


def _equal(schema: Schema, row: RawRow) -> str:
    """What a tie of scores looks like."""
    for what in ("score", "rank"):
        if f"{what}_chosen" in schema.roles:
            return f"both sides {what} {schema.number(row, f'{what}_chosen'):g}"
    path = schema.roles.get("margin") or schema.roles["ratings"]
    return f"{path} is {value(row, path)}"


def _labelled(schema: Schema, row: RawRow) -> Pair:
    """The pair of a row with two sides and what states which is better."""
    composed = _composed(schema, row, "a", "b")
    side, agreement, votes = preference(schema, row)
    if not side:
        raise RowFault("tie" if side == 0 else "unlabelled", statement(schema, row))
    first = side > 0
    strength = schema.number(row, "strength")
    gap = difference(schema, row, "score_a", "score_b")
    if strength is None and "preference" in schema.roles and schema.graded:
        strength = abs(side)
    if strength is None and gap is not None:
        strength = gap if first else -gap
    prompt, turns, a, b = composed
    return _pair(
        schema,
        row,
        composed if first else (prompt, turns, b, a),
        first=first,
        strength=strength,
        votes=votes,
        agreement=agreement,
        contradicted=bool(gap and (gap > 0) != first),
    )


def _pair(schema: Schema, row: RawRow, composed: Composed, **facts: Any) -> Pair:
    """The pair of a prompt and its sides, the better one first, with the names that a row gives."""
    prompt, turns, chosen, rejected = composed
    names = {role: schema.name_in(row, role) for role in _NAMES if role not in facts}
    return Pair(prompt, chosen, rejected, turns, **(names | facts))


def _listed(schema: Schema, row: RawRow) -> list[Pair | RowFault]:
    """Pairs of a row with a list of answers and their ranks or ratings, or a list of these."""
    path = schema.roles["responses"]
    found = decoded(_said_in(schema, row, path))
    order = "ranks" if "ranks" in schema.roles else "ratings"
    sign = -1.0 if order == "ranks" else 1.0
    given = decoded(value(row, schema.roles[order]))
    if not isinstance(found, (list, tuple)) or not isinstance(given, (list, tuple)):
        raise unexpected(row, "a list", path, schema.roles[order])
    answers: list[Any] = list(found)
    if schema.modality == "image":
        answers = [item_path(row, path, at) for at in range(len(found))]
    nested = bool(given) and all(isinstance(one, (list, tuple)) for one in given)
    who: Any = None
    if nested and "annotator" in schema.roles:
        who = value(row, schema.roles["annotator"])
    out: list[Pair | RowFault] = []
    for at, one in enumerate(given if nested else [given]):
        scores = numbers(one, schema.roles[order])
        if len(scores) != len(answers) or len(answers) < 2:
            raise RowFault(
                "unreadable",
                f"{path} and {schema.roles[order]} differ in length or are too short",
            )
        named = identifier({"": who[at]}, "") if isinstance(who, list) else None
        if not nested:
            named = schema.name_in(row, "annotator")
        signed = [None if score is None else sign * score for score in scores]
        out += [pair for _, pair in _ordered(schema, row, answers, signed, named)]
    return out


def _ordered(
    schema: Schema,
    row: RawRow,
    answers: Sequence[Any],
    scores: Sequence[float | None],
    annotator: str | None,
) -> list[tuple[int, Pair | RowFault]]:
    """Pairs of answers by their scores, the higher the better, each with an answer's index."""
    out: list[tuple[int, Pair | RowFault]] = []
    group: str | None = None
    for one, other in _compared(schema, scores):
        x, y = scores[one], scores[other]
        if x is None or y is None:
            out.append((other, RowFault("unlabelled", f"answer {one} or {other} has no score")))
            continue
        best, worst = (one, other) if x >= y else (other, one)
        names = (f"answer {best}", f"answer {worst}")
        try:
            composed = _checked(schema, row, answers[best], answers[worst], names)
        except RowFault as fault:
            out.append((other, fault))
            continue
        if x == y:
            out.append((other, RowFault("tie", f"answers {one} and {other} are equal")))
            continue
        if group is None:
            group = schema.name_in(row, "group") or digest("group", composed[0])
        own = {"annotator": annotator, "pair_id": None, "group": group}
        out.append((other, _pair(schema, row, composed, strength=abs(x - y), **own)))
    return out


def _compared(schema: Schema, scores: Sequence[float | None]) -> Iterable[tuple[int, int]]:
    """Positions of the answers to compare."""
    count = range(len(scores))
    if schema.pairs == "all":
        return combinations(count, 2)
    known = [at for at in count if scores[at] is not None]
    order = sorted(known, key=lambda at: -float(scores[at] or 0))
    if schema.pairs == "adjacent":
        return pairwise(order)
    return [(order[0], other) for other in order[1:]]


def _composed(schema: Schema, row: RawRow, one: str, other: str) -> Composed:
    """The prompt and the two sides of a row, by the roles of the sides. Raises RowFault."""
    paths = schema.roles[one], schema.roles[other]
    if schema.modality == "image":
        return _checked(schema, row, *paths, paths)
    a, b = (_said_in(schema, row, path) for path in paths)
    absent = [path for path, cell in zip(paths, (a, b), strict=True) if cell is None]
    if absent:
        raise unexpected(row, "text", *absent)
    return _checked(schema, row, a, b, paths)


def _checked(schema: Schema, row: RawRow, one: Any, other: Any, names: tuple[str, str]) -> Composed:
    """The prompt and two sides from their cells, or from the paths of pictures.

    Raises RowFault, also for texts that are blank, placeholders or identical.
    """
    if schema.modality == "image":
        prompt = _text(schema, row, "prompt") if "prompt" in schema.roles else ""
        return prompt, None, one, other
    composed = compose(_opening(schema, row), one, other, names)
    sides = composed[2:]
    for name, response in zip(names, sides, strict=True):
        if not response or MISSING.fullmatch(response):
            detail = f"{name} is {response.strip()!r}" if response.strip() else name
            raise RowFault("empty response", detail)
    if sides[0].strip() == sides[1].strip():
        raise RowFault("identical sides", shortened(sides[0]))
    return composed


def _opening(schema: Schema, row: RawRow) -> Opening:
    """What precedes the responses."""
    roles = schema.roles
    parts = {role: _said_in(schema, row, roles[role]) for role in _OPENING if role in roles}
    if "system" in parts and parts["system"] is None:
        parts["system"] = ""
    implicit = "prompt" not in roles
    prompt = None if implicit else _said_in(schema, row, roles["prompt"])
    transcripts = implicit and not parts and schema.transcripts
    return Opening(prompt, **parts, implicit=implicit, transcripts=transcripts)


def _said_in(schema: Schema, row: RawRow, path: str) -> Any:
    """A cell of text or messages; parts that are pictures are PLACEs in the text."""
    found = value(row, path)
    return with_places(found) if schema.modality == "vision" else found


def _text(schema: Schema, row: RawRow, role: str) -> str:
    found = value(row, schema.roles[role])
    if not isinstance(found, str):
        raise unexpected(row, "text", schema.roles[role])
    return found


def item_path(row: RawRow, path: str, at: int) -> str:
    """Path of the item of a list that `path` leads to, or passes through."""
    if path in row or "." not in path:
        return f"{path}.{at}"
    found: Any = row
    steps = path.split(".")
    for done, step in enumerate(steps):
        if isinstance(found, list):
            return ".".join([*steps[:done], str(at), *steps[done:]])
        found = found.get(step) if isinstance(found, Mapping) else None
    return f"{path}.{at}"
