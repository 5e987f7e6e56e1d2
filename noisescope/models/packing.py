"""Pack tokens into rows in which every prompt is once, before all its responses.

A block is one prompt and some of its responses, a row some blocks; a response token sees its
own prompt and its own earlier tokens, nothing else, so packing changes no value. Rows are filled
by first fit, longest block first: little padding, no wasted prompt. Models whose attention does
not allow that get a row for each text, run together with padding or alone (`Corpus.rows`).

    packed = pack(corpus, items, capacity=256)
    packed.ids        # [R, T] token ids
    packed.sources    # [n] flat positions whose hidden state predicts packed.targets [n]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Int = NDArray[np.int64]
PADDING = -1
#: How texts are run: several in a row with their prompt once, a row each, or a forward each.
Rows = Literal["packed", "padded", "alone"]


class Pictures(Protocol):
    """Pictures in the prompts of a corpus."""

    def states(self, model: Any, packed: Packed) -> Tensor:
        """What enters the output layer of `model`, [R, T, D], 0 beyond each row's tokens."""


@final
@dataclass(frozen=True)
class Corpus:
    """Token ids of distinct prompts and of I items, each one response to `prompt_of[i]`.

    Prompts of the same tokens may show different `pictures`: then no row is shared.
    """

    prompts: tuple[tuple[int, ...], ...]
    responses: tuple[tuple[int, ...], ...]
    prompt_of: Int  # [I]
    rows: Rows = "packed"
    pictures: Pictures | None = None

    @property
    def shared(self) -> bool:
        """Whether responses share a row, and their prompt in it."""
        return self.rows == "packed"

    @cached_property
    def response_sizes(self) -> Int:
        """Tokens of each response, [I]."""
        return np.array([len(ids) for ids in self.responses], np.int64)

    @cached_property
    def prompt_sizes(self) -> Int:
        """Tokens of each prompt."""
        return np.array([len(ids) for ids in self.prompts], np.int64)

    @cached_property
    def prompt_starts(self) -> Int:
        """Slot of each prompt's first token in a flat store: all prompts, then all responses."""
        return np.concatenate([[0], np.cumsum(self.prompt_sizes)]).astype(np.int64)

    @cached_property
    def response_starts(self) -> Int:
        """Slot of each response's first token in the flat store, [I + 1]."""
        sums = np.concatenate([[0], np.cumsum(self.response_sizes)])
        starts: Int = (self.prompt_starts[-1] + sums).astype(np.int64)
        return starts

    @cached_property
    def work(self) -> Int:
        """Tokens that each item adds to a forward, [I]: its prompt too if it is not shared."""
        if self.shared:
            return self.response_sizes
        whole: Int = self.response_sizes + self.prompt_sizes[self.prompt_of]
        return whole

    @cached_property
    def order(self) -> Int:
        """Items ordered so that neighbours are cheap together: of one prompt, or of one length."""
        key = self.prompt_of if self.shared else self.work
        found: Int = np.argsort(key, kind="stable")
        return found

    @property
    def slots(self) -> int:
        """Size of the flat store."""
        return int(self.response_starts[-1])


def corpus_of(
    encoded: Sequence[tuple[Sequence[int], Sequence[int]]],
    rows: Rows = "packed",
    pictures: Pictures | None = None,
) -> Corpus:
    """Corpus of (prompt ids, response ids), one an item; equal prompts are stored once."""
    index: dict[tuple[int, ...], int] = {}
    prompt_of = [index.setdefault(tuple(prompt), len(index)) for prompt, _ in encoded]
    responses = tuple(tuple(response) for _, response in encoded)
    return Corpus(tuple(index), responses, np.array(prompt_of, np.int64), rows, pictures)


@final
@dataclass(frozen=True)
class Packed:
    """R rows of T tokens. `slots` points into the corpus' flat store (PADDING where empty).

    `segments` number the texts of a row: that of each token, and that of its prompt. A token may
    look at earlier ones of both; None: at all earlier ones of its row.
    """

    ids: Int  # [R, T]
    positions: Int  # [R, T]
    slots: Int  # [R, T]
    segments: Int | None  # [2, R, T], PADDING where empty
    sources: Int  # [n] flat index into R * T of the state that predicts a token
    targets: Int  # [n] the token
    owners: Int  # [n] index into `items`
    items: Int  # [k] items of the corpus, as requested
    alone: bool = False  # whether each row needs a forward of its own
    pictures: Pictures | None = None  # of the corpus

    @property
    def runs(self) -> list[tuple[slice, int]]:
        """(rows, tokens) of each forward."""
        if not self.alone:
            return [(slice(None), self.ids.shape[1])]
        widths = (self.slots != PADDING).sum(1).tolist()
        return [(slice(row, row + 1), width) for row, width in enumerate(widths)]

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return int((self.slots != PADDING).sum())


def _blocks(corpus: Corpus, items: Int, capacity: int) -> list[tuple[int, list[int]]]:
    """(prompt, places in `items`) of each block, at most `capacity` tokens where possible."""
    blocks: list[tuple[int, list[int]]] = []
    used = 0
    order = np.lexsort((np.arange(len(items)), corpus.prompt_of[items]))
    for place in order.tolist():
        prompt = int(corpus.prompt_of[items[place]])
        size = int(corpus.response_sizes[items[place]])
        full = not corpus.shared or used + size > capacity
        if not blocks or blocks[-1][0] != prompt or full:
            blocks.append((prompt, []))
            used = int(corpus.prompt_sizes[prompt])
        blocks[-1][1].append(place)
        used += size
    return blocks


def _rows(sizes: list[int], capacity: int) -> list[list[int]]:
    """First fit decreasing: indices of `sizes` in each row of `capacity`."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = next((r for r, room in enumerate(free) if room >= sizes[i]), len(rows))
        if fitting == len(rows):
            rows.append([])
            free.append(capacity)
        rows[fitting].append(i)
        free[fitting] -= sizes[i]
    return rows


def pack(corpus: Corpus, items: Sequence[int] | Int, capacity: int) -> Packed:
    """Rows holding distinct `items`, about `capacity` tokens each; a longer item gets a longer
    row. Every prompt and response must have at least one token."""
    requested = np.asarray(items, np.int64)
    blocks = _blocks(corpus, requested, capacity)
    sizes = [
        int(corpus.prompt_sizes[prompt] + corpus.response_sizes[requested[places]].sum())
        for prompt, places in blocks
    ]
    capacity = max([capacity, *sizes])
    rows = _rows(sizes, capacity) if corpus.shared else [[block] for block in range(len(blocks))]
    width = max(sum(sizes[b] for b in row) for row in rows)
    shape = (len(rows), width)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    slots, segment = np.full(shape, PADDING, np.int64), np.full(shape, PADDING, np.int64)
    root = np.full(shape, PADDING, np.int64)  # segment of the own prompt
    sources: list[Int] = []
    targets: list[Int] = []
    owners: list[Int] = []
    for r, row in enumerate(rows):
        at, name = 0, 0
        for prompt, places in (blocks[b] for b in row):
            length = int(corpus.prompt_sizes[prompt])
            here = slice(at, at + length)
            ids[r, here] = corpus.prompts[prompt]
            positions[r, here] = np.arange(length)
            slots[r, here] = corpus.prompt_starts[prompt] + np.arange(length)
            segment[r, here] = root[r, here] = name
            last, own = r * width + at + length - 1, name
            at, name = at + length, name + 1
            for place in places:
                item = int(requested[place])
                size = int(corpus.response_sizes[item])
                here = slice(at, at + size)
                ids[r, here] = corpus.responses[item]
                positions[r, here] = length + np.arange(size)
                slots[r, here] = corpus.response_starts[item] + np.arange(size)
                segment[r, here], root[r, here] = name, own
                before = r * width + at + np.arange(-1, size - 1)
                before[0] = last
                sources.append(before)
                targets.append(ids[r, here])
                owners.append(np.full(size, place, np.int64))
                at, name = at + size, name + 1
    return Packed(
        ids,
        positions,
        slots,
        np.stack([segment, root]) if corpus.shared else None,
        np.concatenate(sources),
        np.concatenate(targets),
        np.concatenate(owners),
        requested,
        corpus.rows == "alone",
        corpus.pictures,
    )


def stack(parts: Sequence[Packed]) -> tuple[Packed, tuple[int, ...]]:
    """One Packed of several of a corpus (one a replica), padded to the widest; the rows of each."""
    width = max(part.ids.shape[1] for part in parts)
    rows = tuple(part.ids.shape[0] for part in parts)

    def wide(array: Int, fill: int) -> Int:
        spare = width - array.shape[-1]
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, spare)], constant_values=fill)

    segments, sources, owners = [], [], []
    row = item = 0
    for part in parts:
        own = part.ids.shape[1]
        if part.segments is not None:
            segments.append(wide(part.segments, PADDING))
        sources.append((part.sources // own + row) * width + part.sources % own)
        owners.append(part.owners + item)
        row, item = row + part.ids.shape[0], item + len(part.items)
    return (
        Packed(
            np.concatenate([wide(part.ids, 0) for part in parts]),
            np.concatenate([wide(part.positions, 0) for part in parts]),
            np.concatenate([wide(part.slots, PADDING) for part in parts]),
            np.concatenate(segments, 1) if segments else None,
            np.concatenate(sources),
            np.concatenate([part.targets for part in parts]),
            np.concatenate(owners),
            np.concatenate([part.items for part in parts]),
            parts[0].alone,
            parts[0].pictures,
        ),
        rows,
    )
