"""Flip rates over runs: a planted rise and fall are named, no trend is found in equal runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.gate_runs import made_pairs, made_run, margins_of

from noisescope import cli
from noisescope.cli.diff import WIDE, whisker
from noisescope.errors import UsageError
from noisescope.report.html import write_report
from noisescope.scoring.history import Point, earlier_runs, history, last_step, trend
from noisescope.scoring.metrics import Interval
from noisescope.storage.run import Run

WEEKS = 4


def deliveries(place: Path, rates: tuple[float, ...], count: int = 1000) -> list[Run]:
    """A run a week, of pairs that no other week has."""
    runs = []
    for week, rate in enumerate(rates):
        pairs, margins = made_pairs(count, week * count), margins_of(count, rate, week, gap=3.0)
        runs.append(made_run(place, pairs, margins, name=f"week{week + 1}"))
        runs[-1].write_manifest({**runs[-1].manifest(), "adapter": "trl"})
    return runs


@pytest.fixture(scope="module")
def rising(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return deliveries(tmp_path_factory.mktemp("rising"), (0.05, 0.12, 0.19, 0.26))


def test_a_rise_is_named_and_its_slope_is_the_planted_one(rising: list[Run]) -> None:
    with pytest.raises(UsageError, match="is named twice"):
        history([*rising, rising[0]])
    found = history(rising)
    assert [point.dataset for point in found.points] == ["week1", "week2", "week3", "week4"]
    assert all(point.acts for point in found.points)
    assert found.trend is not None
    assert found.trend.low < 0.07 < found.trend.high
    assert found.sentence.startswith("The flip rate rises: +")
    assert history(rising[::-1]).sentence.startswith("The flip rate falls: -")
    assert found.to_json()["runs"][0]["flip_rate"] == found.points[0].flip_rate.to_json()


def point(rate: float, half: float, acts: bool = True) -> Point:
    found = Interval(rate, rate - half, rate + half)
    return Point("run", "data", "", 100, found, found, "good" if acts else "cannot know", acts)


def test_the_slope_is_that_of_weighted_least_squares() -> None:
    slope, start = trend([point(0.1, 0.02), point(0.2, 0.02), point(0.3, 0.02)])
    assert slope is not None
    assert start == pytest.approx(0.1)
    assert slope.estimate == pytest.approx(0.1)
    assert slope.high - slope.estimate == pytest.approx(0.02 / 2**0.5)
    uneven, _ = trend([point(0.1, 0.02), point(0.5, 0.02), point(0.3, 0.02)])
    assert uneven is not None
    assert uneven.low < 0 < uneven.high  # scatter beyond the runs' own intervals
    assert trend([point(0.1, 0.02), point(0.3, 0.02, acts=False)]) == (None, None)
    gap, _ = trend([point(0.1, 0.02), point(0.9, 0.02, acts=False), point(0.3, 0.02)])
    assert gap is not None
    assert gap.estimate == pytest.approx(0.1)  # two runs later


def test_a_step_at_the_end_is_named_though_it_is_no_trend(tmp_path: Path) -> None:
    found = history(deliveries(tmp_path, (0.1, 0.1, 0.1, 0.3)))
    assert found.last is not None
    assert found.last.low < 0.2 < found.last.high
    assert "The last run differs from those before it by +" in found.sentence
    step = last_step([point(0.1, 0.03), point(0.1, 0.03), point(0.3, 0.04)])
    assert step is not None
    assert step.estimate == pytest.approx(0.2)
    assert step.high - step.estimate == pytest.approx((0.04**2 + 0.03**2 / 2) ** 0.5)
    assert last_step([point(0.1, 0.03), point(0.1, 0.03), point(0.3, 0.04, acts=False)]) is None


def test_equal_runs_and_other_judges_have_no_trend(tmp_path: Path) -> None:
    same = deliveries(tmp_path, (0.1, 0.1, 0.1), 400)
    assert history(same).sentence.startswith("No trend: ")
    assert "last run" not in history(same).sentence
    assert "gate --baseline" in history(same).sentence
    manifest = same[1].manifest()
    same[1].write_manifest({**manifest, "model_fingerprint": "1" * 20})
    found = history(same)
    assert found.trend is None
    assert "different models" in found.notes[0]


def test_the_command_prints_runs_and_trend(
    rising: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(run.directory) for run in rising]
    assert cli.run(["diff", *names]) == 0
    out = capsys.readouterr().out
    table = out[: out.index("The flip rate")].splitlines()
    assert max(map(len, map(str.rstrip, table))) <= 80
    assert "…" not in "".join(table)
    assert out.index("week1") < out.index("week4") < out.index("The flip rate rises")
    assert "●" in out
    assert f"noisescope report {names[-1]} --earlier {names[0]}" in " ".join(out.split())
    assert cli.run(["diff", *names, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == history(rising).to_json()


def test_an_interval_is_drawn_to_scale() -> None:
    assert whisker(Interval(0.0, 0.0, 1.0), 1.0) == "●" + "─" * (WIDE - 1)
    half = whisker(Interval(1.0, 0.5, 1.0), 1.0)
    assert half.endswith("─●")
    assert half.count(" ") in (WIDE // 2 - 1, WIDE // 2)


def test_the_page_shows_the_runs_before(rising: list[Run], tmp_path: Path) -> None:
    page, _ = write_report(rising[-1], tmp_path / "page.html", earlier=rising[:-1])
    html = page.read_text("utf-8")
    section = html[html.index('<section id="history"') :]
    section = section[: section.index("</section>")]
    assert "The flip rate rises" in section
    assert section.count('<th scope="row">week') == 4
    alone, _ = write_report(rising[0], tmp_path / "alone.html")
    assert '<section id="history"' not in alone.read_text("utf-8")


def test_earlier_states_of_one_dataset_are_found(tmp_path: Path) -> None:
    states = [made_run(tmp_path, made_pairs(n), margins_of(n, 0.1, n)) for n in (60, 80, 100)]
    made_run(tmp_path, made_pairs(50), margins_of(50, 0.1, 0), name="other")
    assert [run.directory for run in earlier_runs(states[2])] == [
        run.directory for run in states[:2]
    ]
    assert earlier_runs(states[0]) == []
