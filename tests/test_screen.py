"""The summary screen of a strong audit and of a weak one; plurals; query tables that fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
from helpers.toy_run import rows, scored_run, write_lines

from noisescope import cli
from noisescope.cli.console import OUT, duration
from noisescope.cli.query import fitting
from noisescope.cli.show import half_blocks
from noisescope.cli.summary import answer, print_summary
from noisescope.datasets import load
from noisescope.scoring.sources import SourceReport
from noisescope.storage.printable import plural
from noisescope.storage.run import Run

WORST = {"name": "june", "labels": 174, "flip_rate": 0.72, "low": 0.638, "high": 0.798}
STRONG: dict[str, Any] = {
    "mislabelled_share": {"estimate": 0.16, "low": 0.053, "high": 0.278},
    "pairs": 4000,
    "contested_share": 0.08,
    "trust": {"word": "good", "sentence": "It suspects the wrong one.", "helps": [], "acts": True},
    "find": [
        {"pairs": 100, "low": 88, "high": 100},
        {"pairs": 200, "low": 161, "high": 198},
        {"pairs": 400, "low": 231, "high": 366},
        {"pairs": 800, "low": 260, "high": 597},
    ],
    "annotators": {
        "kind": "annotator",
        "worst": [WORST | {"label": "votes backwards"}] + [WORST | {"label": "careless"}] * 5,
        "others": {"count": 12, "flip_rate": 0.031},
    },
    "notes": ["one", "two"],
}
WEAK = STRONG | {
    "trust": {
        "word": "too weak to change labels",
        "sentence": "A coin agrees with 50%.",
        "helps": [
            "a larger judge: noisescope score DATASET --model MODEL",
            "more: noisescope x RUN",
        ],
        "acts": False,
    }
}

Screen = Callable[[dict[str, Any], int], str]


@pytest.fixture
def screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Screen:
    """Print the screen of a small run whose summary has these numbers, at a width."""
    monkeypatch.chdir(tmp_path)
    write_lines(Path("toy.jsonl"), rows())
    run = scored_run(load("toy.jsonl"), Path("runs") / "toy-1").run
    manifest = run.manifest() | {"timings": {"features": 61.0}, "command": "noisescope score toy"}

    def printed(summary: dict[str, Any], width: int = 80) -> str:
        monkeypatch.setattr(OUT.console, "width", width)
        facts = manifest["facts"] | summary.pop("facts", {})
        content = manifest | {"summary": manifest["summary"] | summary, "facts": facts}
        monkeypatch.setattr(Run, "manifest", lambda self: json.loads(json.dumps(content)))
        print_summary(run)
        return str(capsys.readouterr().out)

    return printed


def test_evidence_that_counts_in_reverse_is_named(screen: Screen) -> None:
    judge = SourceReport("file:judge.csv", 0.4, 0.03, 0.7, 0.02, 0.5, weight=-0.3)
    assert "file:judge.csv is read in reverse" in screen(STRONG | {"sources": [judge.to_json()]})
    same = replace(judge, weight=0.3)
    assert "reverse" not in screen(STRONG | {"sources": [same.to_json()]})


@pytest.mark.parametrize("width", [80, 120])
def test_the_answer_fits_on_a_terminal(screen: Screen, width: int) -> None:
    lines = screen(STRONG, width).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "Between 210 and 1,100 labels are probably wrong (5% to 28%)." in text
    assert "How far to trust this: GOOD. It suspects the wrong one." in text
    assert "231 – 366" in text
    (june,) = [line for line in lines if "votes backwards" in line]
    assert june.split()[-6:] == ["votes", "backwards", "64", "–", "80%", "174"]
    assert "2 more; 12 others: 3% on average" in text
    assert "The judge cannot decide 320 pairs (8%). 2 notes in --details." in text
    assert "noisescope review toy-1 --for fix --count 400" in text
    assert "noisescope score toy --details" in text


def test_rows_are_counted_from_one(screen: Screen) -> None:
    first = scored_suspect = json.loads(json.dumps(STRONG))
    first["suspects"] = [
        {"prompt": "Human: why?", "chosen": "a", "rejected": "b", "annotator": "lena"}
        | {"source": "a-directory-with-a-long-name/and-a-file.jsonl", "row": 1223}
    ]
    text = screen(scored_suspect, 80)
    assert "1 why?" in text
    assert ":1224\n" in text
    assert "lena · " in text


def test_margins_that_test_no_label_state_no_range(screen: Screen) -> None:
    """The range would be that of a judge that confirms wrong labels."""
    text = screen(WEAK | {"trust": WEAK["trust"] | {"word": "cannot know"}}, 80)
    assert "Cannot say how many labels are wrong.\n" in text
    assert "Use it for  nothing yet" in text


def test_a_weak_audit_names_what_helps_and_no_pairs(screen: Screen) -> None:
    text = screen(WEAK, 80)
    assert "Cannot say how many labels are wrong: anything from 5% to 28% fits." in text
    assert "TOO WEAK TO CHANGE LABELS. A coin" in text
    assert "noisescope score toy.jsonl --model MODEL" in text
    assert "noisescope x toy-1" in text
    assert "choosing which pairs to review" in text
    assert "find wrong labels" not in text
    assert "--for fix" not in text


def test_an_audit_that_cannot_know_is_good_for_nothing(screen: Screen) -> None:
    text = screen(STRONG | {"trust": WEAK["trust"] | {"word": "cannot know"}}, 80)
    assert "CANNOT KNOW" in text
    assert "nothing yet" in text
    assert "noisescope review" not in text


@pytest.mark.parametrize("summary", [STRONG, WEAK])
def test_reviews_and_repeated_pairs_are_on_the_screen(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, summary: dict[str, Any]
) -> None:
    people = SimpleNamespace(share=lambda: None, sentence=lambda: "reviewed: 17 of 45 are wrong")
    assert "reviewed" not in screen(dict(summary), 80)
    monkeypatch.setattr("noisescope.cli.summary.reviews_of", lambda run: people)
    text = screen(summary | {"facts": {"duplicates": 20, "rejected": {"tie": 3}}}, 80)
    assert "\nreviewed: 17 of 45 are wrong\n" in text
    assert "120 pairs (100 distinct; without 3 ties)" in text


def test_without_annotators_that_stand_out_the_screen_has_no_table_of_them(screen: Screen) -> None:
    found = screen(STRONG | {"annotators": None}, 80)
    assert "flipped" not in found
    assert "none of 9 annotators stands out" in found


def test_a_range_from_zero_is_a_maximum() -> None:
    share = {"mislabelled_share": {"low": 0.0, "high": 0.1}, "pairs": 1000}
    assert answer(STRONG | share) == "Up to 100 labels may be wrong (0% to 10%)."
    share = {"mislabelled_share": {"low": 0.0, "high": 0.012}, "pairs": 30}
    assert answer(STRONG | share) == "Up to 1 label may be wrong (0% to 1%)."


@pytest.mark.parametrize("pairs", [1, 7, 30, 99, 4_000, 1_234_567])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.001), (0.05, 0.28), (0.333, 0.4999), (0.9, 1.0)])
def test_numbers_of_labels_have_two_digits_and_contain_the_range(
    pairs: int, low: float, high: float
) -> None:
    found = answer(STRONG | {"mislabelled_share": {"low": low, "high": high}, "pairs": pairs})
    numbers = [int(n.replace(",", "")) for n in re.findall(r"[\d,]+(?= label| and )", found)]
    least, most = numbers if len(numbers) == 2 else (0, *numbers)
    assert least <= low * pairs + 10 ** (len(str(least)) - 2) / 2 * (least >= 100)
    assert most >= high * pairs - 1e-6 - 10 ** (len(str(most)) - 2) / 2 * (most >= 100)
    assert most <= max(1, high * pairs + 10 ** max(len(str(most)) - 2, 0))
    assert all(number < 100 or set(str(number)[2:]) <= {"0"} for number in numbers)


def test_nouns_are_counted() -> None:
    found = [plural(1, "pair"), plural(25, "tie"), plural(3, "empty response")]
    assert found == ["1 pair", "25 ties", "3 empty responses"]
    assert [plural(2, "identical sides"), plural(2, "unlabelled")] == [
        "2 identical sides",
        "2 unlabelled",
    ]
    assert [duration(seconds) for seconds in (35, 95, 1567, 7200)] == [
        "35 s",
        "2 min",
        "26 min",
        "2.0 h",
    ]


def test_columns_are_dropped_from_the_middle() -> None:
    assert fitting([10, 10, 10], 80) == [0, 1, 2]
    assert fitting([10] * 9, 80) == [0, 1, 2, 6, 7, 8]
    assert fitting([200, 10], 80) == [0]
    assert fitting([], 80) == []


def test_probabilities_of_a_weak_audit_come_with_a_caution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "pairs.jsonl", rows())
    dataset = load(str(tmp_path / "pairs.jsonl"))
    for name, good in (("strong", True), ("weak", False)):
        made = scored_run(dataset, tmp_path / name, good=good)
        run = str(made.run.directory)
        asked = {
            "show": ["show", "--rank", "1", run],
            "query": ["query", "SELECT p_wrong FROM scores LIMIT 1", run],
            "all": ["query", "SELECT * FROM scores LIMIT 1", run, "--json"],
            "count": ["query", "SELECT count(*) AS n FROM pairs", run],
        }
        warned = {}
        for what, words in asked.items():
            assert cli.run(words) == 0
            out, err = capsys.readouterr()
            warned[what] = "no p_wrong here is to be acted on" in " ".join((out + err).split())
            if "--json" in words:
                assert json.loads(out)[0]["rank"]
        expected = {"show": not good, "query": not good, "all": not good, "count": False}
        assert warned == expected
        assert cli.run(["show", "--rank", "1", run, "--json"]) == 0
        assert (json.loads(capsys.readouterr().out)["caution"] is None) == good


def test_a_picture_is_drawn_in_half_blocks() -> None:
    picture = PIL.Image.new("RGB", (2, 4), "white")
    picture.putpixel((0, 0), (255, 0, 0))
    drawn = half_blocks(picture, 2)
    assert drawn.plain == "▀▀\n▀▀"
    styles = [str(span.style) for span in drawn.spans]
    assert styles[0] == "#ff0000 on #ffffff"
    assert styles[1:] == ["#ffffff on #ffffff"] * 3
