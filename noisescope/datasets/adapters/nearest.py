"""Refuse a table that no schema fits, with the likeliest mapping to type."""

from __future__ import annotations

from collections.abc import Sequence

from noisescope.datasets.adapters.cells import is_missing, key
from noisescope.datasets.adapters.codings import coding_of, is_label
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
from noisescope.storage.printable import printable

#: What most people need who meet a refusal for the first time.
PLAINEST = "text needs prompt, chosen, rejected; pictures prompt, chosen_image, rejected_image"
_SIDES, _LABELLED = ("chosen", "rejected"), ("a", "b", "preference")
#: Columns shown with an example.
_MOST_SHOWN = 20


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
    if "COLUMN" not in nearest.values():
        return DataError(message, hint=f"Name its columns: {typed} ({PLAINEST}).")
    hint = f"Name its columns: {typed} ({PLAINEST})."
    if _SIDES[0] in nearest:
        verdict = flag(dict.fromkeys(("prompt", *_LABELLED), "COLUMN"))
        hint += f" If a column names the better of two answers: {verdict}."
    return DataError(message, hint=f"{hint}\n{_examples(table)}")


def _examples(table: Sample) -> str:
    """The first columns, each with the beginning of a value."""
    shown = []
    for column in table.columns[:_MOST_SHOWN]:
        texts = [str(one) for one in table.values(column) if not is_missing(one)]
        text = " ".join(texts[0][:200].split()) if texts else "(blank)"
        shown.append(f"{column}: {text if len(text) <= 50 else text[:49] + '…'}")
    return printable("\n".join(shown), lines=True)


def _rated_rows(table: Sample) -> Roles | None:
    """Prompt, answer and rating, if each row of the table has one answer."""
    prompt = prompt_of(table, set(), False)
    answer, rating = table.first(TEXT_KEYS), table.first(RATINGS)
    if prompt and answer and rating and table.numeric(rating) and answer != prompt:
        return {"prompt": prompt, "response": answer, "rating": rating}
    return None


def _nearest(table: Sample, mapped: Roles) -> Roles | None:
    """The likeliest mapping of an unknown table; None if it has no two answers.

    COLUMN is in place of what neither the names nor the values of columns show.
    """
    roles: Roles = {role: path for role, path in mapped.items() if path}
    for wins, loses in (WINS | LIKELY).items():
        for one, other in named_pairs(wins.rstrip("_"), loses):
            a, b = nested(table, one), nested(table, other)
            if a and b:
                return _prompted(table, {"chosen": a, "rejected": b} | roles)
    if two := two_columns(table):
        label = _verdict(table, two) or "COLUMN"
        return _prompted(table, {"a": two[0], "b": two[1], "preference": label} | roles)
    texts = [c for c in table.columns if table.textual(c) and not ABOUT.search(key(c))]
    prompt = prompt_of(table, set(), False)
    rest = [c for c in texts if c != prompt]
    half = next(
        (role for role in ("chosen", "rejected") if role in table.by_key or roles.get(role)), None
    )
    if half:
        name = table.by_key.get(half) or roles[half]
        spare = [c for c in rest if c != name]
        other = spare[0] if prompt and len(spare) == 1 else "COLUMN"
        opposite = "rejected" if half == "chosen" else "chosen"
        return _prompted(table, {half: name, opposite: other} | roles)
    if len(rest) < 2:
        return None
    verdict = _verdict(table, rest)
    if prompt and verdict and len(rest) == 2:
        return _prompted(table, {"a": rest[0], "b": rest[1], "preference": verdict} | roles)
    sides = _LABELLED if verdict or set(_LABELLED) & set(roles) else _SIDES
    known = {"preference": verdict} if verdict else {}
    return {"prompt": prompt or "COLUMN"} | dict.fromkeys(sides, "COLUMN") | known | roles


def _verdict(table: Sample, answers: Sequence[str]) -> str | None:
    """The column that is called a verdict, or the only one that holds words of sides."""
    named = [c for c in table.named(PREFERENCES) if c not in answers and is_label(table, c)]
    worded = [c for c in table.columns if c not in answers and coding_of(table, c, ("", "")) == {}]
    return named[0] if named else worded[0] if len(worded) == 1 else None


def _prompted(table: Sample, roles: Roles) -> Roles:
    taken = set(roles.values())
    prose = [c for c in table.columns if c not in taken and is_prose(table, c)]
    open_side = "COLUMN" in (roles.get("chosen"), roles.get("rejected"))
    only = prose[0] if len(prose) == 1 and not open_side else "COLUMN"
    prompt = prompt_of(table, taken, False) or only
    return {"prompt": with_input(prompt, table, taken)} | roles
