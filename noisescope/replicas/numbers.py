"""Numbers of pairs from outside: read them from a table by pair_id, and check what they judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import DataError
from noisescope.pairs import digest

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.replicas.sources import Source, Table


def table_numbers(
    path: str, found: pa.Table, columns: str, table: pa.Table
) -> dict[str, NDArray[np.float64]]:
    """Columns of numbers by pair_id in `found`, read from `path`, of each pair; NaN if unknown.

    `columns` are names, separated by commas; all columns of numbers if empty. Numbers are positive
    where the labelled-better side is better. A column `chosen` orients them by its text instead.
    """
    names = _number_columns(path, columns, found)
    ids = [str(one) for one in found.column("pair_id").to_pylist()]
    rows = {one: at for at, one in enumerate(ids)}
    if len(rows) < len(ids):
        raise DataError(
            f"{path}: {len(ids) - len(rows):,} pair ids occur more than once",
            hint="Write one row a pair.",
        )
    known = [rows.get(one) for one in table.column("pair_id").to_pylist()]
    if not any(at is not None for at in known):
        raise DataError(
            f"{path} has none of the {len(known):,} pairs",
            hint="Its pair_id must be that of pairs.parquet in the run directory.",
        )
    signs = _orientation(path, found, known, table) if "chosen" in found.column_names else None
    out = {}
    for name in names:
        values = np.array(found.column(name).to_pylist(), dtype=np.float64)  # None becomes NaN
        picked = np.array([np.nan if at is None else values[at] for at in known], np.float64)
        out[name] = picked if signs is None else picked * signs
    return out


def _number_columns(path: str, columns: str, found: pa.Table) -> list[str]:
    """Columns of `found` to read. Raises DataError."""
    import pyarrow.types as types

    if "pair_id" not in found.column_names:
        raise DataError(
            f"{path} has no column pair_id",
            hint="Write pair_id and one or more columns of numbers.",
        )
    numeric = [
        one.name
        for one in found.schema
        if one.name != "pair_id" and (types.is_floating(one.type) or types.is_integer(one.type))
    ]
    names = [one.strip() for one in columns.split(",")] if columns else numeric
    wrong = [name for name in names if name not in numeric]
    if wrong or not names:
        fault = f"has no numbers in {wrong[0]}" if wrong else "has no column of numbers"
        raise DataError(
            f"{path} {fault}",
            hint=f"Columns of numbers: {', '.join(numeric) or 'none'}; file:{path}#NAME takes "
            "one of them.",
        )
    return names


def _orientation(
    path: str, found: pa.Table, known: Sequence[int | None], table: pa.Table
) -> NDArray[np.float64]:
    """1 where the file's chosen side is the label's, -1 where it is the other side, [N].

    Raises DataError if it is neither.
    """
    theirs = found.column("chosen").to_pylist()
    signs = np.zeros(len(known))
    sides = zip(*(table.column(n).to_pylist() for n in ("chosen", "rejected")), strict=True)
    for row, (at, (chosen, rejected)) in enumerate(zip(known, sides, strict=True)):
        if at is None:
            continue
        if theirs[at] not in (chosen, rejected):
            pair = table.column("pair_id")[row].as_py()
            raise DataError(
                f"{path}: chosen of pair {pair} is neither side of the pair",
                hint="Copy it from pairs.parquet in the run directory, or leave the column out.",
            )
        signs[row] = 1 if theirs[at] == chosen else -1
    return signs


def check_numbers(source: Source | Table, numbers: Mapping[str, NDArray[np.float64]]) -> str:
    """What a reader should know of the numbers. Raises DataError if they cannot be evidence."""
    covered = np.zeros(0)
    for name, values in numbers.items():
        if np.isinf(values).any():
            raise DataError(
                f"--evidence {source}: {name} is infinite for {np.isinf(values).sum():,} pairs",
                hint="Write finite numbers, such as log odds within -20 to 20.",
            )
        known = values[np.isfinite(values)]
        if not known.size or not np.any(known):
            raise DataError(
                f"--evidence {source}: {name} is empty or 0 for every pair",
                hint="Leave it out.",
            )
        if (known >= 0).all() or (known <= 0).all():
            never = "negative" if (known >= 0).all() else "positive"
            raise DataError(
                f"--evidence {source}: {name} is never {never}, so it does not judge the labels",
                hint="A number of a pair is positive where the chosen side is better and negative "
                "where the rejected one is. One that is never negative is a size. The strength of "
                f"a preference is how clear a pair is: {_as_strength(source)}. For a "
                "probability p write its log odds, log(p / (1 - p)), to a file.",
            )
        covered = np.isfinite(values) if not covered.size else covered | np.isfinite(values)
    share = float(covered.mean())
    return f"{source} has numbers of {share:.1%} of the pairs" if share < 1 else ""


def _as_strength(source: Source | Table) -> str:
    """What to type for a source that is the strength of the preference."""
    name = source.name if source.kind == "column" else "NAME, a column of the dataset"
    return f"--columns strength={name}"


def numbers_fingerprint(ids: Sequence[str], numbers: Mapping[str, NDArray[np.float64]]) -> str:
    """20 hex digits over the pairs and their numbers."""
    values = [part for name, x in numbers.items() for part in (name, x.tobytes().hex())]
    return digest("numbers", *ids, *values)
