"""What somebody else's bytes can reach, each as a function of bytes: only NoisescopeError escapes.

    for name, (target, seeds) in targets(folder).items():
        survive(target, some_bytes)

Used by test_targets.py (Hypothesis) and by guided.py (coverage-guided, by hand).
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers.planted_run import planted_run
from PIL import Image
from safetensors.numpy import save as tensors

from noisescope.datasets import ADAPTERS, load, recognise
from noisescope.datasets.flip.ground_truth import read_truth
from noisescope.datasets.images import crop, decode
from noisescope.datasets.load import read_pairs
from noisescope.datasets.readers import Row
from noisescope.errors import NoisescopeError
from noisescope.gate.policy import read_policy
from noisescope.models.checkpoint import read_header, shard_names
from noisescope.storage.cache import open_chunk, serialise
from noisescope.storage.files import read_sealed, write_sealed
from noisescope.storage.run import Run
from noisescope.storage.sql import query
from noisescope.storage.workspace import FILE_NAME, read_workspace, resolve
from noisescope.training.lora.peft_files import ADAPTER_CONFIG, read_peft


class Target(NamedTuple):
    """A function of bytes, and bytes that it takes."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


ROWS = [
    {"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "annotator": "a"}
    for n in range(12)
]
TOML = b"""[workspace]
dataset = "mine"
[models]
text = "models/tiny"
[datasets.mine]
path = "data/*.jsonl"
truth = "truth.parquet"
[score]
kind = "head"
replicas = 4
[gate]
flip_rate = 0.1
[gate.sql.long]
sql = "SELECT count(*) FROM pairs"
most = 3
"""
SQL = (
    "SELECT pair_id, u FROM scores ORDER BY rank LIMIT 3",
    "WITH s AS (SELECT avg(margin) m FROM margins GROUP BY ALL) SELECT * FROM s, pairs",
    "SELECT * FROM read_csv('/etc/passwd'); ATTACH 'x'; COPY pairs TO 'y'",
    "SELECT list_transform([1, 2], x -> x + 1), regexp_matches('a', '(a*)*'), getenv('HOME')",
    "DESCRIBE pairs",
    "PRAGMA database_list",
)


#: JSON that a parser follows down until the stack ends.
DEEP = b"[" * 100_000


def survive(target: Target, data: bytes) -> None:
    """Run a target; anything but a NoisescopeError escapes."""
    with suppress(NoisescopeError):
        target.run(data)


def targets(folder: Path) -> dict[str, Target]:
    """All targets, working below `folder`."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    table = pa.Table.from_pylist(ROWS)
    found = {
        "rows": Target(_rows, (*(json.dumps(row).encode() for row in _shapes()), DEEP)),
        "toml": Target(_toml(folder / "toml"), (TOML,)),
        "names": Target(_name, (b"hh-rlhf:test", b"a/b:c:d", b"~nobody/x", b"*.parquet", b"")),
        "sql": Target(_sql(folder / "sql"), tuple(text.encode() for text in SQL)),
        "image": Target(_image, tuple(_pictures())),
        "weights": Target(_weights(folder / "weights"), (_tensors(), _header(DEEP))),
        "weight index": Target(_index, (b'{"weight_map": {"a": "model-1.safetensors"}}',)),
        "adapter": Target(_adapter(folder / "adapter"), (b'{"r": 4, "peft_type": "LORA"}', DEEP)),
        "manifest": Target(_manifest(folder / "manifest"), (b'{"format": 1, "facts": {}}', DEEP)),
        "truth": Target(_truth(folder / "truth"), (_parquet(_flips(table)),)),
    }
    for ending, seed in {
        ".jsonl": lines,
        ".json": json.dumps(ROWS).encode(),
        ".csv": b"prompt,chosen,rejected\n" + b"p,a,b\n" * 12,
        ".tsv": b"prompt\tchosen\trejected\n" + b"p\ta\tb\n" * 12,
        ".jsonl.gz": gzip.compress(lines, mtime=0),
        ".parquet": _parquet(table),
        ".arrow": _arrow(table),
    }.items():
        found[f"data{ending}"] = Target(_data(folder / "data", ending), (seed,))
    return found


def _shapes() -> list[dict[str, Any]]:
    """A row of each of several formats."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    other = [*turns[:1], {"role": "assistant", "content": "b"}]
    return [
        ROWS[0],
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"chosen": turns, "rejected": other, "score_chosen": 4.0, "score_rejected": 2.0},
        {"prompt": "q", "completion": "a", "label": True},
        {"q": "ask", "response_a": "a b", "response_b": "c d", "winner": "model_a"},
        {"prompt": [turns[0]], "responses": ["a", "b"], "ranks": [1, 2], "tools": [{}]},
        {"row": {"question": "q", "chosen": turns, "rejected": "[{'role': 'user'}]"}, "margin": 0},
        {"caption": "c", "jpg_0": "", "jpg_1": "", "label_0": 1.0, "label_1": 0.0},
        {"prompt": "p", "image_path": ["a.png", "b.png"], "human_preference": [1, 0]},
    ]


def _rows(data: bytes) -> None:
    """Every schema on one row of JSON, whose preference can be reversed and restored."""
    try:
        row = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(row, dict):
        return
    for adapter in ADAPTERS.values():
        list(read_pairs([Row("a", 0, row)], adapter))
        if not adapter.cannot_flip:
            flipped = adapter.flip(adapter.flip(row))
            assert list(flipped) == list(row)
    recognise([Row("a", 0, row)] * 3)


def _data(folder: Path, ending: str) -> Callable[[bytes], object]:
    folder.mkdir(exist_ok=True)
    return lambda data: load(_written(folder / f"data{ending}", data))


def _toml(folder: Path) -> Callable[[bytes], object]:
    folder.mkdir()

    def run(data: bytes) -> None:
        found = read_workspace(_written(folder / FILE_NAME, data))
        for name in (*found.datasets, found.dataset or "mine"):
            with suppress(NoisescopeError):
                resolve(name, found)
        found.settings("score", ("kind", "replicas"))
        read_policy(table=found.sections.get("gate"))

    return run


def _name(data: bytes) -> None:
    resolve(data.decode("utf-8", "surrogateescape"))


def _sql(folder: Path) -> Callable[[bytes], object]:
    run = planted_run(folder, pairs=40)
    return lambda data: query(run, data.decode("utf-8", "replace"))


def _image(data: bytes) -> None:
    crop(decode(data), 32)


def _weights(folder: Path) -> Callable[[bytes], object]:
    folder.mkdir()

    def run(data: bytes) -> None:
        path = _written(folder / "model.safetensors", data)
        open_chunk(path)
        with suppress(NoisescopeError):
            read_sealed(path)
        read_header(path)

    return run


def _index(data: bytes) -> None:
    with suppress(ValueError, RecursionError):
        value = json.loads(data)
        shard_names(value if isinstance(value, dict) else {}, "model")


def _adapter(folder: Path) -> Callable[[bytes], object]:
    folder.mkdir()
    write_sealed(folder / "adapter_model.safetensors", {}, {})

    def run(data: bytes) -> None:
        _written(folder / ADAPTER_CONFIG, data)
        read_peft(folder)

    return run


def _manifest(folder: Path) -> Callable[[bytes], object]:
    whole = planted_run(folder, pairs=12)
    plan = whole.plan_path.read_bytes()

    def run(data: bytes) -> None:
        found = Run(whole.directory)
        _written(found.manifest_path, data)
        with suppress(NoisescopeError):
            found.manifest()
        with suppress(NoisescopeError):
            found.evidence_only  # noqa: B018
            found.evidence_complete  # noqa: B018
        _written(found.plan_path, data)
        try:
            found.plan()
        finally:
            _written(found.plan_path, plan)

    return run


def _truth(folder: Path) -> Callable[[bytes], object]:
    folder.mkdir()
    path = _written(folder / "pairs.jsonl", "".join(json.dumps(r) + "\n" for r in ROWS).encode())
    pairs = load(path).table
    return lambda data: read_truth(_written(folder / "truth.parquet", data), pairs)


def _flips(table: pa.Table) -> pa.Table:
    ids = pa.array([f"{n:020x}" for n in range(table.num_rows)])
    return pa.table({"pair_id": ids, "mislabelled": pa.array([True] * table.num_rows)})


def _written(path: Path, data: bytes) -> Path:
    """`data` in a file of its own: caches know files by what the system says of them."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def _arrow(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def _pictures() -> list[bytes]:
    """One small picture of each format that is read."""
    found = []
    image = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        stream = io.BytesIO()
        with suppress(OSError, KeyError):
            image.save(stream, kind)
            found.append(stream.getvalue())
    return found


def _tensors() -> bytes:
    return serialise(["a", "b"], {"x": np.ones((2, 3), np.float32)}) or tensors({})


def _header(text: bytes) -> bytes:
    """A safetensors file whose header is `text`."""
    return len(text).to_bytes(8, "little") + text


def clear(folder: Path) -> Path:
    """An empty directory at `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


Targets = Mapping[str, Target]
