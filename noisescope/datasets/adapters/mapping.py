"""What a user names: `--columns role=column`, `--format`, `--pairs`, checked against the data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from noisescope.datasets.adapters.cells import RawRow, key
from noisescope.datasets.adapters.schema import PAIRS, ROLES, VALUES, PairsMode, Schema
from noisescope.datasets.adapters.table import ADAPTERS
from noisescope.errors import DataError, UsageError

Roles = dict[str, str]


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


def flag(roles: Mapping[str, str]) -> str:
    """`--columns ...` for a mapping, as it is typed in a shell."""
    order = sorted(roles, key=lambda role: [*ROLES, *VALUES].index(role))
    return "--columns " + shlex.quote(",".join(f"{role}={roles[role]}" for role in order))
