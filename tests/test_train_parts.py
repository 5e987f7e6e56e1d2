"""Parts of noisescope train: the split, the lock, constants of an audit, number types, memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.training import audited, quick, read, write_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from noisescope.cli.train import next_command
from noisescope.errors import RunError, UsageError
from noisescope.pairs import Pair, to_table
from noisescope.scoring.score import ScoreConfig, score_run
from noisescope.storage.files import LOCK
from noisescope.storage.workspace import find_workspace
from noisescope.training.loop import right
from noisescope.training.pair_data import PairData, pair_data
from noisescope.training.policy.distributed import precision
from noisescope.training.policy.logs import Tracker
from noisescope.training.policy.output import TrainPlan, open_trained
from noisescope.training.policy.pair_weights import WeightRule, run_weights
from noisescope.training.policy.split import split_pairs

NOBODY = np.zeros(0, np.int64)
PLAN = TrainPlan("toy", "d" * 20, "tiny", "m" * 20, "text", "none", "", {"beta": 0.1})


def pairs_of(sizes: list[int]) -> PairData:
    """Pairs over one prompt a size, that many of each."""
    named = [(prompt, i) for prompt, size in enumerate(sizes) for i in range(size)]
    return pair_data(to_table([Pair(f"q{p}", f"yes {p} {i}", f"no {p} {i}") for p, i in named]))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=30, max_size=60), st.integers(0, 3))
def test_no_prompt_is_trained_on_and_validated_by(sizes: list[int], seed: int):
    data = pairs_of(sizes)
    found = split_pairs(data, quick(validation=0.2, seed=seed), None, NOBODY)
    sides = [{data.items[data.chosen[n]].prompt for n in side} for side in found.sides]
    assert found.by_prompt
    assert not sides[0] & sides[1]
    assert sorted(np.concatenate(found.sides)) == list(range(len(data.pair_ids)))
    assert 0.1 <= len(found.validation) / len(data.pair_ids) <= 0.4


def test_few_prompts_are_split_by_pair_and_it_is_said():
    found = split_pairs(pairs_of([200, 200]), quick(validation=0.1), None, NOBODY)
    assert not found.by_prompt
    assert 20 <= len(found.validation) <= 60
    assert not len(split_pairs(pairs_of([9]), quick(validation=0.0), None, NOBODY).validation)


HOLDER = (
    "import sys, time; from pathlib import Path\n"
    "from noisescope.training.policy.output import TrainPlan, open_trained\n"
    "plan = TrainPlan('toy', 'd' * 20, 'tiny', 'm' * 20, 'text', 'none', '', {'beta': 0.1})\n"
    "with open_trained(plan, Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(3600)"
)


def test_two_processes_never_train_into_one_directory(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "tuned")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"another process \({holder.pid}\)") as refused:
            open_trained(PLAN, tmp_path / "tuned").__enter__()
        assert "--output" in str(refused.value.hint)
        with open_trained(PLAN, tmp_path / "tuned", writes=False) as other:  # another rank
            assert not other.complete
        holder.kill()
    with open_trained(PLAN, tmp_path / "tuned") as mine:
        mine.abandon()
    assert not (tmp_path / "tuned").exists()


def test_a_finished_directory_is_read_without_a_lock(tmp_path: Path):
    with open_trained(PLAN, tmp_path):
        (tmp_path / "manifest.json").write_text("{}")
        (tmp_path / LOCK).unlink()
    with open_trained(PLAN, tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_constants_asked_for_stand_over_those_of_the_audit(tmp_path: Path):
    dataset = read(write_pairs(tmp_path / "pairs.jsonl"))
    run = audited(tmp_path / "runs", dataset)
    scored = ScoreConfig(k1=4.0, k2=-2.0, c2=0.5, released=True)

    def columns() -> dict[str, np.ndarray]:
        table = pq.read_table(run.scores_path).to_pylist()
        rows = {row["pair_id"]: row for row in table}
        wanted = [rows[name] for name in dataset.table.column("pair_id").to_pylist()]
        return {name: np.array([row[name] for row in wanted]) for name in ("u", "u_released", "W")}

    score_run(run.directory, scored)
    run.write_manifest(run.manifest() | {"constants": asdict(scored)})
    found = run_weights(run, dataset, WeightRule(k1=10.0))
    known = columns()
    assert not np.allclose(known["u"], known["u_released"])
    np.testing.assert_allclose(found.weight, 1 / (1 + 10 * known["u_released"]))
    np.testing.assert_allclose(found.gamma, -2 * known["u_released"] ** 2 + 0.5)
    assert "u_released" in found.description
    steep = run_weights(run, dataset, WeightRule(rho=9.0))
    score_run(run.directory, ScoreConfig(rho=9.0, k1=4.0, k2=-2.0, c2=0.5, released=True))
    np.testing.assert_allclose(steep.weight, columns()["W"])
    manifest = {name: value for name, value in run.manifest().items() if name != "constants"}
    run.write_manifest(manifest)  # as older runs have it
    old = run_weights(run, dataset, WeightRule(k1=10.0))
    np.testing.assert_allclose(old.weight, 1 / (1 + 10 * columns()["u"]))


@pytest.mark.parametrize(
    ("asked", "full", "device", "launched", "expected"),
    [
        ("auto", False, "cpu", None, ("auto", "no")),
        ("bfloat16", False, "cpu", None, ("bfloat16", "no")),
        ("bfloat16", True, "cpu", None, ("float32", "bf16")),
        ("auto", True, "cpu", "bf16", ("float32", "bf16")),
        ("auto", False, "cuda:1", "fp16", ("float16", "fp16")),
        ("float16", True, "cuda", None, ("float32", "fp16")),
        ("float32", True, "cpu", "bf16", ("float32", "no")),
        ("auto", True, "cpu", "no", ("float32", "no")),
    ],
)
def test_number_types(asked, full, device, launched, expected):
    assert precision(asked, full=full, device=device, launched=launched) == expected


def test_number_types_that_cannot_be_are_named():
    with pytest.raises(UsageError, match="float16 needs loss scaling") as refused:
        precision("float16", full=False, device="cpu")
    assert "bfloat16" in str(refused.value.hint)
    with pytest.raises(UsageError, match="mixed precision fp8"):
        precision("auto", full=True, device="cuda", launched="fp8")


def test_what_is_typed_next_names_the_judge_that_is_there(tmp_path: Path):
    (tmp_path / "rules.py").write_text("")
    (tmp_path / "noisescope.toml").write_text(
        '[datasets.mine]\npath = "mine.jsonl"\njudge = "rules.py:quality"\n'
    )
    workspace = find_workspace(tmp_path)
    tuned = Path("my tuned")
    said = [
        next_command(tuned, "mine", "text", workspace),
        next_command(tuned, "other.jsonl", "text", workspace),
        next_command(tuned, "pick-a-pic", "image", None),
    ]
    start = "noisescope evaluate --policy 'my tuned' --prompts "
    assert said == [
        f"{start}mine",
        f"{start}other.jsonl --labelled other.jsonl",
        f"{start}pick-a-pic --judge pickscore",
    ]


def test_a_margin_of_zero_is_a_guess():
    assert float(right(torch.tensor([0.0, -1e-7, 0.5, -0.5]))) == 2.0


@dataclass
class Service:
    """An accelerator whose tracker refuses to begin, or fails at a step."""

    refuses: bool = False
    fails_at: int = 0
    logged: list[int] = field(default_factory=list)

    def init_trackers(self, project: str, **given: object) -> None:
        if self.refuses:
            raise RuntimeError("no such store\nand more")

    def log(self, record: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise OSError("connection lost")
        self.logged.append(step)


@dataclass
class Notes:
    """A reporter that remembers."""

    said: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_tracker_that_cannot_begin_is_named_and_one_that_fails_ends_nothing(tmp_path: Path):
    notes, service = Notes(), Service(fails_at=2)
    with pytest.raises(UsageError, match=r"--report-to mlflow cannot begin: no such store"):
        Tracker("mlflow", Service(refuses=True), tmp_path, notes).begin(quick())
    tracker = Tracker("wandb", service, tmp_path, notes)
    tracker.begin(quick())
    for step in (1, 2, 3):
        tracker.log({"loss": 0.5}, step)
    assert service.logged == [1]
    assert [text for text in notes.said if "connection lost" in text] == notes.said
    nobody = Tracker(None, Service(refuses=True, fails_at=1), tmp_path, notes)
    nobody.begin(quick())
    nobody.log({}, 1)
