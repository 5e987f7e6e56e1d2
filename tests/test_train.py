"""noisescope train on tiny language models: it learns, resumes, refuses, and saves what loads."""

from __future__ import annotations

import importlib.util
import json
import math
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.training import (
    Interrupted,
    audited,
    quick,
    read,
    tiny_checkpoint,
    tiny_policy,
    write_pairs,
)
from transformers import AutoModelForCausalLM

from noisescope.cli import run as command
from noisescope.errors import DataError, EvidenceError, RunError, UsageError
from noisescope.export.answers import import_answers
from noisescope.scoring.run_scores import find_run_scores
from noisescope.scoring.score import ScoreConfig, score_run
from noisescope.training.objectives import OBJECTIVES
from noisescope.training.policy.pair_weights import (
    PairWeights,
    WeightRule,
    find_audit,
    run_weights,
)
from noisescope.training.policy.run import TRACKERS, fine_tune
from noisescope.training.policy.weights_file import file_weights

#: PEFT asks transformers a deprecated question when it wraps a model.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]
HERE = Path(__file__).parent
#: Settings under which the second step is not a number.
WILD = {"learning_rate": 1e30, "schedule": "constant", "warmup": 0.0, "max_grad_norm": 1e9}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with pairs.jsonl and a model."""
    place = tmp_path_factory.mktemp("train")
    write_pairs(place / "pairs.jsonl")
    tiny_checkpoint(place / "model")
    return place


@pytest.fixture(scope="module")
def dataset(place: Path):
    return read(place / "pairs.jsonl")


def tune(place: Path, output: Path, objective: str = "dpo", **changes):
    """A training of the tiny model; its directory."""
    call = {name: changes.pop(name) for name in ("weights", "reporter") if name in changes}
    data = read(place / "pairs.jsonl")
    settings = quick(objective, **changes)
    return fine_tune(data, tiny_policy(place / "model"), settings, output=output, **call)


def adapter(directory: Path) -> bytes:
    return (directory / "adapter_model.safetensors").read_bytes()


def test_the_command_learns_and_peft_loads_its_result(place, tmp_path, capsys):
    output = tmp_path / "tuned"
    line = ["train", str(place / "pairs.jsonl"), "--objective", "dpo"]
    line += ["--model", str(place / "model"), "--output", str(output), "--device", "cpu"]
    line += ["--steps", "20", "--batch-size", "8", "--learning-rate", "0.01", "--validation", "0.2"]
    line += ["--dtype", "float32", "--lora-r", "4", "--max-length", "96"]
    assert command([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    result = told["result"]
    assert result["last"]["loss"] < 0.5 < result["first"]["loss"] < 0.75
    assert result["last"]["accuracy"] > 0.9
    assert result["validation"]["accuracy"] > 0.9
    assert result["trained_pairs"] + result["validation_pairs"] == 40
    names = {path.name for path in output.iterdir()}
    assert names >= {"README.md", "history.jsonl", "manifest.json", "adapter_config.json"}
    assert not {"state.safetensors", "reference"} & names
    assert len((output / "history.jsonl").read_text().splitlines()) == 20
    card = (output / "README.md").read_text()
    assert "library_name" in card
    assert read(place / "pairs.jsonl").fingerprint in card
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    ids = torch.arange(10)[None] + 5
    with torch.inference_mode():
        before = base(ids).logits
        after = peft.PeftModel.from_pretrained(base, output)(ids).logits
    assert not torch.allclose(before, after, atol=1e-2)
    assert command(line) == 0
    shown = capsys.readouterr()
    assert "nothing is trained again" in shown.err
    assert "first steps" in shown.out
    assert shown.out.splitlines()[-1].split(None, 1) == ["next", told["next"]]
    follow = shlex.split(told["next"])
    assert follow[:4] == ["noisescope", "evaluate", "--policy", str(output)]
    follow += ["--limit", "2", "--max-new-tokens", "2", "--device", "cpu"]
    assert command([*follow[1:], "--output", str(tmp_path / "compared")]) == 0
    assert command([*line, "--beta", "0.5"]) == 2
    assert "--beta (there 0.1)" in capsys.readouterr().err


def test_an_audit_of_the_same_labels_is_found_and_weighs_the_pairs(place, dataset, tmp_path):
    assert find_audit(dataset, tmp_path) is None
    run = audited(tmp_path, dataset)
    assert find_audit(dataset, tmp_path).directory == run.directory
    scores = pq.read_table(run.scores_path).to_pandas(types_mapper=None).set_index("pair_id")
    order = dataset.table.column("pair_id").to_pylist()
    found = run_weights(run, dataset, WeightRule())
    np.testing.assert_allclose(found.weight, scores["W"].loc[order])
    np.testing.assert_allclose(found.gamma, scores["gamma"].loc[order])
    again = run_weights(run, dataset, WeightRule(k1=4.0))
    np.testing.assert_allclose(again.weight, 1 / (1 + 4 * scores["u"].loc[order]))
    usual = run_weights(run, dataset, WeightRule(rho=1.0))
    np.testing.assert_array_equal(usual.weight, found.weight)
    steep = run_weights(run, dataset, WeightRule(rho=9.0))
    score_run(run.directory, ScoreConfig(rho=9.0))
    anew = run_weights(run, dataset, WeightRule())
    np.testing.assert_array_equal(steep.weight, anew.weight)
    assert not np.allclose(steep.weight, found.weight)
    assert "u at rho 9" in steep.description
    for name in ("p_wrong", "p_flip"):
        by_p = run_weights(run, dataset, WeightRule(name))
        np.testing.assert_allclose(by_p.weight, np.maximum(0, 1 - 2 * scores[name].loc[order]))
        assert not by_p.gamma.any()
    weightings = {o: quick(o).weighting for o in ("dpo", "adaptive-dpo", "distilled-dpo")}
    assert weightings == {"dpo": "p_wrong", "adaptive-dpo": "u", "distilled-dpo": "margin"}
    believed = run_weights(run, dataset, WeightRule("margin"))
    margins = scores["margin"].loc[order].to_numpy()
    np.testing.assert_array_equal(np.sign(believed.gamma), np.sign(margins))
    assert (np.diff(believed.gamma[np.argsort(margins)]) >= 0).all()
    assert believed.weight.tolist() == [1.0] * 40
    soft = run_weights(run, dataset, WeightRule("soft"))
    p_wrong = scores["p_wrong"].loc[order].to_numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(soft.gamma)), p_wrong, atol=1e-5)
    assert soft.weight.tolist() == [1.0] * 40
    prior = run_weights(run, dataset, WeightRule("prior"))
    p_prior = scores["p_prior"].loc[order].to_numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(prior.gamma)), p_prior, atol=1e-5)
    assert prior.even  # one rate for all: nothing is known but the responses
    lines = [f"{name},{p!r}\n" for name, p in zip(order, p_wrong.tolist(), strict=True)]
    (tmp_path / "p.csv").write_text("".join(["pair_id,p_wrong\n", *lines]))
    read_back = file_weights(tmp_path / "p.csv", dataset, "soft")
    np.testing.assert_allclose(read_back.gamma, soft.gamma)
    assert read_back.scheme == "soft"
    assert file_weights(tmp_path / "p.csv", dataset).scheme == "soft"  # all that it can be
    with pytest.raises(DataError, match="pair_id and p_prior are needed"):
        file_weights(tmp_path / "p.csv", dataset, "prior")
    (tmp_path / "p.csv").write_text("pair_id,p_wrong\n" + "".join(f"{n},1.2\n" for n in order))
    with pytest.raises(DataError, match=r"p_wrong is 1\.2"):
        file_weights(tmp_path / "p.csv", dataset, "soft")
    with pytest.raises(UsageError, match=r"--objective adaptive-dpo does not work with .* margin"):
        tune(place, tmp_path / "wrong", "adaptive-dpo", weights=believed)
    with pytest.raises(UsageError, match=r"--objective distilled-dpo does not work with .* with u"):
        tune(place, tmp_path / "wrong", "distilled-dpo", weights=found)
    done = tune(place, tmp_path / "tuned", "adaptive-dpo", weights=found, validation=0.0)
    first = json.loads((done.directory / "history.jsonl").read_text().splitlines()[0])
    assert 0 < first["weight"] < 1
    assert found.description in (done.directory / "README.md").read_text()


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("adaptive-dpo", "adaptive-dpo would be plain dpo"),  # u of these heads is 0 everywhere
        ("distilled-dpo", "Gamma = the held-out margin"),
        ("soft-dpo", "soft labels, 1 - p_wrong"),
    ],
)
def test_an_adaptive_objective_makes_its_audit_first(
    place, tmp_path, monkeypatch, capsys, objective, said
):
    monkeypatch.chdir(tmp_path)
    line = ["train", str(place / "pairs.jsonl"), "--model", str(place / "model")]
    line += ["--device", "cpu", "--dtype", "float32", "--steps", "2", "--batch-size", "4"]
    refused = objective == "adaptive-dpo"
    assert command([*line, "--objective", objective]) == (2 if refused else 0)
    shown = capsys.readouterr()
    assert "needs an audit of pairs, which is made first" in shown.err
    assert said in " ".join((shown.err if refused else shown.out).split())
    assert len(list(tmp_path.glob("runs/pairs-*/manifest.json"))) == 1
    assert len(list(tmp_path.glob(f"trained/pairs-{objective}-*/manifest.json"))) == 1 - refused


def test_what_reviewers_found_comes_before_what_the_audit_suspects(dataset, tmp_path):
    run = audited(tmp_path / "runs", dataset)
    names = dataset.table.column("pair_id").to_pylist()
    answers = {"flip": names[0], "keep": names[1]}
    rows = "".join(f"{name},{word}\n" for word, name in answers.items())
    (tmp_path / "a.csv").write_text("pair_id,decision\n" + rows)
    before = {s: run_weights(run, dataset, WeightRule(s)) for s in ("p_wrong", "soft", "prior")}
    import_answers(run, tmp_path / "a.csv", "ann")
    found = {s: run_weights(run, dataset, WeightRule(s)) for s in ("p_wrong", "soft", "prior")}
    sure = math.log(0.98 / 0.02)
    for scheme in ("soft", "prior"):
        assert found[scheme].gamma[:2].tolist() == pytest.approx([-sure, sure])
        np.testing.assert_array_equal(found[scheme].gamma[2:], before[scheme].gamma[2:])
        assert (before[scheme].judged, found[scheme].judged) == (0, 2)
    assert found["p_wrong"].weight[:2].tolist() == pytest.approx([0.96, 0.96])
    assert found["p_wrong"].wrong[:3].tolist() == [True, False, False]
    assert "2 pairs as reviewed" in found["prior"].description
    scores = find_run_scores(str(run.directory), tmp_path / "runs", force=True)
    made = dict(zip(names, scores.positions(names), strict=True))
    for name, p in zip(names[:2], (0.98, 0.02), strict=True):
        assert scores.columns["p_wrong"][made[name]] == pytest.approx(p)
        assert scores.columns["p_prior"][made[name]] == pytest.approx(p)


def test_weights_of_other_labels_are_refused(place, dataset, tmp_path):
    lines = (place / "pairs.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first["chosen"], first["rejected"] = first["rejected"], first["chosen"]
    (tmp_path / "flipped.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]))
    flipped = read(tmp_path / "flipped.jsonl")
    run = audited(tmp_path / "runs", flipped)
    with pytest.raises(RunError, match="different dataset"):
        run_weights(run, dataset, WeightRule())
    assert find_audit(dataset, tmp_path / "runs") is None
    facts = {"dataset": "flipped", "dataset_fingerprint": flipped.fingerprint}
    table = pa.table({"pair_id": dataset.table.column("pair_id"), "W": np.ones(40)})
    pq.write_table(table.replace_schema_metadata({"x": json.dumps(facts)}), tmp_path / "w.parquet")
    with pytest.raises(RunError, match="different dataset"):
        file_weights(tmp_path / "w.parquet", dataset)


def test_missing_and_impossible_weights_are_counted(dataset, tmp_path):
    ids = dataset.table.column("pair_id").to_pylist()
    path = tmp_path / "w.csv"
    path.write_text("pair_id,W\n" + "".join(f"{name},1\n" for name in ids[8:]))
    with pytest.raises(DataError, match=r"8 of 40 pairs have no weight.*p0; p1; .*and 3 more"):
        file_weights(path, dataset)
    path.write_text("pair_id,W\n" + "".join(f"{name},-1\n" for name in ids))
    with pytest.raises(DataError, match="40 of 40 pairs have a weight below 0"):
        file_weights(path, dataset)
    path.write_text("id,score\n1,2\n")
    with pytest.raises(DataError, match="pair_id and W are needed"):
        file_weights(path, dataset)
    rows = [{"pair_id": name, "weight": 0.5, "gamma": 1, "scheme": "u"} for name in ids]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = file_weights(tmp_path / "w.jsonl", dataset)
    assert set(found.weight) == {0.5}
    assert set(found.gamma) == {1}
    assert "matched by pair_id alone" in found.description
    path.write_text("pair_id,W\n" + "".join(f"{name},1\n" for name in [*ids, *ids[:2]]))
    with pytest.raises(DataError, match=r"2 pairs are more than once in w.csv: p0; p1"):
        file_weights(path, dataset)


def test_ids_of_digits_stay_texts(place, tmp_path):
    """A CSV or JSONL reader would take 007 for a number, and no pair would be found."""
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    named = [row | {"pair_id": f"{number:03}"} for number, row in enumerate(rows)]
    (tmp_path / "n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    numbered = read(tmp_path / "n.jsonl")
    lines = [f"{name},{row}" for row, name in enumerate(numbered.table["pair_id"].to_pylist())]
    (tmp_path / "w.csv").write_text("pair_id,W\n" + "\n".join(lines[::-1]))
    np.testing.assert_array_equal(
        file_weights(tmp_path / "w.csv", numbered).weight, np.arange(40.0)
    )


def test_nothing_left_to_train_on_is_said(place, tmp_path):
    nothing = PairWeights(np.zeros(40), np.zeros(40), "zeros")
    with pytest.raises(DataError, match=r"no pair is left.*40 their weight is 0"):
        tune(place, tmp_path / "tuned", weights=nothing, validation=0.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains(place, tmp_path, objective):
    weights = PairWeights(np.linspace(0.1, 1, 40), np.linspace(0.1, 1, 40), "a ramp")
    done = tune(place, tmp_path / "tuned", objective, weights=weights, validation=0.2, steps=3)
    result = done.manifest()["result"]
    assert np.isfinite(result["validation"]["loss"])
    assert result["last"]["margin"] > result["first"]["margin"]


def test_mistakes_are_named(place, tmp_path, capsys):
    assert command(["train", str(place / "pairs.jsonl"), "--objective", "adaptve-dpo"]) == 2
    told = capsys.readouterr().err
    assert "did you mean adaptive-dpo?" in told
    assert all(name in told for name in OBJECTIVES)
    with pytest.raises(UsageError, match="has no parameter a"):
        quick("dpo", parameters={"a": 1.0}).make_objective()
    with pytest.raises(UsageError, match=r"--batch.*--learning-rate.*--validation"):
        quick(batch=0, learning_rate=0.0, validation=1.0)
    with pytest.raises(UsageError, match="needs weights, and there are none"):
        tune(place, tmp_path / "tuned", "adaptive-dpo")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="holds no training"):
        tune(place, tmp_path / "mine")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--objective", "dpo", "--weighting", "p_flip"], "--weighting would change nothing"),
        (["--weights", "none", "--objective", "dpo", "--k1", "4"], "--k1 would change nothing"),
        (["--weighting", "p_flip", "--k2", "-2"], "--weighting p_flip has no such constant"),
        (["--online", "ema", "--weighting", "u"], "--online makes its own"),
        (["--weights", "w.csv", "--rho", "2"], "w.csv contains finished weights"),
        (["--weights", "absent.parquet"], "no such file"),
        (["--flip-rate", "0.2"], "forward-dpo has no parameter flip_rate"),
        (["--online", "mea"], "--online must be one of replicas, ema"),
        (["--report-to", "notepad"], "--report-to must be one of"),
    ],
)
def test_mistakes_cost_no_audit(place, tmp_path, monkeypatch, capsys, flags, named):
    monkeypatch.chdir(tmp_path)
    Path("w.csv").write_text("pair_id,W\n")
    line = ["train", str(place / "pairs.jsonl"), "--model", str(place / "model")]
    assert command([*line, "--device", "cpu", "--dtype", "float32", *flags]) == 2
    told = capsys.readouterr().err
    assert named in told.replace("\n", " ")
    assert not Path("runs").exists()
    assert not Path("trained").exists()


def test_an_audit_no_better_than_chance_is_said(place, dataset, tmp_path, capsys):
    run = audited(tmp_path / "runs", dataset)
    manifest = run.manifest()
    run.write_manifest(manifest | {"summary": manifest["summary"] | {"chance": True}})
    line = ["train", str(place / "pairs.jsonl"), "--model", str(place / "model"), "--steps", "1"]
    line += ["--weights", str(run.directory), "--device", "cpu", "--dtype", "float32"]
    line += ["--objective", "soft-dpo"]
    assert command([*line, "--output", str(tmp_path / "tuned")]) == 0
    assert "no better than chance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "differs", "reviewed", "reason"),
    [
        ("good", True, False, ""),
        ("good", False, True, ""),
        ("too weak to change labels", True, False, ""),
        ("too weak to change labels", False, True, ""),
        ("cannot know", False, True, "on the labels as reviewed (3 pairs), without the rest"),
        ("cannot know", True, True, "cannot know. A reason."),
        ("good", False, False, "no reviews and no other evidence"),
        ("too weak to change labels", False, False, "no reviews and no other evidence"),
        ("cannot know", True, False, "cannot know. A reason."),
    ],
)
def test_without_an_objective_the_audit_decides(
    place, dataset, tmp_path, capsys, word, differs, reviewed, reason
):
    run = audited(tmp_path / "runs", dataset)
    manifest = run.manifest()
    trust = {"word": word, "sentence": "A reason.", "helps": [], "acts": word == "good"}
    summary = manifest["summary"] | {"trust": trust, "chance": False}
    run.write_manifest(manifest | {"summary": summary})
    if differs:
        scores = pq.read_table(run.scores_path)
        at = scores.column_names.index("p_prior")
        rates = pa.array(np.linspace(0.1, 0.4, len(scores)))
        pq.write_table(scores.set_column(at, "p_prior", rates), run.scores_path)
    if reviewed:
        names = dataset.table.column("pair_id").to_pylist()[:3]
        (tmp_path / "a.csv").write_text(
            "pair_id,decision\n" + "".join(f"{n},flip\n" for n in names)
        )
        import_answers(run, tmp_path / "a.csv", "ann")
    line = ["train", str(place / "pairs.jsonl"), "--model", str(place / "model"), "--steps", "1"]
    line += ["--runs-dir", str(run.directory.parent), "--device", "cpu", "--dtype", "float32"]
    assert command([*line, "--output", str(tmp_path / "tuned")]) == 0
    plan = json.loads((tmp_path / "tuned" / "manifest.json").read_text())["plan"]
    assert plan["settings"]["objective"] == ("dpo" if reason else "forward-dpo")
    assert plan["weights"].startswith("none" if reason and not reviewed else "run ")
    assert plan["weights"].endswith("3 labels reversed") is (reviewed and bool(reason))
    notes = " ".join(capsys.readouterr().err.split())
    assert ("training plain dpo" in notes) is bool(reason)
    assert reason in notes


@pytest.mark.parametrize(
    ("columns", "objective", "weights"),
    [
        ("", "dpo", "none"),
        ("W", "dpo", "file w.csv"),
        ("p_prior", "forward-dpo", "file w.csv"),
        ("p_wrong", "soft-dpo", "file w.csv"),
        ("W,gamma,scheme", "adaptive-dpo", "file w.csv"),
    ],
)
def test_weights_without_an_objective_name_it(
    place, dataset, tmp_path, capsys, columns, objective, weights
):
    names = dataset.table.column("pair_id").to_pylist()
    values = "{0:.3f},{0:.3f},u" if "," in columns else "{0:.3f}"
    lines = [f"{n}," + values.format(at / 50) for at, n in enumerate(names)]
    (tmp_path / "w.csv").write_text("\n".join([f"pair_id,{columns}", *lines]))
    line = ["train", str(place / "pairs.jsonl"), "--model", str(place / "model"), "--steps", "1"]
    line += ["--device", "cpu", "--dtype", "float32", "--output", str(tmp_path / "tuned")]
    assert command([*line, "--weights", str(tmp_path / "w.csv") if columns else "none"]) == 0
    plan = json.loads((tmp_path / "tuned" / "manifest.json").read_text())["plan"]
    assert plan["settings"]["objective"] == objective
    assert plan["weights"].startswith(weights)
    assert (f"training {objective}, which" in capsys.readouterr().err) is bool(columns)


def test_a_label_found_wrong_is_trained_as_its_opposite(place, dataset, tmp_path):
    """Weights that reverse every label train what a dataset of the opposite labels trains."""
    every = PairWeights(np.ones(40), np.zeros(40), "all", wrong=np.ones(40, bool))
    lines = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    lines = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in lines]
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    model, opposite = tiny_policy(place / "model"), read(tmp_path / "o.jsonl")
    plain = fine_tune(opposite, model, quick(), output=tmp_path / "plain")
    turned = tune(place, tmp_path / "turned", weights=every)
    assert adapter(turned.directory) == adapter(plain.directory)


def test_weights_that_are_all_the_same_are_refused(place, dataset, tmp_path, capsys):
    names = dataset.table.column("pair_id").to_pylist()
    path = tmp_path / "even.csv"
    path.write_text("pair_id,W,p_wrong\n" + "".join(f"{name},0.7,0.2\n" for name in names))
    line = ["train", str(place / "pairs.jsonl"), "--model", str(place / "model"), "--steps", "1"]
    line += ["--weights", str(path), "--output", str(tmp_path / "tuned"), "--device", "cpu"]
    for objective in ("dpo", "soft-dpo", "adaptive-dpo"):
        assert command([*line, "--objective", objective]) == 2
        assert "--objective dpo --weights none" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "tuned").exists()


def test_a_tracker_that_is_not_installed_is_named(place, dataset, tmp_path):
    policy = tiny_policy(place / "model")
    with pytest.raises(UsageError, match="must be one of tensorboard, wandb, mlflow"):
        fine_tune(dataset, policy, quick(), output=tmp_path, report_to="notepad")
    for name in [name for name in TRACKERS if importlib.util.find_spec(name) is None]:
        with pytest.raises(UsageError, match=f"package {name} is not installed"):
            fine_tune(dataset, policy, quick(), output=tmp_path, report_to=name)


def test_a_diverged_training_keeps_its_last_state(place, tmp_path):
    with pytest.raises(EvidenceError, match="not a number at step"):
        tune(place, tmp_path / "tuned", save_every=1, **WILD)
    left = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert {"plan.json", "state.safetensors"} <= left
    assert "manifest.json" not in left


def test_a_training_that_never_came_to_a_checkpoint_leaves_its_place_free(place, tmp_path):
    output = tmp_path / "tuned"
    with pytest.raises(EvidenceError, match="not a number at step"):
        tune(place, output, save_every=6, **WILD)
    assert not output.exists()
    with pytest.raises(DataError, match="no pair is left"):
        tune(place, output, validation=0.999)
    assert tune(place, output).complete


@pytest.fixture
def forget_precision():
    """Accelerate keeps one precision a process: what forgets it, here and after the test."""
    yield AcceleratorState._reset_state
    AcceleratorState._reset_state()


def test_another_precision_is_another_training(place, tmp_path, forget_precision):
    data, settings, output = read(place / "pairs.jsonl"), quick(full=True), tmp_path / "tuned"
    fine_tune(data, tiny_policy(place / "model"), settings, output=output)
    with pytest.raises(UsageError, match="this process has trained with another precision"):
        fine_tune(
            data, tiny_policy(place / "model"), settings, output=output, mixed_precision="bf16"
        )
    forget_precision()
    with pytest.raises(RunError, match=r"--mixed-precision \(there None\)"):
        fine_tune(
            data, tiny_policy(place / "model"), settings, output=output, mixed_precision="bf16"
        )


def test_full_fine_tuning_moves_every_weight(place, tmp_path):
    done = tune(place, tmp_path / "tuned", full=True, learning_rate=1e-3, checkpointing=True)
    tuned = AutoModelForCausalLM.from_pretrained(done.directory)
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    for (name, new), old in zip(tuned.named_parameters(), base.parameters(), strict=True):
        assert not torch.equal(new, old), name
    result = done.manifest()["result"]
    assert result["last"]["margin"] > result["first"]["margin"]
    assert (done.directory / "tokenizer.json").is_file()


def test_memory_savers_change_nothing(place, tmp_path):
    """Micro-batches, recomputed activations and a shared trunk give the same weights."""
    plain = tune(place, tmp_path / "plain", layers=2)
    parts = tune(place, tmp_path / "parts", layers=2, accumulation=4, checkpointing=True)
    tensors = [
        AutoModelForCausalLM.from_pretrained(place / "model"),
        AutoModelForCausalLM.from_pretrained(place / "model"),
    ]
    merged = [
        peft.PeftModel.from_pretrained(model, done.directory).merge_and_unload().state_dict()
        for model, done in zip(tensors, (plain, parts), strict=True)
    ]
    for name, value in merged[0].items():
        assert torch.allclose(value, merged[1][name], atol=1e-4), name


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from helpers.training import Interrupted, quick, read, tiny_policy
from noisescope.training.policy.run import TRACKERS, fine_tune
place, output = Path(sys.argv[1]), Path(sys.argv[2])
die = Interrupted(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
fine_tune(read(place / "pairs.jsonl"), tiny_policy(place / "model"), quick(), output=output,
          reporter=die)
"""


def test_kill_9_and_resume_ends_with_the_same_weights(place, tmp_path):
    unbroken = tune(place, tmp_path / "unbroken")
    code = KILLED.format(here=str(HERE))
    line = [sys.executable, "-c", code, str(place), str(tmp_path / "killed")]
    assert subprocess.run(line, capture_output=True, check=False).returncode == -9
    assert (tmp_path / "killed" / "state.safetensors").is_file()
    resumed = tune(place, tmp_path / "killed")
    assert adapter(resumed.directory) == adapter(unbroken.directory)
    histories = [(done.directory / "history.jsonl").read_text() for done in (resumed, unbroken)]
    assert histories[0] == histories[1]


def test_a_full_disk_keeps_the_last_checkpoint(place, tmp_path):
    """The kernel refuses larger files, as a full disk would; afterwards training goes on."""

    def stop() -> None:
        raise KeyboardInterrupt

    unbroken = tune(place, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        tune(place, tmp_path / "full", reporter=Interrupted(3, stop))
    state = tmp_path / "full" / "state.safetensors"
    good = state.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, hard))
    try:
        with pytest.raises(RunError, match="cannot write"):
            tune(place, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state.read_bytes() == good
    assert adapter(tune(place, tmp_path / "full").directory) == adapter(unbroken.directory)
