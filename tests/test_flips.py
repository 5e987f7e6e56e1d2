"""Planted flips: the right share, of the right pairs, in the source's own format, reversibly."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_diffusion import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from noisescope.datasets import load, open_source
from noisescope.datasets.flip.copy import plant
from noisescope.datasets.flip.plan import KINDS, FlipPlan, Parsed, chance_of, coins, decide
from noisescope.datasets.readers import read_file
from noisescope.datasets.rewrite import rewrite
from noisescope.errors import DataError, NoisescopeError, RunError, UsageError
from noisescope.pairs import Pair, content_id, digest
from noisescope.scoring.triads import count_triads


def rows(count: int = 200) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"question {i}",
            "chosen": f'first "{i}", é\n' + "x" * (i % 7),
            "rejected": f"second {i} " + "y" * (i % 5 * 8),
            "annotator": f"a{i % 9}",
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, items: list[dict[str, Any]]) -> None:
    lines = [json.dumps(item, ensure_ascii=i % 2 == 0) for i, item in enumerate(items)]
    lines[1] = lines[1].replace('", "', '" ,\t"')  # spacing of its own
    lines[2:2] = ["", "{broken"]
    path.write_text("\ufeff" + "\n".join(lines) + "\r\n", "utf-8")


def write_gzip(path: Path, items: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(item) + "\n" for item in items)


def write_array(path: Path, items: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"version": 1, "data": items}, indent=3), "utf-8")


def write_csv(path: Path, items: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(items[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(items)
    path.write_bytes(text.getvalue().encode() + b"too,few\r\n\r\n")


def write_parquet(path: Path, items: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(items).replace_schema_metadata({"huggingface": "{}"})
    pq.write_table(table, path, row_group_size=70, compression="zstd")


def write_arrow(path: Path, items: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(items)
    with pa.ipc.new_stream(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=64)


FORMATS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "data.jsonl": write_jsonl,
    "data.jsonl.gz": write_gzip,
    "data.json": write_array,
    "data.csv": write_csv,
    "data.parquet": write_parquet,
    "data.arrow": write_arrow,
}


def content(path: Path) -> Any:
    """What must come back: bytes of text files, the table with its row groups of others."""
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        shape = [(group.num_rows, group.column(0).compression) for group in groups]
        return file.read(), file.schema_arrow.metadata, shape
    if path.suffix == ".arrow":
        with pa.ipc.open_stream(str(path)) as reader:
            return list(reader)
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_flipping_twice_restores_every_pair(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source" / name
    source.parent.mkdir()
    FORMATS[name](source, rows())
    before = source.read_bytes()
    plan = FlipPlan(0.3, seed=5)
    done = plant(open_source(source), plan, tmp_path / "once")
    assert done.pairs == 200
    assert 30 < done.flipped < 90
    assert source.read_bytes() == before
    once = tmp_path / "once" / name
    assert content(once) != content(source)
    with pytest.raises(UsageError, match="is a flipped copy already"):
        plant(open_source(once), FlipPlan(0.3, seed=6), tmp_path / "other")
    again = plant(open_source(once), plan, tmp_path / "twice")
    assert again.flipped == done.flipped
    assert not any(pq.read_table(again.truth).column("flipped").to_pylist())
    third = plant(open_source(tmp_path / "twice" / name), plan, tmp_path / "thrice")
    assert not third.undone
    assert pq.read_table(third.truth).equals(pq.read_table(done.truth))
    twice = tmp_path / "twice" / name
    if name.endswith((".json", ".csv")):  # written again by the standard library
        assert [r.values for r in read_file(twice, "")] == [r.values for r in read_file(source, "")]
    else:
        assert content(twice) == content(source)


@pytest.mark.parametrize("name", FORMATS)
def test_exactly_the_told_pairs_are_turned_round(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    FORMATS[name](source, rows())
    done = plant(open_source(source), FlipPlan(0.3), tmp_path / "out")
    flipped = pq.read_table(done.truth).column("flipped").to_pylist()
    one, other = (
        [row.values for row in open_source(path).rows() if row.values is not None]
        for path in (source, tmp_path / "out" / name)
    )
    changed = [
        (a["chosen"], a["rejected"]) == (b["rejected"], b["chosen"]) and a["chosen"] != b["chosen"]
        for a, b in zip(one, other, strict=True)
    ]
    assert changed == flipped
    assert all(a["prompt"] == b["prompt"] for a, b in zip(one, other, strict=True))


def ordered_rows(count: int = 200) -> list[dict[str, Any]]:
    """Rows with scores, or with an order of sides (for kind position), of 40 prompts."""
    return [
        {
            "prompt": f"question {i % 40}",
            "chosen": f"first {i}" + "x" * (i % 7),
            "rejected": f"second {i}" + "y" * (i % 5 * 8),
            "score_chosen": 5.0 + i % 11,
            "score_rejected": 4.0 - i % 3,
            "annotator": f"a{i % 9}",
        }
        for i in range(count)
    ]


def shown_rows() -> list[dict[str, Any]]:
    """Rows that state which of two sides is better."""
    return [
        {
            "prompt": row["prompt"],
            "response_a": row["chosen"],
            "response_b": row["rejected"],
            "winner": "a" if at % 3 else "b",
        }
        for at, row in enumerate(ordered_rows())
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_taken_back(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "data.jsonl"
    items = shown_rows() if kind == "position" else ordered_rows()
    source.write_text("".join(json.dumps(item) + "\n" for item in items))
    plan = FlipPlan(0.1, kind, 3)
    done = plant(open_source(source), plan, tmp_path / "once")
    assert done.flipped > 0
    assert (tmp_path / "once" / "data.jsonl").read_bytes() != source.read_bytes()
    plant(open_source(tmp_path / "once"), plan, tmp_path / "twice")
    assert (tmp_path / "twice" / "data.jsonl").read_bytes() == source.read_bytes()


@cache
def parsed(count: int) -> Parsed:
    """Pairs of 500 prompts of four responses each, 400 annotators and a known order of sides."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 50, (500, 4))
    score = rng.normal(size=(500, 4)).round(3)
    pairs, rows = [], []
    for i in range(count):
        prompt = int(rng.integers(500))
        one, other = sorted(rng.permutation(4)[:2], key=lambda j: -score[prompt, j])
        chosen, rejected = (f"{side} " + "w" * int(lengths[prompt, side]) for side in (one, other))
        first = [True, False, None][i % 3]
        pairs.append(Pair(f"q{prompt}", chosen, rejected, annotator=f"w{i % 400}", first=first))
        rows.append({"gap": score[prompt, one] - score[prompt, other]})
    ids = [f"id-{i}" for i in range(count)]
    return Parsed(pairs, ids, rows, lambda chunk: np.array([row["gap"] for row in chunk.rows]))


def flips_of(chunk: Parsed, plan: FlipPlan) -> np.ndarray:
    """The flips of a plan, with the pairs read in two pieces as in one."""
    half = len(chunk.ids) // 2
    pieces = [
        Parsed(chunk.pairs[part], chunk.ids[part], chunk.rows[part], chunk.measure)
        for part in (slice(half), slice(half, None))
    ]
    chance = chance_of(plan, lambda: iter(pieces))
    found = np.concatenate([decide(piece, plan, chance) for piece in pieces])
    assert (found == decide(chunk, plan, chance_of(plan, lambda: iter([chunk])))).all()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_the_chance_is_the_rate_on_average(kind: str, rate: float) -> None:
    chunk = parsed(6_000)
    plan = FlipPlan(rate, kind)
    wanted = chance_of(plan, lambda: iter([chunk]))(chunk)
    assert wanted.min() >= 0
    assert wanted.max() <= 1
    whole = kind in ("annotator", "contrarian", "prompt", "response")
    assert wanted.mean() == pytest.approx(rate, abs=0.003 if whole else 1e-9)
    assert flips_of(chunk, plan).mean() == pytest.approx(rate, abs=0.02)


def test_flips_of_close_and_clear_pairs_follow_the_gap() -> None:
    chunk = parsed(6_000)
    rank = np.argsort(np.argsort(chunk.gaps)) / len(chunk.ids)
    for kind, close, clear in (("hard", 0.39, 0.01), ("easy", 0.01, 0.39)):
        chance = chance_of(FlipPlan(0.2, kind), lambda: iter([chunk]))(chunk)
        assert chance[rank < 0.01].mean() == pytest.approx(close, abs=0.01)
        assert chance[rank > 0.99].mean() == pytest.approx(clear, abs=0.01)


def test_flips_by_length_and_position_favour_that_side() -> None:
    chunk = parsed(6_000)
    longer = np.array([len(pair.rejected) > len(pair.chosen) for pair in chunk.pairs])
    assert longer[flips_of(chunk, FlipPlan(0.2, "long"))].all()
    second = np.array([pair.first is False for pair in chunk.pairs])
    assert second[flips_of(chunk, FlipPlan(0.2, "position"))].all()
    with pytest.raises(UsageError, match="prefer the side shown second"):
        flips_of(chunk, FlipPlan(0.4, "position"))


@pytest.mark.parametrize(
    ("kind", "flipped", "share"),
    [("annotator", 0.5, 0.2), ("contrarian", 1.0, 0.1), ("prompt", 1.0, 0.1)],
)
def test_flips_by_group_strike_few_of_them(kind: str, flipped: float, share: float) -> None:
    chunk = parsed(6_000)
    names = np.array([p.prompt if kind == "prompt" else p.annotator for p in chunk.pairs])
    found = flips_of(chunk, FlipPlan(0.1, kind))
    rates = np.array([found[names == name].mean() for name in np.unique(names)])
    assert (rates == 0).mean() == pytest.approx(1 - share, abs=0.02)
    assert rates[rates > 0].mean() == pytest.approx(flipped, abs=0.03)
    other = flips_of(chunk, FlipPlan(0.1, kind, seed=1))
    assert np.corrcoef(found, other)[0, 1] < 0.2


def test_errors_of_scores_are_those_of_a_response_in_all_its_pairs() -> None:
    chunk = parsed(6_000)
    cyclic = {}
    for kind in ("response", "uniform"):
        found = flips_of(chunk, FlipPlan(0.2, kind))
        sides = np.unique(chunk.sides, return_inverse=True)[1].reshape(-1, 2)
        sides[found] = sides[found, ::-1]
        cyclic[kind] = count_triads(*sides.T).cyclic
        repeats = {tuple(pair) for pair in sides} & {tuple(pair[::-1]) for pair in sides}
        assert bool(repeats) == (kind == "uniform")  # no pair of responses is labelled both ways
    assert cyclic["response"] == 0
    assert cyclic["uniform"] > 50


def test_flips_that_a_dataset_cannot_have_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    source.write_text("".join(json.dumps(item) + "\n" for item in rows(40)))
    for kind, words in (("easy", "no scores"), ("response", "no scores"), ("position", "order")):
        with pytest.raises(UsageError, match=words):
            plant(open_source(source), FlipPlan(0.2, kind), tmp_path / kind)
    anonymous = [{k: v for k, v in row.items() if k != "annotator"} for row in rows(40)]
    source.write_text("".join(json.dumps(item | {"prompt": "one"}) + "\n" for item in anonymous))
    for kind, words in (("contrarian", "annotator=COLUMN"), ("prompt", "no nearer to 20.0%")):
        with pytest.raises(UsageError, match=words):
            plant(open_source(source), FlipPlan(0.2, kind), tmp_path / kind)
    assert not list(tmp_path.glob("*/data.jsonl"))
    ranked = [
        {"prompt": f"q{i}", "responses": [f"{j} {i}" for j in "abc"], "ranks": [1, 2, 3]}
        for i in range(20)
    ]
    source.write_text("".join(json.dumps(item) + "\n" for item in ranked))
    with pytest.raises(UsageError, match="has several"):
        plant(open_source(source), FlipPlan(0.2, "response"), tmp_path / "out")
    plant(open_source(source), FlipPlan(0.2, "prompt"), tmp_path / "ranked")
    with pytest.raises(UsageError, match="these pairs are images"):
        FlipPlan(0.2, "long").check("image")


def test_benchmarks_plant_by_the_same_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    from benchmarks.planted_noise import KINDS as PLANTED
    from benchmarks.planted_noise import plant as plant_noise
    from benchmarks.planted_noise import simulated

    clean = simulated(2000, 0)
    for kind in PLANTED:
        noisy = plant_noise(clean, kind, 0.2, 0)
        assert noisy.wrong.mean() == pytest.approx(0.2, abs=0.03)
        assert (noisy.chosen[noisy.wrong] == clean.rejected[noisy.wrong]).all()
        assert (noisy.chosen[~noisy.wrong] == clean.chosen[~noisy.wrong]).all()
        if kind == "position":
            assert noisy.first is not None
            assert (noisy.first[noisy.wrong] == 1).all()
        if kind == "response":
            assert count_triads(noisy.chosen, noisy.rejected).cyclic == 0


@given(st.lists(st.text(), unique=True, max_size=30), st.integers(0, 2**40))
def test_a_coin_is_a_function_of_seed_and_id_alone(names: list[str], seed: int) -> None:
    names = [name for name in names if name.isprintable()]
    together = coins(names, seed)
    alone = [coins([name], seed)[0] for name in reversed(names)]
    assert together.tolist() == alone[::-1]
    assert ((together >= 0) & (together < 1)).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(JSON, JSON, st.integers(0, 3), st.booleans())
def test_swapping_any_two_json_values_twice_restores_the_row(
    one: Any, other: Any, indent: int, ascii: bool
) -> None:
    import tempfile

    row = {"a": one, "b": other, "c": [other, one]}
    separators = (" ," + " " * indent, ":\t")
    line = json.dumps(row, ensure_ascii=ascii, separators=separators)
    try:
        data = (line + "\n").encode()
    except UnicodeEncodeError:
        return

    def swap(chunk: Any) -> dict[int, dict[str, Any]]:
        values = chunk[0][1]
        return {0: values | {"a": values["b"], "b": values["a"], "c": values["c"][::-1]}}

    with tempfile.TemporaryDirectory() as folder:
        first, second, third = (Path(folder) / f"{i}.jsonl" for i in range(3))
        first.write_bytes(data)
        rewrite(first, second, swap)
        assert json.loads(second.read_text("utf-8")) == {"a": other, "b": one, "c": [one, other]}
        rewrite(second, third, swap)
        assert json.loads(third.read_text("utf-8")) == row


def test_several_files_stay_several_and_sharding_changes_nothing(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    items = rows()
    for folder, pieces in ((whole, [items]), (parts, [items[:50], items[50:]])):
        folder.mkdir()
        for index, piece in enumerate(pieces):
            write_gzip(folder / f"part-{index}.jsonl.gz", piece)
    plan = FlipPlan(0.2, seed=9)
    done = [
        plant(open_source(folder), plan, tmp_path / f"{folder.name}-out")
        for folder in (whole, parts)
    ]
    truths = [pq.read_table(each.truth).select(["pair_id", "flipped"]) for each in done]
    assert truths[0].equals(truths[1])
    names = sorted(path.name for path in done[1].directory.iterdir() if path.name[0] != ".")
    assert names == ["flips.parquet", "part-0.jsonl.gz", "part-1.jsonl.gz"]


def test_truth_names_pairs_as_an_audit_of_the_copy_does(tmp_path: Path) -> None:
    from noisescope.datasets import load

    items = rows(40)
    items += [dict(items[3]), dict(items[3])]
    source = tmp_path / "data.parquet"
    write_parquet(source, items)
    done = plant(open_source(source), FlipPlan(0.4), tmp_path / "out")
    truth = pq.read_table(done.truth)
    table = load(tmp_path / "out").table
    assert truth.column("pair_id").to_pylist() == table.column("pair_id").to_pylist()
    assert truth.column("row").to_pylist() == table.column("row").to_pylist()


def test_ties_and_unreadable_rows_pass_through_and_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    items = rows(20)
    items[4]["chosen"] = items[4]["rejected"]
    items[5]["chosen"] = " "
    write_jsonl(source, items)
    done = plant(open_source(source), FlipPlan(1.0), tmp_path / "out")
    assert done.untouched == {"identical sides": 1, "empty response": 1, "unreadable": 1}
    assert done.flipped == done.pairs == 18


def test_saved_dataset_keeps_its_schema_under_a_new_fingerprint(tmp_path: Path) -> None:
    import datasets

    saved = tmp_path / "saved"
    datasets.Dataset.from_list(rows(30)).save_to_disk(saved)
    done = plant(open_source(saved), FlipPlan(0.5), tmp_path / "out")
    one, other = datasets.load_from_disk(saved), datasets.load_from_disk(done.directory)
    assert one.features == other.features
    assert one._fingerprint != other._fingerprint
    assert list(one["prompt"]) == list(other["prompt"])
    assert list(one["chosen"]) != list(other["chosen"])


def test_the_source_and_foreign_directories_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_gzip(source / "data.jsonl.gz", rows(20))
    opened = open_source(source)
    with pytest.raises(UsageError, match="holds the source"):
        plant(opened, FlipPlan(0.2), source)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        plant(opened, FlipPlan(0.2), foreign)
    out = tmp_path / "out"
    plant(opened, FlipPlan(0.2), out)
    plant(opened, FlipPlan(0.2), out)  # the same plan may be repeated
    with pytest.raises(RunError, match="not empty"):
        plant(opened, FlipPlan(0.3), out)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_compressed_file_that_breaks_off_is_named(tmp_path: Path, ending: str) -> None:
    source, out = tmp_path / f"data.{ending}.gz", tmp_path / "out"
    items = [{**row, "note": digest(str(at)) * 5} for at, row in enumerate(rows(2000))]
    with gzip.open(source, "wt", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(items[0]))
        if ending == "csv":
            writer.writeheader()
        for row in items:
            if ending == "csv":
                writer.writerow(row)
            else:
                stream.write(json.dumps(row) + "\n")
    source.write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"data\..*gz: damaged gzip file"):
        plant(open_source(source), FlipPlan(0.2), out)
    assert {path.name for path in out.iterdir()} <= {".flip.json", ".lock"}


@pytest.mark.parametrize(
    ("rate", "kind"), [(-0.1, "uniform"), (1.1, "uniform"), (0.6, "hard"), (0.2, "other")]
)
def test_impossible_plans_are_refused(rate: float, kind: str) -> None:
    with pytest.raises(NoisescopeError):
        FlipPlan(rate, kind)


@given(st.text(), st.text(), st.text())
def test_a_content_id_is_the_digest_of_its_sorted_sides(one: str, other: str, prompt: str) -> None:
    assert content_id(prompt, one, other) == digest("pair", prompt, *sorted((one, other)))


def picture_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows that share a prompt and name image files below `folder`; one file is missing."""
    (folder / "art").mkdir(parents=True)
    for index in range(24):
        (folder / "art" / f"{index}.png").write_bytes(picture(index))
    items = [
        {"prompt": "a shape", "chosen_image": f"art/{i}.png", "rejected_image": f"art/{i + 12}.png"}
        for i in range(12)
    ]
    return [*items, {"prompt": "art", "chosen_image": "art/0.png", "rejected_image": "gone.png"}]


def test_a_flipped_image_folder_shows_its_pictures_under_the_ids_of_an_audit(
    tmp_path: Path,
) -> None:
    items = picture_rows(tmp_path / "source")
    lines = "".join(json.dumps(item) + "\n" for item in items)
    (tmp_path / "source" / "metadata.jsonl").write_text(lines)
    (tmp_path / "source" / "art" / "unused.txt").write_text("not named by any row")
    plan = FlipPlan(0.4, seed=1)
    done = plant(open_source(tmp_path / "source"), plan, tmp_path / "out")
    assert (done.pairs, done.untouched) == (12, {"unreadable": 1})
    assert 0 < done.flipped < 12
    copy = load(tmp_path / "out")
    truth = pq.read_table(done.truth)
    assert truth.column("pair_id").to_pylist() == copy.table.column("pair_id").to_pylist()
    assert not (tmp_path / "out" / "art" / "unused.txt").exists()
    plant(open_source(tmp_path / "out"), plan, tmp_path / "back")
    assert (tmp_path / "back" / "metadata.jsonl").read_text() == lines
    assert load(tmp_path / "back").table.equals(load(tmp_path / "source").table)


def test_transcripts_in_parquet_are_flipped_as_in_json_lines(tmp_path: Path) -> None:
    said = "\n\nHuman: one\n\nAssistant: "
    items = [{"chosen": f"{said}yes {i}", "rejected": f"{said}no {i}"} for i in range(60)]
    write_gzip(tmp_path / "hh.jsonl.gz", items)
    write_parquet(tmp_path / "hh.parquet", items)
    truths = [
        pq.read_table(plant(open_source(tmp_path / name), FlipPlan(0.3), tmp_path / out).truth)
        for name, out in (("hh.jsonl.gz", "a"), ("hh.parquet", "b"))
    ]
    assert truths[0].select(["pair_id", "flipped"]).equals(truths[1].select(["pair_id", "flipped"]))
    flipped = truths[1].column("flipped").to_pylist()
    copied = pq.read_table(tmp_path / "b" / "hh.parquet").to_pylist()
    assert [row["chosen"].endswith(f"no {i}") for i, row in enumerate(copied)] == flipped


def test_hard_needs_gaps(tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    write_jsonl(source, rows(20))
    with pytest.raises(UsageError, match="no scores") as caught:
        plant(open_source(source), FlipPlan(0.2, "hard"), tmp_path / "out")
    assert "--run" in str(caught.value)


@pytest.mark.parametrize(
    "cells",
    [
        {"responses": '["Good answer.", "Bad one."]', "ranks": "[1, 2]"},
        {"best": '{"text": "Good answer."}', "worst": '{"text": "Bad one."}'},
    ],
    ids=["list", "object"],
)
def test_a_preference_inside_text_is_refused_and_not_counted_as_flipped(
    tmp_path: Path, cells: dict[str, str]
) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", *cells])
        writer.writeheader()
        writer.writerows({"prompt": f"Bake what {i}?"} | cells for i in range(12))
    columns = None if "ranks" in cells else "prompt=prompt,chosen=best.text,rejected=worst.text"
    with pytest.raises(DataError, match=r"a\.csv:\d+: this row cannot be written back") as caught:
        plant(
            open_source(tmp_path / "a.csv"),
            FlipPlan(1.0, "uniform"),
            tmp_path / "out",
            columns=columns,
        )
    assert "JSON lines" in (caught.value.hint or "")
    assert not (tmp_path / "out/flips.parquet").exists()


def test_an_uncompressed_parquet_file_is_flipped(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {i}", "chosen": f"c {i}", "rejected": f"r {i}"} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", compression="none")
    done = plant(open_source(tmp_path / "a.parquet"), FlipPlan(1.0), tmp_path / "out")
    assert done.flipped == 12
    table = pq.read_table(done.directory / "a.parquet")
    assert table["chosen"].to_pylist() == [row["rejected"] for row in rows]
