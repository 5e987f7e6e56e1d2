"""The paper's tables: small runs give tables and pictures, full commands parse, intervals hold."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("table1", "table2", "table3", "table4", "table5", "table6")
FIGURES = ("figure2", "figure3", "figure6")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Benchmarks stand beside the tests; caches stay in this test's own folder."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def paper(name: str) -> Any:
    return importlib.import_module(f"benchmarks.paper.{name}")


def miniature(**changes: Any) -> Any:
    small = {"seeds": (0,), "pairs": 60, "images": 24, "steps": 1} | changes
    return paper("script").Small(**small)


@pytest.mark.parametrize("name", TABLES + FIGURES)
def test_every_printed_command_parses(name: str) -> None:
    from noisescope.cli import app

    group = typer.main.get_command(app)
    steps = list(paper(name).SCRIPT.full())
    assert steps
    for step in steps:
        program, command, *words = shlex.split(step.command)
        assert program == "noisescope"
        context = group.commands[command].make_context(command, words)
        assert not context.args  # nothing left over


def test_a_command_with_a_wrong_option_does_not_parse() -> None:
    from noisescope.cli import app

    group = typer.main.get_command(app)
    with pytest.raises(Exception, match="--presett"):
        group.commands["train"].make_context("train", ["d", "--presett", "sd15"])


def test_presets_of_the_printed_trainings_are_known() -> None:
    from noisescope.training.policy.settings import settled

    for name in TABLES:
        for step in paper(name).SCRIPT.full():
            words = shlex.split(step.command)
            if words[1] != "train":
                continue
            preset = words[words.index("--preset") + 1]
            objective = words[words.index("--objective") + 1]
            modality = "text" if preset == "hh" else "image"
            assert settled(modality, named=preset, objective=objective).make_objective()


def test_hours_are_counted_operations_over_the_stated_rate() -> None:
    full = paper("full")
    calls = (full.TRAIN_CALLS + full.REFERENCE_CALLS) * 2
    by_hand = (
        full.PAIRS["image"] * calls * full.unit("sd15") / (full.RATE * full.UTILISATION * 3600)
    )
    assert full.train("d", "sd15", "dpo", "o").hours == pytest.approx(by_hand)
    assert full.train("d", "sd15", "dpo", "o", extra=4).hours == pytest.approx(2 * by_hand)
    assert full.Step("noisescope flip d").hours == 0
    assert 0.6e12 < full.unit("sd15") < 0.9e12  # 0.34 T multiply-adds and attention's products
    assert full.unit("hh") == pytest.approx(2 * 124e6 * full.TOKENS, rel=0.01)  # GPT-2: 124 M


def test_contrasts_are_paired_and_cover() -> None:
    results = paper("results")
    random = np.random.default_rng(0)
    groups = [random.integers(0, 40, 200) for _ in range(3)]
    outcomes = results.Outcomes(groups)
    for _ in range(3):
        right = (random.random(200) < 0.7).astype(float)
        outcomes.add(0.0, "dpo", right)
        outcomes.add(0.2, "dpo", right)
        outcomes.add(0.2, "worse", np.where(random.random(200) < 0.2, 0.0, right))
    found = outcomes.resampled()
    same = found.contrast((0.0, "dpo"), (0.2, "dpo"))
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    gap = found.contrast((0.0, "dpo"), (0.2, "worse"))
    mean = np.mean([a.mean() - b.mean() for a, b in zip(
        outcomes.cells[0.0, "dpo"], outcomes.cells[0.2, "worse"], strict=True)])  # fmt: skip
    assert gap.estimate == pytest.approx(mean)
    assert gap.low < gap.estimate < gap.high
    assert gap.low > 0.05


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(0.01, 0.3, "yes"), (-0.3, -0.01, "no, the other way round"), (-0.1, 0.2, "cannot be told")],
)
def test_directions_say_no_more_than_their_interval(low: float, high: float, answer: str) -> None:
    from noisescope.scoring.metrics import Interval

    middle = (low + high) / 2
    assert paper("results").Direction("?", Interval(middle, low, high)).answer == answer


@pytest.mark.parametrize("name", ["table2", "table3"])
def test_images_train_through_the_loop(name: str) -> None:
    classroom = paper("classroom")
    room = classroom.image_room(0, limit=24, steps=1, batch=4, layers=1)
    flipped = room.plant(0.3)
    assert not flipped[room.exam].any()
    prompts = room.dataset.table.column("prompt").to_pylist()
    assert not {prompts[i] for i in room.exam} & {prompts[i] for i in room.train}
    methods = {
        "table2": paper("table2").IMAGE_METHODS,
        "table3": paper("table3").METHODS,
    }[name]
    for lesson in methods.values():
        right = room.teach(flipped, lesson(room, flipped))
        assert right.shape == room.exam.shape
        assert set(right) <= {0.0, 0.5, 1.0}


def test_a_text_table_in_miniature() -> None:
    script = paper("table4").SCRIPT
    small = miniature()
    result = script.tiny(small)
    assert result.tables
    assert all(result.tables.values())
    assert result.directions
    assert result.trained > 0
    for picture in result.pictures:
        assert picture.encode("png").startswith(b"\x89PNG")
        assert picture.alt
    text = paper("script").markdown(
        script, result, small, {"wall": 1.0, "cpu": 1.0}, {"processor": "x", "load_1min": 0.0}
    )
    assert script.published in text
    assert "| question | difference | answer |" in text


def test_methods_of_the_other_text_tables_train() -> None:
    methods = {name: paper("table6").METHODS[name] for name in ("ipo", "adaptive-ipo (audit)")}
    methods["margin"] = paper("figure6").margin_alone
    methods["shuffled"] = paper("table2").TEXT_METHODS[paper("table2").CONTROL]
    found = paper("cells").text_cells(miniature(), (0.2,), methods)
    for regime in found.values():
        for method in methods:
            assert 0 <= regime.value((0.2, method)).estimate <= 1


def test_replicas_vote_as_annotators_do() -> None:
    figure = paper("figure2")
    one = paper("loglinear").course(miniature(), 0)
    flipped = one.plant(0.3)
    n = len(one.split.train)
    turned = flipped[one.split.train]
    knowing = np.where(turned, -1.0, 1.0)  # always on the truth's side, whatever the label says
    margins = np.stack([knowing, knowing, np.ones(n)])  # the third believes every label
    values, found = figure.measured(one, flipped, margins)
    labels, truth, split = (values[name] for name in figure.MEASURES)
    wrong = turned.mean()
    assert labels == pytest.approx((2 * (1 - wrong) + 1) / 3)
    assert truth == pytest.approx((2 + 1 - wrong) / 3)
    assert split == pytest.approx(wrong)
    assert found.annotators == 3
    (direction,) = figure.gaps(margins, turned)
    assert direction.answer == "yes"


def test_a_finished_cell_is_not_made_again() -> None:
    kept = paper("kept").kept
    made = []

    def make() -> Any:
        made.append(1)
        return {"tuned": np.array([1.0, 0.5])}

    first, again = kept(make, "a", "b"), kept(make, "a", "b")
    assert len(made) == 1
    assert again.rights["tuned"].tolist() == first.rights["tuned"].tolist() == [1.0, 0.5]
    kept(make, "a", "c")
    assert len(made) == 2


def test_weights_of_the_ablation_come_from_one_audit() -> None:
    weights = importlib.import_module("noisescope.scoring.weights")
    one = paper("loglinear").course(miniature(), 0)
    flipped = one.plant(0.2)
    light, heavy = (
        one.weights(flipped, weights.WeightConfig(k1=k1))["weight"] for k1 in (4.0, 12.0)
    )
    assert (heavy <= light).all()
    assert len(one.audits) == 1
    table = paper("table5")
    assert {table.named(rho, k1) for rho in table.RHO for k1 in table.K1} >= {"rho 1, k1 10"}


def test_the_histogram_of_u_comes_from_a_validation() -> None:
    figure = paper("figure3")
    random = np.random.default_rng(0)
    flipped = random.random(300) < 0.2
    columns = {"planting": np.repeat([0, 1, 2], 100), "mislabelled": flipped}
    for score in figure.SHOWN:
        columns[score] = random.random(300) + flipped
    result = figure._add(paper("results").Result(), "toy", columns)
    (direction,) = result.directions
    assert direction.answer == "yes"
    shares = result.tables["toy: flipped share by interval of u, all plantings"]
    assert sum(row["pairs"] for row in shares) == 300
    assert [picture.name for picture in result.pictures] == ["figure3-toy-histogram", "figure3-toy"]


def test_a_script_writes_its_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json
    from dataclasses import replace

    from noisescope.scoring.metrics import Interval

    results, figures, script = paper("results"), paper("figures"), paper("script")

    def tiny(small: Any) -> Any:
        value = Interval(0.7, 0.6, 0.8)
        found = results.Result({"t": [{"method": "dpo", "0%": results.told(value)}]})
        found.directions.append(results.Direction("does it?", value))
        found.pictures.append(figures.bars("table4", "T", {"dpo": value}, "caption"))
        return found

    made = replace(paper("table4").SCRIPT, tiny=tiny)
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    script.main(made, ["--out", str(out), "--json", str(copy), "--seeds", "1"])
    assert "0.700 [0.600, 0.800]" in capsys.readouterr().out
    assert json.loads(copy.read_text())["results"]["directions"][0]["answer"] == "yes"
    assert sorted(path.name for path in out.iterdir()) == [
        "table4.json", "table4.md", "table4.png",
    ]  # fmt: skip
    script.main(made, ["--scale", "full"])
    said = capsys.readouterr().out
    assert "noisescope train Anthropic/hh-rlhf" in said
    assert "H100 hours in all" in said


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--task", "ukp", "--data", "nowhere"]])
def test_impossible_runs_are_refused_before_they_start(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        paper("script").main(paper("table4").SCRIPT, words)
    assert refused.value.code == 2
    assert words[0] in capsys.readouterr().err
