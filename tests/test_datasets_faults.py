"""Bad input: rows are counted by reason, files are refused with what to do next."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisescope.datasets import ADAPTERS, Row, RowFault, load, read_pairs
from noisescope.datasets.adapters.compose import split, split_transcripts, turns_of
from noisescope.datasets.readers import suffix
from noisescope.errors import DataError, NoisescopeError
from noisescope.pairs import REJECTION_REASONS, Fault, Pair

GOOD = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(10)]
HH = "\n\nHuman: hi\n\nAssistant: "


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_bad_lines_are_counted_with_their_place(tmp_path: Path) -> None:
    bad = [
        b'{"prompt": "p", "chosen": ',
        b'{"prompt": "p", "chosen": "\xff\xfe", "rejected": "b"}',
        b"[1, 2]",
        b'{"prompt": "p", "chosen": "\\ud800", "rejected": "b"}',
        b'{"prompt": null, "chosen": "a", "rejected": "b"}',
        b'{"prompt": "p", "chosen": 3, "rejected": "b"}',
        b"[" * 100_000,
        b'{"prompt": "p", "chosen": "a", "rejected": "a"}',
        b'{"prompt": "p", "chosen": "a", "rejected": "\\t "}',
        b'{"n": ' + b"9" * 5000 + b"}",
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD) + b"\n".join(bad))
    facts = load(tmp_path / "a.jsonl").facts
    assert (facts.rows, facts.pairs) == (20, 10)
    assert list(facts.rejected.items()) == [
        ("identical sides", 1),
        ("empty response", 1),
        ("unreadable", 8),
    ]
    shown = [str(fault) for fault in facts.examples]
    assert len(shown) == 5
    assert shown[0].startswith("a.jsonl:11 (unreadable: not valid JSON")
    assert shown[1] == "a.jsonl:12 (unreadable: not valid UTF-8)"
    assert shown[3] == "a.jsonl:14 (unreadable: not valid Unicode text)"


def test_bad_csv_rows(tmp_path: Path) -> None:
    huge = "x" * 1_000_000
    text = "prompt,chosen,rejected\n" + "".join(f"p{i},good {i},bad {i}\n" for i in range(9))
    text += f'p,{huge},"two\nlines, and ""quotes"""\np,too few\np,a,b,too many\n\np,"a"x,b\n'
    (tmp_path / "a.csv").write_bytes(text.encode() + b"p,\xff,b\np,,b\n")
    dataset = load(tmp_path / "a.csv")
    assert (dataset.facts.rows, dataset.facts.pairs) == (15, 10)
    assert dataset.facts.rejected == {"empty response": 1, "unreadable": 4}
    assert dataset.table["rejected"][9].as_py() == 'two\nlines, and "quotes"'
    assert [fault.row for fault in dataset.facts.examples] == [10, 11, 12, 13, 14]


def test_parquet_with_broken_text_and_nested_types(tmp_path: Path) -> None:
    sides = [b"good"] * 11
    sides[4] = b"\xff"
    broken = pa.Array.from_buffers(pa.string(), 11, pa.array(sides, pa.binary()).buffers())
    columns = {
        "prompt": pa.array([f"p{i}" for i in range(11)]).dictionary_encode(),
        "chosen": broken,
        "rejected": pa.array([f"bad {i}" for i in range(11)], pa.large_string()),
        "annotator": pa.array(range(11), pa.int16()),
        "extra": [{"deep": [{"er": i}]} for i in range(11)],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    dataset = load(tmp_path / "a.parquet")
    assert dataset.facts.pairs == 10
    assert [str(fault) for fault in dataset.facts.examples] == [
        "a.parquet:5 (unreadable: not valid UTF-8)"
    ]
    assert dataset.table["annotator"].to_pylist()[:2] == ["0", "1"]


def test_nulls_and_nan_in_parquet(tmp_path: Path) -> None:
    columns = {
        "prompt": [f"p{i}" for i in range(14)],
        "chosen": [f"good {i}" for i in range(13)] + [None],
        "rejected": [f"bad {i}" for i in range(14)],
        "label": [1.0] * 10 + [float("nan"), None, 0.5, 1.0],
        "annotator": [float("nan"), 3.0, *[None] * 12],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    dataset = load(tmp_path / "a.parquet", format="columnar_label")
    assert dataset.facts.rejected == {"tie": 1, "unlabelled": 2, "unreadable": 1}
    assert dataset.table["annotator"].to_pylist()[:3] == [None, "3", None]


def test_no_usable_pair_says_why(tmp_path: Path) -> None:
    ties = [dict(row, label=0.5) for row in GOOD * 2]
    (tmp_path / "ties.jsonl").write_bytes(lines(ties))
    with pytest.raises(DataError, match=r"every one of its 20 rows is a tie.*and 15 more"):
        load(tmp_path / "ties.jsonl", format="columnar_label")
    rows = [*ties[:5], *(dict(row, rejected="") for row in GOOD)]
    (tmp_path / "bad.jsonl").write_bytes(lines(rows))
    with pytest.raises(DataError, match=r"none of its 15 rows .*\(5 tie, 10 empty response\)"):
        load(tmp_path / "bad.jsonl", format="columnar_label")
    (tmp_path / "garbage.jsonl").write_bytes(b"not json\n" * 7)
    with pytest.raises(DataError, match=r"none of its 7 rows can be decoded: garbage\.jsonl:1"):
        load(tmp_path / "garbage.jsonl")
    numbers = [{"prompt": 1, "chosen": 2, "rejected": 3}] * 12
    (tmp_path / "numbers.jsonl").write_bytes(lines(numbers))
    with pytest.raises(DataError, match=r"12 unreadable.*chosen is a number, expected text"):
        load(tmp_path / "numbers.jsonl")


TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("trl", {"chosen": "a", "rejected": TURNS}, "chosen is text, expected a list of messages"),
        ("trl", {"chosen": None, "rejected": None}, "chosen and rejected are null"),
        ("trl", {"chosen": None}, "chosen and rejected are missing or null"),
        ("trl", {"chosen": TURNS, "rejected": None}, "rejected is null"),
        ("trl", {"chosen": True, "rejected": "b"}, "chosen is true or false, expected text"),
        ("trl", {"chosen": [3], "rejected": TURNS}, "a list that holds a number, not messages"),
        ("hh_rlhf", {"chosen": None, "rejected": None}, "chosen and rejected are null"),
        ("columnar", {"chosen": {}, "rejected": "b"}, "chosen is an object, expected text"),
        (
            "columnar_label",
            {"chosen": "a", "rejected": "b", "label": [1]},
            "label is a list, expected a label",
        ),
        (
            "ultrafeedback",
            {"chosen": TURNS, "rejected": TURNS, "score_chosen": "five"},
            "score_chosen is text, expected a number",
        ),
    ],
)
def test_row_faults_speak_of_what_a_user_wrote(name: str, row: dict[str, Any], said: str) -> None:
    (fault,) = read_pairs([Row("a", 0, {"prompt": "p", **row})], ADAPTERS[name])
    assert isinstance(fault, Fault)
    assert said in fault.detail


def test_fewer_than_ten_pairs(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_bytes(lines([*GOOD[:9], dict(GOOD[9], chosen=" ")]))
    with pytest.raises(DataError, match=r"9 usable pairs.*at least 10 \(1 empty response\)"):
        load(tmp_path / "few.jsonl")
    (tmp_path / "ten.jsonl").write_bytes(lines(GOOD))
    with pytest.raises(DataError, match="4 usable pairs") as caught:
        load(tmp_path / "ten.jsonl", limit=4)
    assert "--limit 4" in str(caught.value.hint)


def write_files(root: Path) -> None:
    """Files and directories that cannot be read, each in its own way."""
    for name in ("empty.jsonl", "empty.parquet", "empty.csv", "zero.jsonl.gz"):
        (root / name).touch()
    (root / "header.csv").write_text("prompt,chosen,rejected\n")
    (root / "blank.jsonl").write_text("\n\n")
    (root / "nothing.json").write_text("[]")
    (root / "wide.csv").write_bytes("prompt,chosen,rejected\na,b,c\n".encode("utf-16"))
    (root / "semi.csv").write_text("chosen;rejected\nb;c\n")
    (root / "tabs.csv").write_text("prompt\tchosen\trejected\na\tb\tc\n")
    (root / "scalar.json").write_text("3")
    (root / "broken.json").write_text('[{"prompt": "p"},')
    (root / "twice.csv").write_text("prompt,chosen,chosen\na,b,c\n")
    (root / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    (root / "pointer.parquet").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0"
    )
    (root / "broken.arrow").write_bytes(b"ARROW1 and nothing more")
    (root / "fake.jsonl.gz").write_bytes(lines(GOOD))
    (root / "cut.jsonl.gz").write_bytes(gzip.compress(lines(GOOD * 99))[:-200])
    (root / "notes.txt").write_text("hello")
    (root / "model.bin").write_bytes(b"\x80")
    (root / "no-data").mkdir()
    (root / "no-data" / "README.md").write_text("hello")
    (root / "mixed").mkdir()
    (root / "mixed" / "a.jsonl").write_bytes(lines(GOOD))
    (root / "mixed" / "b.csv").write_text("prompt,chosen,rejected\na,b,c\n")
    (root / "saved").mkdir()
    (root / "saved" / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    (root / "old").mkdir()
    (root / "old" / "state.json").write_text('{"_indices_data_files": [1]}')
    (root / "odd").mkdir()
    (root / "odd" / "dataset_dict.json").write_text("[]")
    no_rows = pa.table({name: pa.array([], pa.string()) for name in GOOD[0]})
    pq.write_table(no_rows, root / "no-rows.parquet")


UNREADABLE = {
    "absent.jsonl": "no such file or directory",
    "absent/deep/path": "no such file or directory",
    "empty.jsonl": "the file is empty",
    "empty.parquet": "the file is empty",
    "empty.csv": "the file is empty",
    "zero.jsonl.gz": "the file is empty",
    "header.csv": "holds no rows",
    "blank.jsonl": "holds no rows",
    "nothing.json": "holds no rows",
    "no-rows.parquet": "holds no rows",
    "wide.csv": "UTF-16 text",
    "semi.csv": "fields separated by ';', not commas",
    "tabs.csv": "fields separated by tabs, not commas",
    "scalar.json": "holds no single JSON array",
    "broken.json": "neither a JSON array nor JSON lines",
    "twice.csv": "repeated column names: chosen",
    "broken.parquet": "not a readable Parquet file",
    "pointer.parquet": "a Git LFS pointer, not the data",
    "broken.arrow": "not a readable Arrow file",
    "fake.jsonl.gz": "damaged gzip file",
    "cut.jsonl.gz": "damaged gzip file",
    "notes.txt": "no reader for this kind of file",
    "model.bin": "no reader for this kind of file",
    "no-data": "no data files in this directory",
    "mixed": r"several kinds \(1 csv, 1 jsonl\)",
    "saved": r"missing: x\.arrow",
    "old": "saved with an index mapping",
    "odd": "not a JSON object",
    "*.nothing": "no data file matches",
    "no-data/*": r"no data file matches \(1 other",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_are_refused(name: str, tmp_path: Path) -> None:
    write_files(tmp_path)
    with pytest.raises(DataError, match=UNREADABLE[name]) as caught:
        load(f"{tmp_path}/{name}")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "  ", "~no-such-user/x.jsonl"])
def test_names_that_name_nothing(name: str) -> None:
    with pytest.raises(DataError) as caught:
        load(name)
    assert caught.value.hint


def test_suffix_is_the_longest_that_fits() -> None:
    assert suffix(Path("a.b.JSONL.gz")) == ".jsonl.gz"
    assert suffix(Path("a.gz")) == ""


# --- properties -----------------------------------------------------------------------------

texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from([HH + "a", HH + "b", HH, "\n\nHuman: x", "a", "", " ", "\ud800", "0.5"]),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(10**400), st.binary()
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | scalars},
        optional={
            "content": texts | scalars | st.lists(scalars, max_size=2),
            "tool_calls": scalars,
        },
    ),
    max_size=4,
)
values = st.recursive(
    scalars | messages,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
TEXT_ADAPTERS = [name for name, adapter in ADAPTERS.items() if adapter.modality == "text"]
columns = sorted(
    {name for adapter in ADAPTERS.values() for name in (*adapter.columns, *adapter.optional)}
)
rows = st.dictionaries(st.sampled_from(columns) | st.text(max_size=5), values, max_size=10)
likely = st.fixed_dictionaries(
    {"chosen": texts | messages, "rejected": texts | messages},
    optional={"prompt": texts | messages, "label": scalars, "annotator": scalars},
)


@pytest.mark.parametrize("name", TEXT_ADAPTERS)
@settings(deadline=None, max_examples=60)
@given(row=rows | likely)
def test_any_row_is_pairs_or_a_fault(name: str, row: dict[str, Any]) -> None:
    adapter = ADAPTERS[name]
    outcomes = list(read_pairs([Row("a", 0, row)], adapter))
    assert outcomes
    assert all(o.reason in REJECTION_REASONS for o in outcomes if isinstance(o, Fault))
    pairs = [outcome for outcome in outcomes if isinstance(outcome, Pair)]
    assert all(pair.chosen != pair.rejected for pair in pairs)
    flipped = adapter.parse(adapter.flip(row)) if pairs else []
    assert [(p.chosen, p.rejected) for p in flipped] == [(p.rejected, p.chosen) for p in pairs]
    assert [p.content_id for p in flipped] == [p.content_id for p in pairs]


@pytest.mark.parametrize("name", [n for n, schema in ADAPTERS.items() if not schema.cannot_flip])
@settings(deadline=None, max_examples=40)
@given(row=rows | likely)
def test_flipping_twice_restores_the_row(name: str, row: dict[str, Any]) -> None:
    adapter = ADAPTERS[name]
    twice = adapter.flip(adapter.flip(row))
    assert list(twice.items()) == list(row.items())


pieces = st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "Assistant:", " a", " b", "\n\n", " "])
transcripts = st.lists(pieces, max_size=8).map("".join)


@settings(deadline=None, max_examples=200)
@given(opening=transcripts, chosen=transcripts, rejected=transcripts)
def test_the_short_cut_splits_as_whole_conversations(
    opening: str, chosen: str, rejected: str
) -> None:
    sides = [f"\n\nHuman: hi{opening}{side}" for side in (chosen, rejected)]

    def outcome(split: Callable[[], object]) -> object:
        try:
            return split()
        except RowFault as fault:
            return fault.reason

    whole = outcome(lambda: split(*(turns_of(side, "side") for side in sides)))
    quick = outcome(lambda: split_transcripts(*sides))
    assert quick == whole or (whole == "identical sides" and quick[1] == quick[2])


@settings(deadline=None, max_examples=40)
@given(data=st.binary(max_size=200), name=st.sampled_from([".jsonl", ".json", ".csv", ".jsonl.gz"]))
def test_any_bytes_are_read_or_refused(
    data: bytes, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{name}"
    path.write_bytes(data)
    with pytest.raises(NoisescopeError):
        load(path)


def test_the_limit_is_blamed_only_where_it_cut_the_rows_short(tmp_path: Path) -> None:
    from noisescope.datasets import load

    row = '{"prompt": "p", "chosen": "good", "rejected": null}\n'
    (tmp_path / "rows.jsonl").write_text(row * 12)
    with pytest.raises(DataError, match="12 unreadable") as caught:
        load(tmp_path / "rows.jsonl", limit=1000)
    assert "--limit" not in str(caught.value)
    with pytest.raises(DataError, match="--limit 5"):
        load(tmp_path / "rows.jsonl", limit=5)


def test_a_split_of_a_single_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(DataError, match="files have no splits"):
        load(file, split="test")


def test_a_name_that_is_nearly_right_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(lines(GOOD))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "mine.json")
    assert f"Did you mean {tmp_path / 'mine.jsonl'}?" in str(caught.value.hint)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "nowhere" / "mine.jsonl")
    assert "Did you mean" not in str(caught.value.hint)


@pytest.mark.parametrize(
    ("columns", "flag"),
    [
        (("prompt", "chosen", "other"), "prompt=prompt,chosen=chosen,rejected=other"),
        (("query", "pos", "neg"), "prompt=query,chosen=pos,rejected=neg"),
        (("q", "answer_good", "answer_bad"), "prompt=q,chosen=answer_good,rejected=answer_bad"),
    ],
)
def test_the_nearest_mapping_is_a_flag_that_reads_the_file(
    columns: tuple[str, ...], flag: str, tmp_path: Path
) -> None:
    rows = [{name: f"{name} number {i}" for name in columns} for i in range(12)]
    (tmp_path / "mine.jsonl").write_bytes(lines(rows))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "mine.jsonl")
    assert "\n" not in caught.value.message
    assert f"--columns {flag}" in str(caught.value.hint)
    mapped = dict(part.split("=") for part in flag.split(","))
    assert len(load(tmp_path / "mine.jsonl", columns=mapped)) == 12
