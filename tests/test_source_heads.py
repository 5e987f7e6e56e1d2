"""Heads of sources: chosen where preferences differ, and not where labels are noisy or swapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_models import save, tiny_gpt2, tiny_tokenizer
from scipy.special import expit

from noisescope.cli import run
from noisescope.replicas import head
from noisescope.replicas.cross_fit import assign
from noisescope.replicas.head import HeadConfig, HeadFit, fit_heads
from noisescope.replicas.prior import pose
from noisescope.replicas.refit import refitter
from noisescope.replicas.source_heads import (
    BY_SOURCE,
    GROUPS,
    PAIRS,
    SOURCES,
    Components,
    eligible,
    mean_gain,
    origins,
    reverse,
    search_heads,
)
from noisescope.scoring.metrics import auroc
from noisescope.scoring.standouts import notes_on_sources
from noisescope.storage.run import Run

CONFIG = HeadConfig(replicas=2, folds=5, search_steps=10)


def mixed(
    second: np.ndarray, *, pairs: int = 1200, seed: int = 0, flips: float = 0.1
) -> tuple[Any, ...]:
    """Pairs of two sources that want x @ (2, 2, 0, ...) and x @ second; a share is flipped."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * pairs, 8)).astype(np.float32)
    source = rng.integers(0, 2, pairs)
    first = np.zeros(8)
    first[:2] = 2
    a, b = np.arange(pairs), np.arange(pairs, 2 * pairs)
    reward = np.where(source == 0, (x[a] - x[b]) @ first, (x[a] - x[b]) @ second)
    better = rng.random(pairs) < expit(reward)
    wrong = rng.random(pairs) < flips
    better ^= wrong
    key = rng.integers(0, 2**63, pairs).astype(np.uint64)
    return x, np.where(better, a, b), np.where(better, b, a), key, source, wrong


def tastes(*values: float) -> np.ndarray:
    return np.array([*values, *[0.0] * (8 - len(values))])


SAME, OTHER = tastes(2, 2), tastes(0, 0, 2, 2)


def fit(data: tuple[Any, ...], *, sources: bool = True, **given: Any) -> HeadFit:
    x, chosen, rejected, key, source, _ = data
    own = source if sources else None
    return fit_heads({"x": x}, chosen, rejected, key, CONFIG, sources=own, **given)


def found(heads: HeadFit, wrong: np.ndarray, pairs: np.ndarray) -> float:
    return float(auroc(-heads.margins.mean(axis=0, dtype=np.float64)[pairs], wrong[pairs]))


def test_sources_that_want_other_things_have_heads_of_their_own() -> None:
    data = mixed(OTHER)
    one, own = fit(data, sources=False), fit(data)
    assert one.by_source is None
    assert own.by_source is not None
    assert own.by_source.own
    assert own.variance[BY_SOURCE] > 0.01
    assert own.by_source.gain > 0.02
    assert abs(own.by_source.alike[0, 1]) < 0.3
    for source in (0, 1):
        pairs = data[4] == source
        assert found(own, data[5], pairs) > found(one, data[5], pairs) + 0.03
    assert own.theta.keys() == {"x"}


def test_sources_that_want_the_same_keep_one_head_to_the_last_digit() -> None:
    data = mixed(SAME)
    one, own = fit(data, sources=False), fit(data)
    assert np.array_equal(one.margins, own.margins)
    assert own.by_source is None
    assert BY_SOURCE not in own.variance


def test_noisier_labels_of_a_source_are_no_other_preference() -> None:
    x, chosen, rejected, key, source, _ = mixed(SAME, seed=3)
    noisy = (np.random.default_rng(1).random(len(key)) < 0.4) & (source == 1)
    chosen, rejected = np.where(noisy, rejected, chosen), np.where(noisy, chosen, rejected)
    data = x, chosen, rejected, key, source, noisy
    assert np.array_equal(fit(data, sources=False).margins, fit(data).margins)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_swapped_labels_of_a_source_are_named_and_not_believed(share: float) -> None:
    x, chosen, rejected, key, source, wrong = mixed(SAME, seed=4)
    source = (np.random.default_rng(2).random(len(key)) < share).astype(np.int64)
    swap = source == 1
    chosen, rejected = np.where(swap, rejected, chosen), np.where(swap, chosen, rejected)
    data = x, chosen, rejected, key, source, wrong
    own = fit(data)
    assert np.array_equal(fit(data, sources=False).margins, own.margins)
    assert own.by_source is not None
    assert not own.by_source.own
    assert own.by_source.reversed_ones == (1,)
    assert own.by_source.to_json(["good", "bad"], own.variance)["reversed"] == (
        ["bad"] if own.by_source.sources.names[1] == 1 else ["good"]
    )


def test_partly_opposite_preferences_have_heads_of_their_own() -> None:
    own = fit(mixed(tastes(-2, 0, 2, 2)))
    assert own.by_source is not None
    assert own.by_source.own


def test_heads_of_sources_know_nothing_of_coin_tosses() -> None:
    x, chosen, rejected, key, source, _ = mixed(OTHER, seed=5)
    toss = np.random.default_rng(3).random(len(key)) < 0.5
    chosen, rejected = np.where(toss, rejected, chosen), np.where(toss, chosen, rejected)
    forced = {"x": 0.1, BY_SOURCE: 1.0}  # as if an earlier fit had chosen them
    heads = fit((x, chosen, rejected, key, source, toss), start=forced)
    right = (heads.margins.mean(axis=0) > 0).mean()
    assert abs(right - 0.5) < 0.05


def test_neither_the_orientation_of_all_pairs_nor_the_order_of_rows_matters() -> None:
    x, chosen, rejected, key, source, wrong = mixed(OTHER, pairs=600)
    one = fit((x, chosen, rejected, key, source, wrong))
    other = fit((x, rejected, chosen, key, source, wrong))
    assert one.by_source
    assert other.by_source
    assert np.allclose(one.margins, other.margins, atol=5e-3)
    order = np.random.default_rng(0).permutation(len(key))
    moved = fit((x, chosen[order], rejected[order], key[order], 1 - source[order], wrong[order]))
    assert np.allclose(one.margins[:, order], moved.margins, atol=5e-3)


def test_an_earlier_fit_decides_for_almost_the_same_labels() -> None:
    data, alike = mixed(OTHER), mixed(SAME)
    first = fit(data)
    again = fit(data, start=first.variance)
    assert np.abs(again.margins - first.margins).mean() < 0.05
    assert BY_SOURCE in again.variance
    assert BY_SOURCE not in fit(data, start=fit(alike).variance).variance


def test_recurring_responses_and_numbers_of_pairs_go_with_heads_of_sources() -> None:
    x, chosen, rejected, key, source, wrong = mixed(OTHER)
    fold = {int(side): number % 300 for number, side in enumerate(np.unique(chosen))}
    chosen = np.array([fold[int(side)] for side in chosen])  # 300 responses recur: by response
    rejected = rejected % 300 + 300
    keep = x[:600]
    better = np.where(source == 0, keep[:, 0][chosen] - keep[:, 0][rejected],
                      keep[:, 2][chosen] - keep[:, 2][rejected]) > 0  # fmt: skip
    better ^= wrong
    sides = np.where(better, chosen, rejected), np.where(better, rejected, chosen)
    numbers = np.random.default_rng(0).normal(size=(len(key), 1)).astype(np.float32)
    one, own = (
        fit_heads({"x": keep}, *sides, key, CONFIG, numbers={"judge": numbers}, sources=given)
        for given in (None, source)
    )
    assert own.pooled > 0
    assert own.by_source
    assert own.by_source.own
    everything = np.ones(len(key), bool)
    assert found(own, wrong, everything) > found(one, wrong, everything) + 0.01


def test_few_pairs_few_groups_or_one_source_have_no_head() -> None:
    keys = np.arange(400, dtype=np.uint64)
    two = np.arange(400) % 2
    assert eligible(two, keys) is not None
    assert eligible(None, keys) is None
    assert eligible(np.zeros(400, np.int64), keys) is None
    assert eligible(np.where(np.arange(400) < PAIRS - 1, 1, 0), keys) is None
    whole = np.where(two == 1, keys % (GROUPS - 1), keys)  # one source within four groups
    assert eligible(two, whole.astype(np.uint64)) is None
    assert eligible(two, np.stack([keys, keys], axis=1)) is not None


def test_contrasts_sum_to_zero_and_small_sources_share_the_head() -> None:
    sources = np.concatenate([np.repeat(np.arange(20), 60), np.full(10, 20), np.full(5, -1)])
    own = eligible(sources, np.arange(len(sources), dtype=np.uint64))
    assert own is not None
    assert own.contrasts.shape == (SOURCES, SOURCES - 1)
    assert np.allclose(own.contrasts.sum(axis=0), 0)
    assert np.allclose(own.contrasts @ own.contrasts.T, np.eye(16) * 16 / 15 - 1 / 15)
    assert not own.codes[-15:].any()
    assert own.components * (SOURCES - 1) <= 256


def test_components_are_the_leading_ones_whatever_the_layout() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 6)) * [5, 4, 3, 0.1, 0.1, 0.1]).astype(np.float32)
    chosen, rejected = rng.integers(0, 30, 40), rng.integers(30, 60, 40)
    none = np.zeros(60, bool)
    problem = pose({"x": x}, chosen, rejected, none)  # more responses than pairs: differences
    other = pose({"x": x}, np.tile(chosen, 2), np.tile(rejected, 2), none)  # by response
    assert not problem.by_response
    assert other.by_response
    codes = np.ones((40, 1), np.float32)
    components = Components.of(problem, 3)
    columns = components.added_to(problem, codes).pairs[BY_SOURCE].astype(np.float64)
    differences = (x[chosen] - x[rejected]).astype(np.float64)
    values = np.linalg.svd(differences, compute_uv=False) ** 2
    assert np.allclose(np.sort(np.square(columns).sum(axis=0))[::-1] / 40,
                       values[:3] / values[:3].sum(), rtol=1e-3)  # fmt: skip
    twice = Components.of(other, 3).added_to(other, np.ones((80, 1), np.float32))
    assert np.allclose(np.abs(twice.pairs[BY_SOURCE][:40]), np.abs(columns), atol=1e-3)


def test_reversing_labels_of_a_problem_is_exchanging_their_sides() -> None:
    x, chosen, rejected, _key, source, _ = mixed(SAME, pairs=200)
    none = np.zeros(len(x), bool)
    problem = reverse(pose({"x": x}, chosen, rejected, none), source == 1)
    swapped = pose({"x": x}, np.where(source == 1, rejected, chosen),
                   np.where(source == 1, chosen, rejected), none)  # fmt: skip
    u = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    margins = problem.design({"x": 1.0}).margins(u)
    assert np.allclose(margins, swapped.design({"x": 1.0}).margins(u))
    assert (problem.incidence != swapped.incidence).nnz == 0


def test_an_error_counts_groups_and_not_their_pairs() -> None:
    gains = np.random.default_rng(0).normal(size=300)
    keys = np.arange(300, dtype=np.uint64)
    mean, error = mean_gain(gains, keys)
    copies = mean_gain(np.tile(gains, 3), np.tile(keys, 3))
    assert np.allclose(copies, (mean, error))
    assert abs(error - gains.std() / np.sqrt(300)) < 1e-9


def test_a_null_choice_is_rare_and_harmless() -> None:
    chosen_ = 0
    for seed in range(20):
        x, chosen, rejected, key, source, _ = mixed(SAME, pairs=300, seed=seed)
        problem = pose({"x": x}, chosen, rejected, np.zeros(len(x), bool))
        folds = assign(key, seed=0, replica=0, folds=5)
        result = search_heads(problem, folds, eligible(source, key), key, steps=8)
        chosen_ += result.components is not None
    assert chosen_ <= 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two files; in the second one chosen and rejected are swapped."""
    base = tmp_path_factory.mktemp("two")
    save(base / "model", tiny_gpt2(), tiny_tokenizer())
    rng = np.random.default_rng(0)
    words = ["red", "blue", "green", "warm", "cold", "small", "round", "old"]
    (base / "data").mkdir()
    for name, rows in (("good.jsonl", 240), ("swapped.jsonl", 80)):
        lines = []
        for _ in range(rows):
            text = " ".join(rng.choice(words, 3))
            sides = [f"{text} yes yes yes yes yes", f"{text} no"]
            one, other = sides[::-1] if name == "swapped.jsonl" else sides
            lines.append(
                json.dumps({"prompt": f"{rng.integers(10**6)}?", "chosen": one, "rejected": other})
            )
        (base / "data" / name).write_text("\n".join(lines))
    return base


def test_the_command_names_a_swapped_file(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = directory
    code = run(
        [
            "score",
            str(base / "data"),
            "--model",
            str(base / "model"),
            "--replicas",
            "2",
            "--runs-dir",
            str(base / "runs"),
            "--details",
        ]
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "differ: one head" in printed.replace("│ │ ", "")
    assert "Check the columns of these sources" in printed
    (made,) = [path for path in (base / "runs").iterdir() if path.name != ".cache"]
    record = json.loads((made / "manifest.json").read_text())["training"]["by_source"]
    assert record["own_heads"] is False
    assert record["reversed"] == ["swapped.jsonl"]
    assert record["sources"] == ["good.jsonl", "swapped.jsonl"]
    assert record["variance"] == 0
    # A refit of other pairs, as the gate makes it, knows their sources.
    given: list[Any] = []

    def spy(*arguments: Any, **options: Any) -> HeadFit:
        given.append(options["sources"])
        return fit_heads(*arguments, **options)

    monkeypatch.setattr(head, "fit_heads", spy)
    table = pq.read_table(made / "pairs.parquet").slice(200)
    refitter(Run(made), table, second=False)(np.zeros(len(table), bool), None)
    names = table.column("source").to_numpy()
    assert len(given[0]) == 120
    assert all(len(set(names[given[0] == code])) == 1 for code in np.unique(given[0]))
    assert len(np.unique(given[0])) == 2


def test_a_note_states_what_heads_of_their_own_cannot_show() -> None:
    record = {"own_heads": True, "sources": ["a", "b", "c"], "reversed": [],
              "alike": [[1, 0.5, 0.2], [0.5, 1, 0.9], [0.2, 0.9, 1]]}  # fmt: skip
    (note,) = notes_on_sources(record)
    assert "(a and c least alike, cosine 0.20)" in note
    assert notes_on_sources(None) == []
    (other,) = notes_on_sources(record | {"own_heads": False, "reversed": ["c"]})
    assert other.startswith("The labels of c contradict those of a")


def test_pairs_of_no_known_source_shift_no_name() -> None:
    table = pa.table({"source": [None, "a", "b", "a"]})
    assert origins(table, np.array([-1, 0, 1, 0])) == ["a", "b"]
