"""Exports: what is written is right, complete, readable by its readers, and overwrites nothing."""

from __future__ import annotations

import gzip
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.planted_run import HOSTILE
from helpers.toy_run import PAIRS, rows, scored_run, toy, write_lines
from hypothesis import given
from hypothesis import strategies as st

from noisescope.datasets import load, open_source
from noisescope.datasets.adapters.schema import Schema
from noisescope.datasets.flip.copy import plant
from noisescope.datasets.flip.plan import FlipPlan
from noisescope.datasets.rewrite import rewrite
from noisescope.errors import DataError, EvidenceError, RunError, UsageError
from noisescope.export.clean import export_clean
from noisescope.export.hub import check_repo, export_hub, push
from noisescope.export.removal import DROP, FLIP, KEEP, CleanPolicy, decide
from noisescope.export.review import choose, export_review, values
from noisescope.export.trl import export_trl
from noisescope.export.weights import export_weights
from noisescope.pairs import PreferenceDataset, keys_of
from noisescope.scoring.run_scores import RunScores
from noisescope.scoring.weigh import weigh
from noisescope.storage.output import KEY, claim, write_directory


def talks() -> list[dict[str, Any]]:
    def said(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return [
        {
            "prompt": said("user", f"question {i}"),
            "chosen": said("assistant", f"first {i}"),
            "rejected": said("assistant", f"second {i}"),
        }
        for i in range(PAIRS)
    ]


@pytest.fixture
def scored(tmp_path: Path) -> RunScores:
    return toy(tmp_path)


def write_gzip(path: Path, items: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(item) + "\n" for item in items)


def write_array(path: Path, items: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"version": 1, "data": items}, indent=3), "utf-8")


def write_csv(path: Path, items: list[dict[str, Any]]) -> None:
    import csv

    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(items[0]))
        writer.writeheader()
        writer.writerows(items)


def write_parquet(path: Path, items: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(items), path, row_group_size=25)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "a.jsonl": write_lines,
    "a.jsonl.gz": write_gzip,
    "a.json": write_array,
    "a.csv": write_csv,
    "a.parquet": write_parquet,
}


def stated(dataset: PreferenceDataset) -> dict[str, tuple[str, str]]:
    names = ("pair_id", "chosen", "rejected")
    ids, chosen, rejected = (dataset.table.column(name).to_pylist() for name in names)
    return {name: (one, other) for name, one, other in zip(ids, chosen, rejected, strict=True)}


def actions_of(scored: RunScores, policy: CleanPolicy) -> dict[str, int]:
    actions = policy.decide(scored.columns)
    found: dict[str, int] = {}
    for batch, at in scored.pairs([]):
        found |= dict(zip(batch.column(0).to_pylist(), actions[at].tolist(), strict=True))
    return found


# Policies


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_policy_never_exceeds_the_share_it_may_change(
    p: list[float], drop: float | None, flip: float | None, most: float
) -> None:
    p_wrong = np.array(p)
    rank = np.empty(len(p))
    rank[np.argsort(-p_wrong, kind="stable")] = np.arange(1, len(p) + 1)
    columns = {"p_wrong": p_wrong, "rank": rank}
    policy = CleanPolicy(drop_above=drop, flip_top=flip, most=most)
    try:
        actions = policy.decide(columns)
    except UsageError:
        free = CleanPolicy(drop_above=drop, flip_top=flip, most=most, force=True)
        assert (free.decide(columns) != KEEP).mean() > most
        return
    assert (actions != KEEP).mean() <= most
    assert (actions == FLIP).sum() == np.floor((flip or 0) * len(p) + 1e-9)
    if drop is not None:
        assert ((p_wrong >= drop) <= (actions != KEEP)).all()
    if (actions == FLIP).any():
        assert p_wrong[actions == FLIP].min() >= p_wrong[actions == KEEP].max(initial=0) - 1e-12


def test_unjudged_pairs_are_kept_and_the_default_drops_the_likely_wrong() -> None:
    columns = {"p_wrong": np.array([0.9, np.nan, 0.1, 0.5]), "rank": np.array([1.0, 4, 3, 2])}
    policy = CleanPolicy(most=1.0).or_default()
    assert policy.decide(columns).tolist() == [DROP, KEEP, KEEP, DROP]
    assert CleanPolicy(drop_top=1.0, most=1.0).decide(columns).tolist() == [DROP, KEEP, DROP, DROP]


def test_reviewed_corrections_count_towards_the_share_that_may_change() -> None:
    columns = {"p_wrong": np.full(10, 0.1), "rank": np.arange(1.0, 11)}
    judged = dict.fromkeys(range(4), "wrong") | {4: "right", 5: "undecided"}
    with pytest.raises(UsageError, match=r"40\.0% of 10 pairs.*4 of these 4 changes.*reviews"):
        CleanPolicy().decide(columns, judged)
    forced = CleanPolicy(force=True).decide(columns, judged)
    assert forced.tolist() == [FLIP] * 4 + [KEEP] * 6
    assert CleanPolicy(most=0.4).decide(columns, judged).tolist() == forced.tolist()
    worst = CleanPolicy(drop_top=0.5, most=0.4).decide(columns, judged)
    assert worst.tolist() == [FLIP] * 4 + [KEEP] * 6  # a pair found right is kept


@pytest.mark.parametrize("wrong", [{"drop_above": 1.5}, {"drop_top": 0.1, "drop_above": 0.5}])
def test_impossible_policies_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        CleanPolicy(**wrong)  # type: ignore[arg-type]


# Weights


def test_weights_hold_the_scores_in_the_datasets_order(scored: RunScores, tmp_path: Path) -> None:
    out = tmp_path / "w.parquet"
    assert export_weights(scored, out, "u") == PAIRS
    table = pq.read_table(out)
    numbers = ["W", "gamma", "u", "p_flip", "p_wrong", "p_prior"]
    assert table.column_names == ["pair_id", *numbers, "scheme", "label"]
    pairs = pq.read_table(scored.run.pairs_path)
    assert table.column("pair_id").to_pylist() == pairs.column("pair_id").to_pylist()
    scores = {row["pair_id"]: row for row in pq.read_table(scored.run.scores_path).to_pylist()}
    for row in table.to_pylist():
        assert {n: row[n] for n in numbers} == {n: scores[row["pair_id"]][n] for n in numbers}
    assert set(table["scheme"].to_pylist()) == {"u"}
    assert len(set(table["label"].to_pylist())) == PAIRS
    facts = json.loads(table.schema.metadata[KEY])
    assert facts["dataset_fingerprint"] == scored.manifest["dataset_fingerprint"]
    assert (facts["weight"], facts["beta"], facts["model"]) == ("u", 0.1, "tiny")


def test_weights_are_by_default_one_minus_twice_p_wrong(scored: RunScores, tmp_path: Path) -> None:
    out = tmp_path / "w.parquet"
    export_weights(scored, out)
    for row in pq.read_table(out).to_pylist():
        assert row["W"] == pytest.approx(max(0.0, 1 - 2 * row["p_wrong"]))
        assert row["gamma"] == 0


def test_weights_that_are_all_the_same_are_refused(scored: RunScores, tmp_path: Path) -> None:
    same = replace(
        scored, columns={**scored.columns, "W": np.ones(PAIRS), "gamma": np.zeros(PAIRS)}
    )
    with pytest.raises(UsageError, match="all weights are 1 ") as error:
        export_weights(same, tmp_path / "w.parquet", "u")
    assert "--weight p_wrong" in str(error.value)
    right = replace(scored, columns={**scored.columns, "p_wrong": np.full(PAIRS, 0.01)})
    with pytest.raises(UsageError, match="No label looks wrong"):
        export_weights(right, tmp_path / "w.parquet")
    assert not (tmp_path / "w.parquet").exists()


def test_a_weak_audit_changes_labels_only_by_force(scored: RunScores, tmp_path: Path) -> None:
    trust = {"word": "too weak to change labels", "sentence": "A coin.", "acts": False}
    trust["helps"] = ["more labels: noisescope review RUN"]
    summary = {"summary": scored.summary | {"trust": trust}}
    weak = replace(scored, manifest=scored.manifest | summary)
    source = open_source(str(scored.manifest["resolved"]))
    for policy in (CleanPolicy(), CleanPolicy(flip_above=0.9), CleanPolicy(drop_top=0.1)):
        with pytest.raises(EvidenceError, match="too weak to change labels") as error:
            export_clean(weak, source, policy, tmp_path / "out")
        assert f"noisescope review {scored.run.directory}" in str(error.value)
        assert "--force" in str(error.value)
    with pytest.raises(EvidenceError, match="too weak"):
        export_trl(weak, tmp_path / "t.parquet", CleanPolicy(flip_top=0.05))
    assert export_trl(weak, tmp_path / "t.parquet")["keep"] == PAIRS
    forced = export_clean(weak, source, CleanPolicy(drop_top=0.1, force=True), tmp_path / "out")
    assert forced["drop"] == 12
    older = {name: value for name, value in scored.summary.items() if name != "trust"}
    unknown = replace(scored, manifest=scored.manifest | {"summary": older})
    with pytest.raises(EvidenceError, match="older version"):
        export_clean(unknown, source, CleanPolicy(), tmp_path / "other")


def test_flips_of_labels_that_are_mostly_right_are_refused(
    scored: RunScores, tmp_path: Path
) -> None:
    with pytest.raises(EvidenceError, match="more harm than good"):
        export_trl(scored, tmp_path / "t.parquet", CleanPolicy(flip_top=0.9, most=1.0))
    forced = CleanPolicy(flip_top=0.9, most=1.0, force=True)
    assert export_trl(scored, tmp_path / "t.parquet", forced)["flip"] == 108


def test_p_flip_weights_are_one_minus_twice_the_chance(scored: RunScores) -> None:
    columns = {"p_flip": np.array([0.0, 0.2, 0.5, 0.9, np.nan]), "reviewed": np.full(5, np.nan)}
    weight, gamma = weigh(replace(scored, keys=scored.keys[:5], columns=columns), "p_flip")
    assert weight.tolist() == pytest.approx([1, 0.6, 0, 0, 1])
    assert not gamma.any()
    with pytest.raises(UsageError, match="one of"):
        weigh(scored, "nonsense")


# Clean


@pytest.mark.parametrize("name", WRITERS)
def test_clean_drops_and_flips_in_the_sources_own_format(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    WRITERS[name](folder / name, rows())
    dataset = load(folder)
    scored = scored_run(dataset, tmp_path / "runs" / "x")
    policy = CleanPolicy(drop_top=0.15, flip_top=0.05)
    counts = export_clean(scored, open_source(folder), policy, tmp_path / "out")
    assert counts == {"keep": 102, "drop": 12, "flip": 6}
    before, after = stated(dataset), stated(load(tmp_path / "out"))
    actions = actions_of(scored, policy)
    expected = {
        key: sides if actions[key] == KEEP else sides[::-1]
        for key, sides in before.items()
        if actions[key] != DROP
    }
    assert after == expected
    decisions = pq.read_table(tmp_path / "out" / "decisions.parquet").to_pylist()
    words = {key: ("keep", "drop", "flip")[number] for key, number in actions.items()}
    assert {row["pair_id"]: row["action"] for row in decisions} == words
    load(tmp_path / "out" / name)


def beside_the_sides(count: int = PAIRS) -> list[dict[str, Any]]:
    """Rows with columns that describe one side, and one that names the better."""
    return [
        row
        | {
            "chosen_score": 5 + number,
            "rejected_score": 1,
            "rank_chosen": 1,
            "rank_rejected": 2,
            "chosen_model": "m1",
            "rejected_model": "m2",
            "chosen_tokens": "12",
            "rejected_tokens": "",
            "answer": row["chosen"],
            "original_chosen": "history",
            "original_rejected": "",
            "verdict": "chosen",
            "seed": 7,
        }
        for number, row in enumerate(rows(count))
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_corrections_move_what_describes_a_side(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    WRITERS[name](folder / name, beside_the_sides())
    scored = scored_run(load(folder), tmp_path / "runs" / "x")
    policy = CleanPolicy(flip_top=0.05)
    counts = export_clean(scored, open_source(folder), policy, tmp_path / "out")
    assert counts["flip"] == 6
    before = [row.values or {} for row in open_source(folder).rows()]
    after = [row.values or {} for row in open_source(tmp_path / "out" / name).rows()]
    flipped = 0
    for old, new in zip(before, after, strict=True):
        if old["chosen"] == new["chosen"]:
            assert new == old
            continue
        flipped += 1
        expected = dict(old)
        for one, other in (
            ("chosen", "rejected"),
            ("chosen_score", "rejected_score"),
            ("rank_chosen", "rank_rejected"),
            ("chosen_model", "rejected_model"),
            ("chosen_tokens", "rejected_tokens"),
        ):
            expected[one], expected[other] = old[other], old[one]
        expected["answer"] = old["rejected"]  # repeats the chosen side
        assert new == expected  # verdict: chosen is still the better side
    assert flipped == 6


def test_planted_errors_leave_scores_and_corrections_move_them() -> None:
    schema = Schema(
        "mine",
        {
            "chosen": "best.text",
            "rejected": "worst.text",
            "score_chosen": "best.score",
            "score_rejected": "worst.score",
            "margin": "gap",
            "status": "verdict",
        },
    )
    row = {
        "best": {"text": "x", "score": 5},
        "worst": {"text": "y", "score": 1},
        "gap": "4",
        "verdict": "a",
    }
    planted = schema.flip(row)
    assert planted == row | {
        "best": {"text": "y", "score": 5},
        "worst": {"text": "x", "score": 1},
    }
    corrected = schema.flip(row, correction=True)
    assert corrected == {
        "best": {"text": "y", "score": 1},
        "worst": {"text": "x", "score": 5},
        "gap": "-4",
        "verdict": "b",
    }
    for word, better in (("rejected", "chosen"), ("Chosen", "Chosen"), ("ok", "ok")):
        again = schema.flip(row | {"verdict": word}, correction=True)
        assert again["verdict"] == better
    whole = Schema(
        "mine",
        {
            "chosen": "best",
            "rejected": "worst",
            "score_chosen": "best.score",
            "score_rejected": "worst.score",
        },
    )
    moved = whole.flip(row, correction=True)
    assert (moved["best"], moved["worst"]) == (row["worst"], row["best"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_cleaning_a_flipped_copy_undoes_its_flips_and_corrects_the_rest(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    items = [row | {"verdict": f"v{at}"} for at, row in enumerate(beside_the_sides())]
    WRITERS[name](folder / name, items)
    done = plant(open_source(folder), FlipPlan(0.3, seed=2), tmp_path / "copy")
    planted = pq.read_table(done.truth).column("flipped").to_pylist()
    before = [row.values or {} for row in open_source(folder).rows()]
    for number, opened in enumerate((tmp_path / "copy", tmp_path / "copy" / name)):
        dataset = load(opened)
        assert set(pq.read_table(done.truth)["pair_id"].to_pylist()) >= set(
            dataset.table["pair_id"].to_pylist()
        )
        scored = scored_run(dataset, tmp_path / "runs" / str(number))
        out = tmp_path / f"out-{number}"
        export_clean(scored, open_source(opened), CleanPolicy(flip_top=0.1), out)
        copy = [row.values or {} for row in open_source(opened).rows()]
        after = [row.values or {} for row in open_source(out / name).rows()]
        counts = {"restored": 0, "corrected": 0}
        for bad, source, old, new in zip(planted, before, copy, after, strict=True):
            if new["chosen"] == old["chosen"]:
                assert new == old
            elif bad:
                assert new == source
                counts["restored"] += 1
            else:
                assert new["chosen_score"] == source["rejected_score"]
                assert new["answer"] == new["chosen"] == source["rejected"]
                counts["corrected"] += 1
        assert counts["restored"] > 1
        assert counts["corrected"] > 1


def test_a_foreign_truth_beside_the_source_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "a.parquet", rows())
    pq.write_table(pa.table({"pair_id": ["x"], "flipped": [True]}), folder / "flips.parquet")
    scored = scored_run(load(folder), tmp_path / "runs" / "x")
    with pytest.raises(DataError, match="does not state what noisescope flip reversed"):
        export_clean(scored, open_source(folder), CleanPolicy(flip_top=0.05), tmp_path / "out")


def test_sides_of_different_types_are_an_error(tmp_path: Path) -> None:
    items = [row | {"chosen_score": 5, "rejected_score": 1.5} for row in rows()]
    write_parquet(tmp_path / "a.parquet", items)
    scored = scored_run(load(tmp_path / "a.parquet"), tmp_path / "runs" / "x")
    source = open_source(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="differ in type"):
        export_clean(scored, source, CleanPolicy(flip_top=0.05), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clean_keeps_bytes_and_rows_that_state_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows())]
    lines[5:5] = ["", '{"prompt": "p",  "chosen": "same", "rejected": "same"}', "{broken"]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", "utf-8")
    scored = scored_run(load(path), tmp_path / "runs" / "x")
    export_clean(scored, open_source(path), CleanPolicy(drop_top=0.1), tmp_path / "out")
    left = (tmp_path / "out" / "a.jsonl").read_bytes().split(b"\r\n")
    assert len(left) == len(lines) + 1 - 12
    assert [line for line in path.read_bytes().split(b"\r\n") if line in set(left)] == left
    assert {b"", b"{broken"} <= set(left)


def test_clean_writes_saved_datasets_that_load(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(talks())})
    saved.save_to_disk(str(tmp_path / "saved"))
    dataset = load(tmp_path / "saved")
    scored = scored_run(dataset, tmp_path / "runs" / "x")
    policy = CleanPolicy(drop_top=0.1, flip_top=0.05)
    export_clean(scored, open_source(tmp_path / "saved"), policy, tmp_path / "out")
    back = datasets.load_from_disk(str(tmp_path / "out"))["train"]
    assert back.num_rows == PAIRS - 6
    assert len(load(tmp_path / "out")) == PAIRS - 6


def test_clean_refuses_a_source_that_changed(scored: RunScores, tmp_path: Path) -> None:
    changed = tmp_path / "toy.jsonl"
    write_lines(changed, [*rows(PAIRS - 1), {**rows()[-1], "chosen": "other"}])
    with pytest.raises(DataError, match="not what"):
        export_clean(scored, open_source(changed), CleanPolicy(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_renamed_source_with_other_lines_is_cleaned_alike(
    tmp_path: Path, scored: RunScores
) -> None:
    source, moved = tmp_path / "toy.jsonl", tmp_path / "moved.jsonl"
    moved.write_bytes(b"\n\n" + source.read_bytes().replace(b"\n", b"\n\n"))
    copies = []
    for file in (source, moved):
        out = tmp_path / file.stem
        export_clean(scored, open_source(file), CleanPolicy(drop_top=0.1), out)
        copies.append([line for line in (out / file.name).read_bytes().split(b"\n") if line])
    assert copies[0] == copies[1]
    assert len(copies[0]) == 108


def test_clean_refuses_rows_of_several_pairs(tmp_path: Path) -> None:
    path = tmp_path / "toy.jsonl"
    write_lines(path, rows())
    dataset = load(path)
    scored = scored_run(dataset, tmp_path / "runs" / "x")
    table = pq.read_table(scored.run.pairs_path)
    at = table.schema.get_field_index("row")
    halves = pa.array([number // 2 for number in range(PAIRS)])
    pq.write_table(table.set_column(at, table.schema.field(at), halves), scored.run.pairs_path)
    with pytest.raises(UsageError, match="several pairs"):
        export_clean(scored, open_source(path), CleanPolicy(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(st.sets(st.integers(0, 5)), st.sampled_from([None, 0, 3]))
def test_any_rows_can_leave_a_json_array(
    tmp_path_factory: pytest.TempPathFactory, gone: set[int], indent: int | None
) -> None:
    folder = tmp_path_factory.mktemp("array")
    items = [{"a": index} for index in range(6)]
    (folder / "in.json").write_text(json.dumps(items, indent=indent))
    rewrite(folder / "in.json", folder / "out.json", lambda rows: dict.fromkeys(gone))
    left = json.loads((folder / "out.json").read_text())
    assert left == [item for index, item in enumerate(items) if index not in gone]


# TRL


def test_a_flipped_label_weighs_as_much_as_it_was_wrong(scored: RunScores, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    assert export_trl(scored, out, CleanPolicy(flip_above=0.5))["flip"] > 10
    for row in pq.read_table(out).to_pylist():
        p = scored.columns["p_wrong"][scored.positions([row["pair_id"]])[0]]
        assert row["weight"] == pytest.approx(abs(1 - 2 * p))


def test_trl_standard_rows(scored: RunScores, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    policy = CleanPolicy(drop_top=0.1, flip_top=0.05)
    counts = export_trl(scored, out, policy, "u")
    assert counts == {"keep": 108, "drop": 6, "flip": 6}
    actions = actions_of(scored, policy)
    before = stated(load(tmp_path / "toy.jsonl"))
    table = pq.read_table(out)
    assert table.num_rows == 114
    weight = dict(zip(scored.keys.tolist(), scored.columns["W"], strict=True))
    for row in table.to_pylist():
        sides = before[row["pair_id"]]
        turned = actions[row["pair_id"]] == FLIP
        assert (row["chosen"], row["rejected"]) == (sides[::-1] if turned else sides)
        assert row["prompt"].endswith("\n\n")
        assert 0 < row["weight"] <= 1
    assert len(weight) == PAIRS


@pytest.mark.parametrize("scheme", ["margin", "soft"])
def test_a_belief_turns_with_its_label(scored: RunScores, tmp_path: Path, scheme: str) -> None:
    plain, cleaned = tmp_path / "plain.parquet", tmp_path / "cleaned.parquet"
    export_trl(scored, plain, CleanPolicy(), scheme)
    policy = CleanPolicy(flip_top=0.05)
    export_trl(scored, cleaned, policy, scheme)
    before, after = (
        {row["pair_id"]: row for row in pq.read_table(path).to_pylist()}
        for path in (plain, cleaned)
    )
    actions = actions_of(scored, policy)
    for name, row in after.items():
        sign = -1 if actions[name] == FLIP else 1
        assert row["belief"] == sign * before[name]["belief"]
        assert row["weight"] == 1
    assert sum(row["belief"] < 0 for row in after.values()) < sum(
        row["belief"] < 0 for row in before.values()
    )
    out = tmp_path / "w.parquet"
    export_weights(scored, out, scheme)
    gamma = {row["pair_id"]: row["gamma"] for row in pq.read_table(out).to_pylist()}
    assert gamma == {name: row["belief"] for name, row in before.items()}


def test_trl_conversations_and_saved_directory(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "talks.jsonl"
    write_lines(path, talks())
    scored = scored_run(load(path), tmp_path / "runs" / "x")
    export_trl(scored, tmp_path / "saved", scheme="p_flip")
    back = datasets.load_from_disk(str(tmp_path / "saved"))
    assert back.num_rows == PAIRS
    assert {**back[0]} | talks()[0] == {**back[0]}
    p = np.array(back["p_flip"])
    assert np.array(back["weight"]) == pytest.approx(np.maximum(0, 1 - 2 * p))
    assert str(tmp_path) not in (tmp_path / "saved" / "dataset_info.json").read_text()
    export_trl(scored, tmp_path / "saved")  # its own export may be written again


# Review


def test_a_look_is_worth_most_at_the_threshold() -> None:
    p = np.linspace(0, 1, 101)
    for threshold in (0.2, 0.5, 0.8):
        value = values(p, threshold)
        assert p[value.argmax()] == pytest.approx(threshold)
        assert value[[0, -1]] == pytest.approx([0, 0])
    assert values(np.array([np.nan]), 0.5).tolist() == [0]


def test_the_queue_is_the_most_valuable_and_some_of_the_worst() -> None:
    p = np.linspace(0.99, 0.01, 99)
    columns = {"p_wrong": p, "rank": np.arange(1.0, 100), "reviewed": np.full(99, np.nan)}
    chosen = choose(columns, 10, 0.5)
    assert sorted(p[[k for k, why in chosen.items() if why == "worst"]]) == pytest.approx(
        [0.98, 0.99]
    )
    assert all(abs(p[k] - 0.5) < 0.05 for k, why in chosen.items() if why == "unsure")
    assert len(choose(columns, 500, 0.5)) == 99
    columns["reviewed"][[0, 49]] = 0.98, 0.02  # nobody is asked again
    assert not {0, 49}.intersection(choose(columns, 10, 0.5))
    assert len(choose(columns, 500, 0.5)) == 97


def records_of(out: Path) -> list[dict[str, Any]]:
    with (out / "argilla.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_review_files_are_blind_and_hold_text_as_text(scored: RunScores, tmp_path: Path) -> None:
    out = tmp_path / "review"
    assert export_review(scored, out, number=PAIRS) == PAIRS
    records = records_of(out)
    tasks = json.loads((out / "label-studio" / "tasks.json").read_text("utf-8"))
    key = {row["pair_id"]: row for row in pq.read_table(out / "key.parquet").to_pylist()}
    before = stated(load(tmp_path / "toy.jsonl"))
    for record, task in zip(records, tasks, strict=True):
        fields = {name: task["data"][name] for name in ("prompt", "a", "b")}
        assert record == {"id": record["id"], "value": record["value"], **fields}
        better = key[record["id"]]["labelled_better"]
        worse = "b" if better == "a" else "a"
        assert before[record["id"]] == (fields[better], fields[worse])
        assert "p_wrong" not in json.dumps([record, task])
    sides = [row["labelled_better"] for row in key.values()]
    assert 0.3 < sides.count("a") / len(sides) < 0.7
    config = ET.parse(out / "label-studio" / "config.xml").getroot()
    named = {tag.get("value", "")[1:] for tag in config.iter() if tag.get("value", "")[:1] == "$"}
    assert named == {"prompt", "a", "b"}
    assert HOSTILE in {record[side] for record in records for side in ("a", "b")}


def test_review_of_images_names_files(tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "sample_data" / "pick-a-pic"
    dataset = load(source, limit=60)
    scored = scored_run(dataset, tmp_path / "runs" / "x")
    out = tmp_path / "review"
    export_review(scored, out, number=5, images=dataset.images)
    for record in records_of(out):
        assert Path(record["a"]).read_bytes()[:2] in (b"\xff\xd8", b"\x89P")
    for task in json.loads((out / "label-studio" / "tasks.json").read_text("utf-8")):
        name = task["data"]["b"].partition("?d=")[2]
        assert (out / name).is_file()
    with pytest.raises(UsageError, match="images"):
        export_trl(scored, tmp_path / "t.parquet")


# Hub


def test_a_dry_run_writes_the_card_and_the_data(scored: RunScores, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    counts = export_hub(scored, tmp_path / "hub", CleanPolicy(drop_top=0.1))["counts"]
    card = (tmp_path / "hub" / "README.md").read_text("utf-8")
    assert "the worst 10.0% of all pairs were dropped" in card
    assert "108 were kept, 12 dropped and 0 flipped" in card
    assert str(tmp_path) not in card
    assert counts["drop"] == 12
    cache = str(tmp_path / "cache")
    back = datasets.load_dataset(str(tmp_path / "hub"), split="train", cache_dir=cache)
    assert back.num_rows == 108


def test_images_go_to_the_hub_whole(tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "sample_data" / "pick-a-pic"
    dataset = load(source)
    scored = scored_run(dataset, tmp_path / "runs" / "x")
    export_hub(scored, tmp_path / "hub", CleanPolicy(drop_top=0.1), source=open_source(source))
    with pytest.raises(UsageError, match="no weights into a dataset of pictures"):
        export_hub(scored, tmp_path / "x", CleanPolicy(), source=open_source(source), scheme="u")
    assert len(load(tmp_path / "hub" / "data")) == len(dataset) - len(dataset) // 10


@pytest.mark.parametrize("name", [None, "", "name", "a/b/c", "/b"])
def test_a_repository_needs_owner_and_name(name: str | None) -> None:
    with pytest.raises(UsageError):
        check_repo(name)


def test_uploads_fail_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "secret"}
    with pytest.raises(DataError, match="switched off"):
        push(tmp_path, "a/b", environment=offline)
    with pytest.raises(UsageError, match="HF_TOKEN"):
        push(tmp_path, "a/b", environment={})
    closed = "http://127.0.0.1:9"
    with pytest.raises(DataError, match="not uploaded") as raised:
        push(tmp_path, "a/b", environment={"HF_TOKEN": "secret"}, endpoint=closed)
    assert "secret" not in str(raised.value)
    assert "complete" in str(raised.value)


# Places


def test_nothing_foreign_is_overwritten(scored: RunScores, tmp_path: Path) -> None:
    file = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"a": [1]}), file)
    before = file.read_bytes()
    for export in (export_weights, export_trl):
        with pytest.raises(UsageError, match="no export made"):
            export(scored, file)
    assert file.read_bytes() == before
    out = tmp_path / "review"
    export_review(scored, out, number=3)
    export_review(scored, out, number=2)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        export_review(scored, out, number=2)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="no export made"):
        claim(tmp_path)


def test_a_failed_export_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_directory(out, {}, lambda folder: (folder / "a").write_text("1"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("2")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left"):
        write_directory(out, {}, fail)
    assert (out / "a").read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def standing_out(scored: RunScores, **labels: str) -> RunScores:
    """The run, whose summary names annotators that stand out, by what they do."""
    worst = [
        {"name": name, "labels": 13, "flip_rate": 0.7, "low": 0.55, "high": 0.8, "label": label}
        for name, label in labels.items()
    ]
    people = {"kind": "annotator", "worst": worst, "others": {"count": 7, "flip_rate": 0.05}}
    summary = scored.summary | {"annotators": people if worst else None}
    return replace(scored, manifest=scored.manifest | {"summary": summary})


def annotators_of(scored: RunScores) -> dict[str, str]:
    table = pq.read_table(scored.run.pairs_path)
    return dict(zip(*(table.column(n).to_pylist() for n in ("pair_id", "annotator")), strict=True))


def decided(scored: RunScores, policy: CleanPolicy) -> dict[str, int]:
    actions, _ = decide(scored, policy)
    found: dict[str, int] = {}
    for batch, at in scored.pairs([]):
        found |= dict(zip(batch.column(0).to_pylist(), actions[at].tolist(), strict=True))
    return found


def test_annotators_that_stand_out_are_dropped_or_reversed_whole(scored: RunScores) -> None:
    found = standing_out(scored, a6="votes backwards", a1="careless")
    who = annotators_of(scored)
    dropped = decided(found, CleanPolicy(annotators="drop"))
    assert {who[name] for name, action in dropped.items() if action == DROP} == {"a6", "a1"}
    assert {who[name] for name, action in dropped.items() if action == KEEP} == set(
        who.values()
    ) - {"a6", "a1"}
    turned = decided(found, CleanPolicy(annotators="reverse", force=True))
    for name, action in turned.items():
        assert action == (FLIP if who[name] == "a6" else KEEP)
    mixed = decided(found, CleanPolicy(0.5, annotators="reverse", force=True))
    p_wrong = dict(zip(scored.keys.tolist(), scored.columns["p_wrong"].tolist(), strict=True))
    for name, action in mixed.items():
        suspect = p_wrong[int(keys_of([name])[0])] >= 0.5
        assert action == (FLIP if who[name] == "a6" else DROP if suspect else KEEP)
    words = decide(found, CleanPolicy(annotators="drop"))[1]
    assert "a6" not in words  # exports are shared
    assert "annotators who are wrong more often" in words


def test_annotators_are_not_acted_on_without_reason(scored: RunScores, tmp_path: Path) -> None:
    careless = standing_out(scored, a1="careless")
    with pytest.raises(UsageError, match=r"a1 \(70% .*careless, but nobody votes backwards"):
        decide(careless, CleanPolicy(annotators="reverse"))
    with pytest.raises(UsageError, match="no annotator stands out"):
        decide(standing_out(scored), CleanPolicy(annotators="drop"))
    weak = {"word": "cannot know", "sentence": "A coin.", "helps": ["x"], "acts": False}
    doubted = replace(
        careless, manifest=careless.manifest | {"summary": careless.summary | {"trust": weak}}
    )
    with pytest.raises(EvidenceError, match="cannot know"):
        decide(doubted, CleanPolicy(annotators="drop"))
    everyone = standing_out(scored, **{f"a{i}": "careless" for i in range(4)})
    with pytest.raises(UsageError, match="more than --most"):
        decide(everyone, CleanPolicy(annotators="drop"))
    # The audit agrees with all labels of a1.
    with pytest.raises(EvidenceError, match="more harm than good"):
        decide(standing_out(scored, a1="votes backwards"), CleanPolicy(annotators="reverse"))
    export_review(careless, tmp_path / "queue", number=5, annotators=True)
    key = pq.read_table(tmp_path / "queue" / "key.parquet").to_pylist()
    who = annotators_of(scored)
    assert [who[row["pair_id"]] for row in key] == ["a1"] * 5
    assert {row["reason"] for row in key} == {"annotator"}
    p = [row["p_wrong"] for row in key]
    assert p == sorted(p, reverse=True)


def test_a_label_flipped_against_the_audit_has_no_weight(scored: RunScores, tmp_path: Path) -> None:
    found = standing_out(scored, a6="votes backwards")
    policy = CleanPolicy(annotators="reverse", force=True)
    export_trl(found, tmp_path / "t.parquet", policy)
    p_wrong = dict(zip(scored.keys.tolist(), scored.columns["p_wrong"].tolist(), strict=True))
    who, low = annotators_of(scored), 0
    for row in pq.read_table(tmp_path / "t.parquet").to_pylist():
        p = p_wrong[int(keys_of([row["pair_id"]])[0])]
        now = 1 - p if who[row["pair_id"]] == "a6" else p
        assert row["weight"] == pytest.approx(max(0.0, 1 - 2 * now))
        low += who[row["pair_id"]] == "a6" and row["weight"] == 0
    assert low
