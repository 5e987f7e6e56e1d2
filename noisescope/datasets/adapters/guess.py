"""Find the roles of a table's columns by their usual names.

Two sides, two answers and a label, or a list of answers: each function returns roles, or None if
the table has a different shape. A label with two possible readings is an error that gives both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from noisescope.datasets.adapters.agree import refuse_other_order, refuse_other_side
from noisescope.datasets.adapters.cells import (
    is_missing,
    key,
)
from noisescope.datasets.adapters.codings import (
    as_written,
    coding_of,
    coding_roles,
    codings,
    described,
    is_label,
    names_of,
    retagged,
    worse_coding,
)
from noisescope.datasets.adapters.labels import (
    LABEL_TYPES,
    canonical,
    tags,
    word_side,
    words_of,
)
from noisescope.datasets.adapters.mapping import Roles, flag
from noisescope.datasets.adapters.names import (
    CONTEXTS,
    INNER,
    LISTS,
    MARGINS,
    NOUNS,
    OF_SCORES,
    PREFERENCES,
    PROMPTS,
    RANKS,
    RATINGS,
    SCORES,
    STATUS,
    TAGS,
    TEXT_KEYS,
    TIE_VOTES,
    TIES,
    WINS,
)
from noisescope.datasets.adapters.sample import Sample, is_messages, is_picture, items
from noisescope.datasets.adapters.schema import VALUES, Schema
from noisescope.errors import DataError


def two_sides(table: Sample, mapped: Roles) -> Roles | None:
    if any(role in mapped for role in ("a", "b", "preference", "responses", "response")):
        return None
    given = {role: mapped[role] for role in ("chosen", "rejected") if mapped.get(role)}
    if len(given) == 2:
        return given
    two = two_columns(table)
    for wins, loses in WINS.items():
        for one, other in named_pairs(wins, loses):
            a, b = nested(table, one), nested(table, other)
            plain = (one, other) == ("chosen", "rejected") and two is None
            if a and b and (plain or (table.sides(a) and table.sides(b))):
                return {"chosen": a, "rejected": b} | given
    return None


def named_pairs(wins: str, loses: str) -> list[tuple[str, str]]:
    out = []
    for noun in NOUNS:
        if not noun:
            out.append((wins, loses))
            continue
        out.append((f"{wins}_{noun}", f"{loses}_{noun}"))
        out.append((f"{noun}_{wins}", f"{noun}_{loses}"))
    return out


def nested(table: Sample, name: str) -> str | None:
    """A column, or a key inside the object (or JSON text of one) of a column."""
    return table.by_key.get(name) or table.inner.get(name)


def two_answers(table: Sample, mapped: Roles) -> Roles | None:
    """Two answers and which is better. Raises DataError for a label of unknown coding."""
    if any(role in mapped for role in ("chosen", "rejected", "responses", "response")):
        return None
    found = (mapped["a"], mapped["b"]) if {"a", "b"} <= set(mapped) else two_columns(table)
    if found is None:
        _refuse_third(table)
        return None
    roles: Roles = {"a": found[0], "b": found[1]}
    values = any(mapped.get(role) for role in ("share_a", "votes_a", "score_a"))
    if values or set(VALUES) & set(mapped):
        return roles
    if name := mapped.get("preference"):
        if _LOSES.search(key(name)):
            raise _reversed(table, roles, name)
        coding = coding_of(table, name, tags(*found))
        if coding is None:
            raise _ambiguous(table, mapped, found, name)
        return roles | coding
    candidates = [
        name for name in table.named(PREFERENCES) if name not in found and table.values(name)
    ]
    statements: list[Roles] = []
    for name in candidates:
        coding = coding_of(table, name, tags(*found))
        if coding is None:
            coding = names_of(table, name, tags(*found))
        if coding is not None:
            statements.append({"preference": name} | coding)
    worse = [
        column
        for name, column in table.by_key.items()
        if column not in found and _LOSES.search(name) and is_label(table, column)
    ]
    if worse and not statements:
        raise _reversed(table, roles, worse[0])
    if worse and (coding := worse_coding(table, found, worse[0])):
        refuse_other_side(table, roles, [statements[0], {"preference": worse[0]} | coding])
    shares = _shares(table, tags(*found))
    if not statements and not shares:
        for name in candidates:
            if is_label(table, name):
                raise _ambiguous(table, mapped, found, name)
    statements += [shares] if shares else []
    scores = score_pair(table, *tags(*found))
    ordered = [{"score_a": scores[0], "score_b": scores[1]}] if scores else []
    if not statements and ordered:
        refuse_other_side(table, roles, [*ordered, *_rank_pair(table, tags(*found))])
    refuse_other_side(table, roles, statements)
    if statements and ordered:
        refuse_other_side(table, roles, [statements[0], *ordered], most=0.5)
    return next((roles | one for one in [*statements, *ordered]), None)


def _reversed(table: Sample, sides: Roles, name: str) -> DataError:
    """The error of a label that, by its name, states which side is worse."""
    pair = (sides["a"], sides["b"])
    roles = _with_prompt(table, sides | {"preference": name})
    coding = worse_coding(table, pair, name)
    ways = [coding] if coding else codings(table.labels(name))
    return DataError(
        f"{table.name}: {name} names the worse side, and preference the better one",
        hint="; ".join(f"{flag(roles | way)} if {described(way, *pair)}" for way in ways) + "."
        if ways else "Give a column that names the better side, or scores: "
        + flag(sides | {"score_a": "COLUMN", "score_b": "COLUMN"}),
    )  # fmt: skip


def _refuse_third(table: Sample) -> None:
    """Raise DataError for three or more answers in columns of their own."""
    if not (found := two_columns(table, third=True)):
        return
    roles: Roles = {"a": found[0], "b": found[1]}
    roles = _with_prompt(table, roles)
    tag = tags(*found)
    label = table.first(PREFERENCES)
    if label and label not in found and is_label(table, label):
        roles["preference"] = label
        texts = sorted({str(one).strip() for one in table.values(label)})
        last = {text: (words_of(text) or [""])[-1] for text in texts}
        first, second = ([text for text in texts if last[text] == one] for one in tag)
        roles |= coding_roles(first, second, [text for text in texts if last[text] not in tag])
    raise DataError(
        f"{table.name}: more than two answers in a row: {found[0]}, {found[1]} and others",
        hint=f"{flag(roles)} compares these two alone.",
    )


def _with_prompt(table: Sample, roles: Roles) -> Roles:
    """Roles to offer, with the prompt unless a context beside it would be lost that way."""
    prompt = prompt_of(table, set(roles.values()), False)
    others = [c for c in table.columns if c != prompt and c not in roles.values()]
    lost = any(CONTEXTS.search(key(c)) and table.textual(c) for c in others)
    return roles if lost or not prompt else {"prompt": prompt} | roles


def _rank_pair(table: Sample, tag: tuple[str, str]) -> list[Roles]:
    """The two ranks of the sides, in the roles of scores (their order is the opposite)."""
    for form in ("rank_{}", "{}_rank"):
        one, other = (table.by_key.get(form.format(each)) for each in tag)
        if one and other and table.numeric(one) and table.numeric(other):
            return [{"rank_a": one, "rank_b": other}]
    return []


#: A column that names the worse side.
_LOSES = re.compile(r"(?:^|_)(?:worse|worst|loser|losing|loses|rejected|dispreferred)(?:$|_)")
#: The tag of a third answer, beside the tags of two.
_THIRD = {"a": ("c",), "1": ("3", "0"), "0": ("2",), "first": ("third",), "i": ("iii",),
          "left": ("middle", "center", "centre")}  # fmt: skip


def two_columns(table: Sample, third: bool = False) -> tuple[str, str] | None:
    """Two columns of answers that differ in a tag: response_a, response_b.

    None beside a third answer, such as response_c; with `third`, only beside one.
    """
    for noun in NOUNS[1:]:
        for one, other in TAGS:
            for form in ("{0}_{1}", "{0}{1}", "{1}_{0}"):
                a, b = (table.by_key.get(form.format(noun, tag)) for tag in (one, other))
                if not (a and b and table.sides(a) and table.sides(b)):
                    continue
                more = (table.by_key.get(form.format(noun, tag)) for tag in _THIRD[one])
                if third == any(name is not None and table.sides(name) for name in more):
                    return a, b
    a, b, c = (table.by_key.get(tag) for tag in "abc")
    if a and b and table.sides(a) and table.sides(b):
        return (a, b) if third == (c is not None and table.sides(c)) else None
    return None


def _shares(table: Sample, tag: tuple[str, str]) -> Roles | None:
    """Two number columns of votes or one-hot winners: winner_model_a, winner_model_b."""
    if not tag[0]:
        return None
    words = {"winner", "preference", "label", "share", "win", "preferred"}
    counts = {"votes", "vote"}
    for name, column in table.by_key.items():
        parts = set(words_of(name))
        other = retagged(name, tag[0], tag[1])
        if tag[0] not in parts or other == name or other not in table.by_key:
            continue
        if not parts & (words | counts) or "rate" in parts:
            continue
        twin = table.by_key[other]
        known = [*table.values(column), *table.values(twin)]
        if not (table.numeric(column) and table.numeric(twin)):
            continue
        if parts & counts and all(float(x) >= 0 and float(x).is_integer() for x in known):
            return {"votes_a": column, "votes_b": twin}
        sums = [
            float(row[column]) + float(row[twin])
            for row in table.rows
            if not is_missing(row.get(column)) and not is_missing(row.get(twin))
        ]
        if all(0 <= float(x) <= 1 for x in known) and all(total <= 1.01 for total in sums):
            tie = retagged(name, tag[0], "tie")
            tie = tie if tie in table.by_key else tie.replace("model_tie", "tie")
            more = {"share_tie": table.by_key[tie]} if tie in table.by_key else {}
            return {"share_a": column, "share_b": twin} | more
    return None


def _ambiguous(table: Sample, mapped: Roles, sides: tuple[str, str], name: str) -> DataError:
    """The error of a label whose values can be read in two ways."""
    values = sorted(table.labels(name) - {""})
    count = sum(isinstance(one, LABEL_TYPES) for one in table.values(name))
    roles = _with_prompt(table, {"a": sides[0], "b": sides[1], "preference": name}) | mapped
    if values and all(word_side(one, ("", "")) == 0 for one in values):
        coding = {"a_wins": "VALUE", "b_wins": "VALUE", "tie": "|".join(values)}
        return DataError(
            f"{table.name}: {name} is a tie ({', '.join(values)}) in all of the first "
            f"{count:,} rows, and a tie states no preference",
            hint=f"If later rows name the better side: {flag(roles | coding)}",
        )
    ways = [as_written(table, name, coding) for coding in codings(set(values))]
    flags = [f"{flag(roles | coding)} if {described(coding, *sides)}" for coding in ways]
    seen = [as_written(table, name, {"": one})[""] for one in values[:6]]
    seen += ["(blank)"] if "" in table.labels(name) else []
    return DataError(
        f"{table.name}: {name} holds {', '.join(seen)}, which does not show by itself "
        f"whether {sides[0]} or {sides[1]} is better",
        hint="; ".join(flags) + "." if flags
        else "Give the sides scores, or a column that names the better one: "
        + flag({"a": sides[0], "b": sides[1], "score_a": "COLUMN", "score_b": "COLUMN"}),
    )  # fmt: skip


def listed(table: Sample, mapped: Roles) -> Roles | None:
    """Ranked or rated answers in one row."""
    if any(role in mapped for role in ("chosen", "rejected", "a", "b", "response")):
        return None
    for name in LISTS:
        column = mapped.get("responses") or table.by_key.get(name)
        if not column:
            continue
        cells = [items(cell) for cell in table.values(column)]
        if not any(cells):
            continue
        first = next(cell[0] for cell in cells if cell)
        if isinstance(first, Mapping) and not is_picture(first):
            keys = {key(str(inner)): str(inner) for inner in first}
            text = next((keys[name] for name in TEXT_KEYS if name in keys), None)
            for role, names in (("ranks", RANKS), ("ratings", RATINGS)):
                order = next((keys[name] for name in names if name in keys), None)
                if text and order:
                    return {"responses": f"{column}.{text}", role: f"{column}.{order}"}
        orders = []
        for role, names in (("ranks", RANKS), ("ratings", RATINGS)):
            order = table.first(names)
            if order and any(items(cell) for cell in table.values(order)):
                orders.append({"responses": column, role: order})
        if len(orders) == 2 and not set(mapped) & {"ranks", "ratings"}:
            refuse_other_order(table, *orders)
        if orders:
            return orders[0]
    return None


def score_pair(table: Sample, one: str, other: str) -> tuple[str, str] | None:
    """Two number columns that score the sides, in any spelling, the plainest first."""
    found = []
    for name, column in table.by_key.items():
        parts = re.findall(r"[a-z]+\d*|\d+", name)
        rest = [part for part in parts if part != one]
        singular = {part.rstrip("s") if part.rstrip("s") in SCORES else part for part in rest}
        if len(rest) == len(parts) or not rest or not singular <= OF_SCORES:
            continue
        if not singular & SCORES:
            continue
        twin = "_".join(other if part == one else part for part in parts)
        if twin in table.by_key:
            found.append((len(rest), column, table.by_key[twin]))
    best = min(found, default=None, key=lambda each: each[0])
    return None if best is None else (best[1], best[2])


def prompt_of(table: Sample, taken: set[str], conversation: bool) -> str | None:
    """The column that is usually called a prompt; inside a cell only beside a taken one."""
    tops = {path.partition(".")[0] for path in taken if "." in path}
    for name in ("prompt",) if conversation else PROMPTS:
        column = table.by_key.get(name)
        if column is None and (inner := nested(table, name)):
            column = inner if inner.partition(".")[0] in tops else None
        if not column or column in taken:
            continue
        found = table.values(column)
        if any(isinstance(one, str) or is_messages(one) for one in found):
            return column
        inner_keys = [
            key_ for one in found if isinstance(one, Mapping) for key_ in INNER if key_ in one
        ]
        if inner_keys:
            return f"{column}.{inner_keys[0]}"
    return None


def with_input(prompt: str, table: Sample, taken: set[str]) -> str:
    """An instruction and the input it is about."""
    name = table.by_key.get("input")
    asks = key(prompt) in ("instruction", "prompt", "question", "task")
    if name and name not in taken and asks and any(isinstance(x, str) for x in table.values(name)):
        taken.add(name)
        return f"{prompt}+{name}"
    return prompt


def with_ties(schema: Schema, table: Sample, mapped: Roles) -> Roles:
    """Roles that state ties and strength beside two sides."""
    roles = dict(schema.roles)
    wins, loses = tags(roles["chosen"], roles["rejected"])
    wins, loses = (wins, loses) if wins else ("chosen", "rejected")
    if not {"score_chosen", "margin", "ratings", "rank_chosen"} & set(mapped | roles):
        for one, other in dict.fromkeys([(wins, loses), ("chosen", "rejected")]):
            if pair := score_pair(table, one, other):
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
        margin = table.first(MARGINS)
        if margin and table.numeric(margin):
            roles["margin"] = margin
        else:
            two = table.named(("rating", "ratings", "scores"))
            lists = [n for n in two if table.values(n) and all(
                len(items(cell)) == 2 for cell in table.values(n))]  # fmt: skip
            roles |= {"ratings": lists[0]} if lists else {}
    return roles | _status(table, roles, mapped)


def tie_column(table: Sample, roles: Roles) -> Roles:
    """A column of its own that states ties, or counts the votes for one."""
    if "share_tie" in roles or "share_a" in roles:
        return {}
    for column in table.named(TIE_VOTES if "votes_a" in roles else TIES):
        if column in roles.values():
            continue
        found = [one for one in table.values(column) if not is_missing(one)]
        flags = all(canonical(one) in ("0", "1") for one in found)
        if found and (table.numeric(column) if "votes_a" in roles else flags):
            return {"share_tie": column}
    return {}


def _status(table: Sample, roles: Roles, mapped: Roles) -> Roles:
    if "status" in mapped or "status" in roles:
        return {}
    for column in table.named(STATUS):
        found = table.values(column)
        words = [word_side(one, ("chosen", "rejected")) for one in map(str, found)]
        against = any(word is not None and word < 0 for word in words)
        stated = key(column) == "status" or all(word is not None for word in words)
        if found and stated and not against and column not in roles.values():
            return {"status": column}
    return {}
