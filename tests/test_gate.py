"""Gates: every check at its threshold, honest intervals, policies told all at once, exit codes."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.gate_runs import made_pairs, made_run, margins_of, noisescope, parsed, several
from hypothesis import given
from hypothesis import strategies as st

from noisescope import audit
from noisescope.datasets import load
from noisescope.errors import RunError, UsageError
from noisescope.gate.checks import CHECKS
from noisescope.gate.counts import near_duplicate_mask
from noisescope.gate.evaluate import check_gate
from noisescope.gate.growth import difference
from noisescope.gate.input import Subject
from noisescope.gate.label_bias import length_auroc
from noisescope.gate.policy import CHOICES, KEYS, RANGES, Policy, Rule, read_policy
from noisescope.gate.verdict import Estimate, Result, Verdict, compare_threshold, pairs_to_clear
from noisescope.scoring.flip_rate import fit_flip_rate
from noisescope.storage.run import Run

ROOT = Path(__file__).parent.parent
OFF = Policy(**{key: None for key in RANGES if key not in ("suspect_p", "detect")})


def only(**settings: object) -> Policy:
    """A policy with these checks and no other."""
    return replace(OFF, **settings)


def status(subject: Subject, **settings: object) -> list[str]:
    return [result.status for result in check_gate(subject, only(**settings)).results]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """1,500 pairs that are easy to judge, no flips."""
    place = tmp_path_factory.mktemp("clean")
    return made_run(place, made_pairs(1500), margins_of(1500, 0.0, 1, gap=6))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """1,500 pairs, 30 % flips, facts with ties and faults, some texts broken or repeated."""
    place = tmp_path_factory.mktemp("noisy")
    pairs = made_pairs(1500)
    pairs[10] = replace(pairs[9], row=10)
    pairs[12] = replace(pairs[11], chosen=pairs[11].rejected, rejected=pairs[11].chosen, row=12)
    pairs[13] = replace(pairs[13], chosen="donâ€™t")
    long = "please say in a few plain words what the weather is like by the sea today and why"
    pairs[14], pairs[15] = replace(pairs[14], prompt=long), replace(pairs[15], prompt=long.upper())
    pairs[20:400] = [replace(pair, chosen=pair.chosen + "</s>") for pair in pairs[20:400]]
    margins = margins_of(1500, 0.15, 2)
    margins[::5] = margins_of(300, 0.9, 3)  # ann-0 is mostly wrong
    margins[101:401:4] = np.random.default_rng(4).normal(0, 0.02, 75)  # toss-ups
    facts = {
        "rows": 1700,
        "contradicted": 10,
        "rejected": {"tie": 150, "empty response": 30, "unreadable": 20},
        "rejected_examples": ["pairs.jsonl:3 (empty response: chosen)", "pairs.jsonl:4 (tie)"],
        "ordered": 1500,
        "first_chosen": 1200,
    }
    return made_run(place, pairs, margins, facts=facts)


def test_the_default_gate_passes_clean_labels_and_breaches_noisy_ones(
    clean: Run, noisy: Run
) -> None:
    good = check_gate(Subject(clean), Policy())
    assert (good.exit_code, good.word) == (0, "passed"), good.to_json()
    bad = check_gate(Subject(noisy), Policy())
    assert bad.exit_code == 1
    failed = {result.check for result in bad.of("fail")}
    assert failed == {"flip_rate", "reliability", "side_order", "faults"}
    rate = next(result for result in bad.results if result.check == "flip_rate")
    assert rate.low is not None
    assert rate.low > 0.03
    assert len(rate.rows) == 10


@pytest.mark.parametrize("rate", [0.0, 0.12])
def test_a_flip_rate_that_the_summary_cannot_identify_decides_nothing(
    tmp_path: Path, rate: float
) -> None:
    """Close pairs: whether labels are wrong or hard is open, however many pairs there are."""
    run = made_run(tmp_path, made_pairs(1500), margins_of(1500, rate, 1, gap=1))
    stated = run.manifest()["summary"]["flip_rate"]
    assert not stated["identifiable"]
    subject = Subject(run)
    policy = only(max_flip_rate=0.03, max_mislabelled=0.03)
    for result in check_gate(subject, policy).results:
        assert (result.status, result.measured, result.pairs_needed) == ("inconclusive", None, None)
        assert "the audit cannot tell how many" in result.message
        assert f"noisescope review {run.directory}" in result.message
    (shown, _) = check_gate(subject, policy).results
    assert (shown.low, shown.high) == (stated["low"], stated["high"])
    (high,) = check_gate(subject, only(max_flip_rate=0.45)).results
    assert (high.status, high.measured) == ("pass", None)


def test_intervals_of_the_gate_are_those_of_the_summary(noisy: Run) -> None:
    summary, subject = noisy.manifest()["summary"], Subject(noisy)
    assert subject.rate.low == summary["flip_rate"]["low"]
    assert subject.rate.high == summary["flip_rate"]["high"]
    assert list(subject.wrong) == [summary["mislabelled_share"][end] for end in ("low", "high")]
    assert [subject.accuracy.low, subject.accuracy.high] == summary["held_out_accuracy_interval"]


CASES = [
    ("flip_rate", "max_flip_rate", 0.01, 0.49, {}),
    ("flip_rate", "max_flip_rate", 0.3, 0.49, {"flip_rate_bound": "upper"}),
    ("mislabelled", "max_mislabelled", 0.01, 0.9, {}),
    ("mislabelled", "max_mislabelled", 0.1, 0.9, {"mislabelled_bound": "upper"}),
    ("wrong_share", "max_wrong_share", 0.01, 0.9, {"evidence": "audit"}),
    ("suspects", "max_suspects", 0.05, 0.9, {"suspect_p": 0.4}),
    ("contested", "max_contested", 0.01, 0.9, {}),
    ("accuracy", "min_accuracy", 0.9, 0.4, {}),
    ("reliability", "min_reliability", 0.5, 0.01, {}),
    ("labels", "min_labels", 400, 290, {}),
    ("length_bias", "max_length_auroc", 0.5, 0.9, {}),
    ("giveaways", "max_giveaway_auroc", 0.55, 0.7, {}),
    ("side_order", "max_side_imbalance", 0.1, 0.4, {}),
    ("ties", "max_ties", 0.05, 0.1, {}),
    ("duplicates", "max_duplicates", 0.0, 0.01, {}),
    ("contradictions", "max_contradictions", 0.0, 0.01, {}),
    ("score_conflicts", "max_score_conflicts", 0.0, 0.01, {}),
    ("near_duplicates", "max_near_duplicates", 0.0, 0.1, {}),
    ("faults", "max_faults", 0.02, 0.03, {}),
    ("encoding", "max_encoding_faults", 0.0, 0.01, {}),
]


@pytest.mark.parametrize(("check", "setting", "breached", "met", "more"), CASES)
def test_each_check_fails_beyond_its_threshold_and_passes_within(
    noisy: Run, check: str, setting: str, breached: float, met: float, more: dict[str, object]
) -> None:
    subject = Subject(noisy)
    for value, expected in ((breached, "fail"), (met, "pass")):
        (result,) = check_gate(subject, only(**{setting: value}, **more)).results
        assert (result.check, result.status) == (check, expected), result.message
        assert result.threshold == value
    assert check_gate(subject, OFF).results == ()


def test_every_check_is_covered_above() -> None:
    assert {case[0] for case in CASES} == set(CHECKS) - {"growth"}


def test_checks_that_do_not_apply_are_skipped(tmp_path: Path) -> None:
    pairs = [replace(pair, annotator=None) for pair in made_pairs(200)]
    run = made_run(tmp_path, pairs, margins_of(200, 0, 0), modality="image")
    policy = only(min_reliability=0.5, min_labels=9, max_length_auroc=0.9, max_side_imbalance=0.1)
    verdict = check_gate(Subject(run), policy)
    assert [result.status for result in verdict.results] == ["skipped"] * 4
    assert verdict.exit_code == 0


def test_growth_looks_at_new_pairs_alone(tmp_path: Path) -> None:
    old_margins, sloppy, careful = (
        margins_of(*given) for given in ((1500, 0.02, 3), (300, 0.35, 4), (300, 0.02, 5))
    )
    old = made_run(tmp_path / "old", made_pairs(1500), old_margins)
    more = made_pairs(1800)
    for new, expected in ((sloppy, "fail"), (careful, "pass")):
        run = made_run(tmp_path / expected, more, np.concatenate([old_margins, new]))
        subject = Subject(run, old)
        (result,) = check_gate(subject, only(max_growth=0.05)).results
        assert result.status == expected, result.message
        assert "300 new pairs" in result.message
        assert all(row.row >= 1500 for row in result.rows)
    turned = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in more[:40]]
    again = made_run(tmp_path / "turned", turned + more[40:1500], old_margins)
    assert Subject(again, old).new.sum() == 40
    same = check_gate(Subject(old, old), only(max_growth=0.05))
    assert "no pair is new" in same.results[0].message
    assert same.exit_code == 0


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", made_pairs(300), margins_of(300, 0.0, 1))
    other = made_run(tmp_path / "other", made_pairs(300, 5000), margins_of(300, 0.0, 2))
    with pytest.raises(RunError, match="features are not in one"):
        check_gate(Subject(run, other), only(max_growth=0.05))
    plan = other.plan()
    other.plan_path.write_text(json.dumps(plan | {"model_fingerprint": "1" * 20}))
    with pytest.raises(RunError, match="another model"):
        check_gate(Subject(run, other), only(max_growth=0.05))
    other.plan_path.write_text(json.dumps(plan | {"evidence": plan["evidence"] | {"kind": "lora"}}))
    with pytest.raises(RunError, match="not both have head replicas"):
        check_gate(Subject(run, other), only(max_growth=0.05))


@pytest.mark.slow
def test_a_delivery_of_other_pairs_is_compared_in_one_fit(tmp_path: Path) -> None:
    with gzip.open(ROOT / "sample_data" / "hh-rlhf" / "train.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 900)]
    rng = np.random.default_rng(0)
    sloppy = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if rng.random() < 0.4 else row
        for row in rows[600:]
    ]
    weeks = {"week1": rows[:600], "week2": rows[600:], "week3": sloppy}
    runs = {}
    for name, content in weeks.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        model = ROOT / "sample_data" / "models" / "tiny-lm"
        runs[name] = audit(path, model=model, runs_directory=tmp_path / "runs").run
    found = {}
    for name in ("week2", "week3"):
        verdict = check_gate(Subject(runs[name], runs["week1"]), only(max_growth=0.05))
        (found[name],) = verdict.results
        assert "compared with 600 pairs of week1" in found[name].message
    assert found["week3"].status == "fail", found["week3"].message
    assert found["week2"].status != "fail", found["week2"].message


@pytest.mark.slow
def test_a_baseline_by_name_is_never_the_run_itself(tmp_path: Path) -> None:
    """A red gate typed again must not pass because its own run is the latest of that name."""
    margins = np.concatenate([margins_of(800, 0.0, 3), margins_of(200, 0.4, 4)])
    old = made_run(tmp_path / "runs", made_pairs(800), margins[:800])
    new = made_run(tmp_path / "runs", made_pairs(1000), margins)
    flags = ("--max-flip-rate", "off", "--json")
    for _ in range(2):
        done = noisescope("gate", str(new.directory), "--baseline", "toy", *flags, cwd=tmp_path)
        content = parsed(done)
        assert content["baseline"] == str(Path("runs") / old.directory.name)
        growth = next(check for check in content["checks"] if check["check"] == "growth")
        assert growth["status"] == "fail", growth["said"]
        assert done.returncode == 1
    off = ("--max-growth", "off")
    vain = noisescope("gate", str(new.directory), "--baseline", "toy", *off, cwd=tmp_path)
    assert vain.returncode == 2
    assert "max_growth is off" in vain.stderr


def test_replicas_that_trained_on_the_pairs_give_no_verdict(tmp_path: Path) -> None:
    run = made_run(tmp_path, made_pairs(400), margins_of(400, 0.0, 1))
    part = run.margin_parts()[0]
    table = pq.read_table(part)
    seen = pa.array(np.zeros(table.num_rows, bool))
    pq.write_table(table.set_column(4, table.schema.field("held_out"), seen), part)
    verdict = check_gate(
        Subject(run), only(max_flip_rate=0.1, min_accuracy=0.6, max_duplicates=0.5)
    )
    told = {result.check: result.status for result in verdict.results}
    assert told == {"flip_rate": "inconclusive", "accuracy": "inconclusive", "duplicates": "pass"}


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path, made_pairs(50), margins_of(50, 0, 0))
    manifest, plan = run.manifest(), run.plan()
    run.write_manifest({key: value for key, value in manifest.items() if key != "facts"})
    with pytest.raises(RunError, match="does not record what was read"):
        Subject(run)
    run.plan_path.write_text(json.dumps(plan | {"format": 99}))
    with pytest.raises(RunError, match="format 99"):
        Subject(run)


def test_the_interval_of_a_difference_covers_it() -> None:
    covered = 0
    for seed in range(20):
        found = difference(margins_of(400, 0.3, seed), margins_of(3000, 0.1, 100 + seed))
        covered += found.low <= 0.2 <= found.high
    assert covered >= 16


@pytest.mark.slow
def test_alarms_in_twenty_resamples_of_2000_pairs() -> None:
    """At most one false alarm on clean labels, at most one miss with 10 points more noise."""

    def breached(rate: float, seed: int) -> bool:
        fitted = fit_flip_rate(margins_of(2000, rate, seed))
        found = Estimate(fitted.estimate, fitted.low, fitted.high, fitted.pairs)
        assert Policy.max_flip_rate is not None
        verdict, _ = compare_threshold(
            found, Policy.max_flip_rate, Policy.flip_rate_bound, Policy.detect
        )
        return verdict != "pass"

    assert sum(breached(0.01, seed) for seed in range(20)) <= 1
    assert sum(breached(0.11, seed) for seed in range(20)) >= 19


def test_too_few_pairs_are_inconclusive_with_the_number_needed(tmp_path: Path) -> None:
    run = made_run(tmp_path, made_pairs(60), margins_of(60, 0.05, 8, gap=12))
    verdict = check_gate(Subject(run), only(max_flip_rate=0.05, detect=0.02))
    (result,) = verdict.results
    assert result.status == "inconclusive"
    assert result.pairs_needed is not None
    assert result.pairs_needed > 60
    codes = {
        meaning: replace(verdict, inconclusive=meaning).exit_code
        for meaning in ("error", "pass", "fail")
    }
    assert codes == {"error": 3, "pass": 0, "fail": 1}


def test_replicas_at_chance_give_no_verdict(tmp_path: Path) -> None:
    margins = np.random.default_rng(0).normal(0, 1, 400)
    run = made_run(tmp_path, made_pairs(400), margins)
    verdict = check_gate(Subject(run), Policy())
    assert verdict.exit_code == 3
    told = {result.check: result for result in verdict.of("inconclusive")}
    assert set(told) == {"flip_rate", "reliability"}
    assert "no better than chance" in told["flip_rate"].message


estimates = st.floats(0, 1).flatmap(
    lambda value: st.tuples(st.just(value), st.floats(0, value), st.floats(value, 1))
)


@given(estimates, st.floats(0, 0.9), st.sampled_from(["lower", "upper"]), st.floats(0.01, 0.5))
def test_judgements_agree_with_the_interval(
    found: tuple[float, float, float], threshold: float, bound: str, detect: float
) -> None:
    value, low, high = found
    verdict, needed = compare_threshold(Estimate(value, low, high, 100), threshold, bound, detect)
    if high <= threshold:
        assert verdict == "pass"
    elif low > threshold:
        assert verdict == "fail"
    else:
        assert verdict in ("inconclusive", "pass" if bound == "lower" else "fail")
    assert needed is None or (verdict == "inconclusive" and needed >= 100)


def test_no_number_of_pairs_is_named_that_is_there_already(tmp_path: Path) -> None:
    """Replicas at chance by their own test may agree with most labels."""
    assert pairs_to_clear(Estimate(0.192, 0.16, 0.22, 1500), math.inf, 0.5) is None
    run = made_run(tmp_path, made_pairs(1500), margins_of(1500, 0.1, 3, gap=8))
    manifest = run.manifest()
    manifest["summary"] |= {"chance": True}
    run.write_manifest(manifest)
    for result in check_gate(Subject(run), only(max_flip_rate=0.03)).results:
        assert "no better than chance" in result.message
        assert result.pairs_needed is None


def test_pairs_needed_shrink_the_interval_to_the_mark() -> None:
    assert pairs_to_clear(Estimate(0.25, 0.0, 0.5, 100), 0.75, 0.375) == 400
    assert pairs_to_clear(Estimate(0.25, 0.0, 0.5, 100), 0.125, 0.0) == 400
    assert pairs_to_clear(Estimate(0.1, 0.0, 0.2, 100), 0.1, 0.1) is None


def test_length_auroc_is_the_pairwise_one() -> None:
    rng = np.random.default_rng(0)
    difference = rng.integers(-4, 7, 300).astype(float)
    sums = difference[:, None] + difference[None, :]
    assert length_auroc(difference).value == pytest.approx(
        (sums > 0).mean() + (sums == 0).mean() / 2
    )


def test_few_pairs_of_one_length_order_show_no_length_bias() -> None:
    for count, breached in ((5, False), (40, False), (200, True)):
        found = length_auroc(np.arange(1.0, count + 1))
        assert found.value == 1
        assert (found.low > 0.95) == breached, count
        assert found.high == 1


def test_near_duplicates_by_words_not_by_case_or_marks() -> None:
    base = "please write a short poem about the sea in winter when nobody is there to see it"
    others = [
        f"number {i} asks about {i * 37} apples and {i * 11} pears in field {i}" for i in range(50)
    ]
    prompts = [base, base.upper() + "!", base.replace("poem", "song"), *others, "", "?!"]
    mask = near_duplicate_mask(prompts)
    assert mask[1]
    assert not mask[0]
    assert not mask[3:53].any()


def test_a_house_rule_is_breached_by_each_row_it_returns(clean: Run) -> None:
    rules = (
        Rule("short", "SELECT pair_id, source, row, prompt FROM pairs WHERE row < 3 ORDER BY row"),
        Rule("none", "SELECT 1 WHERE false"),
    )
    verdict = check_gate(Subject(clean), only(rules=rules))
    short, none = verdict.results
    assert (short.status, short.measured, none.status) == ("fail", 3.0, "pass")
    assert [(row.source, row.row) for row in short.rows] == [("pairs.jsonl", n) for n in range(3)]
    wrong = (Rule("a", "SELECT nothing FROM pairs"), Rule("b", "SELECT * FROM 'pairs.parquet'"))
    with pytest.raises(UsageError) as caught:
        check_gate(Subject(clean), only(rules=wrong))
    assert "  a: " in caught.value.message
    assert "  b: " in caught.value.message


def test_policy_faults_are_told_all_at_once(tmp_path: Path) -> None:
    file = tmp_path / "gate.toml"
    file.write_text('[gate]\nmax_ties = 0.2\nmin_labels = 2.5\nsql = "SELECT 1"\n')
    table = {
        "max_ties": 0.1,
        "max_flp_rate": 0.1,
        "max_flip_rate": 0.7,
        "max_faults": True,
        "inconclusive": "maybe",
        "mislabelled_bound": "upper",
        "detect": "off",
        "sql": {"x": "SELECT 1", "y": "DROP TABLE pairs"},
    }
    flags = {"max_contested": ["0.1", "0.2"], "max_growth": ["lots"], "max_duplicates": ["nan"]}
    with pytest.raises(UsageError) as caught:
        read_policy(table=table, file=file, flags=flags, rules=["x: SELECT 2", "nameless"])
    for fault in (
        f"max_ties has two sources: [gate] of noisescope.toml and {file}",
        "unknown key 'max_flp_rate' (did you mean 'max_flip_rate'?)",
        "max_flip_rate is 0.7, not a number from 0 to 0.49",
        "max_faults is True",
        "min_labels is 2.5, not a whole number",
        "inconclusive is 'maybe', not one of error, pass, fail",
        "mislabelled_bound is set, but max_mislabelled is off",
        "detect is 'off', not a number from 0.01 to 0.5",
        "sql must be a table",
        "max_contested has two sources: --max-contested is given 2 times",
        "--max-growth: max_growth is 'lots'",
        "max_duplicates is nan",
        "x has two sources: sql of [gate] of noisescope.toml and --sql",
        "rule 'y' must be one SELECT, not DROP",
        "--sql 'nameless' is not of the form 'NAME: SELECT ...'",
    ):
        assert fault in caught.value.message
    assert "15 faults" in caught.value.message


def test_flags_override_files_and_off_switches_off() -> None:
    policy = read_policy(
        table={"max_flip_rate": 0.2, "max_faults": "off"}, flags={"max_flip_rate": ["0.1"]}
    )
    assert (policy.max_flip_rate, policy.max_faults) == (0.1, None)
    assert read_policy() == Policy()


def test_settings_of_policy_and_documents_agree() -> None:
    assert set(KEYS) == set(RANGES) | set(CHOICES)
    page = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    for key in KEYS:
        default = getattr(Policy, key)
        written = (
            "off" if default is None else f"{default:g}" if isinstance(default, float) else default
        )
        assert f"| `{key}` | {written} |" in page, key
    for name in (*Verdict.__dataclass_fields__, *Result.__dataclass_fields__):
        key = {"message": "said"}.get(name, name)
        assert f"`{key}`" in page or key in ("inconclusive", "results"), name


@pytest.mark.slow
def test_commands_exit_0_1_and_2(clean: Run, noisy: Run, tmp_path: Path) -> None:
    (tmp_path / "noisescope.toml").write_text("[gate]\nmax_flip_rate = 0.05\n")
    good = noisescope("gate", str(clean.directory), cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "gate passed" in good.stdout
    bad = noisescope("gate", str(noisy.directory), "--json", cwd=tmp_path)
    assert bad.returncode == 1
    content = parsed(bad)
    assert (content["verdict"], content["exit_code"], content["pairs"]) == ("failed", 1, 1500)
    (tmp_path / "noisescope.toml").write_text("[gate]\nmax_flp_rate = 0.05\n")
    wrong = noisescope("gate", str(clean.directory), "--detect", "7", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "max_flp_rate" in wrong.stderr
    assert "detect is 7" in wrong.stderr
    assert not wrong.stdout
    missing = noisescope("gate", "nothing-here.jsonl", cwd=tmp_path)
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr + wrong.stderr


def test_a_damaged_run_is_a_clear_error(tmp_path: Path) -> None:
    run = made_run(tmp_path, made_pairs(50), margins_of(50, 0, 0))
    run.scores_path.write_bytes(b"PAR1")
    with pytest.raises(RunError, match="cannot be read"):
        check_gate(Subject(run), Policy())


@pytest.mark.slow
def test_a_gate_of_a_run_loads_no_torch(clean: Run) -> None:
    code = (
        "import sys; from noisescope.cli import run; run(['gate', sys.argv[1]]); "
        "print(*[m for m in ('torch', 'transformers', 'diffusers', 'matplotlib') "
        "if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(clean.directory)],
        capture_output=True,
        text=True,
        check=True,
        cwd=clean.directory,
    )
    assert "gate passed" in done.stdout
    assert done.stderr.splitlines()[-1] == ""


def test_a_dataset_is_audited_first_with_what_is_cached(tmp_path: Path) -> None:
    sample = ROOT / "sample_data"
    stale = tmp_path / "runs" / ".cache" / "features" / "0123456789abcdef0123"
    stale.mkdir(parents=True)
    lines = gzip.decompress((sample / "hh-rlhf" / "train.jsonl.gz").read_bytes()).splitlines()
    broken = [line.replace(b'"chosen"', b'"chosn"') for line in lines[:130]]
    for name, content in (("old", lines[:120]), ("new", lines[:140]), ("broken", broken)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(content))
    (tmp_path / "noisescope.toml").write_text("[score]\nreplicas = 2\nfolds = 2\nlimit = 130\n")
    model = ["--model", str(sample / "models" / "tiny-lm")]
    baseline = ["--baseline", "old", "--inconclusive", "pass", "--json"]
    first, second, refused, validated = several(
        ["gate", "old.jsonl", *model],
        ["gate", "new.jsonl", *model, *baseline],
        ["gate", "broken.jsonl", *model],
        ["validate", "new.jsonl", *model, "--seeds", "1"],
        cwd=tmp_path,
    )
    assert f"ignored: the cached features {stale.name}" in first.stderr
    assert first.returncode == 3, first.stderr
    assert "the audit cannot tell how many" in " ".join(first.stdout.split())
    assert second.returncode == 0, second.stderr
    content = parsed(second)
    assert Run(tmp_path / content["run"]).plan()["evidence"]["replicas"] == 2
    growth = next(check for check in content["checks"] if check["check"] == "growth")
    assert "10 new pairs" in growth["said"]  # [score] limit counts here too
    assert refused.returncode == 2
    assert "chosn" in refused.stderr
    assert validated.returncode == 0, validated.stderr
    assert f"run: {content['run']}" in validated.stderr  # [score] counts there, too: no third run
    assert len(list((tmp_path / "runs").glob("*/plan.json"))) == 2


def test_the_order_of_sides_is_counted_where_a_source_has_one(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p {n}", "chosen": f"a {n}", "rejected": f"b {n}", "label": float(n % 10 < 8)}
        for n in range(50)
    ]
    (tmp_path / "sided.jsonl").write_text("\n".join(map(json.dumps, rows)))
    facts = load(tmp_path / "sided.jsonl", format="columnar_label").facts
    assert (facts.ordered, facts.first_chosen) == (50, 40)
    for row in rows:
        del row["label"]
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load(tmp_path / "plain.jsonl").facts.ordered == 0
    pictures = load(ROOT / "sample_data" / "pick-a-pic", limit=40).facts
    assert 0 < pictures.first_chosen < pictures.ordered == pictures.pairs
