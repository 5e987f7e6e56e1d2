"""The sample workspace: written whole, never over what is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from noisescope.cli import app
from noisescope.cli.sample import sample_root, write_sample
from noisescope.errors import RunError

ROOT = Path(__file__).parent.parent


def _files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_sample_holds_all_that_its_workspace_file_names(tmp_path: Path) -> None:
    written = write_sample(tmp_path / "deep" / "sample")
    settings = tomllib.loads((written / "noisescope.toml").read_text(encoding="utf-8"))
    named = [*settings["models"].values()]
    named += [path for dataset in settings["datasets"].values() for path in dataset.values()]
    assert len(named) == 8
    files = [path.partition(":")[0] for path in named]  # a judge is FILE.py:FUNCTION
    assert [path for path in files if not (written / path).exists()] == []
    for name, content in _files(written).items():
        assert content == (ROOT / name).read_bytes()
    assert [path.name for path in written.parent.iterdir()] == ["sample"]


def test_what_is_there_stays(tmp_path: Path) -> None:
    kept = tmp_path / "mine" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("mine", "file", "link"):
        with pytest.raises(RunError, match="is there already"):
            write_sample(tmp_path / name)
    assert _files(tmp_path) == {"mine/notes.txt": b"mine", "file": b"a file"}
    (tmp_path / "empty").mkdir()
    assert write_sample(tmp_path / "empty") == tmp_path / "empty"


def test_a_parent_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    with pytest.raises(RunError, match="cannot write"):
        write_sample(tmp_path / "file" / "below")


def test_the_command_says_what_to_type_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["sample", str(tmp_path / "a b")])
    assert result.exit_code == 0
    assert f"cd '{tmp_path}/a b' && noisescope score hh-rlhf" in " ".join(result.stdout.split())


def test_the_wheel_packs_every_part_of_the_sample() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    from noisescope.cli.sample import CONTENTS

    assert packed == {name: f"noisescope/sample/{name}" for name in CONTENTS}
    assert sample_root() == ROOT
