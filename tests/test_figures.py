"""Figures draw what they are given, tell it in words, and give the same bytes each time."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from benchmarks.paper.figure3 import flips_by_u
from noisescope.report import bars, curves, dots
from noisescope.report import dots as scatter
from noisescope.report.style import BLUE, DARK, GREEN, INK, ORANGE, VERMILLION, Picture, dark
from noisescope.scoring.annotators import Annotator
from noisescope.scoring.detection import deciles, rise_chance, u_edges
from noisescope.scoring.metrics import Interval

RNG = np.random.default_rng(0)
WRONG = np.arange(600) % 5 == 0
P_FLIP = np.clip(np.where(WRONG, 0.7, 0.15) + RNG.normal(0, 0.15, 600), 0.001, 0.999)
U = RNG.gamma(1.0, 1.0, 600) * (1 + WRONG)
TABLE = [
    Annotator("$upside$ <b>down</b>", 80, 0.2, 0.7, 0.6, 0.8, True, True),
    Annotator("fine", 90, 0.9, 0.1, 0.05, 0.2, False, False),
]
FOUND = {"p_flip": Interval(0.86, 0.85, 0.87), "u": Interval(0.6, 0.58, 0.62)}
GROUPS = {"a_b$": Interval(0.1, 0, 0.2)}
LOSSES = np.array([[0.7, 0.6], [0.7, 0.5]])
DRAWINGS: dict[str, Callable[[], Picture]] = {
    "flips-by-decile": lambda: bars.flips_by_decile(P_FLIP, WRONG),
    "precision-recall": lambda: curves.precision_recall({"p_flip": P_FLIP}, WRONG),
    "reliability": lambda: curves.reliability(P_FLIP, WRONG),
    "data-map": lambda: scatter.data_map(1 - 3 * P_FLIP, U, WRONG),
    "annotators": lambda: dots.annotators(TABLE),
    "by-length": lambda: dots.groups("by-length", "Title", {"a_b$": Interval(0.1, 0, 0.2)}, 0.1),
    "learning-curves": lambda: curves.learning_curves([1, 2], np.array([[0.7, 0.6], [0.7, 0.5]])),
    "p-wrong": lambda: bars.p_wrong_histogram(P_FLIP),
    "detectors": lambda: dots.detectors(FOUND, 0.9),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_named_told_and_reproducible(name: str) -> None:
    picture = DRAWINGS[name]()
    assert picture.name == name
    assert picture.title in picture.figure.axes[0].get_title(loc="left")
    assert len(picture.alt) > 30
    assert picture.caption
    svg = picture.encode("svg")
    assert svg == picture.encode("svg") == DRAWINGS[name]().encode("svg")
    assert picture.encode("png").startswith(b"\x89PNG")
    assert b"<script" not in svg
    used = set(re.findall(rb"#[0-9a-f]{6}", dark(svg)))
    assert not used & {colour.encode() for colour in (INK, BLUE, VERMILLION)}


def test_bars_are_the_shares_of_their_groups() -> None:
    flipped = np.arange(100) >= 90
    axes = bars.flips_by_decile(np.arange(100) / 100, flipped).figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.0] * 9 + [1.0]


def test_every_pair_falls_into_one_interval_of_u() -> None:
    edges = u_edges(U)
    assert edges[0] == 0
    assert np.isinf(edges[-1])
    assert np.histogram(U, edges)[0].sum() == len(U)


def test_bars_of_the_papers_figure_hold_every_pair() -> None:
    picture = flips_by_u("figure3", U, WRONG)
    (axes,) = picture.figure.axes
    names = [label.get_text().splitlines() for label in axes.get_xticklabels()]
    assert sum(int(count) for _, count in names) == len(U)
    assert max(len(name) for name, _ in names) <= len("0.35–0.4")
    edges = u_edges(U)
    inside = (edges[1] <= U) & (edges[2] > U)
    assert axes.patches[1].get_height() == pytest.approx(WRONG[inside].mean())


def test_roc_of_a_perfect_score_is_the_corner() -> None:
    false, true = curves._operating_points(WRONG.astype(float), WRONG)
    assert np.trapezoid(true, false) == pytest.approx(1.0)


@pytest.mark.parametrize("what", ["flipped", "wrong"])
def test_figures_name_the_truth_that_they_are_about(what: str) -> None:
    other = {"flipped": "wrong", "wrong": "flipped"}[what]
    for picture in (
        bars.flips_by_decile(P_FLIP, WRONG, "p_wrong", what),
        curves.reliability(P_FLIP, WRONG, "p_wrong", what),
        curves.precision_recall({"p_wrong": P_FLIP}, WRONG, what),
        dots.detectors(FOUND, 0.9, what),
    ):
        axes = picture.figure.axes[0]
        words = [picture.title, picture.alt, axes.get_xlabel(), axes.get_ylabel()]
        assert what in " ".join(words)
        assert other not in re.sub("p_wrong|p_flip|planted flips", "", " ".join(words))


def test_detectors_of_one_ranking_are_drawn_once() -> None:
    same = dict.fromkeys(("loss", "p_wrong", "mean"), Interval(0.9, 0.88, 0.92))
    picture = dots.detectors(FOUND | same, None)
    rows = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert rows == ["p_wrong and 2 alike", "p_flip", "u"]
    assert "loss = mean = p_wrong 0.900" in picture.alt


def test_flagged_and_unflagged_bars_differ_in_grey() -> None:
    def grey(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    assert abs(grey(BLUE) - grey(VERMILLION)) > 20
    for one, other in combinations((BLUE, ORANGE, INK), 2):
        assert abs(grey(one) - grey(other)) > 20
    assert set(DARK) >= {BLUE, VERMILLION, GREEN, INK}
    drawn = bars.flips_by_decile(P_FLIP, WRONG).figure.axes[0].patches
    assert {bar.get_hatch() for bar in drawn} == {"", "//"}


def test_tenths_of_a_calibrated_p_flip_rise_where_there_are_pairs_enough() -> None:
    few, many = np.linspace(0, 1, 100), np.linspace(0, 1, 100_000)
    assert rise_chance(np.full(1000, 0.2)) < 0.01
    assert rise_chance(few) < rise_chance(many) == 1.0
    wrong = np.random.default_rng(0).random(len(many)) < many
    assert (np.diff([group.mean() for group in deciles(many, wrong)]) > 0).all()
