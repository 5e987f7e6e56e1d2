"""What people decided about labels reaches every export and every training alike."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.toy_run import rows, scored_run, toy, write_lines

from noisescope.auditing.train import default_objective, note_unused_reviews
from noisescope.cli import run as command
from noisescope.datasets import load
from noisescope.datasets.adapters.schema import Schema
from noisescope.errors import DataError, EvidenceError, RunError, UsageError
from noisescope.export.answers import import_answers
from noisescope.export.apply import apply_decisions, read_decisions
from noisescope.export.local import refuse_weak_weights
from noisescope.export.removal import CleanPolicy, decide
from noisescope.export.trl import export_trl
from noisescope.export.weights import export_weights
from noisescope.scoring.run_scores import RunScores, read_run_scores
from noisescope.scoring.weigh import BELIEVED, SCHEMES, weigh
from noisescope.storage.run import Run
from noisescope.training.policy.pair_weights import WeightRule, run_weights
from noisescope.training.policy.weights_file import file_weights, scheme_of

#: Rows of the toy run; the audit suspects multiples of six.
WRONG, RIGHT, OUT, TIE, SPLIT, BOTH = 1, 6, 3, 2, 4, 12
SURE = float(np.log(0.98 / 0.02))


def names_of(scores: RunScores) -> list[str]:
    return list(pq.read_table(scores.run.pairs_path).column("pair_id").to_pylist())


def reviewed(folder: Path) -> RunScores:
    """The toy run, with one pair of each verdict against the audit, ties and a split vote."""
    scores = toy(folder)
    names = names_of(scores)
    answers = {"ann": {WRONG: "rejected", RIGHT: "chosen", TIE: "tie", BOTH: "tie"}}
    answers["ann"][SPLIT], answers["bob"] = "rejected", {SPLIT: "chosen"}
    for who, given in answers.items():
        path = folder / f"{who}.csv"
        lines = [f"{names[row]},{word}" for row, word in given.items()]
        path.write_text("\n".join(["pair_id,answer", *lines]))
        import_answers(scores.run, path, who)
    (folder / "out.csv").write_text(f"pair_id,decision\n{names[OUT]},drop\n")
    apply_decisions(
        scores, None, read_decisions(folder / "out.csv"), folder / "none", reviewer="ann"
    )
    return read_run_scores(scores.run)


def written(path: Path) -> list[dict[str, Any]]:
    """The rows of an export in the order of the toy's rows; a dropped one is empty."""
    found = {row["pair_id"]: row for row in pq.read_table(path).to_pylist()}
    return [found.get(name, {}) for name in names_of_file(path)]


def names_of_file(path: Path) -> list[str]:
    table = load(path.parent / "toy.jsonl").table
    return list(table.column("pair_id").to_pylist())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_people_decide_and_the_audit_weighs_the_rest(tmp_path: Path, scheme: str) -> None:
    before, scores = tmp_path / "before.parquet", reviewed(tmp_path)
    if scheme != "reviews":
        (tmp_path / "plain").mkdir()
        export_weights(toy(tmp_path / "plain"), before, scheme)
    export_weights(scores, tmp_path / "w.parquet", scheme)
    export_trl(scores, tmp_path / "t.parquet", scheme=scheme)
    file, trl = written(tmp_path / "w.parquet"), written(tmp_path / "t.parquet")
    trained = run_weights(scores.run, load(tmp_path / "toy.jsonl"), WeightRule(scheme))
    sure = 1.0 if scheme in (*BELIEVED, "reviews") else 0.96
    shift = {"prior": "prior", "soft": "belief", "margin": "belief"}.get(scheme, "gamma")
    believed = SURE if scheme in BELIEVED else 0.0

    assert (file[RIGHT]["W"], file[RIGHT]["gamma"]) == pytest.approx((sure, believed))
    assert (trl[RIGHT]["weight"], trl[RIGHT][shift]) == pytest.approx((sure, believed))
    assert trl[RIGHT]["chosen"] == rows()[RIGHT]["chosen"]
    # The label that was found wrong: TRL gets the opposite one, a file can only doubt it.
    assert trl[WRONG]["chosen"] == rows()[WRONG]["rejected"]
    assert (trl[WRONG]["weight"], trl[WRONG][shift]) == pytest.approx((sure, believed))
    assert trl[WRONG]["p_flip"] == pytest.approx(0.02)
    alone = (1.0, -SURE) if scheme in BELIEVED else (0.0, 0.0)
    assert (file[WRONG]["W"], file[WRONG]["gamma"]) == pytest.approx(alone)
    assert (file[OUT]["W"], trl[OUT]) == (0.0, {})
    # Training reverses what TRL gets reversed, or learns the doubt.
    assert trained.wrong is not None
    reversed_ = np.flatnonzero(trained.wrong).tolist()
    assert reversed_ == ([] if scheme in BELIEVED else [WRONG])
    expected = (alone if scheme in BELIEVED else (sure, 0.0)), (sure, believed)
    for row, (weight, gamma) in zip((WRONG, RIGHT), expected, strict=True):
        assert (trained.weight[row], trained.gamma[row]) == pytest.approx((weight, gamma))
    assert trained.weight[OUT] == 0
    assert trained.judged == 3
    # Ties and split votes decide nothing.
    others = [row for row in range(len(file)) if row not in (WRONG, RIGHT, OUT)]
    kept = written(before) if before.is_file() else [{"W": 1.0, "gamma": 0.0}] * len(file)
    for row in others:
        same = kept[row]["W"], kept[row]["gamma"]
        assert (file[row]["W"], file[row]["gamma"]) == pytest.approx(same)
        assert (trl[row]["weight"], trl[row][shift]) == pytest.approx(same)
        assert (trained.weight[row], trained.gamma[row]) == pytest.approx(same)


def test_ties_and_split_votes_leave_the_decision_to_the_audit(tmp_path: Path) -> None:
    scores = reviewed(tmp_path)
    actions, words = decide(scores, CleanPolicy().or_default())
    at = scores.positions(names_of(scores))
    found = {row: int(actions[at[row]]) for row in (WRONG, RIGHT, OUT, TIE, SPLIT, BOTH)}
    assert found == {WRONG: 2, RIGHT: 0, OUT: 1, TIE: 0, SPLIT: 0, BOTH: 1}
    assert "1 label that reviewers found wrong was flipped, 1 right one kept, 1 pair" in words


def test_reversed_labels_train_as_the_opposite(tmp_path: Path) -> None:
    scores = reviewed(tmp_path)
    dataset = load(tmp_path / "toy.jsonl")
    found = run_weights(scores.run, dataset, WeightRule("reviews"))
    table = found.corrected(dataset.table)
    for row, (old, new) in enumerate(
        zip(dataset.table.to_pylist(), table.to_pylist(), strict=True)
    ):
        sides = (new["chosen"], new["rejected"])
        assert sides == (
            (old["rejected"], old["chosen"]) if row == WRONG else (old["chosen"], old["rejected"])
        )
        assert new["pair_id"] == old["pair_id"]
    assert not found.even
    assert "3 pairs as reviewed, 1 label reversed" in found.description
    kept = np.arange(len(dataset)) != WRONG
    assert found.among(kept).corrected(dataset.table.filter(kept)) == dataset.table.filter(kept)
    assert found.among(kept).fingerprint != found.fingerprint


@pytest.mark.parametrize("options", [{"flip_top": 0.1}, {"flip_above": 0.5}])
def test_a_label_that_the_audit_flips_keeps_no_prior_against_it(
    tmp_path: Path, options: dict[str, float]
) -> None:
    scores = toy(tmp_path)
    export_trl(scores, tmp_path / "t.parquet", CleanPolicy(**options), "prior")
    p_wrong = scores.columns["p_wrong"][scores.positions(names_of(scores))]
    flipped = 0
    for row, p in zip(written(tmp_path / "t.parquet"), p_wrong, strict=True):
        if row["chosen"].startswith("second"):
            flipped += 1
            assert row["prior"] == pytest.approx(min(12, np.log(p / (1 - p))), rel=1e-6)
            assert row["prior"] > 0
    assert flipped >= 12


def test_a_flipped_label_has_the_u_of_its_opposite(tmp_path: Path) -> None:
    scores = toy(tmp_path)
    export_trl(scores, tmp_path / "t.parquet", CleanPolicy(flip_top=0.05), "u")
    order = scores.positions(names_of(scores))
    for row, at in zip(written(tmp_path / "t.parquet"), order, strict=True):
        u, s = scores.columns["u"][at], scores.columns["stability"][at]
        if row["chosen"].startswith("second"):
            u = s - u
        assert row["weight"] == pytest.approx(1 / (1 + 10 * u), rel=1e-6)
    released = scores.manifest | {"constants": {"released": True}}
    other = RunScores(scores.run, released, scores.keys, scores.columns)
    with pytest.raises(UsageError, match="--weight p_wrong"):
        export_trl(other, tmp_path / "r.parquet", CleanPolicy(flip_top=0.05), "u")


def test_decisions_alone_count_whole_however_often_reviewers_err(tmp_path: Path) -> None:
    scores = toy(tmp_path)
    columns = {"reviewed": np.array([0.3, 0.7, 0.5, np.nan])}
    some = RunScores(scores.run, scores.manifest, scores.keys[:4], columns)
    assert weigh(some, "reviews")[0].tolist() == [1, 0, 0, 1]
    assert weigh(some, "reviews", np.ones(4, bool))[0].tolist() == [0, 1, 0, 1]


def copied(path: Path, target: Path, drop: tuple[str, ...] = ()) -> Path:
    """A CSV copy of a Parquet file, as any tool makes it."""
    table = pq.read_table(path).drop_columns(list(drop))
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, table.column_names)
        writer.writeheader()
        writer.writerows(table.to_pylist())
    return target


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_copy_of_a_weights_file_keeps_its_scheme_and_its_labels(
    tmp_path: Path, scheme: str
) -> None:
    scores, dataset = reviewed(tmp_path), load(tmp_path / "toy.jsonl")
    export_weights(scores, tmp_path / "w.parquet", scheme)
    path = copied(tmp_path / "w.parquet", tmp_path / "w.csv")
    whole, copy = file_weights(tmp_path / "w.parquet", dataset), file_weights(path, dataset)
    assert whole.scheme == copy.scheme == scheme_of(path) == scheme
    np.testing.assert_allclose(copy.weight, whole.weight)
    np.testing.assert_allclose(copy.gamma, whole.gamma)
    other = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows()]
    write_lines(tmp_path / "other.jsonl", [*other[:5], *rows()[5:]])
    with pytest.raises(RunError, match=r"other labels: 5 of 120 pairs"):
        file_weights(path, load(tmp_path / "other.jsonl"))
    bare = copied(tmp_path / "w.parquet", tmp_path / "bare.csv", ("scheme", "label"))
    if whole.gamma.any():
        with pytest.raises(DataError, match="does not state what its column gamma is"):
            file_weights(bare, dataset)
    else:
        assert file_weights(bare, dataset).scheme == ""
        (tmp_path / "own.csv").write_text(
            "".join(["pair_id,W,label\n", *(f"{name},1,1\n" for name in names_of(scores))])
        )
        assert file_weights(tmp_path / "own.csv", dataset).weight.tolist() == [1.0] * 120


def test_the_weighting_decides_the_objective_if_none_is_named() -> None:
    made = {name: default_objective(None, None, {}, None, name) for name in SCHEMES}
    assert (made["reviews"], made["soft"], made["prior"]) == ("dpo", "soft-dpo", "forward-dpo")
    assert default_objective(None, None, {}, "run") == "forward-dpo"


def test_a_files_own_weights_or_the_probabilities_that_an_objective_needs(tmp_path: Path) -> None:
    scores, dataset = reviewed(tmp_path), load(tmp_path / "toy.jsonl")
    export_weights(scores, tmp_path / "w.parquet", "p_wrong")
    export_weights(scores, tmp_path / "s.parquet", "soft")
    found = file_weights(tmp_path / "w.parquet", dataset, "soft")
    own = file_weights(tmp_path / "s.parquet", dataset, "soft")
    np.testing.assert_allclose(found.gamma, own.gamma)
    assert (own.weight[OUT], found.scheme) == (0.0, "soft")
    table = pq.read_table(tmp_path / "w.parquet")
    mixed = table.set_column(7, "scheme", [["u"] * 60 + ["soft"] * 60])
    pq.write_table(mixed, tmp_path / "m.parquet")
    with pytest.raises(DataError, match="the column scheme holds u; soft"):
        file_weights(tmp_path / "m.parquet", dataset)
    with pytest.raises(UsageError, match=r"must end in \.parquet"):
        export_weights(scores, tmp_path / "w.csv")


def test_decisions_alone_are_exported_whatever_the_audit_is_worth(tmp_path: Path) -> None:
    scores = toy(tmp_path)
    with pytest.raises(UsageError, match="noisescope review"):
        export_weights(scores, tmp_path / "w.parquet", "reviews")
    scores = reviewed(tmp_path)
    trust = {"word": "cannot know", "sentence": "A coin.", "helps": [], "acts": False}
    summary = {"summary": scores.summary | {"trust": trust}}
    weak = RunScores(
        scores.run, scores.manifest | summary, scores.keys, scores.columns, scores.verdicts
    )
    refuse_weak_weights(weak, CleanPolicy(), "reviews")
    with pytest.raises(EvidenceError, match="cannot know"):
        refuse_weak_weights(weak, CleanPolicy(), "prior")


def test_what_follows_an_export_reads_the_dataset_as_the_run_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [{"q": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in rows()]
    write_lines(tmp_path / "odd.jsonl", named)
    columns = "prompt=q,chosen=good,rejected=bad"
    scored_run(load("odd.jsonl", columns=columns), tmp_path / "runs" / "odd-1")
    for format, verb in (("weights", "train"), ("clean", "score")):
        assert command(["export", "odd", "--format", format]) == 0
        following = capsys.readouterr().out.splitlines()[-1].split()[1:]
        assert following[:2] == ["noisescope", verb]
        at = following.index("--columns")
        assert sorted(following[at + 1].split(",")) == sorted(columns.split(","))


def test_a_training_without_weights_names_the_decisions_that_it_ignores(tmp_path: Path) -> None:
    seen: list[str] = []
    notes: Any = SimpleNamespace(note=seen.append)
    toy(tmp_path)
    dataset = load(tmp_path / "toy.jsonl")
    note_unused_reviews(dataset, "dpo", tmp_path / "runs", notes)
    assert seen == []
    run = reviewed(tmp_path).run
    note_unused_reviews(dataset, "dpo", tmp_path / "runs", notes)
    (note,) = seen
    assert note.startswith("people decided about 2 pairs, and --objective dpo trains on")
    words = note.partition(": ")[2].split()
    found = run_weights(Run(Path(words[1])), dataset, WeightRule(words[3]))
    assert (words[1], found.even) == (str(run.directory), False)


def test_a_label_that_its_format_cannot_flip_is_dropped_and_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scores = reviewed(tmp_path)
    monkeypatch.setattr(Schema, "cannot_flip", property(lambda schema: "a reason"))
    assert command(["export", "toy", "--format", "clean", "--output", "c"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    words = "1 label that reviewers found wrong was dropped, 1 right one kept, 1 pair dropped"
    assert words in printed
    assert words in (tmp_path / "c" / ".export.json").read_text("utf-8")
    assert "0 flip" in printed
    rows_of = pq.read_table("c/decisions.parquet").to_pylist()
    actions = {row["pair_id"]: row["action"] for row in rows_of}
    assert actions[names_of(scores)[WRONG]] == "drop"
