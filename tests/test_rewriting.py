"""Copies of data files with some rows changed: every format keeps every other value."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisescope.datasets import open_source
from noisescope.datasets.flip.copy import plant
from noisescope.datasets.flip.plan import FlipPlan
from noisescope.datasets.readers import read_file
from noisescope.datasets.rewrite import Decoded, rewrite
from noisescope.errors import DataError
from noisescope.pairs import content_id

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ROWS = [
    {"prompt": f"q {i}", "chosen": f'a "{i}" \\ é', "rejected": f"b,{{\n {i}"} for i in range(5000)
]


def swap_every_third(rows: Sequence[Decoded]) -> dict[int, dict[str, Any] | None]:
    """Swap the sides of rows 0, 3, 6, ... and drop row 1."""
    changes: dict[int, dict[str, Any] | None] = {}
    for index, (number, values, _) in enumerate(rows):
        if values is not None and number % 3 == 0:
            changes[index] = values | {"chosen": values["rejected"], "rejected": values["chosen"]}
        elif number == 1:
            changes[index] = None
    return changes


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows in the format that the file's ending names."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=1000)
        return
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif name.endswith(".json"):
        text = json.dumps({"version": 1, "rows": list(rows)}, indent=1)
    else:
        with path.open("w", newline="") as out:
            tabs = "\t" if name.endswith(".tsv") else ";" if name.startswith("semi") else ","
            writer = csv.DictWriter(out, list(rows[0]), delimiter=tabs)
            writer.writeheader()
            writer.writerows(rows)
        return
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "semicolons.csv", "a.tsv", "a.parquet"],
)
def test_only_the_chosen_rows_change(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / name, tmp_path / "copy" / name
    target.parent.mkdir()
    write_rows(source, ROWS)
    rewrite(source, target, swap_every_third)
    expected = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if i % 3 == 0 else row
        for i, row in enumerate(ROWS)
        if i != 1
    ]
    assert [row.values for row in read_file(target, name)] == expected


def test_untouched_lines_keep_their_bytes(tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(ROWS)]
    lines[4] = '{ "rejected" :"\\u0062" ,"chosen": "c" , "prompt":"odd \\/"}'
    lines[7:7] = ["", "{broken", "  "]
    source = tmp_path / "a.jsonl"
    source.write_bytes("\r\n".join(lines).encode())
    rewrite(source, tmp_path / "copy", swap_every_third)
    copied = (tmp_path / "copy").read_bytes().decode().split("\r\n")
    assert copied[3:5] == lines[4:6]
    assert copied[6:9] == lines[7:10]
    assert json.loads(copied[5])["chosen"] == json.loads(lines[6])["rejected"]


@given(TEXTS, TEXTS, st.booleans())
def test_a_swapped_line_holds_the_same_texts(one: str, other: str, plain: bool) -> None:
    from tempfile import TemporaryDirectory

    row = {"prompt": one + other, "chosen": one, "rejected": other, "score": 0.1}
    with TemporaryDirectory() as folder:
        source = Path(folder) / "a.jsonl"
        source.write_text(json.dumps(row, ensure_ascii=plain) + "\n", "utf-8")
        rewrite(source, Path(folder) / "b.jsonl", swap_every_third)
        turned = json.loads((Path(folder) / "b.jsonl").read_text("utf-8"))
    assert turned == row | {"chosen": other, "rejected": one}


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes('{"chosen": "\\ud800", "rejected": "é"}\n'.encode())
    rewrite(source, tmp_path / "b.jsonl", swap_every_third)
    turned = json.loads((tmp_path / "b.jsonl").read_bytes())
    assert turned == {"chosen": "é", "rejected": "\ud800"}


def test_a_csv_that_cannot_be_written_again_is_refused_by_line(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text('chosen,rejected\na,b\n"c"d,e\n')
    with pytest.raises(DataError, match="line 3 is not valid CSV"):
        rewrite(source, tmp_path / "b.csv", swap_every_third)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_flipping_twice_restores_every_pair(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / name
    write_rows(source, ROWS)
    plan = FlipPlan(0.3, seed=2)
    once = plant(open_source(source), plan, tmp_path / "once")
    assert once.flipped > 1000
    plant(open_source(tmp_path / "once" / name), plan, tmp_path / "twice")
    before, after = (
        [row.values for row in read_file(path, name)]
        for path in (source, tmp_path / "twice" / name)
    )
    assert before == after


def test_a_line_without_end_is_refused_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noisescope.datasets import readers

    monkeypatch.setattr(readers, "MAX_ROW", 1 << 10)
    path = tmp_path / "long.jsonl"
    for rest in ("\n", ""):
        path.write_text('{"prompt": "a"}\n' * 3 + "x" * 2000 + rest)
        with pytest.raises(DataError, match="line 4 is longer"):
            rewrite(path, tmp_path / "copy", lambda rows: {})


@given(TEXTS, TEXTS, TEXTS)
def test_an_id_does_not_depend_on_the_order_of_the_sides(prompt: str, one: str, other: str) -> None:
    assert content_id(prompt, one, other) == content_id(prompt, other, one)
