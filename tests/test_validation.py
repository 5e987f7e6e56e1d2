"""Planted flips are found, honestly counted, and cost no forward pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from noisescope.auditing.audit import audit
from noisescope.auditing.validation import Labels, Planned, validate, validate_truth
from noisescope.datasets.flip.ground_truth import read_truth
from noisescope.datasets.flip.kinds import KINDS, _part
from noisescope.datasets.flip.plan import FlipPlan
from noisescope.errors import DataError, EvidenceError, RunError, UsageError
from noisescope.models import Item, ModelIdentity
from noisescope.pairs import Facts, Pair, PreferenceDataset, dataset_fingerprint, to_table
from noisescope.replicas.gather import EvidenceConfig
from noisescope.replicas.refit import refitter
from noisescope.report.contents import gather
from noisescope.scoring.claims import Own, compare
from noisescope.scoring.margins import read_margins
from noisescope.scoring.metrics import Interval
from noisescope.scoring.noise_models import fit_noise
from noisescope.scoring.pair_facts import facts_of_table
from noisescope.storage.run import Run


@dataclass
class Reader:
    """A real, tiny policy: a response's features are the quality it states, and a noise."""

    modality: Any = "text"
    identity: ModelIdentity = field(default_factory=lambda: ModelIdentity("reader", None, "f" * 20))
    device: Any = field(default_factory=lambda: torch.device("cpu"))
    dtype: Any = torch.float32
    passes: int = 0

    def sizes(self, items: Sequence[Item]) -> np.ndarray:
        return np.full(len(items), 10)

    def open_encodings(self, directory: Path) -> None:

        return None

    def features(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
        self.passes += 1
        quality = np.array([float(item.response.split()[1]) for item in items])
        noise = np.array([float(int(item.key[:6], 16)) for item in items]) / 2**24
        return {"read": np.stack([quality, noise], axis=1).astype(np.float32)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(400):
        low, high = sorted(rng.normal(0, 2, 2).round(3))
        annotator = f"a{index % 8}"
        pairs.append(
            Pair(
                f"q{index}",
                f"quality {high} {index}",
                f"quality {low} {index}",
                annotator=annotator,
            )
        )
    table = to_table(pairs)
    dataset = PreferenceDataset(
        "toy", "toy", "columnar", "text", table, Facts(400, 400), dataset_fingerprint(table)
    )
    runs = tmp_path_factory.mktemp("runs")
    return audit(
        dataset, Reader(), evidence=EvidenceConfig(replicas=3, folds=3), runs_directory=runs
    ).run


@pytest.fixture(scope="module")
def result(run: Run) -> dict[str, Any]:
    return validate(run, Planned((0.2, 0.1), seeds=2))


def test_planted_flips_are_found(result: dict[str, Any]) -> None:
    found = result["detectors"]["p_flip"]
    assert found["auroc"] > 0.85
    assert found["interval"][0] < found["auroc"] < found["interval"][1]
    assert found["auroc"] <= result["bayes_auroc"] + 0.05
    assert result["detectors"]["stability"]["auroc"] < found["auroc"]
    assert result["deciles"][9] > 3 * result["base_rate"]
    assert result["ece"] < 0.1
    assert result["expected_auroc"] == pytest.approx(found["auroc"], abs=0.08)


def test_the_result_has_its_stable_keys(result: dict[str, Any], run: Run) -> None:
    keys = {"detectors", "ece", "brier", "flip_rate", "mislabelled_share", "bayes_auroc"}
    keys |= {"expected_auroc", "base_rate", "deciles", "u_intervals", "reliability", "by_rate"}
    assert keys <= result.keys()
    assert [row["rate"] for row in result["by_rate"]] == [0.2, 0.1]
    assert len(result["plantings"]) == 2
    assert {"estimate", "low", "high", "truth", "covers"} <= result["claims"]["flip_rate"].keys()
    assert json.loads((run.directory / "validation.json").read_text()) == result
    stored = pq.read_table(run.directory / "validation.parquet")
    assert stored.num_rows == 4 * 400
    shares = stored.group_by("planting").aggregate([("mislabelled", "mean")])
    assert shares.column("mislabelled_mean").to_pylist() == pytest.approx(
        [0.2, 0.2, 0.1, 0.1], abs=0.06
    )


def test_the_same_planting_gives_the_same_numbers(run: Run, result: dict[str, Any]) -> None:
    assert validate(run, Planned((0.2, 0.1), seeds=2)) == result


def test_the_report_then_draws_what_was_proven(run: Run, result: dict[str, Any]) -> None:
    pictures = {picture.name: picture for picture in gather(run).pictures}
    assert len(pictures) <= 6
    assert {"flips-by-decile", "precision-recall", "reliability", "detectors"} <= pictures.keys()
    assert pictures["reliability"].title.startswith("Calibration of p_flip")


def test_rising_tenths_are_held_against_what_chance_leaves(result: dict[str, Any]) -> None:
    risen = [(np.diff(one["deciles"]) > 0).all() for one in result["plantings"]]
    assert result["deciles_rise"] == np.mean(risen)
    assert 0 <= result["deciles_rise_expected"] <= 1


def test_refits_are_reproducible_and_a_search_may_go_on(run: Run) -> None:
    refit = refitter(run, pq.read_table(run.pairs_path))
    none, some = np.zeros(400, bool), np.arange(400) % 5 == 0
    kept = refit(none, None).margins.margins
    stored = read_margins(run.directory).margins
    assert np.corrcoef(kept.ravel(), stored.ravel())[0, 1] > 0.999
    first = refit(some, None)
    assert np.array_equal(refit(some, None).margins.margins, first.margins.margins)
    other = np.arange(400) % 5 == 1
    alone, after = refit(other, None), refit(other, first.variance)
    pair = np.stack([alone.margins.margins.mean(axis=0)[0], after.margins.margins.mean(axis=0)[0]])
    assert np.corrcoef(pair)[0, 1] > 0.99


def test_a_validated_truth_marks_the_reports_pairs(run: Run, tmp_path: Path) -> None:
    moved = Run(tmp_path / run.directory.name)
    shutil.copytree(run.directory, moved.directory)
    assert {pair["known"] for pair in gather(moved).pairs} == {None}
    ids = [pair["pair_id"] for pair in gather(moved).pairs]
    path = tmp_path / "known.csv"
    said = [f"{name},{str(index % 2 == 0).lower()}" for index, name in enumerate(ids[:30])]
    path.write_text("pair_id,mislabelled\n" + "\n".join(said) + "\n")
    validate_truth(moved, path)
    marks = [pair["known"] for pair in gather(moved).pairs]
    assert marks[:30] == ["known to be wrong", "known to be right"] * 15
    assert marks[30] is None
    pictures = {picture.name: picture for picture in gather(moved).pictures}
    assert pictures["reliability"].title.startswith("Calibration of p_wrong")
    assert pictures["detectors"].title.endswith("finds the wrong labels")
    path.write_text("pair_id,mislabelled\n" + said[0] + "\n")
    with pytest.raises(EvidenceError, match="too few to compare"):
        validate_truth(moved, path)


def test_flips_beside_the_dataset_mark_the_reports_pairs(run: Run, tmp_path: Path) -> None:
    moved = Run(tmp_path / run.directory.name)
    shutil.copytree(run.directory, moved.directory)
    (moved.directory / "validation.json").unlink(missing_ok=True)
    copy = tmp_path / "copy"
    copy.mkdir()
    moved.write_manifest(moved.manifest() | {"resolved": f"{copy}:train"})
    worst = [pair["pair_id"] for pair in gather(moved).pairs][:2]
    pq.write_table(pa.table({"pair_id": worst, "flipped": [True, False]}), copy / "flips.parquet")
    marks = [pair["known"] for pair in gather(moved).pairs]
    assert marks[:3] == ["a planted flip", "not flipped", None]


def test_lost_features_are_never_computed_in_silence(run: Run, tmp_path: Path) -> None:
    moved = tmp_path / run.directory.name
    shutil.copytree(run.directory, moved)
    with pytest.raises(RunError, match="800 responses are no longer cached"):
        validate(Run(moved), Planned())


def test_pairs_without_a_margin_are_not_among_the_worst() -> None:
    margins = np.where(np.arange(40) < 30, np.nan, np.linspace(-3, 3, 40))
    noise = fit_noise(np.nan_to_num(margins, nan=1.0))
    columns = {"margin": margins, "p_wrong": noise.p_wrong(margins)}
    summary = SimpleNamespace(
        mislabelled=Interval(0.3, 0.1, 0.5), flip_rate=Interval(0.2, 0.1, 0.3), chance=False
    )
    found = compare(np.arange(40) % 2 == 0, columns, cast(Any, summary), noise, Own())
    assert found["planted"] == 20
    assert found["hits"] == 5
    assert found["expected_hits"]["high"] <= 10
    with pytest.raises(UsageError, match="nothing to find"):
        compare(np.zeros(40, bool), columns, cast(Any, summary), noise, Own())


def test_the_largest_rate_in_a_hint_can_be_typed() -> None:
    with pytest.raises(UsageError) as caught:
        _part(0.2, 0.0037, "are long")
    assert caught.value.hint == "Use --rate 0.0037 or less."
    with pytest.raises(UsageError) as caught:
        _part(0.2, 0.127, "are long")
    assert caught.value.hint == "Use --rate 0.12 or less."
    with pytest.raises(UsageError) as caught:
        _part(0.2, 0.0, "are long")
    assert caught.value.hint == "Use another --kind: uniform flips any label."


def test_every_kind_that_the_dataset_can_have_is_planted(run: Run, tmp_path: Path) -> None:
    table = pq.read_table(run.pairs_path)
    gold = tmp_path / "gold.parquet"
    wrong = np.arange(400) % 40 == 0
    pq.write_table(pa.table({"pair_id": table["pair_id"], "mislabelled": wrong}), gold)
    found = validate(run, Planned((0.2,), ("all",), 1), gold=gold)
    cards = {card["kind"]: card for card in found["by_rate"]}
    assert [one["kind"] for one in found["impossible"]] == ["position"]
    assert set(cards) == set(KINDS) - {"position"}
    labels = Labels.of(run, gold)
    stored = pq.read_table(run.directory / "validation.parquet")
    for number, (kind, card) in enumerate(cards.items()):
        flipped = labels.flips(FlipPlan(0.2, kind))
        rows = stored.filter(np.asarray(stored["planting"]) == number)
        assert rows["mislabelled"].to_pylist() == flipped.tolist()
        claims = card["claims"]
        assert claims["planted"] == flipped.sum()
        assert claims["planted_share"] == pytest.approx(flipped.mean())
        order = np.lexsort((np.asarray(rows["margin"]), -np.asarray(rows["p_wrong"])))
        assert claims["hits"] == flipped[order[: flipped.sum()]].sum()
        for name in ("flip_rate", "wrong_share"):
            low, high = claims[name]["truth"]
            assert low == high == pytest.approx(flipped.mean())  # labels were right
            assert claims[name]["covers"] == (claims[name]["low"] <= low <= claims[name]["high"])
        assert f"Of {flipped.sum()} planted errors" in card["verdict"]
    prompts = np.array(table["prompt"].to_pylist())
    by_prompt = labels.flips(FlipPlan(0.2, "prompt"))
    assert all(len(set(by_prompt[prompts == name])) == 1 for name in set(prompts))
    bad = labels.flips(FlipPlan(0.2, "contrarian"))
    who = np.array(table["annotator"].to_pylist())
    assert {bool(set(bad[who == name]) == {True}) for name in set(who[bad])} == {True}


def test_errors_of_the_data_widen_the_truth_of_what_is_planted(run: Run) -> None:
    found = validate(run, Planned((0.2,), ("prompt", "uniform"), 1))
    before = run.manifest()["summary"]["mislabelled_share"]
    for card in found["by_rate"]:
        planted = card["claims"]["planted_share"]
        assert card["claims"]["own_errors"]
        assert card["claims"]["wrong_share"]["truth"] == pytest.approx(
            [planted + x * (1 - 2 * planted) for x in (before["low"], before["high"])]
        )
    with pytest.raises(UsageError, match="position flips need the order"):
        validate(run, Planned((0.2,), ("uniform", "position"), 1))


def test_labels_are_corrected_by_gold_before_errors_are_planted(run: Run, tmp_path: Path) -> None:
    table = pq.read_table(run.pairs_path)
    path, wrong = tmp_path / "gold.parquet", np.arange(400) % 5 == 0
    pq.write_table(pa.table({"pair_id": table["pair_id"], "mislabelled": wrong}), path)
    labels = Labels.of(run, path)
    sides = [
        (b, a) if bad else (a, b)
        for a, b, bad in zip(
            table["chosen"].to_pylist(), table["rejected"].to_pylist(), wrong, strict=True
        )
    ]
    corrected = [labels.table[name].to_pylist() for name in ("chosen", "rejected")]
    assert list(zip(*corrected, strict=True)) == sides
    pq.write_table(pa.table({"pair_id": table["pair_id"][:300], "mislabelled": wrong[:300]}), path)
    with pytest.raises(UsageError, match="knows 300 of 400 pairs"):
        Labels.of(run, path)


def test_copies_of_a_pair_count_once_until_one_of_them_is_flipped() -> None:
    texts = [("q", "yes", "no"), ("q", "Yes ", "no"), ("other", "yes", "no")]
    pairs = [Pair(*each, pair_id=str(at)) for at, each in enumerate(texts)]
    swapped = [Pair(*texts[0][::2], texts[0][1], pair_id="0"), *pairs[1:]]
    weights = [facts_of_table(to_table(each), "text").weights for each in (pairs, swapped)]
    assert [found.tolist() for found in weights if found is not None] == [[0.5, 0.5, 1], [1, 1, 1]]


def test_the_command_prints_claims_beside_the_truth(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from noisescope import cli

    def typed(*words: str) -> tuple[int, str, str]:
        code = cli.run(["validate", str(run.directory), *words])
        return code, *capsys.readouterr()

    code, out, _ = typed("--kind", "prompt", "--kind", "response", "--seeds", "1")
    assert code == 0
    assert "The claims cover the truth: expected hits for" in out
    assert [line.split()[0] for line in out.splitlines() if "%)" in line] == ["prompt", "response"]
    code, _, err = typed("--truth", "x.csv", "--kind", "hard")
    assert code == 2
    assert "--truth plants nothing, so it takes no --kind" in err


@pytest.mark.parametrize("column", ["pair_id", "id"])
def test_ids_of_a_truth_csv_are_text(tmp_path: Path, column: str) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(f"{column},mislabelled\n007,true\n010,false\n")
    table = pa.table({"pair_id": ["007", "010", "7"]})
    wrong, known = read_truth(path, table)
    assert wrong.tolist() == [True, False, False]
    assert known.tolist() == [True, True, False]


def test_a_truth_is_joined_on_the_column_that_the_ids_are_from(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text("id,uid,mislabelled\na,b,true\nb,a,false\n")
    pairs = pa.table({"pair_id": ["a", "b"]})
    assert read_truth(path, pairs, "uid")[0].tolist() == [False, True]
    with pytest.raises(DataError, match="several columns of ids: id, uid"):
        read_truth(path, pairs)
    with pytest.raises(DataError, match=r"pair_id \(or key\)"):
        read_truth(path, pairs, "key")
    assert read_truth(path, pairs, "meta.uid")[0].tolist() == [False, True]


@pytest.mark.parametrize("name", ["truth.parquet", "truth.csv", "truth.jsonl"])
def test_a_truth_file_replaces_planting(run: Run, tmp_path: Path, name: str) -> None:
    ids = pq.read_table(run.pairs_path).column("pair_id").to_pylist()[:300]
    margins = {row["pair_id"]: row["margin"] for row in pq.read_table(run.scores_path).to_pylist()}
    worst = set(sorted(ids, key=margins.__getitem__)[:40])
    table = pa.table({"pair_id": ids, "mislabelled": [name in worst for name in ids]})
    path = tmp_path / name
    if name.endswith("csv"):
        pyarrow.csv.write_csv(table, path)
    elif name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        pq.write_table(table, path)
    found = validate_truth(run, path)
    assert found["pairs"] == 300
    assert found["base_rate"] == pytest.approx(40 / 300)
    assert found["detectors"]["p_flip"]["auroc"] == pytest.approx(1.0)


def test_wrong_truth_files_are_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "truth.parquet"
    pq.write_table(pa.table({"id": ["x"]}), path)
    with pytest.raises(DataError, match="needs pair_id and mislabelled"):
        validate_truth(run, path)
    empty, folder = tmp_path / "empty.jsonl", tmp_path / "pictures"
    empty.touch()
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG")
    wrong = {empty: "is empty", folder: "is a directory", tmp_path / "x.csv": "does not exist"}
    for given, trouble in wrong.items():
        with pytest.raises(DataError, match=f"{given.name} {trouble}") as caught:
            validate_truth(run, given)
        assert "columns pair_id and mislabelled" in caught.value.hint
    pq.write_table(pa.table({"pair_id": ["x"], "mislabelled": [True]}), path)
    with pytest.raises(DataError, match="names none of the run's pairs"):
        validate_truth(run, path)
    pq.write_table(pa.table({"uid": ["x"], "mislabelled": [True]}), path)
    with pytest.raises(DataError, match="names none of the run's pairs") as caught:
        validate_truth(run, path)
    assert "--columns pair_id=uid" in str(caught.value.hint)


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(UsageError):
        Planned(())
    with pytest.raises(UsageError):
        Planned((2.0,))
