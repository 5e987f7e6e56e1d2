"""Refuse a table that no schema fits, with the likeliest mapping to type."""

from __future__ import annotations

from noisescope.datasets.adapters.cells import key
from noisescope.datasets.adapters.codings import is_label
from noisescope.datasets.adapters.guess import (
    named_pairs,
    nested,
    prompt_of,
    two_columns,
    with_input,
)
from noisescope.datasets.adapters.mapping import Roles, flag
from noisescope.datasets.adapters.names import ABOUT, LIKELY, PREFERENCES, RATINGS, TEXT_KEYS, WINS
from noisescope.datasets.adapters.refuse import is_prose
from noisescope.datasets.adapters.sample import Sample
from noisescope.errors import DataError

#: What most people need who meet a refusal for the first time.
PLAINEST = "text needs prompt, chosen, rejected; pictures prompt, chosen_image, rejected_image"


def unknown(table: Sample, mapped: Roles) -> DataError:
    """The error of a table that no schema fits, with the nearest mapping as a flag."""
    found = ", ".join(table.columns) or "none"
    message = f"{table.name}: no known format fits its columns ({found})"
    nearest = _nearest(table, mapped)
    if nearest is None and (rows := _rated_rows(table)):
        return DataError(
            f"{message}: it may have one answer a row, with its rating",
            hint=f"{flag(rows)} compares the answers to each prompt: the higher rating is better.",
        )
    if nearest is None:
        return DataError(
            f"{message}: one answer a row, or none, states no preference between two",
            hint="A pair needs two answers to one prompt: " + PLAINEST + ".",
        )
    typed = flag(nearest)
    return DataError(message, hint=f"Name its columns: {typed} ({PLAINEST}).")


def _rated_rows(table: Sample) -> Roles | None:
    """Prompt, answer and rating, if each row of the table has one answer."""
    prompt = prompt_of(table, set(), False)
    answer, rating = table.first(TEXT_KEYS), table.first(RATINGS)
    if prompt and answer and rating and table.numeric(rating) and answer != prompt:
        return {"prompt": prompt, "response": answer, "rating": rating}
    return None


def _nearest(table: Sample, mapped: Roles) -> Roles | None:
    """The likeliest mapping of an unknown table; None if it has no two answers."""
    roles: Roles = {role: path for role, path in mapped.items() if path}
    for wins, loses in (WINS | LIKELY).items():
        for one, other in named_pairs(wins.rstrip("_"), loses):
            a, b = nested(table, one), nested(table, other)
            if a and b:
                return _prompted(table, {"chosen": a, "rejected": b} | roles)
    known = table.named(PREFERENCES)
    known += [n for n in table.columns if not ABOUT.search(key(n)) and is_label(table, n)]
    if two := two_columns(table):
        label = next((n for n in known if n not in two), "COLUMN")
        return _prompted(table, {"a": two[0], "b": two[1], "preference": label} | roles)
    texts = [c for c in table.columns if table.textual(c) and not ABOUT.search(key(c))]
    prompt = prompt_of(table, set(), False)
    rest = [c for c in texts if c != prompt]
    half = next(
        (role for role in ("chosen", "rejected") if role in table.by_key or roles.get(role)), None
    )
    if half:
        other = "rejected" if half == "chosen" else "chosen"
        name = table.by_key.get(half) or roles[half]
        spare = next((c for c in rest if c != name), "COLUMN")
        return _prompted(table, {half: name, other: spare} | roles)
    verdict = next((n for n in known if n not in rest[:2]), None)
    if len(rest) >= 2 and verdict:
        return _prompted(table, {"a": rest[0], "b": rest[1], "preference": verdict} | roles)
    if len(rest) >= 2:
        return _prompted(table, {"chosen": rest[0], "rejected": rest[1]} | roles)
    return None


def _prompted(table: Sample, roles: Roles) -> Roles:
    taken = set(roles.values())
    prompt = prompt_of(table, taken, False) or next(
        (c for c in table.columns if c not in taken and is_prose(table, c)), "COLUMN"
    )
    return {"prompt": with_input(prompt, table, taken)} | roles
