"""Preference pairs: what every adapter produces and everything downstream reads.

A pair has a prompt c, a chosen side w and a rejected side l. `content_id` hashes the prompt
and the *unordered* two sides, so relabelling a pair never changes its identity; `pair_id` is
the dataset's own id where it has one, else the content id (repeats get `~2`, `~3`, ...).
For text a side is the response itself; for images it is the content key of the image. In modality
"vision" a pair is one of texts, and each picture in its prompt is written `<image:KEY>` there, by
its content key: whatever depends on the prompt depends on its pictures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol, final

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Float = NDArray[np.float64]
    U64 = NDArray[np.uint64]

Modality = Literal["text", "image", "vision"]
#: A picture in a prompt: its content key.
PICTURE = re.compile(r"<image:([0-9a-f]{20})>")

#: Pairs turned into Arrow at once.
BATCH_PAIRS = 8192

#: Why a row states no usable preference. Order is the order they are reported in.
REJECTION_REASONS = ("tie", "identical sides", "empty response", "unlabelled", "unreadable")
#: Why a model cannot judge a pair that it can read.
SAME_ONCE_CUT = "identical once cut"


class ImageStore(Protocol):
    """Image bytes by content key, and which images the dataset calls a caption's own."""

    @property
    def references(self) -> Mapping[str, tuple[str, ...]]:
        """Keys of reference images by `pairs.response_key(prompt, image)`; mostly empty."""

    def get(self, key: str) -> bytes:
        """The image's bytes. Raises DataError for an unknown key or changed content."""


@final
@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@final
@dataclass(frozen=True, slots=True)
class Item:
    """One distinct (prompt, response); `response` is text, or the content key of an image.

    `longest` is the longest response to the prompt in its dataset, this one included: a prompt
    that is cut leaves room for it, so it reads the same before each of its responses.
    """

    key: str
    prompt: str
    turns: tuple[Message, ...] | None
    response: str
    longest: str = ""


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """One stated preference.

    `prompt` is readable text; `turns` holds the same prompt as messages where the source is
    conversational (a chat template then applies), else None. `source` and `row` say where the
    pair stood: a file name (or split) and a 0-based row in it. `first` is whether the chosen
    side came first, if the source has an order of sides besides its labels.
    """

    prompt: str
    chosen: str
    rejected: str
    turns: tuple[Message, ...] | None = None
    annotator: str | None = None
    pair_id: str | None = None
    source: str = ""
    row: int = 0
    first: bool | None = None
    strength: float | None = None
    votes: int | None = None
    agreement: float | None = None
    group: str | None = None
    origin: str | None = None
    contradicted: bool = False

    @property
    def content_id(self) -> str:
        """Hash of the prompt and the unordered sides."""
        return content_id(self.prompt, self.chosen, self.rejected)


#: What a pair is, and what is known of its label: a change of either makes another dataset.
_CONTENT = ("prompt", "chosen", "rejected")
_FACTS = ("annotator", "strength", "votes", "agreement", "group", "origin", "first")


def digest(*parts: str) -> str:
    """20 hex digits (80 bits) of SHA-256 over length-prefixed UTF-8 parts."""
    framed = []
    for part in parts:
        data = _encoded(part)
        framed += [_size(data), data]
    return hashlib.sha256(b"".join(framed)).hexdigest()[:20]


def _size(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little")


def content_id(prompt: str, side_a: str, side_b: str) -> str:
    """Identity of a pair by content, symmetric in the two sides."""
    return digest("pair", prompt, *sorted((side_a, side_b)))


def label_key(content: str, chosen: str) -> str:
    """Identity of a label: the content id of its pair, and which side is chosen."""
    return digest("label", content, chosen)


def response_key(prompt: str, response: str) -> str:
    """Identity of one (prompt, response): the key of its cached features."""
    return digest("response", prompt, response)


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """A row without a usable preference: its place, the reason, and what was found.

    `row` counts from 0, its text from 1, as editors do.
    """

    source: str
    row: int
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        what = f"{self.reason}: {self.detail}" if self.detail else self.reason
        return f"{self.source}:{self.row + 1} ({what})"


@final
@dataclass(frozen=True)
class Facts:
    """What ingestion saw: rows read, pairs kept, rows rejected by reason, repeats.

    `duplicates` are pairs that repeat an earlier one, direction included; `contradictions` are
    contents labelled both ways, `self_contradictions` those where one annotator did both;
    `ordered` pairs have an order of sides in the source, in `first_chosen` the first is chosen.
    `set_aside` pairs are among the rejected ones because the model cannot judge them; `notes` are
    what else a reader of scores should know of the reading. `judged_by` is the model that they
    were set aside for, `source_fingerprint` that of all pairs the source states.
    """

    rows: int = 0
    pairs: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    examples: tuple[Fault, ...] = ()
    duplicates: int = 0
    contradictions: int = 0
    self_contradictions: int = 0
    annotators: int = 0
    ordered: int = 0
    first_chosen: int = 0
    set_aside: int = 0
    notes: tuple[str, ...] = ()
    judged_by: str = ""
    source_fingerprint: str = ""
    contradicted: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    unused_columns: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """JSON object for manifests and `--json`."""
        return {
            "rows": self.rows,
            "pairs": self.pairs,
            "rejected": dict(self.rejected),
            "rejected_examples": [str(fault) for fault in self.examples],
            "duplicates": self.duplicates,
            "contradictions": self.contradictions,
            "self_contradictions": self.self_contradictions,
            "annotators": self.annotators,
            "ordered": self.ordered,
            "first_chosen": self.first_chosen,
            "set_aside": self.set_aside,
            "notes": list(self.notes),
            **({"source_fingerprint": self.source_fingerprint} if self.source_fingerprint else {}),
            "contradicted": self.contradicted,
            "labels": dict(self.labels),
            "unused_columns": list(self.unused_columns),
        }


class SourceRow(Protocol):
    """A decoded row of a source: its place, and its values (None if it cannot be decoded)."""

    @property
    def source(self) -> str: ...

    @property
    def number(self) -> int: ...

    @property
    def values(self) -> dict[str, Any] | None: ...


class Reread(Protocol):
    """Stream the rows of a source; of a columnar one, only these columns."""

    def __call__(self, columns: Collection[str] | None = None) -> Iterator[SourceRow]: ...


@final
@dataclass(frozen=True)
class PreferenceDataset:
    """Pairs of one dataset, with where they came from and what was set aside.

    `resolved` is the full name of what a user's short name turned out to mean; `adapter` the
    recognised format; `images` maps an image key to its bytes for image datasets. `reading` holds
    the options by which it was read (format, columns, pairs, limit). `reread` streams the source
    again; `flipped` is true for a copy that `noisescope flip` wrote.
    """

    name: str
    resolved: str
    adapter: str
    modality: Modality
    table: pa.Table
    facts: Facts
    fingerprint: str
    images: ImageStore | None = None
    columns: dict[str, str] = field(default_factory=dict)
    pairs: str = "all"
    reading: Mapping[str, Any] = field(default_factory=dict)
    reread: Reread | None = None
    flipped: bool = False

    @property
    def source_fingerprint(self) -> str:
        """Fingerprint of all pairs that the source states, those set aside for a model included."""
        return self.facts.source_fingerprint or self.fingerprint

    def __len__(self) -> int:
        return int(self.table.num_rows)


def pairs_schema() -> pa.Schema:
    """Columns of `pairs.parquet`, one row a pair."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            pa.field("pair_id", pa.string(), nullable=False),
            pa.field("content_id", pa.string(), nullable=False),
            pa.field("prompt", pa.string(), nullable=False),
            pa.field("turns", pa.list_(turn)),
            pa.field("chosen", pa.string(), nullable=False),
            pa.field("rejected", pa.string(), nullable=False),
            pa.field("annotator", pa.string()),
            pa.field("source", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("strength", pa.float64()),
            pa.field("votes", pa.int64()),
            pa.field("agreement", pa.float64()),
            pa.field("group", pa.string()),
            pa.field("origin", pa.string()),
            pa.field("first", pa.bool_()),
        ]
    )


def to_table(pairs: Iterable[Pair]) -> pa.Table:
    """Arrow table of `pairs` in `pairs_schema()`; repeats of an id get `~2`, `~3`, ...

    Pairs are taken from the iterable in batches: beside the Arrow data only the ids are held.
    """
    import pyarrow as pa

    schema = pairs_schema()
    used: dict[str, int] = {}
    stream = iter(pairs)
    batches = []
    while batch := list(islice(stream, BATCH_PAIRS)):
        rows = [_table_row(pair, used) for pair in batch]
        batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)


def _table_row(pair: Pair, used: dict[str, int]) -> dict[str, object]:
    content = pair.content_id
    turns = pair.turns and [{"role": turn.role, "content": turn.content} for turn in pair.turns]
    return {
        "pair_id": unused(pair.pair_id or content, used),
        "content_id": content,
        "prompt": pair.prompt,
        "turns": turns,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "annotator": pair.annotator,
        "source": pair.source,
        "row": pair.row,
        "strength": pair.strength,
        "votes": pair.votes,
        "agreement": pair.agreement,
        "group": pair.group,
        "first": pair.first,
        "origin": pair.origin,
    }


def unused(name: str, used: dict[str, int]) -> str:
    """`name`, or the first of `name~2`, `name~3`, ... that no earlier pair has."""
    unique = name
    while unique in used:
        used[name] += 1
        unique = f"{name}~{used[name]}"
    used[unique] = 1
    return unique


def dataset_fingerprint(table: pa.Table) -> str:
    """20 hex digits over `pair_digest` of every pair, in row order."""
    sha = hashlib.sha256()
    for batch in table.select(["pair_id", *_CONTENT, *_FACTS]).to_batches(8192):
        for name, *values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            sha.update(_digest_of(name, values).encode())
    return sha.hexdigest()[:20]


def pair_digest(name: str, pair: Pair) -> str:
    """20 hex digits over a pair's id `name`, content, direction, and the facts that are known."""
    return _digest_of(name, [getattr(pair, of) for of in (*_CONTENT, *_FACTS)])


def _digest_of(name: str, values: Sequence[object]) -> str:
    content, facts = values[: len(_CONTENT)], values[len(_CONTENT) :]
    plain = [float(it) if isinstance(it, int | float) else it for it in facts]  # 3 is 3.0 in Arrow
    known = [f"{of}={it}" for of, it in zip(_FACTS, plain, strict=True) if it is not None]
    return digest(name, *map(str, content), *known)


def mix(x: U64) -> U64:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014): a bijection of uint64 that avalanches."""
    import numpy as np

    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(keys: U64, *salt: int) -> U64:
    """Hash each key [N] under integer salts (seed, replica, purpose)."""
    import numpy as np

    state = np.zeros(1, np.uint64)
    for part in salt:
        state = mix(state ^ np.array([part % 2**64], np.uint64))
    return mix(keys.astype(np.uint64) ^ state)


def keys_of(names: Sequence[str]) -> U64:
    """Hash each name to 64 bits, [N]."""
    import numpy as np

    blake = hashlib.blake2b
    digests = [blake(_encoded(name), digest_size=8).digest() for name in names]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _encoded(text: str) -> bytes:
    """UTF-8 of a text, which may hold lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def uniform(keys: U64, *salt: int) -> Float:
    """Draw a number in [0, 1) for each key [N]: a hash of the key and the salts."""
    import numpy as np

    return (hashed(keys, *salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53
