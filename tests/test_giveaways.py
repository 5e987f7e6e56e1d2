"""Marks that give labels away: found whatever they are, and never found in honest texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from helpers.toy_run import scored_run
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from noisescope.cli import app
from noisescope.datasets import load
from noisescope.scoring.giveaways import Giveaway, find_giveaways, length_decides, notes_of

WORDS = [
    "seven",
    "garden",
    "stone",
    "spoon",
    "quiet",
    "river",
    "table",
    "lamp",
    "winter",
    "cloud",
    "letter",
    "coin",
]


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(6, 20))) + "." for _ in range(count)]


MARKS = {
    "end token": lambda text: text + "</s>",
    "end token, space": lambda text: text + " <|im_end|>\n",
    "run-on turn": lambda text: text + "\n\nHuman: And then?",
    "constant prefix": lambda text: "Sure! " + text,
    "constant suffix": lambda text: text + " I hope that helps.",
    "leading space": lambda text: " " + text,
    "no full stop": lambda text: text.rstrip("."),
    "thinking": lambda text: f"<think>\nHm.\n</think>\n\n{text}",
}


@pytest.mark.parametrize("count", [24, 80, 2000])
@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_every_mark_on_one_side_is_found(name: str, count: int, side: str) -> None:
    sides = {"chosen": texts(count, 1), "rejected": texts(count, 2)}
    assert find_giveaways(**sides) == []
    sides[side] = [MARKS[name](text) for text in sides[side]]
    (best, *_) = find_giveaways(**sides)
    assert best.auroc > 0.9
    assert {best.chosen > best.rejected} == {(side == "chosen") != (name == "no full stop")}
    assert sum(map(best.marks, sides["chosen"])) == best.chosen
    assert sum(map(best.marks, sides["rejected"])) == best.rejected


def test_half_of_the_pairs_are_enough_and_fewer_are_not() -> None:
    chosen, rejected = texts(400, 1), texts(400, 2)
    for share, found in ((200, True), (150, False)):
        marked = [text + "</s>" for text in chosen[:share]] + chosen[share:]
        assert bool(find_giveaways(marked, rejected)) is found
    assert find_giveaways([text + "</s>" for text in chosen], [t + "</s>" for t in rejected]) == []


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.sampled_from([10, 24, 100]))
def test_honest_texts_have_none(seed: int, count: int) -> None:
    assert find_giveaways(texts(count, seed), texts(count, seed + 1)) == []


@given(st.lists(st.tuples(st.text("ab ", max_size=5), st.text("ab ", max_size=5)), min_size=4))
def test_beginnings_and_ends_are_counted_as_in_all_texts(pairs: list[tuple[str, str]]) -> None:
    chosen, rejected = zip(*pairs, strict=True)
    for mark in find_giveaways(chosen, rejected, least=0.6):
        size = len(mark.text)
        cut = slice(size) if mark.place == "begins" else slice(-size, None)
        assert mark.chosen == sum(text[cut] == mark.text for text in chosen)
        assert mark.rejected == sum(text[cut] == mark.text for text in rejected)


def test_a_mark_is_named_by_its_place_and_counts() -> None:
    chosen = [text + "</s>" for text in texts(40, 1)]
    assert find_giveaways(chosen, texts(40, 2))[0] == Giveaway("</s>", "ends", 40, 0, 40)
    (note,) = notes_of(chosen, texts(40, 2))
    assert note.startswith("'</s>' ends 40 of 40 chosen and 0 of 40 rejected responses: it gives")


@pytest.mark.parametrize(
    ("longer", "shorter", "alike", "named"),
    [
        (266, 0, 0, "The longer response is the chosen one in 100%"),
        (0, 266, 0, "The shorter response is the chosen one in 100%"),
        (9960, 40, 0, "The longer response is the chosen one in 99%"),
        (96, 4, 0, "The longer response is the chosen one in 96%"),
        (94, 6, 0, None),
        (20, 0, 0, None),
        (7500, 2500, 0, None),
        (100, 0, 100, None),
        (0, 0, 100, None),
    ],
)
def test_a_length_that_decides_the_labels_is_named(
    longer: int, shorter: int, alike: int, named: str | None
) -> None:
    found = length_decides(np.repeat([1, 0, -1], [longer, shorter, alike]))
    assert found is None if named is None else str(found).startswith(named)


def test_labels_by_length_are_trusted_by_no_audit(tmp_path: Path) -> None:
    pairs = [sorted(pair, key=len) for pair in zip(texts(300, 1), texts(300, 2), strict=True)]
    rows = [
        {"prompt": f"question {i}", "chosen": pair[1], "rejected": pair[0]}
        for i, pair in enumerate(pairs)
        if len(pair[0]) < len(pair[1])
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    summary = scored_run(load(path), tmp_path / "runs" / "long-1", good=False).summary
    assert summary["trust"]["word"] == "cannot know"
    assert summary["find"] == []
    assert summary["trust"]["sentence"].startswith("The longer response is the chosen one in 100%")


def test_images_have_no_length() -> None:
    assert length_decides(None) is None


def test_datasets_prints_them(tmp_path: Path) -> None:
    pairs = zip(texts(30, 1), texts(30, 2), strict=True)
    lines = [
        json.dumps({"prompt": f"p{n}", "chosen": one + "</s>", "rejected": other})
        for n, (one, other) in enumerate(pairs)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    shown = CliRunner().invoke(app, ["datasets", str(path)])
    assert "'</s>' ends 30 of 30 chosen" in " ".join(shown.output.split())
    found = CliRunner().invoke(app, ["datasets", str(path), "--json"])
    assert json.loads(found.output)["notes"][0].startswith("'</s>' ends 30 of 30 chosen")
