"""How much memory verdicts may take, and where what does not fit goes meanwhile.

with Spill(memory="2GB").folder(run.directory) as folder: ...    # emptied afterwards
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from noisescope.errors import RunError, UsageError
from noisescope.storage import TEMPORARY_PREFIX

_SIZE = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*([KMGT])i?B", re.IGNORECASE)
_POWER = {"K": 1, "M": 2, "G": 3, "T": 4}
#: DuckDB sorts nothing within less.
LEAST = 128 << 20
_PREFIX = f"{TEMPORARY_PREFIX}spill-"


@final
@dataclass(frozen=True)
class Spill:
    """DuckDB's own working memory, and the directory that holds what exceeds it.

    `directory` None stands for the run's own. Raises UsageError for a size that is none.
    """

    memory: str = "1GB"
    directory: Path | None = None

    def __post_init__(self) -> None:
        found = _SIZE.fullmatch(self.memory.strip())
        size = float(found[1]) * 1024 ** _POWER[found[2].upper()] if found else 0
        if size < LEAST:
            raise UsageError(
                f"--memory {self.memory}: a size of {LEAST >> 20}MB or more is needed",
                hint="Such as --memory 2GB.",
            )

    @contextmanager
    def folder(self, beside: Path) -> Iterator[Path]:
        """A new folder under `directory`, or in `beside`; what a killed process left there goes.

        Raises RunError where none can be made, or its disk is full.
        """
        place = self.directory or beside
        for old in beside.glob(f"{_PREFIX}*") if self.directory is None else ():
            shutil.rmtree(old, ignore_errors=True)
        try:
            place.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        except OSError as error:
            raise spill_failed(place, error.strerror or str(error)) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def fresh(folder: Path | None = None) -> str:
    """A directory that is not there yet: DuckDB makes it when it must, and removes it.

    Left to itself it would be `.tmp` where the user stands.
    """
    return str((folder or Path(tempfile.gettempdir())) / f"noisescope-{secrets.token_hex(8)}")


def spill_failed(place: Path, why: str) -> RunError:
    """The error of a spill directory that takes no more."""
    return RunError(
        f"cannot spill to {place}: {why}",
        hint="Name a place with more room: --spill-dir DIR.",
    )
