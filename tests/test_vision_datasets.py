"""Texts about pictures: schemas, places of pictures in prompts, and rows without their picture."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_vision import photo
from helpers.toy_run import scored_run

from noisescope.datasets import Row, load, read_pairs, recognise
from noisescope.datasets.flip.copy import plant
from noisescope.datasets.flip.plan import FlipPlan
from noisescope.datasets.image_store import Gallery
from noisescope.datasets.images import image_key
from noisescope.datasets.in_memory import load_table
from noisescope.datasets.load import load_again, restored
from noisescope.datasets.sources import open_source
from noisescope.errors import DataError
from noisescope.export.apply import apply_decisions, read_decisions
from noisescope.export.clean import export_clean
from noisescope.export.removal import CleanPolicy
from noisescope.pairs import Fault, Pair
from noisescope.storage.run import dataset_words

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
    schema = recognise(rows, folders=(folder,) if folder else (), **options)
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


def numbered(*indices: Any) -> list[dict[str, Any]]:
    content = [{"type": "image", "text": None, "index": index} for index in indices]
    return [{"role": "user", "content": [*content, {"type": "text", "text": "?", "index": None}]}]


def test_parts_show_the_pictures_that_their_indices_name() -> None:
    rows = [
        trl(images=(ONE, TWO), prompt=numbered(*order))
        for order in ((1, 0), (0, 1), (1.0, None), (1, 2), (0, 0), (-1, 0), ("a", 0))
    ]
    swapped, same, *bad = outcomes(*rows)
    empty = json.loads(json.dumps(rows[0]["prompt"]).replace("null", '""'))
    assert outcomes(trl(images=(ONE, TWO), prompt=empty))[0] == swapped
    assert swapped.turns[0].content == f"<image:{B}>\n<image:{A}>\n?"
    assert same.turns[0].content == f"<image:{A}>\n<image:{B}>\n?"
    details = ("(index 1, 1)", "(index 1, 2)", "(index 0, 0)", "picture is -1", "picture is a")
    assert all(detail in fault.detail for detail, fault in zip(details, bad, strict=True))


def test_rows_without_pictures_are_read_as_texts() -> None:
    none = ({"images": None}, {"images": []}, {"images": "[]"})
    shown, *plain = outcomes(trl("What?"), *(trl("What?") | one for one in none))
    assert shown.turns[0].content == f"<image:{A}>\nWhat?"
    assert [pair.turns[0].content for pair in plain] == ["What?"] * 3


def test_pictures_listed_in_json_text_are_read(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(ONE)
    (tmp_path / "dog.png").write_bytes(TWO)
    rows = [PLAIN | {"images": cell} for cell in ('["cat.png", "dog.png"]', '["dog.png"]', "[]")]
    found = outcomes(*rows, folder=tmp_path)
    ends = [f"<image:{A}>\n<image:{B}>\n", f"<image:{B}>\n", ""]
    assert [pair.prompt for pair in found] == [f"{end}What is it?" for end in ends]


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
        ({"images": None}, "holds no picture, and 1 part "),
        ({"images": []}, "holds no picture, and 1 part "),
        ({"images": [stored(b"")]}, "expected an image"),
        ({"images": [stored(ONE[:60])]}, "broken image"),
        ({"images": [stored(ONE), stored(TWO)]}, "2 pictures, and 1"),
        ({"prompt": turn("user", None, None, "What?")}, "1 picture, and 2 parts"),
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
        {"screen": base64.b64encode(ONE).decode()},
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


def with_files(folder: Path, count: int = 12) -> Path:
    """Pairs beside their pictures, half of which are in the folder named after the file."""
    (folder / "pictures").mkdir()
    (folder / "pairs").mkdir()
    rows = []
    for at in range(count):
        name = ("pictures/{}.png", "{}.png")[at % 2].format(at)
        (folder / ("pairs" if at % 2 else ".") / name).write_bytes(photo(at))
        rows.append(PLAIN | {"image": json.dumps([name]), "chosen": "A cat, " + "m" * 300})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_dataset_is_read_again_and_flipped_with_its_pictures(tmp_path: Path) -> None:
    path = with_files(tmp_path)
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


@pytest.mark.parametrize(
    "more",
    [{"screen": stored(ONE)}, {"jpg": ONE}, {"screen": "cat.png"}, {"x": '["cat.png"]'}],
)
def test_pictures_are_found_by_what_a_column_holds(more: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(ONE)
    (pair,) = outcomes(PLAIN | more, folder=tmp_path)
    assert pair.prompt == f"<image:{A}>\nWhat is it?"


@pytest.mark.parametrize(
    "more",
    [{"hash": b"\x01\x02"}, {"link": "https://a.org/b"}, {"n": 3}, {"note": "drawn from a.png"}],
)
def test_other_columns_are_not_taken_for_pictures(more: dict[str, Any]) -> None:
    assert recognise([PLAIN | more]).modality == "text"


def test_one_picture_file_among_others_is_a_name() -> None:
    rows = [PLAIN | {"question": f"Is it {at}?", "file": at} for at in ("a.py", "b.png", "c.py")]
    assert recognise(rows).modality == "text"


def test_places_without_pictures_are_refused_unless_few_or_stated() -> None:
    rows = [PLAIN | {"question": f"<image> What is {at}?", "id": at} for at in range(12)]
    with pytest.raises(DataError, match="12 of 12 prompts have a place") as caught:
        load_table(rows)
    assert "--columns images=" in str(caught.value.hint)
    stated = load_table(rows, columns={"images": ""})
    assert (stated.modality, stated.facts.notes) == ("text", ())
    late = [PLAIN | {"question": f"What is {at}?"} for at in range(108)]
    with pytest.raises(DataError, match="12 of 119 prompts"):
        load_table(late[1:] + rows)
    few = load_table(late + rows)
    assert any("12 of 120 prompts have a place" in note for note in few.facts.notes)


def late(column: str, cell: Any, *, empty: bool) -> list[dict[str, Any]]:
    rows = [PLAIN | {"question": f"What is {at}?"} for at in range(120)]
    first = [row | {column: None} for row in rows[:-1]] if empty else rows[:-1]
    return [*first, rows[-1] | {column: cell}]


@pytest.mark.parametrize("column", ["image", "screenshot"])
@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_pictures_after_the_sample_are_not_dropped(
    column: str, empty: bool, ending: str, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(ONE)
    path = tmp_path / f"pairs.{ending}"
    rows = late(column, "cat.png", empty=empty)
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist([{column: None} | row for row in rows]), path)
    place = f"{column} may hold a picture in pairs.{ending}:120"
    with pytest.raises(DataError, match=place) as caught:
        load(path)
    if ending == "jsonl" and not empty:
        assert "Give the first row" in str(caught.value.hint)
        path.write_text(path.read_text().replace("{", f'{{"{column}": null, ', 1))
    assert load(path, columns="images=").modality == "text"
    shown = load(path, columns=f"images={column}")
    assert (shown.modality, len(shown)) == ("vision", 120)
    assert "119 of 120 prompts show no picture" in shown.facts.notes


def test_a_format_of_texts_is_not_read_without_the_pictures() -> None:
    row = {"prompt": "What?", "chosen": "A cat.", "rejected": "A dog.", "images": [stored(ONE)]}
    with pytest.raises(DataError, match="--format trl reads texts") as caught:
        recognise([row], format="trl")
    assert "--format trl_vision" in str(caught.value.hint)
    assert recognise([row], format="trl_vision").modality == "vision"


def test_ignored_pictures_are_ignored_when_a_run_is_read_again() -> None:
    rows = [PLAIN | {"question": f"What is {at}?", "image": stored(ONE)} for at in range(12)]
    found = load_table(rows, columns="images=")
    manifest = {"adapter": found.adapter, "columns": found.columns, "reading": found.reading}
    words = shlex.split(dataset_words(manifest, "pairs"))
    assert words == ["pairs", "--columns", "images="]
    again = load_table(rows, columns=words[2])
    assert (again.modality, again.fingerprint) == ("text", found.fingerprint)
    known = restored(manifest)
    assert known is not None
    assert known.stated
    assert "images" not in known.roles


def test_clean_and_corrected_copies_have_their_pictures(tmp_path: Path) -> None:
    source = open_source(with_files(tmp_path, 60))
    found = load(tmp_path / "pairs.jsonl")
    first = found.table["pair_id"][0]
    scores = scored_run(found, tmp_path / "runs" / "r")
    export_clean(scores, source, CleanPolicy(drop_top=0.05), tmp_path / "clean")
    decisions = tmp_path / "decisions.csv"
    decisions.write_text(f"pair_id,decision\n{first},drop\n")
    done = read_decisions(decisions)
    apply_decisions(scores, source, done, tmp_path / "applied", reviewer="ann")
    for name, pairs in (("clean", 57), ("applied", 59)):
        copy = load(tmp_path / name)
        assert (len(copy), copy.facts.rejected) == (pairs, {})
        assert len(list((tmp_path / name).rglob("*.png"))) == pairs


def test_a_data_file_that_a_row_names_is_not_linked(tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    row = PLAIN | {"image": stored(ONE), "made_from": "b.parquet"}
    rows = [row | {"question": f"What is {at}?"} for at in range(60)]
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist(rows), source / f"{name}.parquet")
    before = (source / "b.parquet").read_bytes()
    scores = scored_run(load(source), tmp_path / "runs" / "r")
    export_clean(scores, open_source(source), CleanPolicy(drop_top=0.1), tmp_path / "clean")
    assert (source / "b.parquet").read_bytes() == before


def in_folder(folder: Path, *more: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows beside the pictures p0.png, p1.png, ... that their cells name by {}."""
    for at in range(12):
        (folder / f"p{at}.png").write_bytes(photo(at))
    rows = (json.dumps(more[min(at, len(more) - 1)]).replace("{}", str(at)) for at in range(12))
    return [PLAIN | {"question": f"What is {at}?"} | json.loads(row) for at, row in enumerate(rows)]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("other", ["file_name", "id", "image_path"])
def test_names_of_the_same_pictures_are_no_second_column(other: str, tmp_path: Path) -> None:
    rows = in_folder(tmp_path, {other: "p{}.png", "image": "p{}.png"})
    found = load(written(tmp_path, rows))
    shown = "image_path" if other == "image_path" else "image"
    assert (found.modality, found.columns["images"], len(found)) == ("vision", shown, 12)


def test_other_pictures_are_a_second_column(tmp_path: Path) -> None:
    path = written(tmp_path, in_folder(tmp_path, {"thumb": "p0.png", "image": "p{}.png"}))
    with pytest.raises(DataError, match="one column of pictures is read") as caught:
        load(path)
    assert str(caught.value.hint).startswith("--columns images=image ")


@pytest.mark.parametrize(
    "more",
    [
        {"id": "p{}.png"},
        {"source": "p{}.png"},
        {"author_avatar": "https://cdn.example.org/{}.png"},
        {"made": "gone{}.png"},
    ],
)
def test_texts_that_name_pictures_are_texts(more: dict[str, Any], tmp_path: Path) -> None:
    found = load(written(tmp_path, in_folder(tmp_path, more)))
    assert (found.modality, len(found)) == ("text", 12)


@pytest.mark.parametrize("more", [{"file_name": "p{}.png"}, {"shot": {"path": "p{}.png"}}])
def test_pictures_beside_the_file_are_found(more: dict[str, Any], tmp_path: Path) -> None:
    found = load(written(tmp_path, in_folder(tmp_path, more)))
    assert (found.modality, len(found)) == ("vision", 12)


@pytest.mark.parametrize(
    ("column", "cell"), [("image_caption", "a cat on a mat"), ("has_image", "no")]
)
def test_late_words_about_pictures_are_no_pictures(column: str, cell: str, tmp_path: Path) -> None:
    found = load(written(tmp_path, late(column, cell, empty=True)))
    assert (found.modality, len(found)) == ("text", 120)


@pytest.mark.parametrize(
    "cell", ["https://a.org/b", "film.mp4", {"url": "x.png"}, base64.b64encode(ONE).decode()]
)
def test_late_media_are_refused(cell: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image may hold a picture"):
        load(written(tmp_path, late("image", cell, empty=True)))


def test_a_late_second_column_needs_no_first_row(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(ONE)
    rows = [row | {"image": "cat.png"} for row in late("image2", "cat.png", empty=False)]
    path = written(tmp_path, rows)
    with pytest.raises(DataError, match="image2 may hold a picture") as caught:
        load(path)
    assert str(caught.value.hint).startswith("--columns images=image shows")
    assert len(load(path, columns="images=image")) == 120


def test_a_picture_is_shown_at_every_place_that_names_it() -> None:
    twice = [*numbered(0), {"role": "assistant", "content": "A cat."}, *numbered(0)]
    both = trl(images=(ONE, TWO), prompt=numbered(1, 0, 1))
    one, two, mixed = outcomes(
        trl(prompt=twice), both, trl(images=(ONE, TWO), prompt=numbered(1, None, 0))
    )
    assert [turn.content for turn in one.turns[::2]] == [f"<image:{A}>\n?"] * 2
    assert two.turns[0].content == f"<image:{B}>\n<image:{A}>\n<image:{B}>\n?"
    assert isinstance(mixed, Fault)


@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_base64_text_is_to_be_decoded(start: str) -> None:
    with pytest.raises(DataError) as caught:
        recognise([PLAIN | {"pic": start + base64.b64encode(ONE).decode()}])
    assert str(caught.value.hint).startswith("Decode the base64 text of pic into bytes")
    assert "images=pic" not in str(caught.value.hint)


@pytest.mark.parametrize(
    "more",
    [{"meta": {"shot": stored(ONE), "n": 1}}, {"shots": [{"image": stored(ONE)}]},
     {"meta": {"shot": stored(ONE)}, "image": stored(TWO)}],
)  # fmt: skip
def test_pictures_inside_objects_are_refused(more: dict[str, Any], tmp_path: Path) -> None:
    rows = [PLAIN | {"question": f"What is {at}?"} | more for at in range(12)]
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match="one column of pictures is read") as caught:
        load(path)
    if "shots" in more:
        assert str(caught.value.hint).startswith("Move the pictures inside shots to a column")
    else:
        shown = str(caught.value.hint).split()[1]
        assert shown == ("images=image" if "image" in more else "images=meta.shot")
        assert load(path, columns=shown).modality == "vision"
    assert load(path, columns="images=").modality == "text"


def test_a_column_of_which_some_cells_are_pictures_is_refused(tmp_path: Path) -> None:
    rows = in_folder(tmp_path, {"attachment": "a.pdf"}, {"attachment": "p{}.png"})
    path = written(tmp_path, rows)
    with pytest.raises(DataError, match="one column of pictures is read"):
        load(path)
    assert len(load(path, columns="images=attachment")) == 11
