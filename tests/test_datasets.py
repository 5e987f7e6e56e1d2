"""Formats: every file kind and every text schema comes out as the same pairs."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisescope.datasets import ADAPTERS, RowFault, load, open_source, read_pairs, recognise
from noisescope.errors import DataError, UsageError
from noisescope.pairs import (
    Message,
    Pair,
    content_id,
    dataset_fingerprint,
    digest,
    pair_digest,
    response_key,
    to_table,
)

Rows = list[dict[str, Any]]

SHARED = Path(os.environ.get("NOISESCOPE_SHARED", Path(__file__).parents[2] / "shared/data"))


def our_rows(n: int = 12) -> Rows:
    return [
        {
            "prompt": f"Question {i}?",
            "chosen": f"A good answer, {i} – naïve",
            "rejected": f"bad {i}",
            "annotator": f"w{i % 3}",
        }
        for i in range(n)
    ]


def lines(rows: Rows, end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def csv_bytes(rows: Rows, **options: Any) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def parquet_bytes(rows: Rows) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def arrow_file_bytes(rows: Rows) -> bytes:
    table, stream = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


BOM = b"\xef\xbb\xbf"
WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": lines,
    "bom.jsonl": lambda rows: BOM + lines(rows),
    "crlf.jsonl": lambda rows: lines(rows, "\r\n"),
    "blank-lines.jsonl": lambda rows: b"\n\n" + lines(rows, "\n\n"),
    "a.ndjson": lines,
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "array.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "wrapped.json": lambda rows: json.dumps({"version": 1, "data": rows}, indent=1).encode(),
    "really-lines.json": lines,
    "array.json.gz": lambda rows: gzip.compress(BOM + json.dumps(rows).encode()),
    "a.csv": csv_bytes,
    "bom.csv": lambda rows: BOM + csv_bytes(rows, lineterminator="\n"),
    "quoted.csv.gz": lambda rows: gzip.compress(csv_bytes(rows, quoting=csv.QUOTE_ALL)),
    "a.tsv": lambda rows: csv_bytes(rows, delimiter="\t"),
    "a.parquet": parquet_bytes,
    "a.arrow": arrow_file_bytes,
}


def content(path: Path | str, **options: Any) -> list[tuple[str, ...]]:
    table = load(path, **options).table
    return list(zip(*(table[c].to_pylist() for c in our_rows()[0]), strict=True))


EXPECTED = [tuple(row.values()) for row in our_rows()]


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_format_reads_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WRITERS[name](our_rows()))
    assert content(path) == EXPECTED
    dataset = load(path)
    assert (dataset.adapter, dataset.modality) == ("columnar", "text")
    assert dataset.name == name.split(".")[0]
    assert dataset.facts.rows == dataset.facts.pairs == len(dataset) == 12
    assert dataset.facts.annotators == 3
    assert set(dataset.table["source"].to_pylist()) == {name}


def test_large_columnar_files_stream_in_small_batches(tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    path.write_bytes(parquet_bytes(our_rows(1000)))
    table = load(path).table
    assert table["row"].to_pylist() == list(range(1000))
    assert load(path, limit=300).facts.rows == 300


def test_a_directory_a_glob_and_links(tmp_path: Path) -> None:
    rows = our_rows()
    folder = tmp_path / "real" / "data"
    folder.mkdir(parents=True)
    (folder / "part-0.jsonl").write_bytes(lines(rows[:5]))
    (folder / "part-1.jsonl.gz").write_bytes(gzip.compress(lines(rows[5:])))
    (folder / "README.md").write_text("about")
    (folder / "dataset_info.json").write_text("{}")
    pq.write_table(pa.table({"pair_id": ["x"]}), folder / "truth.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    (folder / "loop").symlink_to(tmp_path / "real", target_is_directory=True)
    assert content(tmp_path / "real") == EXPECTED
    assert content(tmp_path / "link") == EXPECTED
    assert content(f"{folder}/part-*") == EXPECTED
    assert content(f"{tmp_path}/link/*/part-[01]*") == EXPECTED
    sources = load(tmp_path / "link").table["source"].unique().to_pylist()
    assert sources == ["data/part-0.jsonl", "data/part-1.jsonl.gz"]
    assert load(f"{folder}/part-*").name == "data"


def test_splits_of_a_plain_directory(tmp_path: Path) -> None:
    rows = our_rows(24)
    (tmp_path / "train-00000-of-00001.jsonl").write_bytes(lines(rows[:12]))
    (tmp_path / "test.jsonl").write_bytes(lines(rows[12:]))
    assert load(tmp_path).resolved == f"{tmp_path}:train"
    assert content(tmp_path) == EXPECTED
    assert load(f"{tmp_path}:test").table["source"].unique().to_pylist() == ["test.jsonl"]
    assert load(tmp_path, split="test").resolved == f"{tmp_path}:test"
    with pytest.raises(DataError, match="no split 'dev'; there are: test, train"):
        load(tmp_path, split="dev")


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    return pytest.importorskip("datasets")


def test_saved_datasets(hugging_face: Any, tmp_path: Path) -> None:
    hugging_face.disable_progress_bars()
    data = hugging_face.Dataset.from_list(our_rows())
    data.save_to_disk(tmp_path / "one", num_shards=3)
    both = hugging_face.DatasetDict(test=data.select(range(10)), train=data)
    both.save_to_disk(tmp_path / "both")
    assert content(tmp_path / "one") == EXPECTED
    assert content(tmp_path / "both") == EXPECTED
    assert load(tmp_path / "both").resolved.endswith("both:train")
    assert content(f"{tmp_path}/both:test") == EXPECTED[:10]
    with pytest.raises(DataError, match="without a split"):
        load(tmp_path / "one", split="train")


def test_the_hub_client_streams(
    hugging_face: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The client reads a local folder by the same call, so no network is needed here."""
    from noisescope.datasets.hub import hub_source

    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "train.jsonl").write_bytes(lines(our_rows()))
    (tmp_path / "test.jsonl").write_bytes(lines(our_rows(3)))
    rows, resolved = hub_source(str(tmp_path), None, None)
    assert [row.values for row in rows()] == our_rows()
    assert [row.number for row in rows()] == list(range(12))
    assert resolved == f"hf://datasets/{tmp_path}:train"
    with pytest.raises(DataError, match="Hub refused it"):
        hub_source(str(tmp_path), None, "nosuch")
    assert capfd.readouterr() == ("", "")


def test_offline_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set") as caught:
        load("pick-a-pic")
    assert "yuvalkirstain/pickapic_v2" in caught.value.message
    assert "[datasets] in noisescope.toml" in str(caught.value.hint)


# --- adapters -------------------------------------------------------------------------------

USER = {"role": "user", "content": "Is it?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}
HH = "\n\nHuman: Is it?\n\nAssistant: "

#: (adapter, row) -> (prompt, chosen, rejected, number of turns).
SHAPES: dict[str, tuple[str, dict[str, Any], tuple[str, str, str, int | None]]] = {
    "standard": (
        "trl",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        ("The sky is", " blue.", " green.", None),
    ),
    "standard implicit": (
        "trl",
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        ("The sky is", "blue.", "black.", None),
    ),
    "implicit, one side begins the other": (
        "trl",
        {"chosen": "Yes", "rejected": "Yes it is  "},
        ("", "Yes", "Yes it is", None),
    ),
    "conversational": (
        "trl",
        {"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO], "tools": [{"type": "x"}]},
        ('Tools: [{"type": "x"}]\n\nSystem: Be brief.\n\nHuman: Is it?', "Yes.", "No.", 3),
    ),
    "conversational implicit": (
        "trl",
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        ("Human: Is it?", "Yes.", "No.", 1),
    ),
    "prompt repeated in the sides": (
        "trl",
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
        ("Human: Is it?", "Yes.", "No.", 1),
    ),
    "several turns of response": (
        "trl",
        {"prompt": [USER], "chosen": [YES], "rejected": [NO, USER, YES]},
        ("Human: Is it?", "Yes.", "No.\n\nHuman: Is it?\n\nAssistant: Yes.", 1),
    ),
    "content parts": (
        "trl",
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "Is it?"}]}],
            "chosen": [YES],
            "rejected": [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}],
        },
        (
            "Human: Is it?",
            "Yes.",
            '<tool_call>\n{"type": "function", "function": {"name": "f"}}\n</tool_call>',
            1,
        ),
    ),
    "ultrafeedback": (
        "ultrafeedback",
        {
            "prompt": "Is it?",
            "chosen": [USER, YES],
            "rejected": [USER, NO],
            "messages": [USER, YES],
            "score_chosen": 8.0,
            "score_rejected": 3.5,
        },
        ("Human: Is it?", "Yes.", "No.", 1),
    ),
    "ultrafeedback, argilla": (
        "ultrafeedback_argilla",
        {
            "prompt": "Is it?",
            "chosen": [USER, YES],
            "rejected": [USER, NO],
            "chosen-rating": 5,
            "rejected-rating": None,
            "chosen-model": "a",
            "rejected-model": "b",
        },
        ("Human: Is it?", "Yes.", "No.", 1),
    ),
    "hh": (
        "hh_rlhf",
        {"chosen": HH + "Yes.", "rejected": HH + "Yes and no."},
        ("Human: Is it?", "Yes.", "Yes and no.", 1),
    ),
    "hh, parted early": (
        "hh_rlhf",
        {"chosen": HH + "Yes.\n\nHuman: Why?\n\nAssistant: So.", "rejected": HH + "No."},
        ("Human: Is it?", "Yes.\n\nHuman: Why?\n\nAssistant: So.", "No.", 1),
    ),
    "hh, parted at a question": (
        "hh_rlhf",
        {
            "chosen": HH + "Yes.\n\nHuman: Why?\n\nAssistant: So.",
            "rejected": HH + "Yes.\n\nHuman: How?\n\nAssistant: Thus.",
        },
        (
            "Human: Is it?",
            "Yes.\n\nHuman: Why?\n\nAssistant: So.",
            "Yes.\n\nHuman: How?\n\nAssistant: Thus.",
            1,
        ),
    ),
    "hh, one side goes on": (
        "hh_rlhf",
        {"chosen": HH + "Yes.\n\nAssistant: Really.", "rejected": HH + "Yes."},
        ("Human: Is it?", "Yes.\n\nAssistant: Really.", "Yes.", 1),
    ),
    "ours": (
        "columnar_label",
        {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No.", "label": "0", "annotator": 7.0},
        ("Is it?", "No.", "Yes.", None),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_schema_is_recognised_and_read(shape: str, tmp_path: Path) -> None:
    name, row, expected = SHAPES[shape]
    (tmp_path / "a.jsonl").write_bytes(lines([row]))
    format = name if name == "columnar_label" else None
    adapter = recognise([row], format=format)
    assert adapter.name == name
    (pair,) = read_pairs(open_source(tmp_path / "a.jsonl").rows(), adapter)
    turns = pair.turns and len(pair.turns)
    assert (pair.prompt, pair.chosen, pair.rejected, turns) == expected
    (flipped,) = adapter.parse(adapter.flip(row))
    assert (flipped.chosen, flipped.rejected) == (pair.rejected, pair.chosen)
    assert flipped.content_id == pair.content_id
    assert adapter.flip(adapter.flip(row)) == row


def test_hh_turns_are_messages() -> None:
    row = {"chosen": f"{HH}Yes.\n\nHuman: Sure?\n\nAssistant: Yes", "annotator": 4}
    row["rejected"] = str(row["chosen"])[:-3] + "No"
    (pair,) = ADAPTERS["hh_rlhf"].parse(row)
    turns = (Message("user", "Is it?"), Message("assistant", "Yes."), Message("user", "Sure?"))
    assert (pair.turns, pair.annotator) == (turns, "4")
    assert pair.prompt == "Human: Is it?\n\nAssistant: Yes.\n\nHuman: Sure?"


#: (adapter, row) -> reason.
FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("hh_rlhf", {"chosen": HH + "a", "rejected": HH}, "empty response"),
    ("hh_rlhf", {"chosen": HH + "a", "rejected": HH + "a "}, "identical sides"),
    ("hh_rlhf", {"chosen": HH + "a", "rejected": "hello"}, "unreadable"),
    ("hh_rlhf", {"chosen": HH + "a", "rejected": None}, "unreadable"),
    ("hh_rlhf", {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "unreadable"),
    ("hh_rlhf", {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "unreadable"),
    ("trl", {"prompt": 3, "chosen": "a", "rejected": "b"}, "unreadable"),
    ("trl", {"prompt": "p", "chosen": " \n", "rejected": "b"}, "empty response"),
    ("trl", {"prompt": None, "chosen": "a", "rejected": "b"}, "unreadable"),
    ("trl", {"prompt": [], "chosen": [YES], "rejected": [NO]}, "unreadable"),
    ("trl", {"prompt": "p", "chosen": [YES], "rejected": "b"}, "unreadable"),
    ("trl", {"prompt": [USER], "chosen": [YES], "rejected": []}, "unreadable"),
    ("trl", {"chosen": [USER, YES], "rejected": [USER, YES]}, "identical sides"),
    ("trl", {"chosen": [USER, YES], "rejected": [{"role": "user"}]}, "unreadable"),
    (
        "trl",
        {"prompt": [USER], "chosen": [YES], "rejected": [{"role": "assistant", "content": " "}]},
        "empty response",
    ),
    (
        "ultrafeedback",
        {"chosen": [USER, YES], "rejected": [USER, NO], "score_chosen": 4, "score_rejected": 4.0},
        "tie",
    ),
    (
        "ultrafeedback",
        {"chosen": [USER, YES], "rejected": [USER, NO], "score_chosen": "4", "score_rejected": 4},
        "tie",
    ),
    ("columnar_label", {"prompt": "p", "chosen": "a", "rejected": "b", "label": 0.5}, "tie"),
    (
        "columnar_label",
        {"prompt": "p", "chosen": "a", "rejected": "b", "label": None},
        "unlabelled",
    ),
    (
        "columnar_label",
        {"prompt": "p", "chosen": "a", "rejected": "b", "label": float("nan")},
        "unlabelled",
    ),
    ("columnar_label", {"prompt": "p", "chosen": "a", "rejected": "b", "label": 2}, "unreadable"),
    ("columnar_label", {"prompt": "p", "chosen": "a", "rejected": "b", "label": []}, "unreadable"),
    ("columnar", {"prompt": "p", "chosen": b"a", "rejected": "b"}, "unreadable"),
    ("columnar", {"prompt": "p", "chosen": "a", "rejected": "b", "annotator": {}}, "unreadable"),
]


@pytest.mark.parametrize(("name", "row", "reason"), FAULTS)
def test_every_fault_has_its_reason(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowFault) as caught:
        ADAPTERS[name].parse(row)
    assert caught.value.reason == reason


def test_a_named_format_overrides_recognition(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(our_rows()))
    assert load(tmp_path / "a.jsonl", format="trl").adapter == "trl"
    with pytest.raises(UsageError, match="no such format") as caught:
        load(tmp_path / "a.jsonl", format="pickle")
    assert "hh_rlhf" in str(caught.value.hint)
    with pytest.raises(UsageError, match="at least 1"):
        load(tmp_path / "a.jsonl", limit=0)


def test_one_answer_a_row_is_no_pair(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"instruction": "x", "output_1": "y"}] * 20))
    with pytest.raises(DataError, match=r"no known format fits.*instruction, output_1") as caught:
        load(tmp_path / "a.jsonl")
    assert "A pair needs two answers to one prompt" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("columns", "typed"),
    [
        (
            ("Frage", "Antwort A", "Antwort B", "Note"),
            "prompt=COLUMN,chosen=COLUMN,rejected=COLUMN",
        ),
        (
            ("prompt", "Antwort A", "Antwort B", "Note"),
            "prompt=prompt,chosen=COLUMN,rejected=COLUMN",
        ),
        (
            ("Frage", "response_a", "response_b", "Note"),
            "prompt=Frage,a=response_a,b=response_b,preference=COLUMN",
        ),
        (
            ("prompt", "Antwort A", "Antwort B", "winner"),
            "'prompt=prompt,a=Antwort A,b=Antwort B,preference=winner'",
        ),
        (("prompt", "chosen", "other", "Note"), "prompt=prompt,chosen=chosen,rejected=other"),
        (("Frage", "chosen", "other", "Note"), "prompt=COLUMN,chosen=chosen,rejected=COLUMN"),
    ],
)
def test_only_columns_that_are_known_get_a_role(
    columns: tuple[str, ...], typed: str, tmp_path: Path
) -> None:
    cells = [(f"why is {n} so", f"an answer {n}", f"some words {n}", str(n % 5)) for n in range(9)]
    found = [dict(zip(columns, row, strict=True)) for row in cells]
    (tmp_path / "a.jsonl").write_bytes(lines(found))
    with pytest.raises(DataError, match="no known format") as caught:
        load(tmp_path / "a.jsonl")
    hint = str(caught.value.hint)
    assert hint.startswith(f"Name its columns: --columns {typed} (")
    assert ("COLUMN" in typed) == (f"\n{columns[1]}: an answer 0\n" in hint)


def test_repeats_are_counted_and_kept(tmp_path: Path) -> None:
    rows = our_rows()
    again = [dict(rows[0], annotator="other"), ADAPTERS["columnar"].flip(rows[1])]
    again.append(dict(ADAPTERS["columnar"].flip(rows[2]), annotator="other"))
    (tmp_path / "a.jsonl").write_bytes(lines(rows + again))
    facts = load(tmp_path / "a.jsonl").facts
    assert (facts.pairs, facts.duplicates) == (15, 1)
    assert (facts.contradictions, facts.self_contradictions) == (2, 1)
    assert facts.to_json()["self_contradictions"] == 1


def test_given_pair_ids_are_text_and_unique(tmp_path: Path) -> None:
    ids: list[Any] = [7, 7.0, "7", "7~2", None, "", True, 8, 8, "8~2", 9, 10]
    rows = [dict(row, pair_id=id) for row, id in zip(our_rows(), ids, strict=True)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    found = load(tmp_path / "a.jsonl")
    table = found.table
    assert any(
        "5 of 12 pairs repeat the id of an earlier one" in note for note in found.facts.notes
    )
    names = table["pair_id"].to_pylist()
    assert len(set(names)) == 12
    assert names[:4] == ["7", "7~2", "7~3", "7~2~2"]
    assert names[4:6] == table["content_id"].to_pylist()[4:6]


def test_identities_never_change(tmp_path: Path) -> None:
    """Stored runs are keyed by these digests."""
    (tmp_path / "a.jsonl").write_bytes(lines(our_rows()))
    assert digest("a", "b") == "cf6ab613e3942391f88e"
    assert content_id("p", "x", "y") == content_id("p", "y", "x") == "f32d4a29cb81a948c78b"
    assert response_key("p", "x") == "7627b815e01f06da4707"
    assert load(tmp_path / "a.jsonl").fingerprint == "e57836020ae4492bdb21"


def test_what_is_known_of_a_label_is_part_of_the_fingerprint() -> None:
    pair = Pair("p", "x", "y", annotator="ann", strength=2, votes=3, first=True)
    fingerprint = dataset_fingerprint(to_table([pair]))
    name = pair.content_id
    assert fingerprint == hashlib.sha256(pair_digest(name, pair).encode()).hexdigest()[:20]
    others = ({"annotator": "bob"}, {"annotator": None}, {"strength": 1}, {"first": None})
    for change in others:
        assert dataset_fingerprint(to_table([replace(pair, **change)])) != fingerprint
    assert dataset_fingerprint(to_table([replace(pair, source="elsewhere", row=7)])) == fingerprint


# --- shared data ----------------------------------------------------------------------------


def test_hh_harmless_counts() -> None:
    path = SHARED / "hh-harmless"
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}")
    dataset = load(path)
    assert (dataset.adapter, dataset.facts.rows, dataset.facts.pairs) == ("hh_rlhf", 2312, 2308)
    assert dataset.facts.rejected == {"empty response": 4}
    assert all(turns[-1]["role"] == "user" for turns in dataset.table["turns"].to_pylist())


def test_ukp_convarg_counts() -> None:
    path = SHARED / "ukp-convarg"
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}")
    dataset = load(path)
    assert (dataset.adapter, len(dataset)) == ("columnar", 12_792)
    assert (dataset.facts.duplicates, dataset.facts.contradictions) == (167, 71)
