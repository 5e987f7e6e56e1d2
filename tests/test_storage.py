"""Files are whole or absent."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from noisescope.errors import RunError
from noisescope.storage.files import TEMPORARY_PREFIX, unwritten, write_atomic


def test_writes_text_bytes_and_callables(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "text", "naïve\n")
    write_atomic(tmp_path / "bytes", b"\x00\xff")
    write_atomic(tmp_path / "called", lambda path: path.write_text("ok"))
    assert (tmp_path / "a" / "text").read_text(encoding="utf-8") == "naïve\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "called").read_text() == "ok"


def test_a_failing_writer_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    target = tmp_path / "scores"
    write_atomic(target, "old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise ValueError("stopped in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write_atomic(target, fail)
    assert target.read_text() == "old"
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


def test_a_file_in_the_way_of_a_directory_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        write_atomic(tmp_path / "file" / "below", "x")


def test_a_full_disk_is_told_with_the_space_needed(tmp_path: Path) -> None:
    target = tmp_path / "part"
    write_atomic(target, "old")

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="the disk is full") as caught:
        write_atomic(target, full)
    assert "what is finished is kept" in str(caught.value.hint)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_the_size_of_what_does_not_fit_is_said() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    said = unwritten(Path("part"), full, b"x" * 2_500_000)
    assert "part: the disk is full, 2.5 MB needed for this file" in said.message


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new", "x")
    (tmp_path / "plain").write_text("x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "plain")]
    assert modes[0] == modes[1]
