"""The report's first screen: the range, the word for trust, what to check, who stands out."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.planted_run import planted_run

from noisescope.report.contents import gather
from noisescope.report.html import page
from noisescope.report.overview import curve, overview
from noisescope.scoring.metrics import Interval

FINDS = [
    {"pairs": pairs, "low": low, "high": high}
    for pairs, low, high in ((100, 81, 94), (200, 141, 181), (400, 223, 334), (800, 309, 554))
]
WHO = {
    "kind": "annotator",
    "worst": [
        {"name": "<b>june</b>", "labels": 174, "flip_rate": 0.72, "low": 0.63, "high": 0.8,
         "label": "votes backwards"},
    ],
    "others": {"count": 15, "flip_rate": 0.04},
}  # fmt: skip
GOOD = {"word": "good", "sentence": "9 times in 10.", "helps": [], "acts": True}
NOTHING = {"word": "cannot know", "sentence": "A coin.", "helps": ["a larger judge"], "acts": False}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    return gather(planted_run(tmp_path_factory.mktemp("runs")), worst=5)


def with_summary(contents, **more):
    summary = {**contents.summary, "pairs": 4000, "chance": False} | more
    summary["mislabelled_share"] = {"estimate": 0.19, "low": 0.06, "high": 0.24}
    return replace(contents, manifest={**contents.manifest, "summary": summary})


def headline(contents):
    return overview(contents)["headline"]


def text_of(html):
    body = html[html.index("<main") : html.index('id="review"')]
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_the_first_screen_states_the_summary(contents):
    found = with_summary(contents, trust=GOOD, find=FINDS, annotators=WHO)
    assert headline(found) == "Between 240 and 960 labels are probably wrong (6% to 24%)."
    html = page(found)
    text = text_of(html)
    for words in (
        "How far to trust this: good",
        "The 400 most suspicious pairs should hold 223 to 334 wrong labels.",
        "about 3 hours, at 25 seconds a pair",
        "100 pairs 81 to 94 wrong",
        "1 annotator stands out, with 174 of 4,000 labels",
        "63% to 80% flipped votes backwards see 174",
        "The other 15: 4% on average.",
        "a mistake that all annotators share",
    ):
        assert words in text
    assert 'href="#annotator=%3Cb%3Ejune%3C/b%3E"' in html
    assert 'href="#worst=400"' in html


def test_the_band_holds_the_ranges():
    drawn = curve(FINDS)
    left, top, right, bottom = drawn["frame"]
    points = [tuple(map(float, point.split(","))) for point in drawn["band"].split()]
    assert points[0] == (left, bottom)
    assert (right, top) in points
    low = bottom - (bottom - top) * 309 / 554
    assert (right, round(low, 1)) in points
    assert [text for _, text in drawn["x"]] == ["200", "400", "800"]
    assert [text for _, text in drawn["y"]] == ["0", "270", "554"]


def test_what_cannot_be_known_is_not_stated(contents):
    found = with_summary(contents, trust=NOTHING, find=FINDS, annotators=WHO)
    assert headline(found) == "Cannot say how many labels are wrong."
    text = text_of(page(found))
    assert "How far to trust this: cannot know" in text
    assert "a larger judge" in text
    assert "should hold" not in text
    assert "stand" not in text.replace("How far to", "")
    assert overview(found)["curve"] is None


def test_a_weak_audit_does_not_count_wrong_labels(contents):
    weak = NOTHING | {"word": "too weak to change labels"}
    found = with_summary(contents, trust=weak, find=FINDS, annotators=WHO)
    assert headline(found) == "Cannot say how many labels are wrong: anything from 6% to 24% fits."
    text = text_of(page(found))
    assert "should hold" not in text
    assert "stand out" not in text
    assert "stands out" not in text
    assert "No count of wrong labels is to be acted on (too weak to change labels)" in page(found)
    assert "This audit cannot name anyone." in page(found)
    assert overview(found)["curve"] is None


def test_what_helps_is_to_be_typed(contents):
    trust = NOTHING | {"helps": ["more: noisescope score DATASET", "yours: noisescope review RUN"]}
    found = page(with_summary(contents, trust=trust))
    assert "more: noisescope score toy.jsonl<" in found
    assert f"yours: noisescope review {contents.run.directory}<" in found


def test_known_labels_and_the_lead_of_the_figures_agree(contents, tmp_path):
    assert "The truth about these labels is not known." in page(contents)
    run = planted_run(tmp_path / "runs")
    data = tmp_path / "data"
    data.mkdir()
    (data / "toy.jsonl").touch()
    names = pq.read_table(run.pairs_path, columns=["pair_id"])
    wrong = pa.array([at % 5 == 0 for at in range(len(names))])
    pq.write_table(names.append_column("mislabelled", wrong), data / "truth.parquet")
    run.write_manifest(run.manifest() | {"resolved": str(data / "toy.jsonl")})
    found = gather(run, worst=5)
    assert found.pairs[0]["known"] == "known to be wrong"
    html = page(found)
    assert "not known" not in html
    command = f"noisescope validate {data / 'toy.jsonl'} --truth {data / 'truth.parquet'}"
    assert command in html


def test_reviewers_come_before_the_audit(contents):
    people = SimpleNamespace(
        share=lambda: Interval(0.15, 0.12, 0.18), sentence=lambda: "reviewed: 15%"
    )
    found = replace(with_summary(contents, trust=NOTHING), reviews=people)
    assert headline(found) == (
        "By a random sample that people judged, between 480 and 720 labels are wrong (12% to 18%)."
    )


def test_a_summary_of_an_older_version_says_so(contents):
    found = with_summary(contents)
    for name in ("trust", "find", "annotators"):
        found.manifest["summary"].pop(name, None)
    text = text_of(page(found))
    assert "repeat its noisescope score command" in text
    assert "stands out" not in text
