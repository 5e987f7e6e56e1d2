"""noisescope fine-tune: evidence alone, its settings in the fingerprint, killed and continued."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.lora import CONFIG, LORA, TinyPolicy, command, evidence_bytes, pairs, tiny_place
from helpers.tiny_models import tiny_llama

from noisescope.cli import run
from noisescope.cli.evidence_options import EvidenceOptions
from noisescope.errors import NoisescopeError, RunError, UsageError
from noisescope.replicas.config import FLAGS, LoraConfig
from noisescope.replicas.cost import LoraCost, Meter
from noisescope.replicas.gather import EvidenceConfig
from noisescope.replicas.lora_text import train_lora
from noisescope.storage.run import Run, find_run

#: PEFT asks transformers a deprecated question when it wraps a model.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

#: Runs the command line once for each line on stdin, in a process of its own; libraries load once.
FORKS = """
import os, sys
import accelerate, datasets, duckdb, peft, scipy.stats, transformers.models.llama.modeling_llama
import noisescope.auditing.audit, noisescope.datasets, noisescope.replicas.lora_text
import noisescope.training.lora.split_model
from noisescope.cli import run
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr
        os._exit(run(sys.argv[1:]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_place(tmp_path_factory.mktemp("fine-tune"))


def test_heads_alone_then_only_verdicts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(command("fine-tune", place, "--replicas", "2", "--folds", "2", "--json")) == 0
    made = json.loads(capsys.readouterr().out)
    directory = Run(tmp_path / made["run"])
    assert made["scores"] == "absent"
    assert directory.evidence_only
    assert not directory.scores_path.exists()
    with pytest.raises(RunError, match="no scores yet"):
        directory.manifest()
    with pytest.raises(RunError, match="no finished run"):
        find_run(None, tmp_path / "runs")
    before = evidence_bytes(directory.directory)
    assert run(command("fine-tune", place, "--replicas", "2", "--folds", "2")) == 0
    assert "are already complete" in capsys.readouterr().err
    assert run(command("score", place, "--replicas", "2", "--folds", "2", "--pool")) in (0, 2)
    assert run(command("score", place, "--replicas", "2", "--folds", "2")) in (0, 2)
    assert "only verdicts are made again" in capsys.readouterr().err
    assert evidence_bytes(directory.directory) == before
    assert directory.manifest()["scores"] == "complete"
    assert directory.manifest()["training"] == made["training"]
    assert find_run(None, tmp_path / "runs").directory.name == directory.directory.name
    assert len(list((tmp_path / "runs").glob("*/plan.json"))) == 2  # --pool is other evidence


def test_next_command_is_the_same_with_score(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = command("fine-tune", place, *LORA, "--steps", "2", "--checkpoints", "2")
    monkeypatch.setattr(sys, "argv", ["noisescope", *typed])
    assert run(typed) == 0
    out = capsys.readouterr().out
    assert "held-out loss" in out
    assert f"noisescope score {place}" in out.splitlines()[-1]
    assert "--checkpoints 2" in out.splitlines()[-1]


def test_killed_at_three_moments_it_ends_with_the_same_bytes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of a real process, early, in mid-training and late; then the same command again."""
    options = (*LORA, "--steps", "44", "--checkpoints", "4", "--ema", "--learning-rate", "0.01")
    typed = command("fine-tune", place, *options)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for directory in (whole, killed):
        directory.mkdir()
    monkeypatch.chdir(whole)
    assert run(typed) == 0
    moments = random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, *typed],
        cwd=killed,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        for awaited in ("*/trunk/*.safetensors", "*/margins/part-*", "*/margins/part-000022*"):
            print("go", file=parent.stdin, flush=True)
            process = int(parent.stdout.readline())
            while not list((killed / "runs").glob(awaited)):
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.1))
            os.kill(process, signal.SIGKILL)
            assert parent.stdout.readline() == f"{-signal.SIGKILL}\n", "it finished before"
            assert not list(killed.rglob("manifest.json"))
    monkeypatch.chdir(killed)
    assert run(typed) == 0
    (one,), (other,) = (list((d / "runs").glob("pairs-*")) for d in (whole, killed))
    assert one.name == other.name
    found = evidence_bytes(one)
    assert len(found) == 4 + 4 + 2 * 3 * 2 + 1
    assert evidence_bytes(other) == found
    part = other / "margins" / "part-000022.parquet"
    part.unlink()  # what is lost is made again, by training again
    assert run(typed) == 0
    assert evidence_bytes(other) == found


def test_every_lora_setting_is_in_the_fingerprint() -> None:
    def settings(**options: object) -> dict[str, object]:
        return EvidenceOptions(kind="lora", **options).config().settings("text")  # type: ignore[arg-type]

    given: dict[str, object] = {
        "lora_r": 4,
        "lora_alpha": 8.0,
        "targets": "q_proj, v_proj",
        "layers": "all",
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "epochs": 2.0,
        "steps": 9,
        "warmup": 0.0,
        "batch_size": 8,
        "accumulation": 2,
        "checkpoints": 3,
        "early_stopping": 2,
        "ema": True,
        "gradient_checkpointing": True,
        "beta": 0.5,
        "seed": 1,
        "replicas": 4,
    }
    assert set(given) == {f.removeprefix("--").replace("-", "_") for f in FLAGS.values()} | {
        "beta",
        "seed",
        "replicas",
    }
    assert set(FLAGS) <= {field.name for field in fields(LoraConfig)}
    base = settings()
    for name, value in given.items():
        extra = {"checkpoints": 3} if name == "early_stopping" else {}
        assert settings(**{name: value}, **extra) != settings(**extra), name
    assert json.loads(json.dumps(base)) == base
    assert base["lora"]["top_layers"] == LoraConfig.top_layers  # type: ignore[index]
    assert settings(layers="6")["lora"]["top_layers"] == 6  # type: ignore[index]
    assert settings(targets="all") == base


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--lora-r", "4", "--targets", "q"),
            "--lora-r, --targets cannot be used with --kind head",
        ),
        (("--kind", "lora", "--folds", "3"), "--folds cannot be used with --kind lora"),
        (("--held-out",), "--held-out cannot be used with --kind head"),
        (("--kind", "lora", "--layers", "top"), "--layers top must be top-K or all"),
        (("--kind", "lora", "--targets", ","), "names no layer"),
        (("--kind", "lora", "--lora-r", "0"), "--lora-r must be at least 1"),
        (("--kind", "lora", "--warmup", "1"), "--warmup must be a share"),
        (("--kind", "lora", "--early-stopping", "2"), "more than 2 --checkpoints"),
        (("--kind", "adapters"), "--from-adapters and --kind adapters need each other"),
        (("--beta", "-1"), "--beta must be positive"),
        (("--rho", "0"), "--rho must be above 0"),
        (("--k1", "-1"), "--k1 must be 0 or more"),
        (("--k2", "1"), "--k2 must be 0 or less"),
    ],
)
def test_wrong_flags_are_named_before_any_model_is_loaded(
    place: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    data = str(place / "pairs.jsonl")
    assert run(["score", data, "--model", "no/such/model", *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_text_flags_on_images_are_named() -> None:
    config = EvidenceConfig("lora", lora={"top_layers": 2, "rank": 4})
    with pytest.raises(UsageError, match="--layers cannot be used here: the pairs are images"):
        config.check("image")
    EvidenceConfig("lora", lora={"rank": 4}).check("image")


def test_workspace_settings_of_score_are_those_of_fine_tune(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("noisescope.toml").write_text('[score]\nreplicas = 3\nk1 = 4.0\nkind = "magic"\n')
    assert run(["fine-tune", str(place / "pairs.jsonl"), "--model", str(place / "model")]) == 2
    assert "line 4: [score] kind magic" in capsys.readouterr().err


def test_progress_counts_all_stages_and_ends_at_the_total(tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []
    costs: list[LoraCost] = []
    meter = Meter(lambda done, total, note: told.append((done, total)))

    def estimated(cost: LoraCost) -> None:
        costs.append(cost)
        meter.begin(cost)

    config = replace(CONFIG, ema=True, replicas=2)
    train_lora(TinyPolicy(tiny_llama()), pairs(), config, tmp_path, meter, estimated)
    (cost,) = costs
    done = np.array([work for work, _ in told])
    assert (np.diff(done) >= 0).all()
    assert told[-1][0] == pytest.approx(cost.total)
    assert cost.passes == 2 * 3
    recomputed: list[LoraCost] = []
    again = replace(config, checkpointing=True, steps=3)
    train_lora(TinyPolicy(tiny_llama()), pairs(), again, tmp_path / "b", estimate=recomputed.append)
    assert 2 * recomputed[0].training > cost.training  # half the steps, more for each
    assert recomputed[0].scoring == cost.scoring


def test_bfloat16_with_gradient_checkpointing_trains_to_the_end(tmp_path: Path) -> None:
    exact = train_lora(TinyPolicy(tiny_llama()), pairs(), CONFIG, tmp_path / "exact")
    policy = TinyPolicy(tiny_llama().bfloat16())
    done = train_lora(policy, pairs(), replace(CONFIG, checkpointing=True), tmp_path / "half")
    for step, loss in exact.held_out_loss.items():
        assert done.held_out_loss[step] == pytest.approx(loss, abs=0.1)


def test_too_few_pairs_for_halves(tmp_path: Path) -> None:
    with pytest.raises(NoisescopeError, match="too few"):
        train_lora(TinyPolicy(tiny_llama()), pairs(3), CONFIG, tmp_path)
