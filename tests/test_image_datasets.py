"""Image datasets: every schema, both directions, broken pictures counted by pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_diffusion import ROOT, picture

from noisescope.datasets import ADAPTERS, Row, RowFault, load, read_pairs, recognise
from noisescope.datasets.image_store import Gallery
from noisescope.datasets.images import image_key
from noisescope.datasets.readers import read_file
from noisescope.errors import DataError
from noisescope.pairs import Fault, Pair, response_key
from noisescope.storage.workspace import find_workspace

A, B, C = (image_key(picture(n)) for n in range(3))


def pick(**changes: Any) -> dict[str, Any]:
    row = {
        "are_different": True,
        "best_image_uid": "one",
        "caption": "a red circle",
        "has_label": True,
        "image_0_uid": "one",
        "image_1_uid": "two",
        "jpg_0": picture(0),
        "jpg_1": picture(1),
        "label_0": 1.0,
        "label_1": 0.0,
        "user_id": 7,
    }
    return row | changes


def outcomes(adapter: str, *rows: dict[str, Any], folder: Path | None = None) -> list[Any]:
    stream = [Row("rows", n, row, folder=folder) for n, row in enumerate(rows)]
    return list(read_pairs(stream, ADAPTERS[adapter]))


def directions(adapter: str, row: dict[str, Any], folder: Path | None = None) -> list[Any]:
    return [
        (found.chosen, found.rejected) if isinstance(found, Pair) else found.reason
        for found in outcomes(adapter, row, folder=folder)
    ]


def test_pick_a_pic_rows() -> None:
    (pair,) = outcomes("pick_a_pic", pick())
    assert (pair.prompt, pair.chosen, pair.rejected, pair.annotator) == ("a red circle", A, B, "7")
    assert directions("pick_a_pic", pick(label_0=0.0, label_1=1.0)) == [(B, A)]
    assert directions("pick_a_pic", pick(label_0=0.5, label_1=0.5)) == ["tie"]
    assert directions("pick_a_pic", pick(has_label=False)) == ["unlabelled"]
    assert directions("pick_a_pic", pick(label_0=None)) == ["unlabelled"]
    assert directions("pick_a_pic", pick(jpg_1=picture(0))) == ["identical sides"]


def test_a_rows_reference_image_is_kept_for_both_sides() -> None:
    gallery = Gallery()
    rows = [Row("rows", 0, pick(reference_jpg=picture(2))), Row("rows", 1, pick(jpg_0=picture(3)))]
    (pair, _) = read_pairs(rows, ADAPTERS["pick_a_pic"], gallery=gallery)
    assert isinstance(pair, Pair)
    store = gallery.store()
    names = [response_key(pair.prompt, side) for side in (pair.chosen, pair.rejected)]
    assert store.references == dict.fromkeys(names, (C,))
    assert store.get(C) == picture(2)
    assert directions("pick_a_pic", pick(reference_jpg=b"GIF89a")) == ["unreadable"]


BROKEN = [
    {"jpg_0": b""},
    {"jpg_0": None},
    {"jpg_1": picture(0)[:30]},
    {"caption": None},
    {"caption": b"\xff\xfe"},
    {"caption": "\ud800"},
    {"label_0": 7.0},
    {"label_0": "x"},
]


@pytest.mark.parametrize("change", BROKEN, ids=str)
def test_broken_rows_are_counted_with_a_reason(change: dict[str, Any]) -> None:
    (fault,) = outcomes("pick_a_pic", pick(**change))
    assert isinstance(fault, Fault)
    assert fault.reason == "unreadable"


RANKED = {
    "hpdv2": {"prompt": "p", "file_path": [0, 1], "human_preference": [0, 1]},
    "hpdv2_test": {
        "prompt": "p",
        "image_path": [0, 1, 2],
        "rank": [1, 2, 3],
        "raw_annotations": [
            {"rank": [2, 1, 3], "user_hash": "u"},
            {"rank": [1, 1, 2], "user_hash": "v"},
        ],
    },
    "image_reward": {"prompt": "p", "image_path": [0, 1, 2], "rank": [3, 1, 3]},
    "image_reward_train": {"prompt": "p", "generations": [0, 1], "ranking": [1, 2]},
    "image_reward_pair": {"prompt": "p", "img_better": 0, "img_worse": 1},
    "image_folder": {"prompt": "p", "chosen_image": 0, "rejected_image": 1},
    "image_columnar": {"prompt": "p", "chosen": 0, "rejected": 1, "annotator": "u"},
}
EXPECTED = {
    "hpdv2": [(B, A)],
    "hpdv2_test": [(B, A), (A, C), (B, C), "tie", (A, C), (B, C)],
    "image_reward": [(B, A), "tie", (B, C)],
    "image_reward_train": [(A, B)],
    "image_reward_pair": [(A, B)],
    "image_folder": [(A, B)],
    "image_columnar": [(A, B)],
}
IMAGE_COLUMNS = [
    "file_path",
    "image_path",
    "generations",
    "img_better",
    "img_worse",
    "chosen_image",
    "rejected_image",
    "chosen",
    "rejected",
]


def filled(row: dict[str, Any], form: str) -> dict[str, Any]:
    """The row with numbered pictures as raw bytes, as `datasets` holds them, or as paths."""

    def image(number: int) -> Any:
        data = picture(number)
        return {"bytes": data, "raw": data, "path": f"{number}.png"}[form]

    def value(name: str, old: Any) -> Any:
        if name not in IMAGE_COLUMNS:
            return old
        wrap = (lambda n: {"bytes": image(n), "path": None}) if form == "bytes" else image
        return [wrap(n) for n in old] if isinstance(old, list) else wrap(old)

    return {name: value(name, old) for name, old in row.items()}


@pytest.mark.parametrize("form", ["raw", "bytes", "path"])
@pytest.mark.parametrize("adapter", RANKED)
def test_every_schema_and_form(adapter: str, form: str, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    row = filled(RANKED[adapter], form)
    assert directions(adapter, row, tmp_path) == EXPECTED[adapter]
    flipped = ADAPTERS[adapter].flip(row)
    reverse = [each if each == "tie" else each[::-1] for each in EXPECTED[adapter]]
    assert directions(adapter, flipped, tmp_path) == reverse
    assert ADAPTERS[adapter].flip(flipped) == row
    if form != "path" or adapter != "image_columnar":  # paths there cannot be told from text
        assert recognise([row]).name == adapter


def test_pick_a_pic_flip_moves_the_best_image_and_comes_back() -> None:
    flipped = ADAPTERS["pick_a_pic"].flip(pick())
    assert (flipped["label_0"], flipped["best_image_uid"]) == (0.0, "two")
    assert ADAPTERS["pick_a_pic"].flip(flipped) == pick()


def test_one_broken_picture_spoils_only_its_pairs() -> None:
    row = filled(RANKED["image_reward"], "raw")
    row["image_path"][2] = b"GIF89a broken"
    found = directions("image_reward", row | {"rank": [2, 1, 3]})
    assert found == [(B, A), "unreadable", "unreadable"]


@pytest.mark.parametrize("ranks", [[1, 1, 1], [1], "x", [1, 2], None])
def test_ranks_that_state_nothing(ranks: Any) -> None:
    row = filled(RANKED["image_reward"], "raw") | {"rank": ranks}
    found = directions("image_reward", row)
    assert found == (["tie"] * 3 if ranks == [1, 1, 1] else ["unreadable"])


def test_ties_inside_rankings_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{n}", "image_path": [picture(3 * n + i) for i in range(3)], "rank": [1, 2, 2]}
        for n in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    facts = load(tmp_path / "data.parquet").facts
    assert (facts.rows, facts.pairs, facts.rejected) == (6, 12, {"tie": 6})


def test_paths_never_leave_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(picture(0))
    row = {"prompt": "p", "chosen_image": "../secret.png", "rejected_image": "none.png"}
    (fault,) = outcomes("image_folder", row, folder=inside)
    assert "outside" in fault.detail
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "rows").symlink_to(tmp_path)
    for name in ("link.png", "rows/secret.png", "secret.png", str(tmp_path / "secret.png")):
        (fault,) = outcomes("image_folder", row | {"chosen_image": name}, folder=inside)
        assert "outside" in fault.detail
    row["chosen_image"] = "none.png"
    (fault,) = outcomes("image_folder", row, folder=inside)
    assert "No such file" in fault.detail


def test_paths_are_found_in_the_folder_named_after_their_file(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    rows = []
    for number in range(12):
        (tmp_path / "train" / f"{number}.png").write_bytes(picture(number))
        paths = [f"{number}.png", f"{(number + 1) % 12}.png"]
        rows.append({"prompt": "p", "file_path": paths, "human_preference": [0, 1]})
    (tmp_path / "train.json").write_text(json.dumps(rows))
    dataset = load(tmp_path / "train.json")
    assert (dataset.adapter, len(dataset)) == ("hpdv2", 12)
    assert dataset.images is not None
    assert dataset.images.get(dataset.table["chosen"][0].as_py()) == picture(1)


@pytest.mark.parametrize("kind", ["raw", "datasets", "list"])
def test_large_datasets_remember_places_instead_of_bytes(kind: str, tmp_path: Path) -> None:
    def stored(number: int) -> Any:
        return picture(number) if kind == "raw" else {"bytes": picture(number), "path": None}

    rows = [pick(jpg_0=stored(2 * n), jpg_1=stored(2 * n + 1)) for n in range(12)]
    name = "pick_a_pic"
    if kind == "list":
        name = "image_reward"
        rows = [
            {"prompt": f"p {n}", "image_path": [picture(3 * n + i) for i in range(3)],
             "rank": [1, 2, 3]}
            for n in range(8)
        ]  # fmt: skip
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    gallery = Gallery(most=0)
    pairs = list(read_pairs(read_file(path, path.name), ADAPTERS[name], gallery=gallery))
    assert len(pairs) == (24 if kind == "list" else 12)
    assert gallery.held == {}
    assert bool(gallery.spooled) == (kind == "list")
    assert bool(gallery.located) == (kind != "list")
    store = gallery.store()
    keys = [key for pair in pairs for key in (pair.chosen, pair.rejected)]
    assert {image_key(store.get(key)) for key in reversed(keys)} == set(keys)


def test_streamed_images_are_kept_on_disk(tmp_path: Path) -> None:
    """Rows of the Hub come from no file: beyond the limit their images are in a temporary one."""
    rows = [
        {"prompt": "p", "chosen": {"bytes": picture(2 * n), "path": None},
         "rejected": {"bytes": picture(2 * n + 1), "path": None}}
        for n in range(20)
    ]  # fmt: skip
    gallery = Gallery(most=2 * len(picture(0)))
    stream = [Row("hub:train", n, row) for n, row in enumerate(rows)]
    pairs = list(read_pairs(stream, ADAPTERS["image_columnar"], gallery=gallery))
    assert sum(map(len, gallery.held.values())) <= 2 * len(picture(0))
    assert len(gallery.held) + len(gallery.spooled) == 40
    assert [gallery.store().get(pair.chosen) for pair in pairs] == [
        picture(2 * n) for n in range(20)
    ]


def test_folder_with_a_manifest(tmp_path: Path) -> None:
    lines = []
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    for number in range(0, 20, 2):
        row = {"prompt": "p", "chosen_image": f"{number}.png"}
        lines.append(json.dumps(row | {"rejected_image": f"{number + 1}.png"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    dataset = load(tmp_path)
    assert (dataset.adapter, dataset.modality, len(dataset)) == ("image_folder", "image", 10)


def test_admit_needs_an_image() -> None:
    row = Row("rows", 0, {"chosen": 3, "rejected": "x.png"})
    with pytest.raises(RowFault, match="a number, expected an image"):
        Gallery().admit(row, Pair("p", "chosen", "rejected"))
    with pytest.raises(RowFault, match="come from no folder"):
        Gallery().admit(row, Pair("p", "rejected", "chosen"))
    with pytest.raises(RowFault, match="missing"):
        Gallery().admit(row, Pair("p", "images.0", "chosen"))


def test_sample_dataset_has_the_exact_schema_and_an_honest_truth() -> None:
    dataset = load("pick-a-pic", workspace=find_workspace(ROOT))
    folder = ROOT / "sample_data/pick-a-pic"
    schema = pq.read_schema(folder / "train-00000-of-00001.parquet")
    assert schema.names[:6] == [
        "are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid",
    ]  # fmt: skip
    assert schema.field("jpg_0").type == pa.binary()
    assert schema.field("label_0").type == pa.float64()
    assert (dataset.adapter, dataset.modality, len(dataset)) == ("pick_a_pic", "image", 1000)
    assert dataset.facts.rejected == {"tie": 25}
    truth = pq.read_table(folder / "truth.parquet")
    assert set(truth["pair_id"].to_pylist()) == set(dataset.table["pair_id"].to_pylist())
    assert 0.17 < np.mean(truth["mislabelled"].to_numpy()) < 0.23
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000


def test_dataset_of_broken_pictures_is_an_error(tmp_path: Path) -> None:
    rows = [pick(jpg_0=b"x%d" % n) for n in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="12 unreadable"):
        load(tmp_path / "data.parquet")
