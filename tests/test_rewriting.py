"""Many plain JSON lines at once: as row by row, or left to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from noisescope.datasets import open_source, readers
from noisescope.datasets.flip.copy import plant
from noisescope.datasets.flip.plan import FlipPlan
from noisescope.datasets.rewrite import rewrite
from noisescope.datasets.rewrite.json_lines import Lines, marks_of, swapped_line, text_table
from noisescope.errors import DataError
from noisescope.pairs import content_id, encoded_content_id

NAMES = ["prompt", "chosen"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), st.booleans())
def test_a_table_of_lines_holds_what_python_reads(rows: list[tuple[str, str]], plain: bool) -> None:
    lines = [
        json.dumps(dict(zip(NAMES, row, strict=True)), ensure_ascii=plain).encode() + b"\n"
        for row in rows
    ]
    table = text_table(Lines(b"".join(lines)), NAMES)
    assert table is not None
    assert table.to_pylist() == [json.loads(line) for line in lines]


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), st.data())
def test_a_broken_line_is_read_as_python_reads_it_or_not_at_all(
    rows: list[tuple[str, str]], data: st.DataObject
) -> None:
    content = bytearray(
        b"".join(json.dumps(dict(zip(NAMES, row, strict=True))).encode() + b"\n" for row in rows)
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.sampled_from(list(b'{}[]",:\\ \n\r\t\x00u1n\xff\xc3')))
    lines = [line + b"\n" for line in bytes(content).split(b"\n") if line]
    table = text_table(Lines(b"".join(lines)), NAMES) if lines else None
    if table is None:
        return
    for line, row in zip(lines, table.to_pylist(), strict=True):
        told = json.loads(line.decode())
        assert {name: told.get(name) for name in NAMES} == row
        assert set(told) <= set(NAMES)


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"prompt": "a", "chosen": "b"}{"prompt": "c", "chosen": "d"}\n', b"\n"],
        [b'{"prompt": "a", "chosen": "b"}\n', b"\n"],
        [b'{"prompt": "a", "prompt": "b", "chosen": "c"}\n'],
        [b'{"prompt": "a", "chosen": 1}\n'],
        [b'{"prompt": "a", "chosen": "b", "label": true}\n'],
        [b'{"prompt": "a", "chosen": "\\ud800"}\n'],
        [b'{"prompt": "a", "chosen": "\xff"}\n'],
        [b'\xef\xbb\xbf{"prompt": "a", "chosen": "b"}\n'],
        [b'{"prompt": "a",\n', b'"chosen": "b"}\n'],
        [b'["prompt"]\n'],
        [b'{"prompt": "a", "chosen": "b"} x\n'],
    ],
)
def test_anything_else_is_left_to_the_rows(lines: list[bytes]) -> None:
    assert text_table(Lines(b"".join(lines)), NAMES) is None


@given(TEXTS, TEXTS, TEXTS)
@example("", "\N{FULLWIDTH LATIN SMALL LETTER A}", "\N{GRINNING FACE}")
def test_an_id_of_bytes_is_the_id_of_the_texts(prompt: str, one: str, other: str) -> None:
    found = encoded_content_id(prompt.encode(), one.encode(), other.encode())
    assert found == content_id(prompt, one, other) == content_id(prompt, other, one)


#: Texts that look like the keys around them, or end in what could be read with those.
SLY = st.lists(
    st.sampled_from(['", "rejected": "', '{"chosen": "', '"', "\\", ", ", ": ", "}", "a", "é"]),
    max_size=5,
).map("".join)


@given(TEXTS | SLY, TEXTS | SLY, st.booleans(), st.sampled_from(["chosen", "rejected", "prompt"]))
def test_swapping_tokens_swaps_texts_and_back(one: str, other: str, plain: bool, last: str) -> None:
    row = {"prompt": one + other, "chosen": one, "rejected": other}
    row[last] = row.pop(last)
    for gaps in ((", ", ": "), (", ", " :"), ("\t ,\r", " :")):
        line = json.dumps(row, ensure_ascii=plain, separators=gaps).encode() + b"\n"
        turned = swapped_line(line)
        assert turned == swapped_line(line, marks_of(list(row)))
        assert json.loads(turned) == row | {"chosen": other, "rejected": one}
        assert swapped_line(turned) == line
    escaped = line.replace(b'"chosen"', b'"\\u0063hosen"')
    assert json.loads(swapped_line(escaped)) == json.loads(turned)


def test_lines_of_every_kind_flip_alike_and_back(tmp_path: Path) -> None:
    """Plain chunks go at once; a blank, a broken and an odd line send theirs row by row."""
    rows = [
        {"prompt": f"q {i}", "chosen": f'a "{i}" \\ é', "rejected": f"b,{{ {i}"}
        for i in range(7000)
    ]
    lines = [json.dumps(row, ensure_ascii=i % 3 == 0) for i, row in enumerate(rows)]
    lines[4100] = '{ "rejected" :"\\u0062" ,"chosen": "c" , "prompt":"odd \\/"}'
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes("\n".join(lines).encode())
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes("\n".join([*lines[:3000], "", "{broken", *lines[3000:]]).encode() + b"\r\n")
    plan = FlipPlan(0.3, seed=2)
    counts = [plant(open_source(path), plan, tmp_path / path.stem) for path in (plain, odd)]
    assert counts[0].flipped == counts[1].flipped
    assert counts[1].untouched == {"unreadable": 1}
    for path in (plain, odd):
        once = tmp_path / path.stem / path.name
        lines = once.read_text("utf-8").split("\n")
        flipped = [json.loads(line) for line in lines if line.startswith(('{"', "{ "))]
        assert sum(row["chosen"][:1] == "b" for row in flipped) == counts[0].flipped
        plant(open_source(once), plan, tmp_path / f"{path.stem}-back")
        assert (tmp_path / f"{path.stem}-back" / path.name).read_bytes() == path.read_bytes()


def test_a_line_without_end_is_refused_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROW", 1 << 10)
    path = tmp_path / "long.jsonl"
    for rest in ("\n", ""):
        path.write_text('{"prompt": "a"}\n' * 3 + "x" * 2000 + rest)
        with pytest.raises(DataError, match="line 4 is longer"):
            rewrite(path, tmp_path / "copy", lambda rows: {})
