"""Margins of LoRA replicas and of adapters as evidence beside the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers.adapters import adapter
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer

import noisescope
from noisescope.auditing.ranks import World
from noisescope.auditing.shards import require_divisible
from noisescope.cli import run
from noisescope.errors import RunError, UsageError
from noisescope.replicas.gather import EvidenceConfig
from noisescope.replicas.refit import refitter
from noisescope.replicas.sources import Source, parsed
from noisescope.scoring.margins import read_margins

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]
LORA = {"steps": 2, "rank": 2, "top_layers": 1}


def rows(count: int = 24, *, each: int = 1) -> list[dict[str, Any]]:
    """Pairs, `each` of them to one prompt."""
    return [
        {
            "prompt": f"Question {n // each}?",
            "chosen": f"Yes, {n} loaves" if n % 3 else "no" * (n % 5 + 1),
            "rejected": "no" * (n % 5 + 1) if n % 3 else f"Yes, {n} loaves",
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny_llama(), tiny_tokenizer(None))


def audited(
    model: Path, runs: Path, data: list[dict[str, Any]], **settings: Any
) -> noisescope.Audited:
    config = EvidenceConfig(replicas=2, **{"folds": 2, **settings})
    return noisescope.audit(
        pd.DataFrame(data), model, evidence=config, runs_directory=runs, name="frame"
    )


def numbers(made: noisescope.Audited) -> np.ndarray:
    """The only numbers of pairs of a run, [N]."""
    (path,) = (made.run.directory / "evidence").glob("*.parquet")
    return np.array(pq.read_table(path).column(1).to_pylist())


def test_lora_margins_are_those_of_held_out_replicas(model: Path, tmp_path: Path) -> None:
    data = rows(each=2)
    made = audited(model, tmp_path, data, sources=("heads", "lora"), lora=LORA)
    (lora,) = [path for path in tmp_path.glob("*/plan.json") if path.parent != made.run.directory]
    found = read_margins(lora.parent)
    mean = np.nanmean(np.where(found.held_out, found.margins[:, -1], np.nan), axis=0)
    np.testing.assert_allclose(numbers(made), mean, rtol=1e-6)
    assert (found.held_out[:, ::2] == found.held_out[:, 1::2]).all()  # prompts are held out whole
    assert found.held_out.any(axis=1).all()
    plan = made.run.plan()["evidence"]
    assert [one["source"] for one in plan["sources"]] == ["lora"]
    assert [one.source for one in made.summary.sources] == ["model", "lora"]
    again = audited(model, tmp_path, data, sources=("lora",), lora=LORA, folds=3)
    np.testing.assert_array_equal(numbers(again), numbers(made))
    assert len(list(tmp_path.glob("*/plan.json"))) == 3
    with pytest.raises(RunError, match="planting would change"):
        refitter(made.run, pq.read_table(made.run.pairs_path))


def test_a_run_of_kind_lora_is_reused_where_prompts_have_one_pair(
    model: Path, tmp_path: Path
) -> None:
    before = audited(model, tmp_path, rows(), kind="lora", lora=LORA)
    written = {path: path.stat().st_mtime_ns for path in before.run.margins_directory.iterdir()}
    audited(model, tmp_path, rows(), sources=("lora",), lora=LORA)
    assert len(list(tmp_path.glob("*/plan.json"))) == 2
    assert written == {
        path: path.stat().st_mtime_ns for path in before.run.margins_directory.iterdir()
    }


def test_margins_of_adapters_need_to_be_held_out(model: Path, tmp_path: Path) -> None:
    one = adapter(tmp_path / "adapter")
    source = f"adapters:{one}"
    with pytest.raises(UsageError, match="repeat their labels") as caught:
        audited(model, tmp_path / "runs", rows(), sources=(source,))
    assert "--held-out" in str(caught.value.hint)
    made = audited(model, tmp_path / "runs", rows(), sources=(source,), held_out=True)
    alone = audited(
        model, tmp_path / "runs", rows(), kind="adapters", adapters=(one,), held_out=True
    )
    np.testing.assert_allclose(numbers(made), read_margins(alone.run.directory).margins[0, -1])
    assert np.ptp(numbers(made)) > 0


def test_a_launch_makes_its_replicas_first() -> None:
    with pytest.raises(UsageError, match="in one process, and this launch has 2") as caught:
        require_divisible(World(size=2), EvidenceConfig(sources=("lora",)), None)
    assert "noisescope fine-tune" in str(caught.value.hint)
    require_divisible(World(size=2), EvidenceConfig(sources=("column:x",)), None)


def test_heads_are_no_source_of_their_own() -> None:
    assert parsed(["heads", "lora"]) == (Source("lora", ""),)
    with pytest.raises(UsageError, match="takes no name"):
        Source.parse("lora:x")
    with pytest.raises(UsageError, match="names nothing"):
        Source.parse("adapters")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--evidence", "lora", "--kind", "lora"], "--evidence cannot be used with --kind lora"),
        (["--evidence", "column:x", "--lora-r", "4"], "--lora-r cannot be used with"),
        (["--evidence", "column:x", "--held-out"], "--held-out cannot be used with"),
        (["--evidence", "adapters:nowhere", "--held-out"], "nowhere"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, model: Path, tmp_path: Path, capsys: Any
) -> None:
    data = tmp_path / "pairs.jsonl"
    pd.DataFrame(rows()).to_json(data, orient="records", lines=True)
    line = ["score", str(data), "--model", str(model), "--runs-dir", str(tmp_path / "runs")]
    assert run([*line, *options]) == 2
    assert message in capsys.readouterr().err
