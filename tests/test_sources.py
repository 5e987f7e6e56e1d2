"""Evidence from outside: numbers of pairs, columns, models, and what each of them added."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_judges import tiny_reward_model
from helpers.tiny_models import save, tiny_gpt2, tiny_llama, tiny_tokenizer
from numpy.typing import NDArray
from scipy.special import expit

import noisescope
from noisescope.auditing.replica_sources import open_replicas
from noisescope.cli import run
from noisescope.datasets import load
from noisescope.datasets.in_memory import load_table
from noisescope.errors import DataError, NoisescopeError, RunError, UsageError
from noisescope.pairs import hashed
from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.replicas.numbers import check_numbers, numbers_fingerprint, table_numbers
from noisescope.replicas.outside import read_outside
from noisescope.replicas.refit import refitter
from noisescope.replicas.source_fits import Evidence, outside_odds, what_each_added
from noisescope.replicas.sources import Source, Table, open_source, parsed
from noisescope.report.contents import gather
from noisescope.report.html import page
from noisescope.scoring.margins import RunMargins
from noisescope.scoring.pair_facts import PairFacts
from noisescope.scoring.sources import SourceReport, source_notes
from noisescope.storage.run import find_run

CONFIG = HeadConfig(replicas=2, folds=4, search_steps=10)


def labelled(pairs: int = 400, seed: int = 0) -> tuple[Any, ...]:
    """Features, sides, fold keys, and a judge's log odds, of labels drawn from both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * pairs, 3)).astype(np.float32)
    first, second = np.arange(pairs), np.arange(pairs, 2 * pairs)
    judge = rng.normal(size=pairs)
    odds = 1.5 * (x[first, 0] - x[second, 0]) + 1.5 * judge
    better = rng.random(pairs) < expit(odds)
    chosen, rejected = np.where(better, first, second), np.where(better, second, first)
    key = hashed(first.astype(np.uint64), 3)
    return x, chosen, rejected, key, np.where(better, judge, -judge)[:, None].astype(np.float32)


# --- numbers of pairs in the fit ---------------------------------------------------------------


def test_a_number_of_a_pair_is_a_feature_of_its_chosen_side() -> None:
    x, chosen, rejected, key, judge = labelled()
    column = np.zeros((len(x), 1), np.float32)
    column[chosen] = judge
    as_feature = fit_heads({"x": x, "judge": column}, chosen, rejected, key, CONFIG)
    as_number = fit_heads({"x": x}, chosen, rejected, key, CONFIG, numbers={"judge": judge})
    assert np.abs(as_feature.margins - as_number.margins).max() < 0.05
    assert as_number.variance.keys() == as_feature.variance.keys()


@pytest.mark.parametrize("responses", ["few", "many"])
def test_exchanging_the_sides_negates_the_margins(responses: str) -> None:
    x, chosen, rejected, key, judge = labelled(200)
    if responses == "few":  # fewer responses than pairs: another form of the problem
        chosen, rejected = chosen % 40, 40 + rejected % 40
        x = x[:80]
    one = fit_heads({"x": x}, chosen, rejected, key, CONFIG, numbers={"judge": judge})
    other = fit_heads({"x": -x}, chosen, rejected, key, CONFIG, numbers={"judge": -judge})
    assert np.abs(one.margins + other.margins).max() > 0.1  # labels did not turn with them
    turned = fit_heads({"x": x}, rejected, chosen, key, CONFIG, numbers={"judge": -judge})
    again = fit_heads({"x": -x}, chosen, rejected, key, CONFIG, numbers={"judge": -judge})
    assert np.abs(turned.margins - again.margins).max() < 1e-3


def test_a_source_without_knowledge_gets_no_weight_and_a_good_one_gets_some() -> None:
    x, chosen, rejected, key, judge = labelled(800)
    noise = np.random.default_rng(9).normal(size=judge.shape).astype(np.float32)
    plain = fit_heads({"x": x}, chosen, rejected, key, CONFIG)
    random = fit_heads({"x": x}, chosen, rejected, key, CONFIG, numbers={"noise": noise})
    helped = fit_heads({"x": x}, chosen, rejected, key, CONFIG, numbers={"judge": judge})
    assert abs(random.log_likelihood - plain.log_likelihood) < 0.002
    assert helped.log_likelihood > plain.log_likelihood + 0.05
    moved = np.abs(random.margins - plain.margins).mean()
    assert moved < 0.1 < np.abs(helped.margins - plain.margins).mean()


def test_a_reversed_source_is_read_the_other_way() -> None:
    x, chosen, rejected, key, judge = labelled(800)
    one = fit_heads({"x": x}, chosen, rejected, key, CONFIG, numbers={"judge": judge})
    other = fit_heads({"x": x}, chosen, rejected, key, CONFIG, numbers={"judge": -judge})
    assert np.abs(one.margins - other.margins).max() < 1e-3


def test_numbers_of_another_length_are_refused() -> None:
    x, chosen, rejected, key, judge = labelled(100)
    with pytest.raises(NoisescopeError, match="numbers of pairs need 100 rows"):
        fit_heads({"x": x}, chosen, rejected, key, CONFIG, numbers={"judge": judge[:50]})


# --- files and tables --------------------------------------------------------------------------

PAIRS = pa.table(
    {
        "pair_id": ["a", "b", "c"],
        "chosen": ["yes a", "yes b", "yes c"],
        "rejected": ["no a", "no b", "no c"],
    }
)


def test_a_table_is_aligned_by_pair_id() -> None:
    found = pa.table({"pair_id": ["c", "a", "x"], "judge": [1.5, -2.0, 9.0], "note": ["", "", ""]})
    numbers = table_numbers("t", found, "", PAIRS)
    assert list(numbers) == ["judge"]
    np.testing.assert_array_equal(numbers["judge"], [-2.0, np.nan, 1.5])
    assert check_numbers(Source("file", "t"), numbers) == "file:t has numbers of 66.7% of the pairs"


def test_a_chosen_column_orients_the_numbers() -> None:
    found = pa.table({"pair_id": ["a", "b"], "chosen": ["yes a", "no b"], "judge": [1.0, 2.0]})
    numbers = table_numbers("t", found, "judge", PAIRS)
    np.testing.assert_array_equal(numbers["judge"], [1.0, -2.0, np.nan])
    other = found.set_column(1, "chosen", [["yes a", "maybe"]])
    with pytest.raises(DataError, match="chosen of pair b is neither side"):
        table_numbers("t", other, "judge", PAIRS)


@pytest.mark.parametrize(
    ("columns", "found", "message"),
    [
        ("", {"judge": [1.0]}, "no column pair_id"),
        ("", {"pair_id": ["a"], "note": ["x"]}, "no column of numbers"),
        ("rank", {"pair_id": ["a"], "judge": [1.0]}, "has no numbers in rank"),
        ("", {"pair_id": ["a", "a"], "judge": [1.0, 2.0]}, "occur more than once"),
        ("", {"pair_id": ["x"], "judge": [1.0]}, "has none of the 3 pairs"),
    ],
)
def test_a_table_that_cannot_be_evidence_is_refused(
    columns: str, found: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        table_numbers("t", pa.table(found), columns, PAIRS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0, 0.0], "never negative, so it does not judge"),
        ([-1.0, -2.0, np.nan], "never positive"),
        ([0.0, np.nan, 0.0], "empty or 0 for every pair"),
        ([1.0, -np.inf, 0.0], "infinite for 1 pairs"),
    ],
)
def test_numbers_that_do_not_judge_are_refused(values: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_numbers(Source("column", "strength"), {"strength": np.array(values)})


def test_a_strength_is_refused_with_the_role_to_give_it() -> None:
    values = np.array([1.0, 2.0, 3.0])
    with pytest.raises(DataError) as caught:
        check_numbers(Source("column", "confidence"), {"confidence": values})
    assert "--columns strength=confidence" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["reward:", "reward", "oracle:x", ""])
def test_a_source_of_no_known_kind_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--evidence"):
        Source.parse(text)


def test_a_source_counts_once() -> None:
    with pytest.raises(UsageError, match="more than once"):
        parsed(["file:a.csv", "column:x", "file:a.csv"])


# --- columns of the dataset --------------------------------------------------------------------


def rows(count: int = 24) -> list[dict[str, Any]]:
    """Pairs of a first and a second side with a label, and the scores of another rater."""
    return [
        {
            "prompt": f"Question {n}?",
            "response_a": f"Yes, {n} loaves",
            "response_b": "no" * (n % 5 + 1),
            "preference": "a" if n % 3 else "b",
            "other_a": float(n % 7),
            "other_b": float(n % 4),
        }
        for n in range(count)
    ]


def test_two_columns_are_numbers_of_the_first_and_second_side() -> None:
    from noisescope.datasets.numbers import read_numbers

    dataset = load_table(pd.DataFrame(rows()))
    found = read_numbers(dataset, ("other_a", "other_b"))
    expected = [(n % 7 - n % 4) * (1 if n % 3 else -1) for n in range(24)]
    np.testing.assert_array_equal(found, expected)
    swapped = read_numbers(dataset, ("other_b", "other_a"))
    np.testing.assert_array_equal(swapped, -found)


def votes(count: int = 60, annotators: int = 4) -> list[dict[str, Any]]:
    """A row a vote; side a is right of even pairs, and one of the votes on each fifth is wrong."""
    rows = []
    for n in range(count):
        for name in range(annotators):
            sides = [f"a {n}", f"b {n}"][:: 1 if (n + (5 * name == n % 20)) % 2 == 0 else -1]
            rows.append({"prompt": f"Why {n}?", "annotator": name})
            rows[-1] |= zip(("chosen", "rejected"), sides, strict=True)
    return rows


def test_votes_of_others_are_log_odds_of_the_chosen_side() -> None:
    from noisescope.datasets.numbers import other_votes

    again, nobody, alone = votes(1)[0], votes(1)[1] | {"annotator": None}, votes(61, 1)[-1]
    rows = [*votes(), again, nobody, alone]
    dataset = load_table(pd.DataFrame(rows))
    table = dataset.table.to_pylist()
    expected = []
    for one in table:
        by: dict[str, int] = {}  # of each other annotator, how much more often this pair's side
        for other in table:
            if other["content_id"] == one["content_id"] and other["annotator"]:
                sign = 1 if other["chosen"] == one["chosen"] else -1
                by[other["annotator"]] = by.get(other["annotator"], 0) + sign
        by.pop(one["annotator"] or "", None)
        up, down = (sum(np.sign(vote) == sign for vote in by.values()) for sign in (1, -1))
        expected.append(np.log((up + 0.5) / (down + 0.5)) if up + down else np.nan)
    assert np.isnan(expected).sum() == 1
    np.testing.assert_allclose(other_votes(dataset.table), expected)
    assert "242 of 243 labels are of pairs that other annotators" in str(dataset.facts.notes)
    assert "annotators" not in str(load_table(pd.DataFrame(votes(60, 1))).facts.notes)


def test_wrong_votes_are_found_by_those_of_others(model: Path, tmp_path: Path) -> None:
    def scored(*sources: str) -> noisescope.Audited:
        config = noisescope.EvidenceConfig(replicas=2, folds=2, sources=sources)
        rows = pd.DataFrame(votes())
        return noisescope.audit(rows, model, evidence=config, runs_directory=tmp_path, name="v")

    found = scored("votes")
    wrong = ["ab"[int(text[2:]) % 2] != text[0] for text in found.pairs["chosen"].to_pylist()]
    suspicious = np.argsort(found.scores["rank"].to_numpy())[: sum(wrong)]
    assert len(suspicious) == 12
    assert all(wrong[at] for at in suspicious)
    with pytest.raises(RunError, match="evidence votes, which planting would change"):
        refitter(found.run, found.pairs)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (votes(60, 1), "labelled by two"),
        (votes()[4:20], "divides its annotators"),
    ],
)
def test_votes_that_decide_nothing_are_refused(rows: list[dict[str, Any]], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        open_source(Source("votes", ""), load_table(pd.DataFrame(rows)), None)  # type: ignore[arg-type]


def test_other_votes_may_agree_without_being_the_origin_of_labels() -> None:
    report = SourceReport("votes", 0.99, 0.6, 0.2, 0.4, None)
    assert not any("origin" in note for note in source_notes([report]))
    assert any("origin" in note for note in source_notes([replace(report, source="column:x")]))


def test_one_column_is_a_number_of_chosen_against_rejected(tmp_path: Path) -> None:
    from noisescope.datasets.numbers import read_numbers

    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["prompt", "chosen", "rejected", "judge"])
        for n in range(12):
            out.writerow([f"Why {n}?", f"yes {n}", f"no {n}", "" if n == 3 else n - 5.5])
    found = read_numbers(load(path), ("judge",))
    np.testing.assert_array_equal(found, [np.nan if n == 3 else n - 5.5 for n in range(12)])
    with pytest.raises(DataError, match="has no column jugde"):
        read_numbers(load(path), ("jugde",))
    with pytest.raises(DataError, match=r"pairs.csv:1: "):
        read_numbers(load(path), ("chosen",))


def test_a_flipped_copy_keeps_numbers_of_the_old_sides(tmp_path: Path) -> None:
    from noisescope.datasets.numbers import read_numbers

    source = tmp_path / "pairs.jsonl"
    pairs = pd.DataFrame(
        {
            "prompt": [f"Why {n}?" for n in range(20)],
            "chosen": [f"yes {n}" for n in range(20)],
            "rejected": [f"no {n}" for n in range(20)],
            "judge": [float(n - 9) for n in range(20)],
        }
    )
    pairs.to_json(source, orient="records", lines=True)
    assert run(["flip", str(source), "--rate", "0.3", "--output", str(tmp_path / "copy")]) == 0
    with pytest.raises(UsageError, match="is a flipped copy"):
        read_numbers(load(tmp_path / "copy"), ("judge",))


# --- whole audits ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny_llama(), tiny_tokenizer(None))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a reward model, a second language model and numbers of the pairs."""
    folder = tmp_path_factory.mktemp("sources")
    tiny_reward_model(folder / "reward")
    save(folder / "gpt2", tiny_gpt2(), tiny_tokenizer(None))
    return folder


def audited(model: Path, runs: Path, *sources: str | Table) -> noisescope.Audited:
    config = noisescope.EvidenceConfig(replicas=2, folds=2, sources=tuple(sources))
    return noisescope.audit(
        pd.DataFrame(rows(60)), model, evidence=config, runs_directory=runs, name="frame"
    )


def test_a_run_reports_what_each_source_added(model: Path, place: Path) -> None:
    runs = place / "runs"
    plain = audited(model, runs)
    assert "sources" not in plain.run.plan()["evidence"]
    assert plain.summary.sources == []
    ids = plain.pairs["pair_id"].to_pylist()
    judge = pd.DataFrame({"pair_id": ids, "judge": [1.0 if n % 5 else -1.0 for n in range(60)]})
    names = [f"reward:{place / 'reward'}", f"lm:{place / 'gpt2'}", "column:other_a,other_b"]
    found = audited(model, runs, *names, Table("judge", judge))
    assert found.run.directory != plain.run.directory
    sources = [one.source for one in found.summary.sources]
    assert sources == ["model", *names, "table:judge"]
    reports = {one.source: one for one in found.summary.sources}
    assert reports["table:judge"].accuracy_alone == pytest.approx(0.8)
    assert reports["table:judge"].nats_added > 0
    assert 0 <= reports["model"].disagreement <= 1
    assert found.summary.sources[4].source == "table:judge"
    html = page(gather(found.run))
    assert (
        f'<th scope="row">table:judge</th><td>{reports["table:judge"].accuracy_alone:.1%}</td>'
        in html
    )
    html = page(gather(plain.run))
    assert "What each source added" not in html


def test_the_order_of_sides_does_not_matter_to_a_refit(model: Path, place: Path) -> None:
    runs = place / "refit"
    ids = audited(model, runs).pairs["pair_id"].to_pylist()
    rng = np.random.default_rng(1)
    judge = pd.DataFrame({"pair_id": ids, "judge": rng.normal(size=60) + 1})
    made = audited(model, runs, Table("judge", judge)).run
    refit = refitter(made, pq.read_table(made.pairs_path))
    none, every = (refit(np.full(60, value), None).margins for value in (False, True))
    mean = [np.mean([m for _, m, _ in found.blocks()], axis=(0, 1)) for found in (none, every)]
    assert np.abs(mean[0] - mean[1]).max() < 1e-3  # all labels turned: the same problem


def test_cached_sources_are_shared_between_runs(model: Path, place: Path) -> None:
    runs = place / "shared"
    source = f"reward:{place / 'reward'}"
    first = audited(model, runs, source)
    parts = {
        path: path.stat().st_mtime_ns for path in (runs / ".cache" / "features").rglob("*.safe*")
    }
    assert len({path.parent for path in parts}) == 2  # of the model and of the reward model
    second = audited(model, runs, source, "column:other_a,other_b")
    assert second.run.directory != first.run.directory
    assert parts == {
        path: path.stat().st_mtime_ns for path in (runs / ".cache" / "features").rglob("*.safe*")
    }


def test_the_origin_of_the_labels_is_named(model: Path, place: Path) -> None:
    runs = place / "circular"
    ids = audited(model, runs).pairs["pair_id"].to_pylist()
    judge = pd.DataFrame({"pair_id": ids, "judge": [2.0] * 59 + [-2.0]})
    found = audited(model, runs, Table("labeller", judge))
    (note,) = [note for note in found.summary.notes if "circular" in note]
    assert note.startswith("table:labeller agrees with 98.3% of the labels")


@pytest.mark.parametrize("kind", ["of responses", "of pairs", "of some pairs"])
def test_every_kind_of_source_may_be_the_origin(kind: str) -> None:
    """Labels made from a score: as a feature of responses, or a number of all or some pairs."""
    rng = np.random.default_rng(3)
    score = rng.normal(size=400).astype(np.float32)
    one, other = np.arange(200), np.arange(200, 400)
    better = score[one] > score[other]
    sides = np.where(better, one, other), np.where(better, other, one)
    gap = (score[sides[0]] - score[sides[1]])[:, None]
    if kind == "of some pairs":
        gap[rng.random(200) < 0.7] = 0
    features = {"origin": score[:, None]} if kind == "of responses" else {}
    noise = rng.normal(size=(400, 2)).astype(np.float32)
    key = hashed(one.astype(np.uint64), 3)
    whole = Evidence(
        {"middle": noise, **features}, {} if features else {"origin": gap}, sides, key, key, CONFIG
    )
    reports = what_each_added(whole, {"model": ("middle",), "x:origin": ("origin",)})
    (note,) = [note for note in source_notes(reports) if "circular" in note]
    assert note.startswith("x:origin agrees with ")
    assert ("of the labels that it judges (" in note) == (kind == "of some pairs")


@pytest.mark.parametrize("selected", [True, False])
def test_numbers_of_doubted_labels_alone_are_named(selected: bool) -> None:
    x, chosen, rejected, key, judge = labelled(800)
    doubt = -(x[chosen, 0] - x[rejected, 0]) if selected else np.random.default_rng(1).random(800)
    judge[np.argsort(-doubt)[200:]] = 0
    whole = Evidence({"middle": x}, {"origin": judge}, (chosen, rejected), key, key, CONFIG)
    reports = what_each_added(whole, {"model": ("middle",), "file:m.csv": ("origin",)})
    notes = [note for note in source_notes(reports) if "selected by their label" in note]
    assert len(notes) == selected
    assert [one.doubted is not None for one in reports] == [False, selected]
    if selected:
        assert notes[0].startswith("The weight of file:m.csv may be wrong: the other evidence cont")
        again = SourceReport.of(json.loads(json.dumps(reports[1].to_json())))
        assert source_notes([again]) == source_notes(reports[1:])


def test_margins_of_a_pair_that_no_replica_holds_out_are_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = load_table(pd.DataFrame(rows(12)), name="frame")
    margins = np.stack([np.arange(12.0), np.arange(12.0) + 2])[:, None, :]
    held_out = np.ones((2, 12), bool)
    held_out[:, 1], held_out[1, 2] = False, False
    found = RunMargins([0, 1], [1], margins.astype(np.float32), held_out)
    monkeypatch.setattr("noisescope.auditing.replica_sources.read_margins", lambda _: found)
    tuned = SimpleNamespace(run=SimpleNamespace(directory="made"), reused=False)
    opened = open_replicas(
        Source("lora", ""), data, noisescope.EvidenceConfig(), lambda config: tuned
    )
    np.testing.assert_array_equal(opened.numbers["lora"][:4], [1.0, np.nan, 2.0, 4.0])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_judge_s_log_odds_are_found_whatever_its_scale(sign: int) -> None:
    """Log odds N(mu, 2 mu) of the truth, independent of the errors and of the model's margins."""
    rng = np.random.default_rng(5)
    gap = rng.normal(0, 3, 4000)
    label = np.where(rng.random(4000) < 1 / (1 + np.exp(-gap)), 1, -1)  # honest votes
    label = np.where(rng.random(4000) < 0.25, -label, label)
    wrong = label != np.sign(gap)  # not what most people would choose
    judged = rng.normal(np.where(wrong, -0.9, 0.9), np.sqrt(1.8))
    column = sign * judged[:, None].astype(np.float32)
    found = {"model": label * gap, "judge": 0.2 * judged}
    groups = {"model": ("middle",), "judge": ("number",), "embed:e": ("e",)}
    wide = np.ones((2, 3), np.float32)
    empty = np.empty(0, np.int64), np.empty(0, np.int64)
    keys = np.empty(0, np.uint64)
    whole = Evidence({"middle": wide, "e": wide}, {"number": column}, empty, keys, keys, CONFIG)

    def margins(sources: Collection[str]) -> NDArray[np.float64]:
        return found["judge" if "judge" in sources else "model"]

    odds = outside_odds(whole, groups, margins, PairFacts())
    assert odds is not None
    assert np.polyfit(judged, odds, 1)[0] == pytest.approx(1.0, abs=0.2)
    assert outside_odds(whole, groups, margins, PairFacts(), ["judge"]) is None


def test_damaged_numbers_are_found(model: Path, place: Path) -> None:
    runs = place / "damaged"
    found = audited(model, runs, "column:other_a,other_b")
    (path,) = (found.run.directory / "evidence").glob("*.parquet")
    pq.write_table(pq.read_table(path).slice(0, 30), path)
    evidence = found.run.plan()["evidence"]
    with pytest.raises(RunError, match="missing or damaged"):
        read_outside(found.run, runs / ".cache" / "features", evidence, found.pairs, [])
    audited(model, runs, "column:other_a,other_b")
    outside = read_outside(found.run, runs / ".cache" / "features", evidence, found.pairs, [])
    assert outside.numbers["column:other_a,other_b"].shape == (60, 1)


def test_what_a_source_knows_of_each_label_is_kept(model: Path, place: Path) -> None:
    """p_prior has the flip rate's odds less the source's; its file is under checksum."""
    found = audited(model, place / "kept", "column:other_a,other_b")
    path = found.run.margins_directory / "outside.parquet"
    kept = pq.read_table(path)
    odds = dict(zip(kept["pair_id"].to_pylist(), kept["outside"].to_numpy(), strict=True))
    scores = pq.read_table(found.run.scores_path)
    outside = np.array([odds[name] for name in scores["pair_id"].to_pylist()])
    prior = scores["p_prior"].to_numpy()
    rest = np.log(prior / (1 - prior)) + outside
    np.testing.assert_allclose(rest, rest[0], atol=1e-4)
    assert "margins/outside.parquet" in found.run.manifest()["checksums"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"damaged since it was written: .*outside\.parquet"):
        find_run(str(found.run.directory), place)


def test_the_audited_model_is_no_second_source(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the audited model itself"):
        audited(model, tmp_path, f"lm:{model}")


def test_fingerprints_cover_every_number() -> None:
    ids, one = ["a", "b"], np.array([1.0, -1.0])
    base = numbers_fingerprint(ids, {"x": one})
    assert base != numbers_fingerprint(ids, {"y": one})
    assert base != numbers_fingerprint(ids[::-1], {"x": one})
    assert base != numbers_fingerprint(ids, {"x": one + 1e-12})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--evidence", "oracle:x"], "--evidence oracle:x: is of no known kind"),
        (["--evidence", "column:x", "--kind", "lora"], "--evidence cannot be used with"),
        (["--evidence", "column:x", "--shard", "1/2"], "--evidence needs all responses"),
        (["--evidence", "file:nowhere.parquet"], "nowhere.parquet"),
    ],
)
def test_the_command_refuses_what_cannot_work(
    options: list[str], message: str, model: Path, tmp_path: Path, capsys: Any
) -> None:
    data = tmp_path / "pairs.jsonl"
    pd.DataFrame(rows()).to_json(data, orient="records", lines=True)
    line = ["score", str(data), "--model", str(model), "--runs-dir", str(tmp_path / "runs")]
    assert run([*line, *options]) == 2
    assert message in capsys.readouterr().err
