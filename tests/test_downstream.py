"""The training benchmarks: what they train, keep and count, on cases small enough to work out."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from noisescope.training.objectives import (
    CDPO,
    DPO,
    RDPO,
    ROPO,
    AdaptiveDPO,
    DistilledDPO,
    PairValues,
)

ROOT = Path(__file__).resolve().parent.parent

#: Four responses whose worth is their first coordinate; the second is noise.
ROWS = torch.tensor([[2.0, 0.3], [1.0, -0.2], [-1.0, 0.1], [-2.0, -0.4]])
BETTER, WORSE, NOBODY = np.array([0, 0, 1]), np.array([2, 3, 3]), np.zeros(3, np.int64)


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Make the benchmarks importable."""
    monkeypatch.syspath_prepend(ROOT)


def part(name: str) -> Any:
    return importlib.import_module(f"benchmarks.downstream.{name}")


def learnt(objective, chosen=BETTER, rejected=WORSE, **given) -> torch.Tensor:
    """theta of every penalty, [K, Q]."""
    policies = part("policies")
    split = policies.Split(ROWS, *(np.arange(3) for _ in range(3)))
    recipe = policies.Recipe(objective, **given)
    return policies.train(split, (chosen, rejected), recipe, NOBODY[: len(chosen)])


def margins_of(theta: torch.Tensor) -> torch.Tensor:
    """Margins of the training pairs under every penalty, [n, Q]."""
    return (ROWS @ theta)[BETTER] - (ROWS @ theta)[WORSE]


def test_a_policy_learns_its_labels_and_a_penalty_holds_it_back():
    margins = margins_of(learnt(DPO(0.1)))
    assert margins.shape == (3, len(part("policies").PENALTIES))
    assert (margins > 0).all()
    assert (margins[0].diff() < 0).all()
    assert (margins_of(learnt(DPO(0.1), WORSE, BETTER)) < 0).all()


def test_a_pair_of_weight_zero_teaches_nothing():
    chosen, rejected = np.array([0, 0, 3]), np.array([2, 3, 1])  # the last one is wrong
    without = learnt(DPO(0.1), chosen[:2], rejected[:2])
    found = learnt(DPO(0.1), chosen, rejected, weight=np.array([1.5, 1.5, 0.0]))
    torch.testing.assert_close(found, without, rtol=1e-3, atol=1e-3)


def test_a_distilled_policy_ends_at_the_beliefs():
    belief = np.array([1.14, 1.39, 1.14])  # of theta = (.4, -.3)
    margins = margins_of(learnt(DistilledDPO(0.1), gamma=belief))
    assert margins[:, 0].numpy() == pytest.approx(belief, abs=0.1)


@pytest.mark.parametrize(
    ("objective", "slope"),
    [
        (DPO(0.1), 1.0),
        (DistilledDPO(0.1), 1.0),
        (CDPO(0.1, flip_rate=0.2), 0.6),
        (RDPO(0.1, flip_rate=0.2), 1 / 0.6),
        (ROPO(0.1), 4 * 14 / 15**2 * (1 + 14 / 2)),
    ],
)
def test_losses_are_scaled_by_their_slope_at_zero(objective, slope):
    assert part("policies").slope_at_zero(objective) == pytest.approx(slope, rel=1e-4)


def test_regimes_take_the_tuned_the_clean_and_no_penalty():
    groups = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    found = {
        (7, ("uniform", 0.0)): {"dpo": (groups, 2)},
        (7, ("uniform", 0.2)): {"dpo": (groups, 1), "rdpo": (groups, 0)},
    }
    cells = part("topics").by_regime(found)
    assert cells["uniform", 0.2, "dpo", "tuned"].tolist() == [[0.2, 0.5]]
    assert cells["uniform", 0.2, "rdpo", "recipe"].tolist() == [[0.3, 0.6]]
    assert cells["uniform", 0.2, "rdpo", "unregularised"].tolist() == [[0.1, 0.4]]


def test_a_cached_result_is_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls, kept = [], part("kept").kept

    def make():
        calls.append(1)
        return {"dpo": (np.array([[0.5, 0.25]]), 1)}

    for _ in range(2):
        groups, best = kept(make, "model", "seed 1")["dpo"]
        assert (groups.tolist(), best) == ([[0.5, 0.25]], 1)
    assert len(calls) == 1
    kept(make, "model", "seed 2")
    assert len(calls) == 2
    assert len(list(tmp_path.glob("noisescope/downstream/*.json"))) == 2
    assert all(json.loads(path.read_text()) for path in tmp_path.glob("noisescope/downstream/*"))


def test_shares_recovered_and_targets():
    tables = part("tables")
    assert tables.share(0.7, 0.8, 0.6) == pytest.approx(0.5)
    assert np.isnan(tables.share(0.7, 0.6, 0.6))
    cell = {name: np.full((2, 3), value) for name, value in (("a", 0.7), ("b", 0.8), ("c", 0.6))}
    draws = tables.resamples(2, 3)
    assert tables.recovered(cell["a"], cell["b"], cell["c"], draws) == "0.50 [0.50, 0.50]"
    assert tables.recovered(cell["a"], cell["c"], cell["c"], draws) == "–"
    where = ("uniform", 0.3)
    cells = {
        ("uniform", 0.0, "dpo", ""): cell["b"],
        (*where, "dpo", ""): cell["c"],
        (*where, "rdpo", ""): cell["a"],
        (*where, "ours", ""): cell["a"] + 0.08,
    }
    assert tables.best_rival(cells, where, "", "losses without an audit") == "rdpo"
    cells[*where, "adaptive-ipo (paper)", ""] = cell["b"]
    report = importlib.import_module("benchmarks.harness").Report("x")
    tables.targets(cells, "ours", "", report, "text")
    assert [(t.name, round(t.value, 6), t.met) for t in report.targets] == [
        ("text, 30%: share recovered by ours", 0.9, True),
        ("text, 30%: ours less rdpo", 0.08, True),
        ("text, 30%: ours less adaptive-ipo (paper)", -0.02, False),
    ]


def test_every_rival_is_compared_with_its_own_inputs_only():
    parts, n = part("methods"), 4
    flipped = np.array([False, True, False, True, False, True])
    p_flip = np.array([0.9, 0.1, 0.5, 0.2])
    given = {name: np.arange(n) / 10 for name in ("weight", "gamma", "gap")}
    nobody = {"annotator": np.zeros(n, np.int64), "rewards": np.zeros(0)}
    noise = parts.Noisy(flipped, 0.3, p_flip, **given, **nobody)
    found = parts.methods(np.array([1, 2, 3, 4]), noise, seed=0)
    assert set(part("tables").RIVALS) < set(found)
    assert found["cdpo"].objective == CDPO(0.1, flip_rate=0.3)
    assert found["adaptive-dpo (paper)"].objective == AdaptiveDPO(0.1)
    assert found["p_flip: weight 1-2p"].weight == pytest.approx([0.0, 0.8, 0.0, 0.6])
    assert found["p_flip: drop-worst"].keep.tolist() == [False, True, False, True]
    assert found[parts.ORACLE].keep.tolist() == [False, True, False, True]
    assert found["random-drop control"].keep.sum() == found["p_flip: drop-worst"].keep.sum()
    assert found[parts.OURS].gamma is noise.gap


def test_adapters_set_aside_pairs_of_no_weight_and_fewer_methods_see_clean_labels():
    adapters, parts, n = part("adapters"), part("methods"), 3
    split = adapters.PromptSplit(np.array([4, 0, 2]), np.array([1, 3]), np.zeros(2, np.int64))
    given = {name: np.arange(n) / 10 for name in ("weight", "gamma", "gap")}
    given |= {"annotator": np.zeros(n, np.int64), "rewards": np.zeros(0)}
    noise = parts.Noisy(np.arange(5) == 4, 0.3, np.array([0.9, 0.1, 0.2]), **given)
    found = dict(adapters.recipes(split, noise, seed=0))
    assert set(part("tables").RIVALS) < set(found)
    assert found["p_flip: weight 1-2p"].pairs.tolist() == [0, 2]
    assert found["p_flip: weight 1-2p"].weight.tolist() == pytest.approx([0.8, 0, 0.6, 0, 0])
    assert found[parts.ORACLE].pairs.tolist() == [0, 2]
    assert found["adaptive-dpo (paper)"].pairs.tolist() == [0, 2]
    assert found[parts.OURS].gamma.tolist() == pytest.approx([0.1, 0, 0.2, 0, 0])
    clean = parts.Noisy(np.zeros(5, bool), 0.0, np.zeros(n), **given)
    assert set(dict(adapters.recipes(split, clean, seed=0))) == set(adapters.CLEAN)


def test_heads_are_right_where_they_prefer_the_better_side():
    parts, detect = part("methods"), importlib.import_module("benchmarks.detect")
    pairs = detect.Material(None, {}, np.array([0, 1, 2]), np.array([1, 2, 0]))
    given = {name: np.zeros(0) for name in ("p_flip", "weight", "gamma", "annotator", "gap")}
    noise = parts.Noisy(np.zeros(3, bool), 0.0, **given, rewards=np.array([2.0, 1.0, 2.0]))
    assert parts.heads_right(pairs, noise, np.array([0, 1, 2])).tolist() == [1, 0, 0.5]


def test_columns_of_training_pairs_are_spread_over_all_pairs():
    spread = part("adapters").spread
    assert spread(np.array([0.5, 2.0]), np.array([3, 1]), 5).tolist() == [0, 2.0, 0, 0.5, 0]
    assert spread(None, np.array([1]), 5) is None


def test_answers_are_compared_prompt_by_prompt():
    answers = part("answers")
    base = np.array([0.0, -1.0])
    found = {cell: np.tile(base, (2, 1)) for cell in answers.COMPARED}
    found[answers.CLEAN] = np.array([[0.0, 0.0], [0.0, 0.0]])
    clean, noisy, *_ = answers.table(found, base)
    assert clean["wins against the model trained from"].startswith("0.750 [")
    assert clean["score gained on the model trained from"].startswith("0.500 [")
    assert noisy["wins against the model trained from"] == "0.500 [0.500, 0.500]"
    assert noisy["wins against dpo, 30 % flips"] == "-"


ALL = "1.00 [1.00, 1.00]"


def made() -> dict[tuple[str, float, str, str], Any]:
    """A task where noise costs 0.2, ropo wins back a half and ours all of it; nothing at 20 %."""
    ours, oracle = part("methods").OURS, part("methods").ORACLE
    won = {"dpo": 0.6, "ropo": 0.7, ours: 0.8, oracle: 0.8}
    cells = {("uniform", 0.3, name, "tuned"): np.full((2, 3), value) for name, value in won.items()}
    cells |= {("uniform", 0.2, name, "tuned"): np.full((2, 3), 0.8) for name in won}
    return cells | {("uniform", 0.0, "dpo", "tuned"): np.full((2, 3), 0.8)}


def test_pages_show_the_share_recovered_or_a_dash(tmp_path):
    pages, harness = part("pages"), importlib.import_module("benchmarks.harness")
    report, ours = harness.Report("x"), part("methods").OURS
    part("tables").tabulate(made(), ours, ("tuned",), report, "text")
    file = tmp_path / "result.json"
    facts = {"results": report.tables, "facts": report.facts}
    targets = [vars(target) for target in report.targets]
    file.write_text(json.dumps(facts | {"targets": targets}, default=float))
    result = json.loads(file.read_text())
    cells = pages.cells_of(result)["text"]
    assert cells.keys() == made().keys()
    low, high = pages.summary({"text": cells}, pages.shares)
    assert (low["flips"], low["oracle"]) == ("20%", "–")
    assert (high["task"], high["flips"], high[ours]) == ("text, tuned", "30%", ALL)
    assert high["best without an audit"] == "0.50 [0.50, 0.50] ropo"
    assert high["adaptive-dpo (paper)"] == "not run"
    low, high = pages.summary({"text": cells}, pages.points)
    assert (low["lost by dpo"], high["lost by dpo"]) == ("0.0 [0.0, 0.0]", "20.0 [20.0, 20.0]")
    assert high["ours less dpo"] == "20.0 [20.0, 20.0]"
    assert high["ours less the best without an audit"] == "10.0 [10.0, 10.0] ropo"
    text = pages.full(result)
    assert "## Share of the loss recovered [90 %]: text, tuned" in text
    assert f"| {ours} | – | {ALL} |" in text
    assert f"| text, tuned, 20%: share recovered by {ours} | – | >= 0.8 | – |" in text
    assert f"| text, tuned, 30%: share recovered by {ours} | 1.000 | >= 0.8 | yes |" in text


def test_the_figure_has_a_panel_for_every_regime(tmp_path):
    figure = part("figure")
    cells = made()
    assert figure.regimes(cells) == ["tuned"]
    assert figure.line(cells, "ropo", "tuned") == ([20, 30], pytest.approx([0.8, 0.7]))
    alone = {(kind, rate, name, ""): cell for (kind, rate, name, _), cell in cells.items()}
    figure.draw({"topics": cells, "images": cells, "LoRA": alone}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_an_audit_knows_of_annotators_reaches_the_policies() -> None:
    """Contrarian annotators in easy pairs: everyone found, and all ways to use it recover."""
    soft = part("soft")
    clean = soft.simulated(600, 1, width=4, annotators=8)
    noisy = soft.plant(clean, "contrarian", 0.3, 1)
    assert 0.2 < noisy.wrong.mean() < 0.4
    test, validation = soft.parts(clean, 1)
    assert not set(clean.prompts[test]) & set(clean.prompts[~test])
    found = dict(soft.measure(clean, noisy, test, validation, 1))
    train = ~test & ~validation
    assert found["ceiling: right pairs only", "tuned"] > 0.85
    recipes = soft.recipes(noisy, np.flatnonzero(train), 1)
    np.testing.assert_array_equal(recipes["drop annotators"].keep, ~noisy.wrong[train])
    np.testing.assert_array_equal(recipes["reverse annotators"].turn, noisy.wrong[train])
    assert found["reverse annotators", "tuned"] == found["dpo on right labels", "tuned"]
    for method in ("soft-dpo, annotators", "train's choice, annotators"):
        right = recipes[method].gamma > 0
        assert (right == ~noisy.wrong[train]).mean() > 0.95
    stages = recipes["easy to hard by p_wrong"].stage
    assert np.ptp(np.bincount(stages)) <= 1
    assert noisy.wrong[train][stages == 2].mean() > 0.5 > noisy.wrong[train][stages == 0].mean()


def test_rivals_have_their_papers_formulas() -> None:
    rivals = part("rivals")
    h = torch.tensor([[3.0], [1.0], [-2.0], [0.5]])
    values = PairValues(h / 0.1, gamma=torch.tensor([[2.0], [-1.0], [0.0], [0.0]]))
    smooth = 0.9 * F.softplus(torch.tensor(2.0)) + 0.1 * F.softplus(torch.tensor(-2.0))
    expected = [F.softplus(-h[0]), F.softplus(-h[1]), smooth[None], F.softplus(-h[3])]
    found = rivals.SelfRefined(0.1)(values)  # the tenth of four: the lowest one
    torch.testing.assert_close(found, torch.stack(expected))
    scale = torch.tensor([[1 + 0.5 * (1 - np.exp(-1.0))], [1.0], [1.0], [1.0]])
    expected = F.softplus(-scale * h)
    torch.testing.assert_close(rivals.RewardScaled(0.1)(values).double(), expected.double())


def test_reviews_and_a_judge_enter_what_is_learnt() -> None:
    soft = part("soft")
    clean = soft.simulated(600, 2, width=4)
    noisy = soft.plant(clean, "response", 0.3, 2)
    judged = soft.graded(noisy.wrong, soft.JUDGE, 2)[:, 0]
    assert ((judged < 0) == noisy.wrong).mean() == pytest.approx(soft.JUDGE, abs=0.05)
    recipes = soft.recipes(noisy, np.arange(len(noisy.wrong)), 2)
    blind = recipes["train's choice, annotators"]
    assert blind.gamma is None  # nobody errs more than others: plain dpo
    sure = recipes["train's choice, 100 reviews"].gamma
    asked = np.isclose(np.abs(sure), np.log(0.98 / 0.02))
    assert asked.sum() == 100
    np.testing.assert_array_equal(sure[asked] < 0, noisy.wrong[asked])
    odds = recipes["train's choice, judge"].gamma
    given = soft.graded(noisy.wrong, soft.JUDGE, 2)[:, 0]
    assert 0.5 < np.polyfit(given, odds, 1)[0] < 1.5  # 1: the judge's own log odds


def test_gains_have_t_intervals_over_seeds() -> None:
    soft = part("soft")
    cells = [
        {(soft.CLEAN, "tuned"): 0.9, ("dpo", "tuned"): 0.8, ("soft-dpo", "tuned"): 0.85 + d}
        for d in (0.0, 0.01, -0.01)
    ]
    rows = {row["method"]: row for row in soft.rows(("uniform", 0.2), cells, "tuned")}
    half = 2.919986 * 1.0 / np.sqrt(3)  # t of 2 degrees of freedom, sd 1 point
    assert rows["soft-dpo"]["gained"] == f"+5.00 [{5 - half:+.2f}, {5 + half:+.2f}]"
    assert rows["soft-dpo"]["recovered"] == "0.50"


def test_a_path_sets_prompts_aside_and_has_its_queue_answered(tmp_path: Path) -> None:
    path = importlib.import_module("benchmarks.path")
    better = path.prepare(ROOT / "sample_data" / "hh-rlhf", tmp_path, 0)
    gold, aside = (
        [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()]
        for name in ("gold.jsonl", "right.jsonl")
    )
    assert (len(gold), len(aside)) == (path.PAIRS, path.TESTED)
    assert not {row["prompt"] for row in gold} & {row["prompt"] for row in aside}
    queue = tmp_path / "answers.csv"
    with queue.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["pair_id", "a", "b", "answer"])
        for at, row in enumerate(gold[:400]):
            sides = (row["chosen"], row["rejected"])[:: 1 if at % 2 else -1]
            writer.writerow([at, f" {sides[0]}", sides[1], ""])
    assert path.answer(queue, better, 0) == 400
    with queue.open(encoding="utf-8", newline="") as file:
        answers = [row["answer"] for row in csv.DictReader(file)]
    right = [answer == ("A" if at % 2 else "B") for at, answer in enumerate(answers)]
    assert 0.9 < np.mean(right) < 1  # one in twenty is wrong
