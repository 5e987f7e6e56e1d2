"""Attempts on whoever runs noisescope over somebody else's data and models: all are refused.

Other attempts stand where their subject does: pickled text checkpoints and auto_map in
test_model_loading.py, adapters in test_from_adapters.py, images in test_images.py and
test_image_datasets.py, the page in test_report.py, CI's formats in test_gate_outputs.py.
"""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from helpers.planted_run import HOSTILE, planted_run
from helpers.tiny_diffusion import save as save_pipeline
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer

from noisescope.cli import run as command
from noisescope.cli.console import json_text
from noisescope.datasets import load, readers
from noisescope.errors import NoisescopeError
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.pipeline_files import find_pipeline
from noisescope.storage.files import write_atomic
from noisescope.storage.run import LOCK, Plan, Run, create_run, find_run, open_run
from noisescope.storage.sql import query

SECRET = "hunter2"
PLAN = Plan("toy", "d" * 20, "tiny", "m" * 20, {"kind": "head"})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return planted_run(tmp_path / "runs", pairs=60)


def refused(attempt: Any, *arguments: Any) -> str:
    """What a user is told; every refusal has a hint."""
    with pytest.raises(NoisescopeError) as caught:
        attempt(*arguments)
    assert caught.value.hint
    return caught.value.message


# Models


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickled_checkpoints_of_text_models_are_never_opened(tmp_path: Path, kind: str) -> None:
    model = save(tmp_path / "model", tiny_llama(), tiny_tokenizer())
    (model / "model.safetensors").unlink()
    (model / kind).write_bytes(b"cposix\nsystem\n(S'touch owned'\ntR.")
    assert f"pickled weights ({kind})" in refused(load_causal_lm, str(model))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../elsewhere/model.safetensors", "/x"])
def test_a_weight_index_names_neighbouring_safetensors_only(tmp_path: Path, name: str) -> None:
    model = save(tmp_path / "model", tiny_llama(), tiny_tokenizer())
    (model / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch owned'\ntR.")
    index = json.dumps({"weight_map": {"lm_head.weight": name}})
    (model / "model.safetensors.index.json").write_text(index)
    assert "weight index" in refused(load_causal_lm, str(model))


def test_pipelines_give_no_way_round_safetensors(tmp_path: Path) -> None:
    folder = save_pipeline("sd", tmp_path / "sd")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "diffusion_pytorch_model.bin"}}))
    assert "weight index" in refused(find_pipeline, str(folder))
    index.unlink()
    for kind in (".bin", ".pt", ".ckpt"):
        weights = weights.rename(weights.with_suffix(kind))
        assert "no safetensors weights in unet" in refused(find_pipeline, str(folder))


# Decompression bombs


def bomb(path: Path, start: bytes, size: int = readers.MAX_ROW) -> Path:
    """A small file that opens to `size` bytes on one line."""
    with gzip.open(path, "wb", 1) as out:
        out.write(start)
        for _ in range(size >> 20):
            out.write(b" " * (1 << 20))
    assert path.stat().st_size < size / 100
    return path


def test_one_endless_line_is_not_held_in_memory(tmp_path: Path) -> None:
    told = refused(load, bomb(tmp_path / "a.jsonl.gz", b'{"prompt": "'))
    assert "line 1 is longer than 64 MiB" in told


@pytest.mark.parametrize("name", ["a.csv.gz", "a.json.gz", "a.tsv.gz"])
def test_bombs_of_other_kinds(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROW", 1 << 20)
    monkeypatch.setattr(readers, "MAX_ARRAY", 2 << 20)
    start = b"[" if ".json" in name else b"prompt,chosen,rejected\n"
    told = refused(load, bomb(tmp_path / name, start, 4 << 20))
    assert "longer than 1 MiB" in told or "array of more than 2 MiB" in told


# Terminals


def tricks(text: str) -> set[str]:
    """Characters of `text` that could move a cursor, start an escape sequence or turn text."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs")} - {"\n", "\u200d"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["report"],
        ["show", "PAIR"],
        ["show", "PAIR", "--json"],
        ["query", "SELECT chosen FROM pairs JOIN scores USING (pair_id) WHERE rank = 1"],
        ["query", "SELECT chosen FROM pairs JOIN scores USING (pair_id)", "--json"],
        ["query", 'SELECT 1 AS "[red]\x1b[31m\u202e"'],
        ["query", 'SELECT nothing AS "\x1b[31m"'],
        ["query", "\x1b[31m\u202e"],
    ],
)
def test_no_command_prints_what_a_terminal_obeys(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(run.directory.parent.parent)
    sql = "SELECT pair_id FROM scores ORDER BY rank LIMIT 1"
    (worst,) = query(run, sql).column("pair_id").to_pylist()
    command([worst if word == "PAIR" else word for word in arguments])
    shown = capsys.readouterr()
    assert shown.out + shown.err
    assert not tricks(shown.out + shown.err)


def test_json_keeps_the_text_it_makes_harmless() -> None:
    texts = [HOSTILE, "\x9b31m\u2066\U000e0041\ud800\x7f é 名"]
    assert json.loads(json_text(texts)) == texts
    assert not tricks(json_text(texts))


# SQL


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM read_parquet('{secret}')",
        "SELECT * FROM read_json('{secret}')",
        "SELECT * FROM parquet_metadata('{secret}')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM 'https://localhost/x.parquet'",
        "SELECT * FROM read_csv('s3://bucket/x.csv')",
        "SELECT * FROM query('COPY scores TO ''{secret}''')",
        "FROM pairs SELECT getenv('HOME')",
        "WITH x AS (SELECT * FROM read_text('{secret}')) SELECT * FROM x",
        "SELECT 1; COPY pairs TO '{secret}'",
        "SELECT 1; ATTACH '{secret}'",
        "SET lock_configuration = false",
        "RESET enable_external_access",
        "PRAGMA enable_profiling",
        "IMPORT DATABASE '{secret}'",
        "CALL pragma_database_size()",
        "USE memory",
        "CREATE SECRET s (TYPE s3)",
        "FORCE INSTALL httpfs FROM community",
        "PREPARE p AS SELECT 1",
        "VACUUM",
        "CHECKPOINT",
    ],
)
def test_sql_reaches_no_file_network_or_setting(run: Run, tmp_path: Path, sql: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"password\n{SECRET}\n")
    assert SECRET not in refused(query, run, sql.format(secret=secret))
    assert secret.read_text() == f"password\n{SECRET}\n"


# Paths and links


@pytest.mark.parametrize("lead", ["mine", "nowhere"])
def test_nothing_is_written_through_a_link_or_in_its_place(tmp_path: Path, lead: str) -> None:
    (tmp_path / "mine").write_text(SECRET)
    (tmp_path / "out").symlink_to(tmp_path / lead)
    assert "is a symbolic link" in refused(write_atomic, tmp_path / "out", "new")
    assert (tmp_path / "mine").read_text() == SECRET
    assert (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


@pytest.mark.parametrize("name", [LOCK, "margins", "replicas", "pairs.parquet", "scores.parquet"])
def test_a_run_directory_with_links_is_not_written(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text(SECRET)
    place = create_run(tmp_path, PLAN).directory
    (place / LOCK).unlink(missing_ok=True)
    (place / name).symlink_to(victim)
    assert f"{place / name} is a symbolic link" in refused(open_run(tmp_path, PLAN).__enter__)
    assert victim.read_text() == SECRET


def test_a_run_whose_files_lead_elsewhere_is_not_read(run: Run, tmp_path: Path) -> None:
    for path in (run.margin_parts()[0], run.scores_path):
        moved = path.rename(tmp_path / path.name)
        path.symlink_to(moved)
        assert f"{path} is a symbolic link" in refused(find_run, str(run.directory), tmp_path)
        path.unlink()
        moved.rename(path)
    assert find_run(str(run.directory), tmp_path) == run


def test_the_run_directory_itself_may_be_its_owners_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(run.directory)
    assert find_run(str(tmp_path / "latest"), tmp_path).complete


def test_names_in_a_manifest_open_and_remove_nothing(run: Run, tmp_path: Path) -> None:
    victim = tmp_path / "victim.parquet"
    victim.write_text(SECRET)
    away = os.path.relpath(victim, run.directory)
    manifest = run.manifest()
    stated = dict.fromkeys([away, str(victim)], "0" * 64)
    text = json.dumps(manifest | {"checksums": stated, "evidence_files": [away]})
    run.manifest_path.write_text(text)
    assert run.drop_damaged() == []
    assert victim.read_text() == SECRET
    for odd in ([], "x", {"pairs.parquet": 7}):
        run.manifest_path.write_text(json.dumps(manifest | {"checksums": odd}))
        assert run.drop_damaged() in ([], ["pairs.parquet"])
