"""The whole spine on the sample data's own tiny model: score, resume after a kill, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import rankdata

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "sample_data" / "models" / "tiny-lm"
SAMPLE = ROOT / "sample_data" / "hh-rlhf"


def noisescope(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "noisescope", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"},
    )


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but the manifest, which holds times."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A finished audit of 800 sample pairs and what it printed as JSON."""
    place = tmp_path_factory.mktemp("audit")
    done = noisescope(
        "score", str(SAMPLE), "--model", str(MODEL), "--limit", "800", "--json", cwd=place
    )
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout)


def test_json_has_the_documented_keys(scored: tuple[Path, dict[str, object]]) -> None:
    place, summary = scored
    documented = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in documented for key in summary), summary.keys()
    assert summary["pairs"] == 800
    assert len(summary["suspects"]) == 10  # type: ignore[arg-type]
    assert (place / str(summary["run"]) / "manifest.json").is_file()


def test_planted_errors_are_found_well_above_chance(
    scored: tuple[Path, dict[str, object]],
) -> None:
    place, summary = scored
    scores = pq.read_table(place / str(summary["run"]) / "scores.parquet")
    truth = pq.read_table(SAMPLE / "truth.parquet", columns=["pair_id", "mislabelled"])
    joined = scores.join(truth, "pair_id").to_pandas()
    wrong = joined["mislabelled"].to_numpy(bool)
    ranks = rankdata(joined["p_flip"])
    auroc = (ranks[wrong].sum() - wrong.sum() * (wrong.sum() + 1) / 2) / (
        wrong.sum() * (~wrong).sum()
    )
    assert auroc > 0.75


def test_scoring_again_makes_only_verdicts_again(
    scored: tuple[Path, dict[str, object]],
) -> None:
    place, summary = scored
    run = place / str(summary["run"])
    before = contents(run)
    again = noisescope(
        "score",
        str(SAMPLE),
        "--model",
        str(MODEL),
        "--limit",
        "800",
        "--k1",
        "4",
        "--details",
        cwd=place,
    )
    assert again.returncode == 0, again.stderr
    assert "only verdicts are made again" in again.stderr
    assert "Most suspicious pairs" in again.stdout
    after = contents(run)
    assert {name for name in before if before[name] != after[name]} == {"scores.parquet"}


def test_killed_in_mid_pass_it_continues_to_the_same_bytes(
    scored: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    place, summary = scored
    command = ["score", str(SAMPLE), "--model", str(MODEL), "--limit", "800", "--k1", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "noisescope", *command],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    cache = tmp_path / "runs" / ".cache"
    while process.poll() is None and not list(cache.rglob("[!.]*.safetensors")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    parts = list(cache.rglob("[!.]*.safetensors"))
    assert parts
    assert not list(tmp_path.rglob("manifest.json")), "it finished before it was killed"
    stamps = {path: path.stat().st_mtime_ns for path in parts}
    done = noisescope(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    run = next(tmp_path.glob("runs/*/manifest.json")).parent
    assert contents(run) == contents(place / str(summary["run"]))


def test_query_reads_what_score_wrote(scored: tuple[Path, dict[str, object]]) -> None:
    place, _ = scored
    sql = "SELECT count(*) AS n FROM scores JOIN pairs USING (pair_id) JOIN margins USING (pair_id)"
    done = noisescope("query", sql, "--json", cwd=place)
    assert json.loads(done.stdout) == [{"n": 800 * 8}]
    table = noisescope("query", "SELECT pair_id, p_flip FROM scores LIMIT 2", cwd=place)
    assert "p_flip" in table.stdout
    saved = noisescope(
        "query", "SELECT * FROM pairs", "--format", "parquet", "-o", "out.parquet", cwd=place
    )
    assert saved.returncode == 0
    assert pq.read_table(place / "out.parquet").num_rows == 800


def write_pairs(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


GOOD = [{"prompt": f"p{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(20)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda place: place / "missing.parquet", "no such file"),
        (lambda place: _touch(place / "empty.jsonl"), "empty|no rows"),
        (
            lambda place: write_pairs(place / "odd.parquet", [{"question": "q", "answer": "a"}]),
            "question, answer",
        ),
        (
            lambda place: write_pairs(
                place / "ties.parquet",
                [{**row, "chosen_rating": 4, "rejected_rating": 4} for row in GOOD],
            ),
            "every one of its 20 rows is a tie",
        ),
        (lambda place: write_pairs(place / "few.parquet", GOOD[:4]), "at least 10"),
    ],
)
def test_bad_datasets_are_clear_errors(tmp_path: Path, make: object, words: str) -> None:
    import re

    target = make(tmp_path)  # type: ignore[operator]
    done = noisescope("score", str(target), "--model", str(MODEL), cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(words, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def _touch(path: Path) -> Path:
    path.touch()
    return path


def test_bad_models_and_places_are_clear_errors(tmp_path: Path) -> None:
    data = str(write_pairs(tmp_path / "pairs.parquet", GOOD))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((MODEL / "config.json").read_text())
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((MODEL / "config.json").read_text())
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "blocked").write_text("a file where runs would go")
    for options, words in (
        (["--model", str(tmp_path / "bare")], "weights"),
        (["--model", str(tmp_path / "pickled")], "pickle"),
        (["--model", "nobody/no-such-model"], "offline|HF_HUB_OFFLINE"),
        (
            ["--model", str(MODEL), "--runs-dir", str(tmp_path / "blocked")],
            "as a directory for a run",
        ),
        (["--model", str(MODEL), "--kind", "magic"], "--kind magic"),
    ):
        done = noisescope("score", data, *options, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        import re

        assert re.search(words, done.stderr), done.stderr
        assert "Traceback" not in done.stderr


def test_damaged_or_missing_evidence_of_a_finished_run_has_a_way_out(tmp_path: Path) -> None:
    data = str(write_pairs(tmp_path / "pairs.parquet", GOOD))
    command = ("score", data, "--model", str(MODEL), "--folds", "2", "--replicas", "2")
    first = noisescope(*command, cwd=tmp_path)
    assert "noisescope score" in first.stdout
    (part,) = (tmp_path / "runs").glob("*/margins/part-0.parquet")
    whole = part.read_bytes()
    part.write_bytes(whole[:100])
    again = noisescope(*command, cwd=tmp_path)
    assert again.returncode == first.returncode
    assert "part-0.parquet is damaged: making it again" in " ".join(again.stderr.split())
    assert part.read_bytes() == whole
    part.unlink()
    noisescope(*command, cwd=tmp_path)
    assert part.read_bytes() == whole
    place = tmp_path / "my runs"
    elsewhere = noisescope(*command, "--runs-dir", str(place), cwd=tmp_path)
    assert f"--runs-dir '{place}'" in elsewhere.stdout
    refused = noisescope(*command, "--beta", "nan", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--beta" in refused.stderr


def test_lora_replicas_are_a_kind_of_evidence(tmp_path: Path) -> None:
    options = ("--kind", "lora", "--replicas", "2", "--limit", "40", "--json")
    done = noisescope("score", str(SAMPLE), "--model", str(MODEL), *options, cwd=tmp_path)
    assert done.stdout, done.stderr
    summary = json.loads(done.stdout)
    assert done.returncode == (2 if summary["chance"] else 0)
    run = tmp_path / summary["run"]
    margins = pq.read_table(run / "margins").to_pandas()
    assert margins.groupby("pair_id")["held_out"].any().all()
    assert sorted(path.name for path in (run / "replicas").iterdir() if path.is_dir())[:2] == [
        "0",
        "1",
    ]
