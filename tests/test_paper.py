"""The paper's tables: published cells, tiny runs, full commands, intervals."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("table1", "table2", "table3", "table4", "table5", "table6")
FIGURES = ("figure2", "figure3", "figure6")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the benchmarks importable, and keep caches in this test's own folder."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def paper(name: str) -> Any:
    return importlib.import_module(f"benchmarks.paper.{name}")


def miniature(**changes: Any) -> Any:
    small = {"seeds": (0,), "pairs": 60, "images": 24, "steps": 1} | changes
    return paper("script").Small(**small)


def test_every_published_cell_is_stated_and_agrees_with_its_repetition() -> None:
    published = paper("published").PUBLISHED
    cells = {name: len(published[name].select()) for name in TABLES}
    assert cells == dict(zip(TABLES, (32, 24, 16, 2, 20, 8), strict=True))
    for name in TABLES[1:]:
        assert all(0.5 < value < 1 for value in published[name].select())
    chosen = published["table3"].select(backbone="SD1.5", against="DPO")
    for parameter, value in (("k1", "10"), ("rho", "15")):
        where = {"hyper-parameter": parameter, "value": value}
        assert published["table5"].select(**where) == chosen


@pytest.mark.parametrize("name", TABLES + FIGURES)
def test_the_page_states_what_is_published(name: str) -> None:
    text = (ROOT / "benchmarks" / "paper" / "README.md").read_text(encoding="utf-8")
    published = paper("published").PUBLISHED[name]
    assert published.caption in text.replace("\n", " ")
    assert "\n".join(published.table()) in text
    assert f"## {paper(name).TITLE}" in text


def test_flips_are_added_to_the_labels_as_collected() -> None:
    task = paper("text_task").text_task(miniature(), 0)
    assert task.collected.any()
    assert (task.plant(0.0) == task.collected).all()
    added = task.plant(0.3) ^ task.collected
    assert 0.1 < added.mean() < 0.5


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
    [(0.01, 0.3, "yes"), (-0.3, -0.01, "no, the reverse"), (-0.1, 0.2, "inconclusive")],
)
def test_an_answer_needs_an_interval_without_zero(low: float, high: float, answer: str) -> None:
    from noisescope.scoring.metrics import Interval

    middle = (low + high) / 2
    assert paper("results").Direction("?", Interval(middle, low, high)).answer == answer


@pytest.mark.parametrize("name", ["table3", "table5", "table6"])
def test_images_train_through_the_loop(name: str) -> None:
    task = paper("image_task").image_task(0, limit=24, steps=1, batch=4, layers=1)
    wrong = task.plant(0.3)
    assert not wrong[task.test].any()
    prompts = task.dataset.table.column("prompt").to_pylist()
    assert not {prompts[i] for i in task.test} & {prompts[i] for i in task.train_pairs}
    methods = {
        "table3": paper("table3").METHODS,
        "table5": paper("table5").IMAGE_METHODS,
        "table6": paper("table6").IMAGE_METHODS,
    }[name]
    for method in methods.values():
        right = task.train(wrong, method(task, wrong))
        assert right.shape == task.test.shape
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
    assert script.published.markdown() in text
    assert "| question | difference here | answer here | published |" in text
    assert "| yes, win rate 0.53 |" in text


def test_methods_of_the_other_text_tables_train() -> None:
    methods = dict(paper("table6").TEXT_METHODS)
    methods["margin"] = paper("figure6").margin_alone
    methods["shuffled"] = paper("table2").TEXT_METHODS[paper("table2").CONTROL]
    methods["rho 15"] = paper("table5").TEXT_METHODS[paper("table5").named(15, 4)]
    found = paper("cells").text_cells(miniature(), (0.2,), methods)
    for regime in found.values():
        for method in methods:
            assert 0 <= regime.value((0.2, method)).estimate <= 1


def test_replicas_vote_as_annotators_do() -> None:
    figure = paper("figure2")
    one = paper("text_task").text_task(miniature(), 0)
    flipped = one.plant(0.3)
    n = len(one.split.train)
    turned = flipped[one.split.train]
    knowing = np.where(turned, -1.0, 1.0)  # always on the side of the truth
    margins = np.stack([knowing, knowing, np.ones(n)])  # the third trusts every label
    values, found = figure.measured(one, flipped, margins)
    labels, truth, split = (values[name] for name in figure.MEASURES)
    wrong = turned.mean()
    assert labels == pytest.approx((2 * (1 - wrong) + 1) / 3)
    assert truth == pytest.approx((2 + 1 - wrong) / 3)
    assert split == pytest.approx(wrong)
    assert found.annotators == 3
    (direction,) = figure.gaps(margins, turned)
    assert direction.answer == "yes"


def test_a_finished_cell_is_not_computed_again() -> None:
    cached = paper("cache").cached
    made = []

    def make() -> Any:
        made.append(1)
        return {"tuned": np.array([1.0, 0.5])}

    first, again = cached(make, "a", "b"), cached(make, "a", "b")
    assert len(made) == 1
    assert again.arrays["tuned"].tolist() == first.arrays["tuned"].tolist() == [1.0, 0.5]
    cached(make, "a", "c")
    assert len(made) == 2


def test_weights_of_the_ablation_come_from_one_audit() -> None:
    weights = importlib.import_module("noisescope.scoring.weights")
    one = paper("text_task").text_task(miniature(), 0)
    flipped = one.plant(0.2)
    light, heavy = (
        one.weights(flipped, weights.WeightConfig(k1=k1))["weight"] for k1 in (4.0, 12.0)
    )
    assert (heavy <= light).all()
    assert len(one.audits) == 1


def test_table_5_has_the_choices_of_the_paper() -> None:
    table = paper("table5")
    assert set(table.CELLS) == {(15.0, 4.0), (15.0, 10.0), (15.0, 12.0), (10.0, 10.0)}
    assert table.row(15.0, 4.0) == [0.64, 0.68, 0.66, 0.69]
    assert table.row(10.0, 10.0) == [0.61, 0.70, 0.68, 0.66]
    won = [table.metrics_won(*cell) for cell in ((15.0, 4.0), (15.0, 12.0), (10.0, 10.0))]
    assert won == [f"SD1.5: better on {count} of 4 metrics" for count in (3, 0, 2)]


def test_three_people_are_held_against_each_other(tmp_path: Path) -> None:
    figure = paper("figure2")
    items = [
        dict(zip(("annotator1", "annotator2", "annotator3"), row, strict=True))
        for row in ("111", "112", "220", (0, 1, 2))
    ]
    path = tmp_path / "people.json"
    path.write_text(json.dumps(items))
    answers = figure.people(path)
    rows = figure.crowd(answers)
    assert [row["judged pairs"] for row in rows] == [1, 1, 3]
    assert [row["accuracy"][:5] for row in rows] == ["1.000", "1.000", "0.333"]
    assert [row["answers neither"] for row in rows] == [0.25, 0.0, 0.25]
    found = figure.deviation(answers)
    expected = np.mean([0, np.std([1, 1, 0]), np.std([0, 0, 0.5]), np.std([0.5, 1, 0])])
    assert found["mean standard deviation"] == pytest.approx(expected)
    assert found["all three agree"] == 0.25


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
    shares = result.tables["toy: flipped share by interval of u, all seeds"]
    assert sum(row["pairs"] for row in shares) == 300
    assert [picture.name for picture in result.pictures] == ["figure3-toy-histogram", "figure3-toy"]


def test_a_script_writes_its_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from noisescope.scoring.metrics import Interval

    results, figures, script = paper("results"), paper("figures"), paper("script")

    def tiny(small: Any) -> Any:
        value = Interval(0.7, 0.6, 0.8)
        found = results.Result({"t": [{"method": "dpo", "0%": results.shown(value)}]})
        found.directions.append(results.Direction("does it?", value))
        found.pictures.append(figures.bars("table4", "T", {"dpo": value}, "caption"))
        return found

    made = replace(paper("table4").SCRIPT, tiny=tiny)
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    script.main(made, ["--out", str(out), "--json", str(copy), "--seeds", "1"])
    assert "0.700 [0.600, 0.800]" in capsys.readouterr().out
    assert json.loads(copy.read_text())["results"]["directions"][0]["answer"] == "yes"
    assert sorted(path.name for path in out.iterdir()) == ["table4.md", "table4.png"]
    assert "(table4.png)" in (out / "table4.md").read_text()
    script.main(made, ["--scale", "full"])
    printed = capsys.readouterr().out
    assert "noisescope train Anthropic/hh-rlhf" in printed
    assert "Qwen2.5-72B" in printed
    assert "H100 hours in all" in printed


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--task", "ukp", "--data", "nowhere"]])
def test_impossible_runs_are_refused_before_they_start(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        paper("script").main(paper("table4").SCRIPT, words)
    assert refused.value.code == 2
    assert words[0] in capsys.readouterr().err
