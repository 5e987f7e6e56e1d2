"""Scoring a run directory: columns, files, summary, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit

from noisescope.errors import EvidenceError, RunError, UsageError
from noisescope.pairs import Pair, to_table
from noisescope.scoring.margins import read_margins, write_margins
from noisescope.scoring.metrics import auroc
from noisescope.scoring.score import ScoreConfig, score_run

BETA = 0.1


def margins_of(pairs: int, replicas: int = 4, seed: int = 0, e: float = 0.2) -> np.ndarray:
    """Margins [M, N] float32 of simulated replicas; the first e N labels are flipped."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(0, 3, pairs)
    label = np.where(rng.random(pairs) < expit(gap), 1, -1)
    label[: int(e * pairs)] *= -1
    return ((gap + rng.normal(0, 0.3, (replicas, pairs))) * label).astype(np.float32)


def make_run(
    directory: Path,
    margins: np.ndarray,
    *,
    held_out: np.ndarray | None = None,
    steps: Sequence[int] = (1,),
    plan: object = None,
) -> Path:
    """A run directory of margins [M, N] or [M, T, N] with its pairs and plan."""
    deep = margins[:, None] if margins.ndim == 2 else margins
    pairs = [
        Pair(f"prompt {i}", f"a{i}", f"b{i}", annotator=f"w{i % 3}", pair_id=f"p{i:04d}")
        for i in range(deep.shape[-1])
    ]
    held = np.ones((deep.shape[0], deep.shape[-1]), bool) if held_out is None else held_out
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(to_table(pairs), directory / "pairs.parquet")
    ids = pa.array([pair.pair_id for pair in pairs])
    write_margins(directory / "margins" / "part-0.parquet", ids, deep, steps=steps, held_out=held)
    content = {"evidence": {"beta": BETA}} if plan is None else plan
    (directory / "plan.json").write_text(json.dumps(content))
    return directory


def scores(directory: Path) -> dict[str, np.ndarray]:
    """Columns of scores.parquet in the order of pair_id; null is NaN."""
    table = pq.read_table(directory / "scores.parquet").sort_by("pair_id")
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


def test_scores_equal_sql_over_the_run(tmp_path: Path) -> None:
    """Eq. 11-15 computed by DuckDB from the margins file, to 1e-6."""
    run = make_run(tmp_path, margins_of(400))
    score_run(run, ScoreConfig(rho=0.5, k1=4, k2=-0.25, c2=0.125))
    got = scores(run)
    expected = duckdb.sql(
        f"""WITH s AS (SELECT pair_id, var_samp(margin::DOUBLE / {BETA}) AS s, avg(margin) AS m,
                       1 - avg(1 / (1 + exp(-0.5 * margin::DOUBLE / {BETA}))) AS c
                       FROM read_parquet('{run}/margins/*.parquet') GROUP BY pair_id)
            SELECT c, s, s * c AS u, m, 1 / (1 + 4 * s * c), -0.25 * (s * c) ** 2 + 0.125,
                   row_number() OVER (ORDER BY m) FROM s ORDER BY pair_id"""
    ).fetchall()
    names = ("confidence", "stability", "u", "margin", "W", "gamma", "rank")
    for name, column in zip(names, zip(*expected, strict=True), strict=True):
        assert_allclose(got[name], column, rtol=1e-6, atol=1e-12, err_msg=name)


def test_rows_stand_in_rank_order_and_find_the_flips(tmp_path: Path) -> None:
    run = make_run(tmp_path, margins_of(1000))
    score_run(run)
    table = pq.read_table(run / "scores.parquet")
    assert table.column("rank").to_pylist() == list(range(1, 1001))
    assert (np.diff(table.column("p_flip").to_numpy()) <= 0).all()
    got = scores(run)
    assert auroc(got["p_flip"], np.arange(1000) < 200) > 0.85


def test_summary_says_what_was_planted(tmp_path: Path) -> None:
    summary = score_run(make_run(tmp_path, margins_of(3000)))
    assert summary.flip_rate.low <= 0.2 <= summary.flip_rate.high
    assert summary.mislabelled.low <= summary.mislabelled.estimate <= summary.mislabelled.high
    assert summary.expected.low <= summary.expected.estimate <= summary.expected.high
    assert abs(summary.bayes_auroc - summary.expected.estimate) < 0.03
    assert sum(summary.histogram) == summary.pairs == 3000
    assert not summary.chance
    assert len(summary.suspects) == 10
    worst = summary.suspects[0]
    row = int(worst.pair_id[1:])
    assert (worst.prompt, worst.annotator) == (f"prompt {row}", f"w{row % 3}")
    assert worst.p_flip == max(suspect.p_flip for suspect in summary.suspects)


def test_summary_json_is_json_with_the_stable_keys(tmp_path: Path) -> None:
    content = score_run(make_run(tmp_path, margins_of(200))).to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert {"run", "pairs", "held_out_accuracy", "flip_rate", "mislabelled_share"} <= set(content)
    assert set(content["flip_rate"]) == {"estimate", "low", "high", "identifiable"}


def test_scoring_twice_gives_the_same_bytes_whatever_the_order_of_parts(tmp_path: Path) -> None:
    margins = margins_of(300)
    one = make_run(tmp_path / "one", margins)
    other = make_run(tmp_path / "other", margins)
    (other / "margins" / "part-0.parquet").unlink()
    ids = pq.read_table(other / "pairs.parquet").column("pair_id").combine_chunks()
    order = np.random.default_rng(0).permutation(300)
    for replica in (2, 0, 3, 1):
        write_margins(
            other / "margins" / f"part-{3 - replica}.parquet",
            ids.take(pa.array(order)),
            margins[replica, order][None, None],
            steps=[1],
            held_out=np.ones((1, 300), bool),
            first_replica=replica,
        )
    score_run(one)
    score_run(other)
    assert (one / "scores.parquet").read_bytes() == (other / "scores.parquet").read_bytes()


def test_flipping_every_label_mirrors_the_margins(tmp_path: Path) -> None:
    margins = margins_of(200)
    score_run(make_run(tmp_path / "as labelled", margins))
    score_run(make_run(tmp_path / "flipped", -margins))
    ours, theirs = scores(tmp_path / "as labelled"), scores(tmp_path / "flipped")
    assert_allclose(ours["margin"], -theirs["margin"])
    assert_allclose(ours["confidence"], 1 - theirs["confidence"], atol=1e-12)
    assert_allclose(ours["stability"], theirs["stability"])


def test_only_held_out_margins_of_the_last_step_rank(tmp_path: Path) -> None:
    """Replica 0 trained on even pairs, 1 on odd ones; an early checkpoint says the opposite."""
    last = margins_of(100, replicas=2)
    held = np.stack([np.arange(100) % 2 == 1, np.arange(100) % 2 == 0])
    run = make_run(tmp_path, np.stack([-last, last], axis=1), held_out=held, steps=(5, 9))
    score_run(run)
    assert_allclose(scores(run)["margin"], np.where(np.arange(100) % 2 == 1, last[0], last[1]))
    deep = read_margins(run, last=False)
    assert deep.steps == [5, 9]
    assert_allclose(deep.margins[:, 0], -last)


def test_one_replica_ranks_but_has_no_u(tmp_path: Path) -> None:
    run = make_run(tmp_path, margins_of(100, replicas=1))
    summary = score_run(run)
    got = scores(run)
    assert np.isnan(got["u"]).all()
    assert np.isnan(got["W"]).all()
    assert np.isfinite(got["p_flip"]).all()
    assert summary.suspects[0].u is None
    assert "one replica only" in " ".join(summary.notes)


def test_released_weights_come_from_the_released_metric(tmp_path: Path) -> None:
    run = make_run(tmp_path, margins_of(100))
    score_run(run, ScoreConfig(released=True, k1=3))
    got = scores(run)
    assert_allclose(got["W"], 1 / (1 + 3 * got["u_released"]))


def test_chance_is_said_in_plain_words(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 1, (3, 400)).astype(np.float32)
    summary = score_run(make_run(tmp_path, noise))
    assert summary.chance
    assert "no better than chance" in summary.notes[0]
    assert any("not identifiable" in note for note in summary.notes)


def test_missing_margins_are_counted_and_shown(tmp_path: Path) -> None:
    margins = margins_of(50)
    margins[:, :7] = np.nan
    run = make_run(tmp_path, margins)
    with pytest.raises(RunError, match=r"7 of 50 pairs have no margin: p0000; .*and 2 more"):
        score_run(run)
    assert not (run / "scores.parquet").exists()


def test_pairs_never_held_out_are_refused(tmp_path: Path) -> None:
    held = np.ones((4, 50), bool)
    held[:, 3] = False
    with pytest.raises(RunError, match="1 of 50 pairs have no held-out margin: p0003"):
        score_run(make_run(tmp_path, margins_of(50), held_out=held))


def test_margins_of_other_pairs_and_repeats_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, margins_of(50))
    part = run / "margins" / "part-0.parquet"
    (run / "margins" / "part-1.parquet").write_bytes(part.read_bytes())
    with pytest.raises(RunError, match="200 margins come twice"):
        score_run(run)
    strangers = pa.array([f"x{i}" for i in range(50)])
    write_margins(
        run / "margins" / "part-1.parquet",
        strangers,
        margins_of(50)[:, None],
        steps=[1],
        held_out=np.ones((4, 50), bool),
    )
    with pytest.raises(RunError, match="200 margins are of pairs that"):
        score_run(run)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"plan\.json"):
        score_run(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({"evidence": {"beta": 1}}))
    with pytest.raises(RunError, match=r"pairs\.parquet"):
        score_run(tmp_path)
    with pytest.raises(RunError, match="no beta"):
        score_run(make_run(tmp_path, margins_of(20), plan={"evidence": {}}))
    with pytest.raises(EvidenceError, match="9 pairs"):
        score_run(make_run(tmp_path / "few", margins_of(9)))
    with pytest.raises(UsageError, match="--rho"):
        ScoreConfig(rho=0)
    with pytest.raises(UsageError, match="--k1"):
        ScoreConfig(k1=-1)


def test_lost_replicas_are_noticed(tmp_path: Path) -> None:
    plan = {"evidence": {"beta": BETA, "replicas": 8}}
    with pytest.raises(RunError, match="of 4 replicas, planned were 8"):
        score_run(make_run(tmp_path, margins_of(50, replicas=4), plan=plan))


def test_an_annotator_who_votes_backwards_does_not_weaken_the_audit(tmp_path: Path) -> None:
    """What stands out is a finding, and no reason to doubt it."""
    margins = margins_of(600, e=0.0)
    margins[:, ::3] *= -1
    found = score_run(make_run(tmp_path / "run", margins))
    assert "annotator" in found.noise_model
    assert found.accuracy.high - found.accuracy.low < 0.1
    assert found.accuracy.low > 0.5
