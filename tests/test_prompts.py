"""Prompts of an evaluation from every kind of file, and what is said of files that hold none."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisescope.errors import DataError
from noisescope.evaluate.prompts import read_prompts

TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
PAIR = {"prompt": "How?", "chosen": "So.", "rejected": "No.", "annotator": "a"}


def read(path: Path, limit: int = 10) -> list[str]:
    found = read_prompts(str(path), modality="text", limit=limit, seed=0)
    return sorted(prompt.text for prompt in found.kept)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "How?\n\n Why? \nHow?\n"),
        ("p.jsonl", '{"prompt": "How?"}\n\n{"prompt": "Why?", "id": 1}\n'),
        ("p.json", '[{"prompt": "How?"}, {"prompt": "Why?"}]'),
        ("p.csv", "id,prompt\n1,How?\n2,Why?\n"),
    ],
)
def test_every_text_file_holds_the_same_prompts(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read(tmp_path / name) == ["How?", "Why?"]


def test_a_table_of_prompts_or_of_pairs_is_told_by_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["How?", "Why?"]}), tmp_path / "alone.parquet")
    assert read(tmp_path / "alone.parquet") == ["How?", "Why?"]
    pairs = [PAIR | {"prompt": f"How {n}?"} for n in range(12)]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
    assert len(read(tmp_path / "pairs.parquet", limit=5)) == 5
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    assert read(tmp_path / "pairs.jsonl", limit=20) == sorted(pair["prompt"] for pair in pairs)


def test_prompts_that_show_pictures_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "What is it?", "image": "cat.png", "image_id": 7}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"may show what image holds, and the models read text"):
        read(tmp_path / "p.jsonl")
    found = read_prompts(str(tmp_path / "p.jsonl"), modality="image")  # captions
    assert [prompt.text for prompt in found.kept] == ["What is it?"]


def test_conversations_are_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": TALK}) + "\n")
    (text,) = read(tmp_path / "p.jsonl")
    assert "Hi." in text
    assert "Hello." in text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.txt", b"\xff\xfe\xfa", "cannot be read"),
        ("p.jsonl", b'{"prompt": \n', "can be decoded"),
        ("p.jsonl", b'{"prompt": "How?"}\n{"prompt": \n', "first row 2"),
        ("p.json", b"[1", "neither a JSON array nor"),
        ("p.jsonl", b'{"prompt": "How?"}\n{"prompt": 7}\n', "first row 2"),
        ("p.jsonl", b'{"prompt": [{"role": "user"}]}\n', "first row 1"),
        ("p.parquet", b"PAR1", "not a readable Parquet file"),
        ("p.json", b'{"question": "How?"}', ""),
        ("p.txt", b"\n \n", ""),
    ],
)
def test_a_file_without_prompts_is_refused(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told or None):
        read(tmp_path / name)


def test_a_line_separator_inside_a_prompt_does_not_end_its_line(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "one\u2028two"}\n', "utf-8")
    assert read(tmp_path / "p.jsonl") == ["one\u2028two"]
