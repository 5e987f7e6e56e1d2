"""noisescope agreement: worked by hand, against a slow reading of the definitions, simulated."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from noisescope.cli import run
from noisescope.errors import DataError
from noisescope.pairs import Pair, to_table
from noisescope.scoring.agreement import Agreement, agreement, krippendorff


def voted(votes: list[tuple[int, str | None, int]]) -> list[Pair]:
    """Votes (content, annotator, 1 where side a is preferred) as pairs."""
    return [
        Pair(f"q{content}", "a" if first else "b", "b" if first else "a", annotator=name)
        for content, name, first in votes
    ]


def measured(votes: list[tuple[int, str | None, int]]) -> Agreement:
    return agreement(to_table(voted(votes)))


def crowd(seed: int, contents: int, each: int, right: float) -> list[tuple[int, str | None, int]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, contents)
    return [
        (c, f"w{w}", int(truth[c] if rng.random() < right else 1 - truth[c]))
        for c in range(contents)
        for w in rng.choice(12, each, replace=False)
    ]


def test_worked_by_hand() -> None:
    votes: list[tuple[int, str | None, int]] = [(0, w, 1) for w in "xyz"]
    votes += [(1, "x", 1), (1, "y", 1), (1, "z", 0), (2, "x", 0), (2, "x", 0), (3, None, 1)]
    found = measured(votes)
    assert (found.contents, found.shared, found.unnamed, found.repeats) == (3, 2, 1, 1)
    assert found.accuracy is not None
    assert found.self_consistency is not None
    # content 0: three right; content 1: x and y face a split, z faces two against
    assert (found.judged, found.accuracy.estimate) == (4, 0.75)
    assert found.not_unanimous.estimate == 0.5
    assert found.pairwise.estimate == pytest.approx(4 / 6)
    assert found.self_consistency.estimate == 1.0
    # both ways round: N = 12, six of each value, o_01 = 2 * (2 * 1 / 2) = 2
    assert found.alpha.estimate == pytest.approx(1 - 11 * 2 / 36)
    assert next((row.name, row.judged, row.right) for row in found.by_annotator) == ("z", 2, 1)


def test_alpha_of_a_published_binary_example() -> None:
    # Krippendorff (2011), section A: two observers, ten units, alpha = 0.095
    a = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    b = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    k = np.array(a) + np.array(b)
    assert float(krippendorff(np.full(10, 2), k, np.ones(10))) == pytest.approx(0.095, abs=5e-4)


def slow(votes: list[tuple[int, str | None, int]]) -> tuple[float, float, float, float]:
    """The four numbers by loops over votes and pairs of votes, one vote an annotator a content."""
    units: dict[int, list[int]] = {}
    for content, _, first in votes:
        units.setdefault(content, []).append(first)
    groups = [unit for unit in units.values() if len(unit) >= 2]
    right, same, weight, differing = [], [], 0.0, 0.0
    for unit in groups:
        for i, vote in enumerate(unit):
            mean = np.mean(unit[:i] + unit[i + 1 :])
            if mean != 0.5:
                right.append(vote == (mean > 0.5))
        same += [x == y for x, y in combinations(unit, 2)]
        differing += 2 * sum(x != y for x, y in combinations(unit, 2)) / (len(unit) - 1)
        weight += len(unit)
    expected = 2 * weight * weight / (2 * weight - 1)  # of 2N values, N of each
    split = np.mean([len(set(unit)) > 1 for unit in groups])
    return float(np.mean(right)), float(split), float(np.mean(same)), 1 - 2 * differing / expected


@pytest.mark.parametrize("each", [2, 3, 5])
def test_against_a_slow_reading(each: int) -> None:
    votes = [v for i, v in enumerate(crowd(each, 40, each, 0.8)) if i % 7]
    found = measured(votes)
    assert found.accuracy is not None
    fast = (found.accuracy, found.not_unanimous, found.pairwise, found.alpha)
    assert [one.estimate for one in fast] == pytest.approx(slow(votes))


def test_turning_contents_round_changes_nothing() -> None:
    votes = crowd(1, 60, 3, 0.7)
    turned = [(c, w, 1 - v if c % 3 == 0 else v) for c, w, v in votes]
    assert measured(votes).alpha.estimate == pytest.approx(measured(turned).alpha.estimate)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Two votes right with p agree with p^2 + q^2; alpha tends to (2p - 1)^2."""
    p, agreed, held, trials = 0.8, 0.68, 0, 60
    for seed in range(trials):
        found = measured(crowd(seed, 60, 3, p))
        held += found.pairwise.low <= agreed <= found.pairwise.high
        held += found.alpha.low <= (2 * p - 1) ** 2 <= found.alpha.high
    assert 0.8 <= held / (2 * trials) <= 0.97


def test_no_names_and_no_shared_pair_are_told() -> None:
    with pytest.raises(DataError, match="names no annotators"):
        measured([(c, None, 1) for c in range(12)])
    with pytest.raises(DataError, match="no pair is judged by two"):
        measured([(c, "w", 1) for c in range(12)])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "votes.jsonl"
    pairs = voted(crowd(0, 80, 5, 0.8))
    rows = [
        {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected, "annotator": p.annotator}
        for p in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        asked = ["agreement", str(path), "--json", "--figure", str(tmp_path / name)]
        assert run(asked) == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["votes"], told["shared"], len(told["by_annotator"])) == (400, 80, 12)
    assert run(["agreement", str(path)]) == 0
    assert "Krippendorff's alpha" in capsys.readouterr().out
    assert run(["agreement", str(path), "--figure", "a.pdf"]) == 2
    assert "must end in .png or .svg" in capsys.readouterr().err
