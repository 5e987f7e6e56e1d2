"""A directory that belongs to one plan: the same plan finds it again, any other is refused.

    with OwnedDirectory(path, "training", "--output").locked(plan.to_json()):
        ...                      # no other process writes here

Runs, trainings, evaluations and flipped copies are such directories. Their plan is written first;
what else is in them is known to be made by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from noisescope.errors import RunError
from noisescope.storage.checksums import refuse_links, verified, with_checksum
from noisescope.storage.files import LOCK, TEMPORARY_PREFIX, locked, write_atomic
from noisescope.storage.redact import without_secrets

PLAN_FILE = "plan.json"


@final
@dataclass(frozen=True)
class OwnedDirectory:
    """The directory `path` of a `what`; `option` names another one.

    `name` is the file with its plan, `checked` if that has a checksum. `flags` are the options
    whose names differ from their setting's.
    """

    path: Path
    what: str
    option: str
    name: str = PLAN_FILE
    checked: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)

    def claim(self, plan: Mapping[str, Any]) -> None:
        """Make the directory for `plan`, or find it.

        Raises RunError if it has another plan or other files, contains a symbolic link, or cannot
        be written.
        """
        self._require_own(plan)
        self._write(plan)

    @contextmanager
    def locked(self, plan: Mapping[str, Any]) -> Iterator[None]:
        """`claim` the directory, and keep other processes from writing it inside the block."""
        self._require_own(plan)  # before the lock file is written into it
        with locked(self.path, elsewhere=self.option):
            self._write(plan)
            yield

    def _require_own(self, plan: Mapping[str, Any]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            entries = list(self.path.iterdir())
        except OSError as error:
            raise RunError(
                f"cannot use {self.path} as a directory for a {self.what}: {error.strerror}",
                hint=f"Choose a place you may write to with {self.option}.",
            ) from error
        known = (self.path / self.name).is_file()
        kept = [path for path in entries if not path.name.startswith((LOCK, TEMPORARY_PREFIX))]
        if kept and not known:
            raise RunError(
                f"{self.path} is not empty and holds no {self.what}",
                hint=f"Choose a new or empty directory with {self.option}.",
            )
        refuse_links(self.path, elsewhere=self.option)  # a link's target would be overwritten
        if known:
            self._compare(plan)

    def _write(self, plan: Mapping[str, Any]) -> None:
        """Write the plan if there is none. Raises RunError if there is another."""
        path = self.path / self.name
        if path.is_file():
            self._compare(plan)
            return
        content = without_secrets(plan)
        content = with_checksum(content) if self.checked else content
        write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _compare(self, plan: Mapping[str, Any]) -> None:
        """Raise RunError naming what differs between the directory's plan and `plan`."""
        mine = json.loads(json.dumps(without_secrets(plan)))
        hint = f"Remove {self.path} to make it again."
        theirs = read_json(self.path / self.name, hint, mine.get("format"))
        key = "fingerprint"
        if theirs.get(key) == mine[key] if key in mine else theirs == mine:
            return
        different = ", ".join(differences(mine, theirs, self.flags)) or "its plan"
        raise RunError(
            f"{self.path} is not empty and holds another {self.what}: it differs in {different}",
            hint=f"Choose another directory with {self.option}, or leave the option out.",
        )


def differences(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], flags: Mapping[str, str]
) -> list[str]:
    """The entries in which two plans differ, settings by their flags."""
    found: list[str] = []
    for name, value in mine.items():
        other = theirs.get(name)
        if name in ("format", "fingerprint") or value == other:
            continue
        if isinstance(value, dict) and isinstance(other, dict) and "fingerprint" not in value:
            found += [
                f"--{flags.get(setting, setting).replace('_', '-')} (there {other.get(setting)})"
                for setting in value | other
                if value.get(setting) != other.get(setting)
            ]
        else:
            found.append(name.removesuffix("_fingerprint"))
    return list(dict.fromkeys(found))


def read_json(path: Path, hint: str, format: int | None = None) -> dict[str, Any]:
    """The JSON object in a file, its checksum verified if it has one.

    Raises RunError, with `hint`, if the file is missing, damaged, or not in `format`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{path} does not exist", hint=f"Check that this is the directory you mean. {hint}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}", hint=hint) from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: not a JSON object", hint=hint)
    if format is not None and content.get("format", format) != format:
        raise RunError(
            f"{path} is in format {content['format']}, this is format {format}",
            hint="Use the version of noisescope that wrote it, or make it again.",
        )
    return verified(content, path, hint)
