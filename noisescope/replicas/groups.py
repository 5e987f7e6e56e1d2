"""What is held out together: pairs, prompts, responses, or the values of a column.

    groups = held_out_groups(table, "prompt")
    groups.keys    # [N] or [N, 2], for `cross_fit.assign`
    groups.remark  # what had to be cut, or None

A fold that shares a prompt or a response with the training pairs has seen the errors they share
(a rater's rubric, one bad score). Texts count as equal if they differ in case or white space only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.models.items import fold_keys
from noisescope.pairs import content_id, digest
from noisescope.training.pair_data import PairData, pair_data

if TYPE_CHECKING:
    import pyarrow as pa

U64 = NDArray[np.uint64]

#: What `--folds-by` takes beside the name of a column.
KINDS = ("pair", "prompt", "response")
#: A group with more than this share of the pairs is cut: too little is left to train on.
LARGEST = 0.5


@final
@dataclass(frozen=True)
class Groups:
    """Keys that are held out whole: [N] of pairs, or [N, 2] of their sides, and a remark."""

    keys: U64
    remark: str | None = None


def held_out_groups(table: pa.Table, by: str) -> Groups:
    """Keys of a pairs table: "pair", "prompt", "response" or a column's name.

    "prompt" joins prompts that share a value of the group column; "response" joins the pairs that
    responses connect, however indirectly. A group with more than `LARGEST` of the pairs is cut:
    both sides of a pair are held out from all others, or single pairs if no response recurs;
    `remark` has the fact. Raises UsageError as
    `check_folds_by` does.
    """
    check_folds_by(table, by)
    if by == "pair":
        return Groups(pair_keys(table))
    if by == "prompt":
        keys = _hashed(squeezed(text) for text in table.column("prompt").to_pylist())
        if "group" in table.column_names and table.column("group").null_count < len(table):
            keys = _connected(np.stack([keys, _column(table, "group")], axis=1))
    elif by == "response":
        keys = _connected(side_keys(table))
    else:
        keys = _column(table, by)
    largest = float(np.unique(keys, return_counts=True)[1].max()) / len(keys)
    if largest <= LARGEST:
        return Groups(keys)
    what = "connected by responses" if by == "response" else f"of one {by}"
    sides = side_keys(table)
    if len(np.unique(sides)) < sides.size:
        return Groups(
            sides,
            f"{largest:.0%} of the pairs are {what}: held out are blocks of responses, so that no "
            "side of a held-out pair is seen in training.",
        )
    return Groups(
        pair_keys(table),
        f"{largest:.0%} of the pairs are {what} and no response recurs: held out are single pairs.",
    )


def replica_pairs(table: pa.Table, by: str) -> PairData:
    """The pairs of LoRA replicas, whose halves hold out whole values of `by`.

    Raises UsageError as `held_out_groups`, and if only blocks of responses could be held out.
    """
    if by == "pair":
        return pair_data(table)
    keys = held_out_groups(table, by).keys
    if keys.ndim > 1:
        raise UsageError(
            f"LoRA replicas train on halves of the pairs, and over {LARGEST:.0%} share one {by}",
            hint="Hold out single pairs: --folds-by pair",
        )
    return pair_data(table, keys)


def halves_by(table: pa.Table, by: str) -> str:
    """`by`, or "pair" if every group is one pair: the same halves, so the same replicas."""
    keys = held_out_groups(table, by).keys
    if by == "pair" or keys.ndim > 1:
        return by
    contents = fold_keys(table)
    both = np.stack([keys, contents], axis=1)
    sizes = {len(np.unique(x, axis=0)) for x in (keys, contents, both)}
    return "pair" if len(sizes) == 1 else by


def default_halves(table: pa.Table) -> tuple[str, str | None]:
    """What halves hold out if nobody names it, and a remark: prompts, if none has most pairs."""
    found = held_out_groups(table, "prompt")
    if found.remark is None:
        return halves_by(table, "prompt"), None
    what = found.remark.partition(":")[0]
    return "pair", f"{what}: LoRA replicas hold out single pairs."


def check_folds_by(table: pa.Table, by: str) -> None:
    """Raise UsageError if the pairs cannot be held out by `by`."""
    columns = [n for n in table.column_names if n not in (*KINDS, "turns", "pair_id", "content_id")]
    if by not in (*KINDS, *columns):
        raise UsageError(
            f"--folds-by {by}: the pairs have no such column",
            hint=f"One of {', '.join((*KINDS, *columns))}.",
        )
    if by not in KINDS and not any(value is not None for value in table.column(by).to_pylist()):
        raise UsageError(f"--folds-by {by}: no pair has one", hint=f"One of {', '.join(KINDS)}.")


def squeezed(text: str) -> str:
    """`text` in lower case with single spaces: what near copies have in common."""
    return " ".join(text.casefold().split())


def pair_keys(table: pa.Table) -> U64:
    """A key of each pair's content, [N], symmetric in the sides; near copies share it."""
    rows = zip(
        *(table.column(n).to_pylist() for n in ("prompt", "chosen", "rejected")), strict=True
    )
    return _numbers(content_id(*map(squeezed, row)) for row in rows)


def side_keys(table: pa.Table) -> U64:
    """Keys of each pair's chosen and rejected (prompt, response), [N, 2]."""
    prompts = [squeezed(text) for text in table.column("prompt").to_pylist()]
    sides = []
    for name in ("chosen", "rejected"):
        texts = map(squeezed, table.column(name).to_pylist())
        sides.append(_numbers(map(digest, prompts, texts)))
    return np.stack(sides, axis=1)


def _column(table: pa.Table, name: str) -> U64:
    """Keys of a column's values; a pair without one is a group of its own."""
    values = table.column(name).to_pylist()
    known_values = np.array([value is not None for value in values], bool)
    keys = _hashed(f"{name} {value}" for value in values)
    return np.where(known_values, keys, pair_keys(table))


def _connected(sides: U64) -> U64:
    """The least key of each pair's connected component, [N], where a pair joins two keys."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    names, ends = np.unique(sides, return_inverse=True)
    ends = ends.reshape(sides.shape)
    graph = csr_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(names),) * 2)
    part = connected_components(graph, directed=False)[1]
    least = np.full(int(part.max()) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, part, names)
    return np.asarray(least[part[ends[:, 0]]], dtype=np.uint64)


def _hashed(texts: Iterable[str]) -> U64:
    return _numbers(map(digest, texts))


def _numbers(digests: Iterable[str]) -> U64:
    """The first 64 bits of hex digests, [N]."""
    return np.array([int(text[:16], 16) for text in digests], np.uint64)
