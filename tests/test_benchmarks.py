"""The benchmarks as programs: every module imports, every command shows its help, links lead on."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
    if path.stem not in ("__main__", "__init__")
)
COMMANDS = ("downstream", "faults", "images", "replicas", "scale", "train")
PAGES = sorted((ROOT / "benchmarks").rglob("*.md"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the repository's root, where the benchmarks are, on the path."""
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_runs_as_a_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(\s*([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_margins_of_adapters_are_those_of_the_run_that_trained_them(tmp_path: Path) -> None:
    from benchmarks.paper.image_task import SAMPLES
    from benchmarks.replicas.ours import adapter_margins
    from benchmarks.replicas.task import margins_of, task_of
    from noisescope.datasets import load
    from noisescope.models.causal_lm import load_causal_lm
    from noisescope.replicas.config import LoraConfig
    from noisescope.replicas.lora_text import train_lora

    policy = load_causal_lm(str(SAMPLES / "models" / "tiny-lm"), device="cpu", dtype="float32")
    dataset = load(SAMPLES / "hh-rlhf", limit=24)
    task = task_of(dataset, np.zeros(len(dataset), bool), policy)
    config = LoraConfig(replicas=2, rank=2, top_layers=1, steps=3, batch=4, learning_rate=1e-2)
    train_lora(policy, task.table, config, tmp_path)
    (found,) = adapter_margins(task, policy, [tmp_path / "replicas" / "0"], config.beta)
    held_out = ~task.halves(config.replicas, config.seed)[0]
    expected = margins_of(task, tmp_path, range(1))
    assert np.abs(expected[held_out]).max() > 1e-3
    np.testing.assert_allclose(found[held_out], expected[held_out], rtol=1e-3, atol=1e-5)
