"""A schema: which column of a row plays which role.

    schema = Schema("mine", {"prompt": "question", "chosen": "best", "rejected": "worst"})
    schema.parse({"question": "Bread?", "best": "Bake it.", "worst": "No."})

Four shapes, by the roles that are given:

    sides     chosen, rejected                    a pair, written in the order of preference
    labelled  a, b and preference, shares,        a pair, and beside it which side is better
              votes or scores
    list      responses and ranks or ratings      every two answers to a prompt, ordered
    rows      response, rating                    the same, one answer a row

`parse` makes pairs of a row, `flip` reverses the preference in the row's own schema. A schema never
reads files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, final

from noisescope.datasets.adapters import labels, parse, reverse
from noisescope.datasets.adapters.cells import RawRow, RowFault, identifier, number
from noisescope.pairs import Modality, Pair

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
#: Roles without any of which a row of a shape states nothing, those of the table that are given.
_REQUIRED: dict[Shape, tuple[str, ...]] = {
    "sides": ("prompt", "images", "chosen", "rejected"),
    "labelled": ("prompt", "a", "b", "preference", "share_a", "share_b", "votes_a", "votes_b"),
    "list": ("prompt", "responses", "ranks", "ratings"),
    "rows": ("prompt", "response", "rating"),
}


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
        return tuple(role for role in _REQUIRED[self.shape] if role in self.roles)

    @property
    def paths(self) -> list[str]:
        """The path of every role."""
        return [path for role, path in self.roles.items() if role not in VALUES]

    @property
    def columns(self) -> tuple[str, ...]:
        """Paths of the required roles, and the columns that identify the schema."""
        return tuple(dict.fromkeys([*(self.roles[role] for role in self.required), *self.keys]))

    @property
    def optional(self) -> tuple[str, ...]:
        """Paths that are used if present."""
        return tuple(path for path in dict.fromkeys(self.paths) if path not in self.columns)

    @cached_property
    def used(self) -> frozenset[str]:
        """Names and first steps of every path: what has to be decoded to parse a row."""
        steps = [part for path in self.paths for part in re.split(r"[|+]", path)]
        return frozenset([*self.paths, *steps, *(step.partition(".")[0] for step in steps)])

    @cached_property
    def graded(self) -> bool:
        """Whether the size of `preference` is a strength."""
        return "negative" in (self.roles.get("a_wins"), self.roles.get("b_wins"))

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

    def number(self, row: RawRow, role: str) -> float | None:
        """The number that plays a role in a row; None if there is none."""
        return number(row, self.roles[role]) if role in self.roles else None

    def name_in(self, row: RawRow, role: str) -> str | None:
        """The name or id that plays a role in a row; None if there is none."""
        return identifier(row, self.roles[role]) if role in self.roles else None

    def parse(self, row: RawRow) -> list[Pair | RowFault]:
        """Pairs that the row states; in the place of one that is a tie, its RowFault.

        Raises RowFault, and nothing else, for a row that states none.
        """
        return parse.pairs_of(self, row)

    def parse_group(self, rows: Sequence[RawRow]) -> list[tuple[int, Pair | RowFault]]:
        """Pairs of several rows that rate answers to one prompt, each with its row's index."""
        return parse.pairs_of_rows(self, rows)

    @property
    def cannot_flip(self) -> str:
        """Why rows of this schema cannot be written back reversed; empty if they can."""
        return reverse.cannot_flip(self)

    def flip(self, row: RawRow, *, correction: bool = False) -> dict[str, Any]:
        """Return the row with its preference reversed, see `reverse.flip`."""
        return reverse.flip(self, row, correction=correction)
