"""A schema: which column of a row plays which role, and the pairs that follow.

    schema = Schema("mine", {"prompt": "question", "chosen": "best", "rejected": "worst"})
    schema.parse({"question": "Bread?", "best": "Bake it.", "worst": "No."})

Four shapes, by the roles that are given:

    sides     chosen, rejected                    a pair, written in the order of preference
    labelled  a, b and preference, shares,        a pair, and beside it which side is better
              votes or scores
    list      responses and ranks or ratings      every two answers to a prompt, ordered
    rows      response, rating                    the same, one answer a row

`flip` reverses the preference in the row's own schema. A schema never reads files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any, Literal, final

from noisescope.datasets.adapters import labels, reverse
from noisescope.datasets.adapters.cells import (
    MISSING,
    RawRow,
    RowFault,
    decoded,
    identifier,
    is_missing,
    key,
    kind,
    number,
    numbers,
    shortened,
    unexpected,
    value,
)
from noisescope.datasets.adapters.compose import Opening, compose
from noisescope.datasets.adapters.vision import with_places
from noisescope.pairs import Modality, Pair, digest

Shape = Literal["sides", "labelled", "list", "rows"]
PairsMode = Literal["all", "best", "adjacent"]
#: Which pairs of a ranked or rated list are read.
PAIRS: tuple[PairsMode, ...] = ("all", "best", "adjacent")

#: Every role that a column can play, with what it means.
ROLES: dict[str, str] = {
    "prompt": "what is answered: text, messages or a transcript",
    "system": "system text before the prompt",
    "tools": "tool definitions, given to the chat template",
    "history": "turns before the prompt",
    "context": "text or turns that the prompt is about",
    "chosen": "the better side",
    "rejected": "the worse side",
    "a": "the first side, if another column names the better one",
    "b": "the second side",
    "preference": "which of a and b is better",
    "share_a": "label or share of votes of a, 0 to 1",
    "share_b": "label or share of votes of b, 0 to 1",
    "share_tie": "1 or true for a tie; beside votes, the votes for one",
    "name_a": "what preference calls a in this row, such as the name of its model",
    "name_b": "what preference calls b",
    "votes_a": "number of votes for a",
    "votes_b": "number of votes for b",
    "score_a": "score of a, the higher the better",
    "score_b": "score of b",
    "score_chosen": "score of chosen: equal scores are a tie, the difference is the strength",
    "score_rejected": "score of rejected",
    "rank_chosen": "rank of chosen, the lower the better",
    "rank_rejected": "rank of rejected",
    "margin": "difference of the sides' scores: 0 is a tie",
    "status": "a word that may name a tie",
    "labelled": "false for a row without a label",
    "responses": "a list of answers to the prompt",
    "ranks": "their ranks, the lower the better",
    "ratings": "their ratings, the higher the better",
    "response": "one answer, its rating in the same row",
    "rating": "the rating of response",
    "strength": "how much better the better side is",
    "votes": "the votes behind the label, a list, or their number",
    "annotator": "who labelled the pair",
    "pair_id": "the pair's own name",
    "group": "pairs that belong together",
    "origin": "the dataset's own source of the row",
    "reference": "an image that the sides should look like",
    "images": "what a prompt of text shows: a picture, or a list of pictures",
}
#: Values instead of columns: what `preference` holds if a, b or neither is better.
VALUES: dict[str, str] = {
    "a_wins": "values of preference (x|y, negative, positive) if a is better",
    "b_wins": "values of preference if b is better",
    "tie": "values of preference if neither is",
}
_OPENING = ("system", "tools", "history", "context")


@final
@dataclass(frozen=True)
class Schema:
    """Roles of one dataset's columns: `roles` maps each role to a path (see `cells`).

    `keys` are columns that identify it beyond those of its roles, `twins` pairs of columns that a
    flip exchanges with the sides, `copies` columns that repeat a side, `ids` three columns: id of
    the better side, of a, of b. `transcripts`: both sides are transcripts.
    `stated`: the user named the column of pictures, or that there is none (`--columns images=`).
    """

    name: str
    roles: Mapping[str, str]
    modality: Modality = "text"
    keys: tuple[str, ...] = ()
    twins: tuple[tuple[str, str], ...] = ()
    copies: tuple[str, ...] = ()
    ids: tuple[str, str, str] | None = None
    pairs: PairsMode = "all"
    transcripts: bool = False
    stated: bool = False
    about: str = field(default="", compare=False)

    @cached_property
    def shape(self) -> Shape:
        if "responses" in self.roles:
            return "list"
        if "response" in self.roles:
            return "rows"
        return "labelled" if "a" in self.roles else "sides"

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Roles without which a row states nothing."""
        of_shape: dict[Shape, tuple[str, ...]] = {
            "sides": ("prompt", "images", "chosen", "rejected"),
            "labelled": (
                "prompt",
                "a",
                "b",
                "preference",
                "share_a",
                "share_b",
                "votes_a",
                "votes_b",
            ),
            "list": ("prompt", "responses", "ranks", "ratings"),
            "rows": ("prompt", "response", "rating"),
        }
        return tuple(role for role in of_shape[self.shape] if role in self.roles)

    @property
    def columns(self) -> tuple[str, ...]:
        """Paths of the required roles, and the columns that identify the schema."""
        paths = [self.roles[role] for role in self.required if role not in VALUES]
        return tuple(dict.fromkeys([*paths, *self.keys]))

    @property
    def optional(self) -> tuple[str, ...]:
        """Paths that are used if present."""
        rest = [path for role, path in self.roles.items() if role not in VALUES]
        return tuple(path for path in dict.fromkeys(rest) if path not in self.columns)

    @cached_property
    def used(self) -> frozenset[str]:
        """Names and first steps of every path: what has to be decoded to parse a row."""
        paths = [path for role, path in self.roles.items() if role not in VALUES]
        steps = [part for path in paths for part in re.split(r"[|+]", path)]
        return frozenset([*paths, *steps, *(step.partition(".")[0] for step in steps)])

    def parse(self, row: RawRow) -> list[Pair | RowFault]:
        """Pairs that the row states; in the place of one that is a tie, its RowFault.

        Raises RowFault, and nothing else, for a row that states none.
        """
        if self.shape == "sides":
            return [self._sides(row)]
        if self.shape == "labelled":
            return [self._labelled(row)]
        if self.shape == "list":
            return self._list(row)
        raise RowFault("unlabelled", "the only rated answer to its prompt")

    def parse_group(self, rows: Sequence[RawRow]) -> list[tuple[int, Pair | RowFault]]:
        """Pairs of several rows that rate answers to one prompt, each with its row's index."""
        if len(rows) == 1:
            return [(0, RowFault("unlabelled", "the only rated answer to its prompt"))]
        ratings = [number(row, self.roles["rating"]) for row in rows]
        answers = [self._text(row, "response") for row in rows]
        return self._ordered(rows[0], answers, ratings, None)

    def _sides(self, row: RawRow) -> Pair:
        one, other = self.roles["chosen"], self.roles["rejected"]
        scores = self._scores(row)
        if self.modality == "image":
            prompt, chosen, rejected = self._text(row, "prompt"), one, other
            turns = None
        else:
            a, b = self._said_in(row, one), self._said_in(row, other)
            absent = [path for path, side in ((one, a), (other, b)) if side is None]
            if absent:
                raise unexpected(row, "text", *absent)
            prompt, turns, chosen, rejected = compose(self._opening(row), a, b, (one, other))
            self._check(chosen, rejected, one, other)
        if scores == 0:
            raise RowFault("tie", self._tie(row))
        if self._is_tie(row):
            raise RowFault("tie", f"{self.roles['share_tie']} is true")
        status = self.roles.get("status")
        if status and key(str(value(row, status))) in labels.TIES:
            raise RowFault("tie", f"{status} is {value(row, status)}")
        strength, votes = self._number(row, "strength"), self._number(row, "votes")
        return Pair(
            prompt,
            chosen,
            rejected,
            turns,
            self._name(row, "annotator"),
            self._name(row, "pair_id"),
            strength=scores if strength is None else strength,
            group=self._name(row, "group"),
            origin=self._name(row, "origin"),
            votes=None if votes is None else round(votes),
            contradicted=scores is not None and scores < 0,
        )

    def _scores(self, row: RawRow) -> float | None:
        """Score of chosen less that of rejected, by whichever columns hold it; None if unknown."""
        roles = self.roles
        for one, other, sign in (
            ("score_chosen", "score_rejected", 1.0),
            ("rank_chosen", "rank_rejected", -1.0),
        ):
            if one in roles:
                a, b = number(row, roles[one]), number(row, roles[other])
                return None if a is None or b is None else sign * (a - b)
        if "margin" in roles:
            return number(row, roles["margin"])
        if "ratings" in roles and not is_missing(found := value(row, roles["ratings"])):
            a, b = (*numbers(found, roles["ratings"]), None, None)[:2]
            return None if a is None or b is None else abs(a - b)
        return None

    def _tie(self, row: RawRow) -> str:
        """What a tie of scores looks like."""
        for role in ("score_chosen", "rank_chosen"):
            if role in self.roles:
                what = "score" if role.startswith("score") else "rank"
                return f"both sides {what} {number(row, self.roles[role]):g}"
        path = self.roles.get("margin") or self.roles["ratings"]
        return f"{path} is {value(row, path)}"

    def _labelled(self, row: RawRow) -> Pair:
        one, other = self.roles["a"], self.roles["b"]
        if self.modality == "image":
            prefers, agreement, votes = self._prefers(row)
            prompt, a, b, turns = self._text(row, "prompt"), one, other, None
        else:
            sides = self._said_in(row, one), self._said_in(row, other)
            absent = [path for path, s in zip((one, other), sides, strict=True) if s is None]
            if absent:
                raise unexpected(row, "text", *absent)
            prompt, turns, a, b = compose(self._opening(row), *sides, (one, other))
            self._check(a, b, one, other)
            prefers, agreement, votes = self._prefers(row)
        if prefers is None:
            raise RowFault("unlabelled", self._statement(row))
        if prefers == 0:
            raise RowFault("tie", self._statement(row))
        first = prefers > 0
        strength = self._number(row, "strength")
        scored = self._difference(row)
        if strength is None and "preference" in self.roles and self.graded:
            strength = abs(prefers)
        if strength is None and scored is not None:
            strength = scored if first else -scored
        return Pair(
            prompt,
            a if first else b,
            b if first else a,
            turns,
            self._name(row, "annotator"),
            self._name(row, "pair_id"),
            first=first,
            strength=strength,
            votes=votes,
            agreement=agreement,
            group=self._name(row, "group"),
            origin=self._name(row, "origin"),
            contradicted=scored is not None and scored != 0 and (scored > 0) != first,
        )

    @cached_property
    def graded(self) -> bool:
        """Whether the size of `preference` is a strength."""
        return "negative" in (self.roles.get("a_wins"), self.roles.get("b_wins"))

    def _difference(self, row: RawRow) -> float | None:
        if "score_a" not in self.roles:
            return None
        a, b = number(row, self.roles["score_a"]), number(row, self.roles["score_b"])
        return None if a is None or b is None else a - b

    def prefers(self, row: RawRow) -> float | None:
        """Which side the row's label names: above 0 a, below 0 b, 0 a tie, None if unlabelled."""
        return self._prefers(row)[0]

    def _prefers(self, row: RawRow) -> tuple[float | None, float | None, int | None]:
        """(> 0 if a is better, < 0 if b is, 0 for a tie, None if unlabelled; agreement; votes)."""
        roles = self.roles
        if "labelled" in roles and value(row, roles["labelled"]) is False:
            return None, None, None
        if "share_a" in roles:
            return self._shares(row)
        if "votes_a" in roles:
            return self._counted(row)
        if self._is_tie(row):
            return 0.0, None, None
        if "preference" not in roles:
            return self._difference(row), None, None
        prefers: float | str | None = self.named(row) if "name_a" in roles else None
        if prefers is None:
            prefers = self.meaning(value(row, roles["preference"]))
        if isinstance(prefers, str):
            raise RowFault("unreadable", f"{roles['preference']} is {prefers}")
        if "votes" not in roles or not prefers:
            return prefers, None, None
        votes, agreement = self._votes(row, 1 if prefers > 0 else -1)
        return prefers, agreement, votes

    def _shares(self, row: RawRow) -> tuple[float | None, float | None, int | None]:
        one, other = (self._share(row, role) for role in ("share_a", "share_b"))
        if "share_tie" in self.roles and self._share(row, "share_tie"):
            return 0.0, None, None
        if one is None or other is None:
            return None, None, None
        agreement = max(one, other) if min(one, other) > 0 else None
        return one - other, agreement, None

    def _counted(self, row: RawRow) -> tuple[float | None, float | None, int | None]:
        one, other = number(row, self.roles["votes_a"]), number(row, self.roles["votes_b"])
        ties = number(row, self.roles["share_tie"]) if "share_tie" in self.roles else 0.0
        if one is None or other is None or one + other + (ties or 0) <= 0:
            return None, None, None
        total = one + other + (ties or 0)
        if ties and ties >= max(one, other):
            return 0.0, None, round(total)
        return one - other, max(one, other) / total, round(total)

    def _is_tie(self, row: RawRow) -> bool:
        """Whether a column of its own states that the row is a tie."""
        return "share_tie" in self.roles and bool(self._share(row, "share_tie"))

    def named(self, row: RawRow) -> float | None:
        """Which side `preference` names by the name that the row gives it; None if neither."""
        name = self._name(row, "preference")
        one, other = self._name(row, "name_a"), self._name(row, "name_b")
        if name is None or one == other or name not in (one, other):
            return None
        return 1.0 if name == one else -1.0

    def _share(self, row: RawRow, role: str) -> float | None:
        path = self.roles[role]
        found = value(row, path)
        if isinstance(found, (bool, str)) and labels.canonical(found) in ("0", "1"):
            return float(labels.canonical(found))
        share = number(row, path)
        if share is not None and not 0 <= share <= 1:
            raise RowFault("unreadable", f"{path} is {share:g}, not between 0 and 1")
        return share

    def _votes(self, row: RawRow, sign: int) -> tuple[int | None, float | None]:
        """(number of votes, share of them for the better side)."""
        path = self.roles["votes"]
        found = value(row, path)
        if is_missing(found):
            return None, None
        if isinstance(found, (int, float, str)) and not isinstance(decoded(str(found)), list):
            count = number(row, path)
            return None if count is None else round(count), None
        if not isinstance(found, (list, tuple)):
            raise RowFault("unreadable", f"{path} is {kind(found)}, expected a list of votes")
        read = [self.meaning(vote) for vote in found]
        known = [vote for vote in read if isinstance(vote, (int, float))]
        if not known:
            return None, None
        return len(known), sum(vote * sign > 0 for vote in known) / len(known)

    def meaning(self, found: Any) -> float | str | None:
        """What a value of `preference` means: > 0 a, < 0 b, 0 tie, None unlabelled; text if
        it means none of these."""
        if found is None or found != found:
            return None
        if not isinstance(found, (str, int, float)):
            return f"{kind(found)}, expected a label"
        text = labels.canonical(found)
        if isinstance(found, bool) and "0" not in self.coding:
            return "true or false, expected a label"
        if text in self.coding:
            return self.coding[text]
        if self.graded:
            if not labels.is_number(text):
                return f"{shortened(str(found), 20)!r}, expected a number"
            size = float(text)
            return size if self.roles["a_wins"] == "positive" else -size
        if not text or MISSING.fullmatch(text):
            return None
        if labels.is_unlabelled(text):
            return None
        stated = set(VALUES) & set(self.roles)
        side = None if stated else labels.word_side(str(found), self.tags)
        if side is None and not stated:
            return f"{shortened(str(found), 20)!r}"
        if side is None:
            coding = "/".join(self.roles[name] for name in VALUES if name in self.roles)
            return f"{shortened(str(found), 20)!r}, not one of {coding}"
        return side

    @cached_property
    def coding(self) -> dict[str, float]:
        """Canonical text of each stated value of `preference`, with its meaning."""
        sides = {"a_wins": 1.0, "b_wins": -1.0, "tie": 0.0}
        return {
            labels.canonical(text): side
            for role, side in sides.items()
            for text in self.roles.get(role, "").split("|")
            if text and text not in ("negative", "positive")
        }

    @cached_property
    def tags(self) -> tuple[str, str]:
        return labels.tags(self.roles["a"], self.roles["b"])

    def _statement(self, row: RawRow) -> str:
        """What the row's label is, for a fault."""
        if "share_a" in self.roles:
            one, other = (self._share(row, role) for role in ("share_a", "share_b"))
            return "" if one is None or other is None else f"both labels are {one:g}"
        if "share_tie" in self.roles:
            tie = self.roles["share_tie"]
            if "votes_a" in self.roles and number(row, tie):
                return f"{tie} is {number(row, tie):g}"
            if "votes_a" not in self.roles and self._is_tie(row):
                return f"{tie} is true"
        path = next(self.roles[r] for r in ("preference", "votes_a", "score_a") if r in self.roles)
        return f"{path} {value(row, path)!r}"

    def _list(self, row: RawRow) -> list[Pair | RowFault]:
        path = self.roles["responses"]
        found = decoded(self._said_in(row, path))
        order = "ranks" if "ranks" in self.roles else "ratings"
        sign = -1.0 if order == "ranks" else 1.0
        given = decoded(value(row, self.roles[order]))
        if not isinstance(found, (list, tuple)) or not isinstance(given, (list, tuple)):
            raise unexpected(row, "a list", path, self.roles[order])
        answers: list[Any] = list(found)
        if self.modality == "image":
            answers = [item_path(row, path, at) for at in range(len(found))]
        nested = bool(given) and all(isinstance(one, (list, tuple)) for one in given)
        who: Any = None
        if nested and "annotator" in self.roles:
            who = value(row, self.roles["annotator"])
        out: list[Pair | RowFault] = []
        for at, one in enumerate(given if nested else [given]):
            scores = numbers(one, self.roles[order])
            if len(scores) != len(answers) or len(answers) < 2:
                raise RowFault(
                    "unreadable",
                    f"{path} and {self.roles[order]} differ in length or are too short",
                )
            named = identifier({"": who[at]}, "") if isinstance(who, list) else None
            if not nested:
                named = self._name(row, "annotator")
            signed = [None if score is None else sign * score for score in scores]
            out += [pair for _, pair in self._ordered(row, answers, signed, named)]
        return out

    def _ordered(
        self,
        row: RawRow,
        answers: Sequence[Any],
        scores: Sequence[float | None],
        annotator: str | None,
    ) -> list[tuple[int, Pair | RowFault]]:
        """Pairs of answers by their scores, the higher the better, each with an answer's index."""
        out: list[tuple[int, Pair | RowFault]] = []
        group: str | None = None
        for one, other in self._chosen_pairs(scores):
            x, y = scores[one], scores[other]
            if x is None or y is None:
                out.append((other, RowFault("unlabelled", f"answer {one} or {other} has no score")))
                continue
            best, worst = (one, other) if x >= y else (other, one)
            try:
                if self.modality == "image":
                    prompt, turns = self._text(row, "prompt"), None
                    chosen, rejected = answers[best], answers[worst]
                else:
                    names = (f"answer {best}", f"answer {worst}")
                    prompt, turns, chosen, rejected = compose(
                        self._opening(row), answers[best], answers[worst], names
                    )
                    self._check(chosen, rejected, *names)
            except RowFault as fault:
                out.append((other, fault))
                continue
            if x == y:
                out.append((other, RowFault("tie", f"answers {one} and {other} are equal")))
                continue
            if group is None:
                group = self._name(row, "group") or digest("group", prompt)
            pair = Pair(
                prompt,
                chosen,
                rejected,
                turns,
                annotator,
                strength=abs(x - y),
                group=group,
                origin=self._name(row, "origin"),
            )
            out.append((other, pair))
        return out

    def _chosen_pairs(self, scores: Sequence[float | None]) -> Iterable[tuple[int, int]]:
        """Positions of the answers to compare."""
        count = range(len(scores))
        if self.pairs == "all":
            return combinations(count, 2)
        known = [at for at in count if scores[at] is not None]
        order = sorted(known, key=lambda at: -float(scores[at] or 0))
        if self.pairs == "adjacent":
            return pairwise(order)
        return [(order[0], other) for other in order[1:]]

    def _opening(self, row: RawRow) -> Opening:
        roles = self.roles
        if not any(role in roles for role in _OPENING):
            if "prompt" not in roles:
                return Opening(implicit=True, transcripts=self.transcripts)
            return Opening(self._said_in(row, roles["prompt"]))
        parts = {role: self._said_in(row, roles[role]) for role in _OPENING if role in roles}
        if "system" in parts and parts["system"] is None:
            parts["system"] = ""
        prompt = self._said_in(row, roles["prompt"]) if "prompt" in roles else None
        return Opening(prompt, **parts, implicit="prompt" not in roles)

    def _said_in(self, row: RawRow, path: str) -> Any:
        """A cell of text or messages; parts that are pictures are PLACEs in the text."""
        found = value(row, path)
        return with_places(found) if self.modality == "vision" else found

    def _check(self, chosen: str, rejected: str, one: str, other: str) -> None:
        """Raise RowFault for blank, placeholder or identical sides."""
        for path, response in ((one, chosen), (other, rejected)):
            if not response or MISSING.fullmatch(response):
                detail = f"{path} is {response.strip()!r}" if response.strip() else path
                raise RowFault("empty response", detail)
        if chosen.strip() == rejected.strip():
            raise RowFault("identical sides", shortened(chosen))

    def _text(self, row: RawRow, role: str) -> str:
        found = value(row, self.roles[role])
        if not isinstance(found, str):
            raise unexpected(row, "text", self.roles[role])
        return found

    def _number(self, row: RawRow, role: str) -> float | None:
        return number(row, self.roles[role]) if role in self.roles else None

    def _name(self, row: RawRow, role: str) -> str | None:
        return identifier(row, self.roles[role]) if role in self.roles else None

    @property
    def cannot_flip(self) -> str:
        """Why rows of this schema cannot be written back reversed; empty if they can."""
        return reverse.cannot_flip(self)

    def flip(self, row: RawRow, *, correction: bool = False) -> dict[str, Any]:
        """Return the row with its preference reversed, see `reverse.flip`."""
        return reverse.flip(self, row, correction=correction)


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
