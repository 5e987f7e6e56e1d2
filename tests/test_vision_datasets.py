"""Texts about pictures: schemas, places of pictures in prompts, and rows without their picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_vision import photo

from noisescope.datasets import Row, load, read_pairs, recognise
from noisescope.datasets.flip.copy import plant
from noisescope.datasets.flip.plan import FlipPlan
from noisescope.datasets.image_store import Gallery
from noisescope.datasets.images import image_key
from noisescope.datasets.in_memory import load_table
from noisescope.datasets.load import load_again
from noisescope.datasets.sources import open_source
from noisescope.errors import DataError
from noisescope.pairs import Fault, Pair

ONE, TWO = photo(0), photo(1)
A, B = image_key(ONE), image_key(TWO)


def stored(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def turn(role: str, *parts: Any) -> list[dict[str, Any]]:
    content = [
        {"type": "image", "text": None} if part is None else {"type": "text", "text": part}
        for part in parts
    ]
    return [{"role": role, "content": content}]


def outcomes(*rows: dict[str, Any], folder: Path | None = None, **options: Any) -> list[Any]:
    stream = [Row("rows", at, row, folder=folder) for at, row in enumerate(rows)]
    schema = recognise(rows, **options)
    assert schema.modality == "vision"
    return list(read_pairs(stream, schema))


def trl(*parts: Any, images: Any = (ONE,), **more: Any) -> dict[str, Any]:
    pictures = [stored(one) for one in images]
    sides = {"chosen": turn("assistant", "A cat."), "rejected": turn("assistant", "A dog.")}
    return {"images": pictures, "prompt": turn("user", *parts), **sides, **more}


def test_pictures_are_in_the_prompt_where_its_parts_are() -> None:
    first, second, third = outcomes(
        trl(None, "What?"),
        trl("From", None, "to", None, images=(ONE, TWO)),
        trl("What?", images=(ONE, TWO)),
    )
    assert first.turns[0].content == f"<image:{A}>\nWhat?"
    assert first.prompt == f"Human: <image:{A}>\nWhat?"
    assert (first.chosen, first.rejected) == ("A cat.", "A dog.")
    assert second.turns[0].content == f"From\n<image:{A}>\nto\n<image:{B}>"
    assert third.turns[0].content == f"<image:{A}>\n<image:{B}>\nWhat?"


def test_a_pair_about_another_picture_is_another_pair() -> None:
    one, other, again = outcomes(
        trl(None, "What?"), trl(None, "What?", images=(TWO,)), trl("What?")
    )
    assert one.content_id != other.content_id
    assert one.prompt != other.prompt
    assert one.content_id == again.content_id


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"images": None}, "holds no picture"),
        ({"images": []}, "holds no picture"),
        ({"images": [stored(b"")]}, "expected an image"),
        ({"images": [stored(ONE[:60])]}, "broken image"),
        ({"images": [stored(ONE), stored(TWO)]}, "2 pictures, and 1"),
        ({"prompt": turn("user", None, None, "What?")}, "1 pictures, and 2"),
        ({"chosen": turn("assistant", None, "A cat.")}, "a response holds a picture"),
        ({"rejected": turn("assistant", f"<image:{B}>")}, "as noisescope writes"),
        (
            {"images": [{"bytes": None, "path": "https://example.org/cat.png"}]},
            "fetch the pictures",
        ),
        ({"images": [{"bytes": None, "path": "../cat.png"}]}, "outside the dataset"),
        ({"images": [{"bytes": None, "path": "gone.png"}]}, "No such file"),
    ],
)
def test_rows_without_their_picture_are_counted(
    change: dict[str, Any], detail: str, tmp_path: Path
) -> None:
    good, bad = outcomes(trl(None, "What?"), trl(None, "What?") | change, folder=tmp_path)
    assert isinstance(good, Pair)
    assert isinstance(bad, Fault)
    assert bad.reason == "unreadable"
    assert detail in bad.detail


PLAIN = {"question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}


def test_other_schemas(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(ONE)
    ranked = {"rank_chosen": 1, "rank_rejected": 3}
    nested = {"text": json.dumps(PLAIN), "image": stored(ONE)}
    label = {"prompt": "What is it?", "response_a": "A dog.", "response_b": "A cat."}
    rows: list[dict[str, Any]] = [
        PLAIN | {"image": stored(ONE), "image_path": "p", "ds_name": "x"},
        nested,
        PLAIN | {"image": "cat.png", **ranked},
        label | {"image": ONE, "winner": "b"},
        PLAIN | {"question": "Is it <image> here?", "images": ["cat.png"]},
    ]
    found = [outcomes(row, folder=tmp_path)[0] for row in rows]
    prompts = [f"<image:{A}>\nWhat is it?"] * 4 + [f"Is it <image:{A}> here?"]
    assert [pair.prompt for pair in found] == prompts
    assert {(pair.chosen, pair.rejected) for pair in found} == {("A cat.", "A dog.")}
    assert found[2].strength == 2


@pytest.mark.parametrize(
    "more",
    [
        {"image_a": ONE, "image_b": TWO},
        {"video": "film.mp4"},
        {"image": ONE, "video": "film.mp4"},
        {"image": "a number in another file"},
    ],
)
def test_what_would_be_lost_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="pictures, films or sound") as caught:
        outcomes(PLAIN | more)
    assert "--columns images=" in str(caught.value.hint)
    schema = recognise([PLAIN | more], columns={"images": ""})
    assert schema.modality == "text"
    found = read_pairs([Row("rows", 0, PLAIN | more)], schema)
    assert [pair.prompt for pair in found if isinstance(pair, Pair)] == ["What is it?"]


def test_one_answer_a_row_and_pictures_as_sides_have_no_pictures_in_prompts() -> None:
    rated = [{"prompt": "p", "image": ONE, "response": f"r{n}", "rating": n} for n in range(3)]
    columns = {"prompt": "prompt", "response": "response", "rating": "rating", "images": "image"}
    with pytest.raises(DataError, match="one answer a row"):
        outcomes(*rated, columns=columns)
    sides = {"prompt": "p", "chosen": ONE, "rejected": TWO, "shown": ONE}
    with pytest.raises(DataError, match="sides that are pictures"):
        outcomes(sides, columns={"images": "shown"})


def test_rated_answers_about_one_picture_are_a_group() -> None:
    ranked = {"prompt": "What?", "answers": ["A", "B", "C"], "ranks": [1, 2, 3]}
    columns = {"prompt": "prompt", "responses": "answers", "ranks": "ranks"}
    rows = [ranked | {"image": ONE}, ranked | {"image": TWO}]
    pairs = outcomes(*rows, columns=columns)
    assert len(pairs) == 6
    assert len({pair.group for pair in pairs}) == 2


def test_a_dataset_is_read_again_and_flipped_with_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    lines = []
    for at in range(12):
        (tmp_path / "pictures" / f"{at}.png").write_bytes(photo(at))
        lines.append(json.dumps(PLAIN | {"image": f"pictures/{at}.png"}))
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    found = load(path)
    assert (found.modality, len(found), found.facts.duplicates) == ("vision", 12, 0)
    manifest = {"adapter": found.adapter, "columns": found.columns, "modality": found.modality}
    again = load_again(str(path), manifest)
    assert again.fingerprint == found.fingerprint
    assert again.images is not None
    assert again.images.get(image_key(photo(3))) == photo(3)
    copy = plant(open_source(path), FlipPlan(0.5), tmp_path / "flipped")
    flipped = load(copy.directory / "pairs.jsonl")
    assert flipped.table["content_id"].equals(found.table["content_id"])
    assert flipped.table["chosen"].to_pylist().count("A dog.") == copy.flipped


def test_a_table_in_memory() -> None:
    rows = [PLAIN | {"image": stored(photo(at))} for at in range(12)]
    found = load_table(rows)
    assert (found.modality, len(found)) == ("vision", 12)
    assert found.images is not None
    assert found.images.get(image_key(photo(0))) == photo(0)


def test_large_pictures_stay_on_disk() -> None:
    gallery = Gallery(most=0, prompts="images")
    row = trl(None, "What?")
    list(read_pairs([Row("rows", 0, row)], recognise([row]), gallery=gallery))
    assert not gallery.held
    assert gallery.store().get(A) == ONE
