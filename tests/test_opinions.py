"""Second opinions of language models: written by an audit, read by query and validate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer

import noisescope
from noisescope.auditing.validation import Planned, validate
from noisescope.datasets import load
from noisescope.errors import RunError
from noisescope.models import Item
from noisescope.models.causal_lm import load_causal_lm
from noisescope.replicas.gather import EvidenceConfig
from noisescope.scoring.detectors import DETECTORS
from noisescope.scoring.opinions import read_opinions
from noisescope.storage.run import Run
from noisescope.storage.sql import query


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """60 pairs under one tiny model, a second one as evidence."""
    place = tmp_path_factory.mktemp("opinions")
    for name, seed in (("model", 0), ("other", 5)):
        save(place / name, tiny_llama(seed), tiny_tokenizer())
    rows = (
        {"prompt": f"How do I bake {n}?", "chosen": f"Knead {n} times.", "rejected": f"no {n % 7}"}
        for n in range(60)
    )
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evidence = EvidenceConfig(replicas=2, folds=2, sources=(f"lm:{place / 'other'}",))
    done = noisescope.audit(
        load(str(place / "pairs.jsonl")),
        str(place / "model"),
        evidence=evidence,
        runs_directory=place / "runs",
        dtype="float32",
    )
    return place, done.run


def logps(place: Path, texts: list[tuple[str, str]]) -> np.ndarray:
    """Mean log-probability of a token of each (prompt, response)."""
    items = [Item(str(n), prompt, None, text) for n, (prompt, text) in enumerate(texts)]
    dtype = "float32" if place.name == "model" else "auto"  # as the audit loads a second model
    model = load_causal_lm(str(place), dtype=dtype)
    return model.features(items)["statistics"][:, 2].astype(np.float64)


def test_opinions_are_differences_of_mean_log_probabilities(audited: tuple[Path, Run]) -> None:
    place, run = audited
    sql = "SELECT prompt, chosen, rejected, nll_gap, cdr FROM opinions JOIN pairs USING (pair_id)"
    found = query(run, sql).to_pylist()
    assert len(found) == 60
    gaps = [
        logps(place / name, [(row["prompt"], row["chosen"]) for row in found])
        - logps(place / name, [(row["prompt"], row["rejected"]) for row in found])
        for name in ("model", "other")
    ]
    np.testing.assert_allclose([row["nll_gap"] for row in found], gaps[0], atol=1e-4)
    # a second model may be bfloat16, whose last bits depend on what is packed together
    np.testing.assert_allclose([row["cdr"] for row in found], gaps[1] - gaps[0], atol=0.03)
    assert np.std(gaps[1] - gaps[0]) > 0.1


def test_validate_shows_them_and_reverses_them_with_the_label(audited: tuple[Path, Run]) -> None:
    """The model alone cannot know the planted flips: flipped labels turn its opinion."""
    _, run = audited
    card = validate(run, Planned((0.3,), ("uniform",), 1))
    assert {"nll_gap", "cdr"} <= set(card["detectors"]) <= set(DETECTORS)
    rows = pq.read_table(run.directory / "validation.parquet").to_pandas()
    gap = read_opinions(run, rows["pair_id"].tolist())["nll_gap"]
    wrong = rows["mislabelled"].to_numpy()
    score = np.where(wrong, gap, -gap)
    pairs = [(a, b) for a in score[wrong] for b in score[~wrong]]
    area = np.mean([(a > b) + (a == b) / 2 for a, b in pairs])
    assert card["detectors"]["nll_gap"]["auroc"] == pytest.approx(area)


def test_lost_opinions_are_made_again(audited: tuple[Path, Run]) -> None:
    _, run = audited
    assert run.evidence_complete
    kept = run.opinions_path.read_bytes()
    run.opinions_path.unlink()
    assert not run.evidence_complete
    run.opinions_path.write_bytes(kept)


def test_opinions_of_other_pairs_are_refused(audited: tuple[Path, Run]) -> None:
    _, run = audited
    with pytest.raises(RunError, match="not of the run's pairs"):
        read_opinions(run, ["nobody"])
