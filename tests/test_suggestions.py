"""Commands that are suggested: they name the dataset as it was read, and quote what needs it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from helpers.toy_run import toy, write_lines

from noisescope.cli import run as command_line
from noisescope.datasets import load
from noisescope.storage.run import dataset_words, filled


def test_names_are_filled_in_at_once_and_as_words() -> None:
    found = filled(
        "noisescope score DATASET --model M: noisescope review RUN", "'a RUN'", "DATASET-1"
    )
    assert found == "noisescope score 'a RUN' --model M: noisescope review DATASET-1"


def test_a_dataset_read_by_columns_is_read_so_again() -> None:
    recognised = {"resolved": "my pairs.jsonl", "adapter": "columnar", "columns": {"chosen": "a"}}
    assert dataset_words(recognised) == "'my pairs.jsonl'"
    mapped = recognised | {"adapter": "columns", "columns": {"chosen": "best", "rejected": "worst"}}
    assert dataset_words(mapped, "copy") == "copy --columns chosen=best,rejected=worst"


def test_a_dataset_is_read_again_by_the_options_it_was_read_by(tmp_path: Path) -> None:
    rows = [{"text": f"p{at}", "answers": ["a", "b", "c"], "scores": [3, 2, 1]} for at in range(30)]
    write_lines(tmp_path / "x-train.jsonl", rows)
    write_lines(tmp_path / "x-test.jsonl", rows[:20])
    columns = "prompt=text,responses=answers,ratings=scores"
    found = load(tmp_path, split="test", columns=columns, pairs="best", limit=15)
    assert (len(found), found.pairs) == (30, "best")
    manifest = {"resolved": found.resolved, "reading": found.reading, "adapter": found.adapter}
    name, *words = shlex.split(dataset_words(manifest))
    assert name == f"{tmp_path}:test"
    options = dict(zip((word.strip("-") for word in words[::2]), words[1::2], strict=True))
    assert options == {"columns": columns, "pairs": "best", "limit": "15"}
    again = load(name, **(options | {"limit": int(options["limit"])}))
    assert again.fingerprint == found.fingerprint
    toy(tmp_path)
    assert load(tmp_path / "toy.jsonl", format="columnar").reading == {"format": "columnar"}


def test_weights_of_a_weak_audit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = toy(tmp_path).run
    manifest = run.manifest()
    weak = {"word": "cannot know", "sentence": "A mark.", "helps": ["review RUN"], "acts": False}
    run.write_manifest(manifest | {"summary": manifest["summary"] | {"trust": weak}})
    typed = ["export", str(run.directory), "--format", "weights", "-o"]
    assert command_line([*typed, "no.parquet"]) == 2
    assert f"review {run.directory}" in capsys.readouterr().err
    assert not (tmp_path / "no.parquet").exists()
    assert command_line([*typed, "u.parquet", "--weight", "u"]) == 0
    assert command_line([*typed, "forced.parquet", "--force"]) == 0
