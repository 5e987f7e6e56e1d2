"""How far to trust an audit, what checking the worst pairs finds, and who stands out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit
from scipy.stats import norm

from noisescope.pairs import Pair, to_table
from noisescope.scoring.contrasts import HELD_OUT, POOLED, Contrast
from noisescope.scoring.find import check_counts, expected_finds
from noisescope.scoring.flip_rate import FlipRate, fit_flip_rate
from noisescope.scoring.metrics import Interval
from noisescope.scoring.noise_models import fit_noise
from noisescope.scoring.pair_facts import PairFacts
from noisescope.scoring.sources import SourceReport
from noisescope.scoring.standouts import find_standouts
from noisescope.scoring.triads import Triads
from noisescope.scoring.trust import WEAK, TrustFacts, judge_trust
from noisescope.storage.run import Run

KNOWN = FlipRate(0.1, 0.05, 0.14, 2.0, 1.0, 1.0, 4000)
ACCURACY = Interval(0.77, 0.74, 0.8)
GOOD = TrustFacts(
    Contrast(HELD_OUT, ACCURACY, Interval(0.1, 0.05, 0.14)), KNOWN, Interval(0.91, 0.84, 0.98)
)
WIDE = replace(KNOWN, low=0.0, high=0.25)
LIKE_POOLED = Contrast(POOLED, ACCURACY, Interval(0.1, 0.05, 0.14))
ELSE = Contrast(HELD_OUT, Interval(0.65, 0.62, 0.68), Interval(0.2, 0.16, 0.24))
LABELLER = SourceReport("reward:M", 0.99, 0.6, 0.3, 0.1, 0.01)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "good"),
        ({"rate": WIDE}, "fair"),
        ({"rate": WIDE, "reviewed": True}, "good"),
        ({"expected": Interval(0.82, 0.75, 0.9)}, "fair"),
        ({"expected": Interval(0.71, 0.69, 0.9)}, "too weak to change labels"),
        (
            {"own": Contrast(HELD_OUT, Interval(0.54, 0.49, 0.57), GOOD.own.flip_rate)},
            "too weak to change labels",
        ),
        ({"precision": Interval(0.3, 0.2, 0.4), "judged": 40}, "too weak to change labels"),
        ({"precision": Interval(0.3, 0.2, 0.4), "judged": 19}, "good"),
        ({"rate": replace(KNOWN, pairs=19)}, "too weak to change labels"),
        ({"rate": replace(KNOWN, pairs=20)}, "good"),
        (
            {
                "expected": Interval(0.65, 0.6, 0.7),
                "precision": Interval(0.7, 0.6, 0.8),
                "judged": 40,
                "reviewed": True,
            },
            "fair",
        ),
        ({"chance": True}, "cannot know"),
        ({"chance": True, "prompts": 4}, "cannot know"),
        ({"in_sample": True}, "cannot know"),
        ({"giveaway": True}, "cannot know"),
        ({"length": "The longer response is the chosen one in 99% of the pairs."}, "cannot know"),
        ({"sources": (LABELLER,)}, "cannot know"),
        ({"sources": (replace(LABELLER, inside=True),)}, "good"),
        ({"own": LIKE_POOLED, "others": (ELSE,)}, "cannot know"),
        ({"own": LIKE_POOLED, "others": (ELSE,), "triads": Triads(1000, 160)}, "good"),
        ({"others": (replace(ELSE, name=POOLED),)}, "good"),
    ],
)
def test_the_word_follows_from_the_facts(changes: dict[str, object], word: str) -> None:
    found = judge_trust(replace(GOOD, **changes))
    assert found.word == word
    assert found.acts == (word in ("good", "fair"))
    assert found.sentence.endswith(".")
    assert bool(found.helps) == (word != "good")


def test_few_prompts_are_named_as_the_reason_that_nothing_is_known() -> None:
    few = judge_trust(replace(GOOD, chance=True, prompts=4))
    assert "4 prompts" in few.sentence
    assert "--pool" in few.helps[0]
    assert "4 prompts" not in judge_trust(replace(GOOD, prompts=4)).sentence
    assert "coin with 50%" in judge_trust(replace(GOOD, chance=True, prompts=8)).sentence


def test_at_the_weakest_auroc_half_of_the_worst_hundredth_is_right() -> None:
    """The reason for `WEAK`: two normal distributions, 13 % wrong labels."""
    apart = np.sqrt(2) * norm.ppf(WEAK)
    cuts = np.linspace(0, 5, 5001)
    wrong, right = 0.13 * norm.sf(cuts - apart), 0.87 * norm.sf(cuts)
    at = int(np.argmin(np.abs(wrong + right - 0.01)))
    assert wrong[at] / (wrong + right)[at] == pytest.approx(0.5, abs=0.02)


def simulated(
    pairs: int, seed: int, rates: np.ndarray | None = None, spread: float = 3.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Margins [N], whether each label is flipped [N], and annotators [N] of the given rates."""
    rng = np.random.default_rng(seed)
    rates = np.full(10, 0.15) if rates is None else rates
    who = rng.integers(0, len(rates), pairs)
    flipped = rng.random(pairs) < rates[who]
    gap = rng.normal(0, spread, pairs)
    honest = np.where(rng.random(pairs) < expit(gap), 1, -1)
    return gap * np.where(flipped, -honest, honest), flipped, who


RATES = np.array([0.75, 0.4, *[0.04] * 8])


def test_numbers_to_check_double_up_to_a_fifth_of_the_pairs() -> None:
    assert check_counts(4000) == (100, 200, 400, 800)
    assert check_counts(1000) == (25, 50, 100, 200)
    assert check_counts(12_792) == (250, 500, 1000, 2000)
    assert check_counts(1_000_000) == (500, 1000, 2000, 4000)
    assert check_counts(30) == (1, 2, 4, 8)
    assert check_counts(3) == (1, 2)


def test_ranges_contain_the_flips_that_were_planted() -> None:
    inside = []
    for seed in range(20):
        margins, flipped, _ = simulated(2000, seed, spread=5.0)
        noise = fit_noise(margins)
        number = np.cumsum(flipped[np.lexsort((margins, -noise.p_wrong(margins)))])
        finds = expected_finds(noise, margins, (50, 100, 200, 400))
        assert [found.pairs for found in finds] == [50, 100, 200, 400]
        inside += [f.low <= number[f.pairs - 1] <= f.high for f in finds]
        assert all(0 <= f.low <= f.high <= f.pairs for f in finds)
        assert finds[1].low > 40, "a range that begins at 0 would be right and of no use"
    assert np.mean(inside) >= 0.85


def test_the_judge_may_be_right_about_every_pair_unless_a_model_beats_that(tmp_path: Path) -> None:
    """Clear flips fit no reading but "all labels that the judge disagrees with are wrong"."""
    rng = np.random.default_rng(0)
    gap = np.abs(rng.normal(0, 3, 2000)) + 1
    margins = np.where(rng.random(2000) < 0.1, -gap, gap)
    (found,) = expected_finds(fit_noise(margins), margins, (100,))
    assert found.high == 100
    margins, _, who = simulated(2000, 3, RATES)
    (found,) = expected_finds(fit_noise(margins, PairFacts(annotators=who)), margins, (400,))
    assert found.high < (margins < 0).sum()


def test_pairs_without_a_margin_are_never_checked() -> None:
    margins, _, _ = simulated(40, 0)
    margins[:25] = np.nan
    noise = fit_noise(margins)
    assert [found.pairs for found in expected_finds(noise, margins, (10, 15, 20))] == [10, 15]


def run_of(tmp_path: Path, who: np.ndarray, *, sources: bool = False) -> Run:
    """A run whose pairs name their annotators, or come from as many files."""
    pairs = [
        Pair(
            f"p{i}",
            "a",
            "b",
            annotator=None if sources else f"w{code}",
            source=f"s{code}.jsonl" if sources else "all.jsonl",
            pair_id=f"{i}",
        )
        for i, code in enumerate(who.tolist())
    ]
    pq.write_table(to_table(pairs), tmp_path / "pairs.parquet")
    return Run(tmp_path)


@pytest.mark.parametrize("sources", [False, True])
def test_careless_and_contrarian_annotators_stand_out(tmp_path: Path, sources: bool) -> None:
    margins, _, who = simulated(2000, 3, RATES)
    facts = PairFacts(sources=who) if sources else PairFacts(annotators=who)
    found = find_standouts(
        run_of(tmp_path, who, sources=sources), fit_noise(margins, facts), margins
    )
    assert found is not None
    assert found.kind == ("source" if sources else "annotator")
    first, second = ("s0.jsonl", "s1.jsonl") if sources else ("w0", "w1")
    assert [one.name for one in found.worst] == [first, second]
    content = found.to_json()
    assert [one["label"] for one in content["worst"]] == ["votes backwards", "careless"]
    assert content["worst"][0]["labels"] == int((who == 0).sum())
    assert content["others"]["count"] == 8
    assert content["others"]["flip_rate"] < 0.1


def test_nobody_stands_out_where_all_err_alike(tmp_path: Path) -> None:
    named = 0
    for seed in range(10):
        margins, _, who = simulated(1000, seed)
        noise = fit_noise(margins, PairFacts(annotators=who))
        named += find_standouts(run_of(tmp_path, who), noise, margins) is not None
    assert named <= 1


def test_a_pair_whose_rates_move_keeps_their_order() -> None:
    """`flipped` at a higher rate is higher, and at rate 0 is 0."""
    margins, _, _ = simulated(500, 1)
    rate = fit_flip_rate(margins)
    low, high = (rate.flipped(margins, e, e) for e in (np.full(500, 0.1), np.full(500, 0.2)))
    assert (low < high).all()
    assert (rate.flipped(margins, np.zeros(500), np.zeros(500)) == 0).all()
    assert pa.array(rate.flipped(np.array([np.nan])), from_pandas=True).null_count == 1


def test_finds_cover_annotators_who_vote_backwards():
    rng = np.random.default_rng(3)
    who = np.arange(3000) % 30
    backwards = who < 5
    gap = np.abs(rng.normal(0, 3, 3000)) + 0.5
    honest = np.where(rng.random(3000) < expit(gap), gap, -gap)
    margins = np.where(backwards, -honest, honest)
    noise = fit_noise(margins, PairFacts(annotators=who))
    worst = np.lexsort((margins, -noise.p_wrong(margins)))[:400]
    (found,) = expected_finds(noise, margins, (400,))
    assert found.low <= (margins < 0)[worst].sum() <= found.high
