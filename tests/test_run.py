"""Run directories: named by their plan, refusing other evidence, found by name or latest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.runs import MODEL

from noisescope.cli import run as command
from noisescope.errors import RunError
from noisescope.replicas.gather import Worker, lora_config
from noisescope.replicas.gather_lora import LoraWork
from noisescope.storage.run import FORMAT, LOCK, Plan, create_run, find_run, finished_runs, open_run

PLAN = Plan("toy", "d" * 20, "tiny", "m" * 20, {"kind": "head", "replicas": 8})


def test_the_directory_is_a_function_of_the_plan(tmp_path: Path) -> None:
    first = create_run(tmp_path, PLAN)
    assert create_run(tmp_path, PLAN).directory == first.directory
    assert first.directory.name == f"toy-{PLAN.fingerprint[:8]}"
    for other in (
        replace(PLAN, dataset_fingerprint="e" * 20),
        replace(PLAN, model_fingerprint="n" * 20),
        replace(PLAN, evidence={"kind": "head", "replicas": 9}),
    ):
        assert create_run(tmp_path, other).directory != first.directory


def test_other_evidence_is_refused_and_named(tmp_path: Path) -> None:
    create_run(tmp_path, PLAN, tmp_path / "mine")
    other = replace(PLAN, model="larger", model_fingerprint="n" * 20)
    with pytest.raises(RunError, match="differs in model"):
        create_run(tmp_path, other, tmp_path / "mine")


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not empty and holds no run"):
        create_run(tmp_path, PLAN, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_unwritable_place_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, not a directory")
    with pytest.raises(RunError, match="cannot use") as caught:
        create_run(tmp_path / "runs", PLAN)
    assert "--runs-dir" in str(caught.value)


def test_finding_runs_by_name_path_and_age(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run"):
        find_run(None, tmp_path)
    old, new = create_run(tmp_path, PLAN), create_run(tmp_path, replace(PLAN, dataset="other"))
    for age, run in enumerate((old, new)):
        run.write_manifest({})
        os.utime(run.manifest_path, (age, age))
    assert find_run(None, tmp_path) == new
    assert find_run("toy", tmp_path) == old
    assert find_run(old.directory.name, tmp_path) == old
    assert find_run(str(new.directory), tmp_path) == new
    assert finished_runs(tmp_path) == [old, new]
    old.write_manifest({"resolved": "data/pairs.jsonl"})
    assert find_run("./data/pairs.jsonl", tmp_path) == old
    with pytest.raises(RunError, match=r"'pairs\.jsonl'"):
        find_run("pairs.jsonl", tmp_path)
    with pytest.raises(RunError, match="'nobody'"):
        find_run("nobody", tmp_path)


def test_an_unfinished_or_damaged_run_says_so(tmp_path: Path) -> None:
    run = create_run(tmp_path, PLAN)
    with pytest.raises(RunError, match="not a finished run"):
        run.manifest()
    run.manifest_path.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        run.manifest()
    run.plan_path.write_text("[]")
    with pytest.raises(RunError, match="damaged"):
        run.plan()


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "..", "", "a/b", "x\x00y", "名前"])
def test_no_dataset_name_escapes_the_runs_directory(tmp_path: Path, name: str) -> None:
    run = create_run(tmp_path, replace(PLAN, dataset=name))
    assert run.directory.parent == tmp_path
    assert not run.directory.name.startswith(".")


def test_a_damaged_plan_names_the_directory_to_remove(tmp_path: Path) -> None:
    run = create_run(tmp_path, PLAN)
    run.plan_path.write_text("{")
    with pytest.raises(RunError) as caught:
        create_run(tmp_path, PLAN)
    assert f"Remove {run.directory} " in str(caught.value)


HOLDER = (
    "import sys, time; from pathlib import Path\n"
    "from noisescope.storage.run import Plan, open_run\n"
    "plan = Plan('toy', 'd' * 20, 'tiny', 'm' * 20, {'kind': 'head', 'replicas': 8})\n"
    "with open_run(Path(sys.argv[1]), plan):\n"
    "    print('held', flush=True); time.sleep(3600)"
)


def test_two_processes_never_write_one_run_and_a_kill_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match=rf"written by another process \({holder.pid}\)"),
            open_run(tmp_path, PLAN),
        ):
            pass
        with open_run(tmp_path, replace(PLAN, model_fingerprint="n" * 20)):
            holder.kill()
    with open_run(tmp_path, PLAN) as run:
        assert (run.directory / LOCK).read_text() == f"{os.getpid()}\n"
    assert (run.directory / LOCK).read_text() == ""
    with open_run(tmp_path, PLAN) as again:
        assert again == run


def test_leftovers_of_a_killed_start_are_no_strangers(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("1\n")
    (tmp_path / ".partial-x.json").write_text("{")
    assert create_run(tmp_path, PLAN, tmp_path).plan()["format"] == FORMAT


def test_a_run_in_another_format_is_refused(tmp_path: Path) -> None:
    run = create_run(tmp_path, PLAN)
    run.plan_path.write_text(run.plan_path.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(RunError, match="format 7, this is format 1"):
        create_run(tmp_path, PLAN)


@pytest.mark.parametrize("options", [(), ("--folds-by", "pair")])
def test_a_shard_of_lora_replicas_holds_out_what_its_plan_records(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def compute(work: LoraWork, by: Worker, *rest: object) -> int:
        used.append(lora_config(by.config, "text").folds_by)
        assert work.plan.evidence.get("folds_by", "pair") == used[-1]
        return 1

    monkeypatch.setattr(LoraWork, "compute", compute)
    rows = [
        {"prompt": f"p {n % 5}", "chosen": f"good {n}", "rejected": f"no {n}"} for n in range(20)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["score", str(tmp_path / "pairs.jsonl"), "--model", MODEL, "--kind", "lora", *options]
    assert command([*line, "--runs-dir", str(tmp_path / "runs"), "--shard", "1/2"]) == 0
    assert used == [options[1] if options else "prompt"]
