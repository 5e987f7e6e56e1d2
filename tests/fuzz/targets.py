"""What somebody else's bytes can reach, each as a function of bytes: only NoisescopeError escapes.

    for name, (target, seeds) in targets(folder).items():
        survive(target, some_bytes)

Used by test_targets.py (Hypothesis) and by guided.py (coverage-guided, by hand).
"""

from __future__ import annotations

import gzip
import io
import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers.chat_stub import weighs
from helpers.planted_run import planted_run
from PIL import Image
from safetensors.numpy import save as tensors

from noisescope.datasets import ADAPTERS, load, recognise
from noisescope.datasets.adapters.mapping import checked_columns, parsed_columns
from noisescope.datasets.flip.ground_truth import read_truth
from noisescope.datasets.images import crop, decode
from noisescope.datasets.read_pairs import read_pairs
from noisescope.datasets.readers import Row
from noisescope.errors import NoisescopeError
from noisescope.export.answers import import_answers
from noisescope.export.apply import DECISIONS, read_decisions
from noisescope.gate.policy import read_policy
from noisescope.models.chat import _answer, retry_after
from noisescope.models.checkpoint import read_header, shard_names
from noisescope.pairs import Fault
from noisescope.replicas.answers import BOUND, Answers, named, token_odds
from noisescope.storage.cache import open_chunk, serialise
from noisescope.storage.files import read_sealed, write_sealed
from noisescope.storage.reviews import CHOICES, read_reviews
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


#: A mapping of columns, then the row it is for.
MAPPINGS = (
    'prompt=q,chosen=best,rejected=worst\n{"q": "ask", "best": "a b", "worst": "c d"}',
    "prompt=m.0.content,first=a|b,second=c+d,label=w,first_values=left\n"
    '{"m": [{"content": "q"}], "a": "x", "b": "", "c": "y", "d": "z", "w": "left"}',
    'prompt=q,responses=r,ratings=s\n{"q": "ask", "r": ["a", "b", "c"], "s": [3, 1, 2]}',
)
#: Answers of a judge as they are kept.
KEPT = (
    b'{"key": "k", "log_odds": 2.5}\n{"key": "l", "log_odds": null}\n'
    b'{"key": "m", "vote": 1}\n{"key": "m", "vote": 0}\n'
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
    people = planted_run(folder / "people" / "planted-1", pairs=12)
    ids = pq.read_table(people.pairs_path).column("pair_id").to_pylist()
    found |= {
        "columns": Target(_columns, tuple(text.encode() for text in MAPPINGS)),
        "answers": Target(_answers(folder / "answers", people), tuple(_answered(ids))),
        "answers.csv": Target(_answers(folder / "answers", people, ".csv"), (_csv(ids),)),
        "decisions": Target(_decisions(folder / "decisions"), (_decided(ids),)),
        "decisions.csv": Target(_decisions(folder / "decisions", ".csv"), (_csv(ids),)),
        "judge": Target(_judge, tuple(_replies())),
        "judge answers": Target(_kept(folder / "kept"), (KEPT,)),
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
    recognise([row] * 3)


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


def _columns(data: bytes) -> None:
    """A mapping as it is typed, and a row of JSON that it is applied to."""
    text, _, row = data.decode("utf-8", "replace").partition("\n")
    roles = parsed_columns(text)
    try:
        values = json.loads(row)
    except (ValueError, RecursionError):
        return
    if not isinstance(values, dict):
        return
    schema = recognise([values] * 3, columns=checked_columns(roles, [values], "a"))
    for pair in read_pairs([Row("a", 0, values)] * 3, schema):
        assert isinstance(pair, Fault) or pair.chosen != pair.rejected


def _answers(folder: Path, run: Run, ending: str = ".json") -> Callable[[bytes], object]:
    folder.mkdir(exist_ok=True)

    def import_(data: bytes) -> None:
        try:
            import_answers(run, _written(folder / f"answers{ending}", data), "ann")
            assert all(one.answer in CHOICES for one in read_reviews(run).answers)
        finally:
            (run.directory / "reviews.jsonl").unlink(missing_ok=True)

    return import_


def _answered(ids: list[str]) -> list[bytes]:
    """Answers as Label Studio (two ways), Argilla (two ways) and a table hold them."""
    sides = {"a": "answer 1", "b": "reply 1"}
    result = {"value": {"choices": ["tie"]}, "type": "choices"}
    annotation = {"result": [result], "completed_by": {"email": "me"}, "was_cancelled": False}
    shown = {"fields": sides, "id": ids[2]}
    items: list[dict[str, Any]] = [
        {"data": {"pair_id": ids[1]} | sides, "annotations": [annotation]},
        shown | {"responses": {"better": [{"value": "tie", "user_id": "u"}]}},
        shown | {"better.responses": ["skip"], "better.responses.users": ["u"]},
        {"pair_id": ids[3], "decision": "flip", "mislabelled": "yes", "reviewer": "r"},
    ]
    return [json.dumps([item]).encode() for item in items]


def _csv(ids: list[str]) -> bytes:
    rows = "".join(f"{one},{word},\n" for one, word in zip(ids, ("keep", "flip"), strict=False))
    return f"pair_id,decision,note\n{rows}".encode()


def _decided(ids: list[str]) -> bytes:
    words = ("keep", "flip", "drop", "unsure")
    rows = [{"pair_id": i, "decision": w, "dataset": "d"} for i, w in zip(ids, words, strict=False)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _decisions(folder: Path, ending: str = ".jsonl") -> Callable[[bytes], object]:
    folder.mkdir(exist_ok=True)

    def run(data: bytes) -> None:
        found = read_decisions(_written(folder / f"decisions{ending}", data))
        assert found.rows
        assert {row.decision for row in found.rows} <= DECISIONS.keys()
        assert len({(row.pair_id, row.decision) for row in found.rows}) == len(found.by_pair)
        assert found.digest

    return run


def _judge(data: bytes) -> None:
    """A reply of an endpoint, and the header that delays the next request."""
    answer = _answer(data, 0)
    assert isinstance(answer.text, str)
    assert named(answer.text) in (0, 1, 2)
    odds = None if answer.logprobs is None else token_odds(answer.logprobs)
    assert odds is None or abs(odds) <= BOUND
    pause = retry_after(data.decode("latin-1"), 0.0)
    assert pause is None or pause >= 0


def _replies() -> list[bytes]:
    return [weighs(2.0)[2], weighs(-9.0, "Answer: 2")[2], b"Wed, 21 Oct 2015 07:28:00 GMT", DEEP]


def _kept(folder: Path) -> Callable[[bytes], object]:
    folder.mkdir()

    def run(data: bytes) -> None:
        found = Answers(_written(folder / "answers.jsonl", data))
        for key in (*found.odds, *found.votes):
            odds = found.log_odds(key)
            assert isinstance(odds, float)
            assert not abs(odds) > max(BOUND, math.log(2 * len(data) + 1))

    return run


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
