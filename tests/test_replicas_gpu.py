"""The benchmark of replicas on a GPU, as far as it goes without one: a tiny random Llama."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_it_measures_every_stage_of_a_tiny_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent)
    benchmark = importlib.import_module("benchmarks.replicas.gpu")
    report = benchmark.run("cpu", ["tiny"], 16, 2, None)
    ((single, eight),) = report.tables.values()
    assert (single["M"], single["K"]) == (1, "all")
    assert (eight["M"], eight["K"]) == (8, 4)
    for row in (single, eight):
        assert row["dtype"] in ("float32", "bfloat16")
        assert row["trained pairs/s"] > 0
        assert row["peak MiB"] > 0
        for stage in ("reference", "training", "scoring"):
            assert 0 < row[f"{stage} MFU"] < 1
    assert not report.targets  # nothing to compare with: no TRL here


def test_pairs_share_responses_only_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent)
    benchmark = importlib.import_module("benchmarks.replicas.gpu")
    for responses, most in ((32, 1), (8, 16)):
        rows = benchmark.Workload(16, responses, 12, 500).table().to_pylist()
        texts = [row[side] for row in rows for side in ("chosen", "rejected")]
        assert len(rows) == 16
        assert all(row["chosen"] != row["rejected"] for row in rows)
        assert len(set(texts)) <= responses
        counts = {text: texts.count(text) for text in texts}
        assert (max(counts.values()) == 1) == (most == 1)
