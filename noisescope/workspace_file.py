"""What may stand in a `noisescope.toml`, and everything that is wrong with one.

    faults = faults_of(parsed(path))

`workspace.py` says what its entries mean.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from noisescope.errors import UsageError
from noisescope.pairs import Modality

FILE_NAME = "noisescope.toml"

#: What the well-known names mean where no workspace maps them.
HUB_NAMES = {
    "pick-a-pic": "yuvalkirstain/pickapic_v2",
    "hh-rlhf": "Anthropic/hh-rlhf",
    "ultrafeedback": "HuggingFaceH4/ultrafeedback_binarized",
    "hpdv2": "ymhao/HPDv2",
    "image-reward": "THUDM/ImageRewardDB",
}

Section = Literal["score", "train", "gate"]
SECTIONS: tuple[Section, ...] = ("score", "train", "gate")
_MODALITIES: tuple[Modality, ...] = ("text", "image")
_DATASET_KEYS = ("path", "truth", "format", "split", "judge")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def parsed(path: Path) -> dict[str, Any]:
    """The file as TOML. Raises UsageError that names the line."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror})", hint="Check that you may read it: ls -l"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read: not UTF-8", hint="Save it as UTF-8.") from error
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason, _, place = str(error).partition(" (at ")
        number = re.match(r"line (\d+)", place)
        line = number[1] if number else max(1, len(text.splitlines()))
        raise UsageError(
            f"{path}, line {line}: not valid TOML: {reason}",
            hint='Correct that line; a setting is written name = "text", name = 3 or name = true.',
        ) from error


def faults_of(content: Mapping[str, Any]) -> list[str]:
    """Everything wrong with a parsed file."""
    faults = unknown(content, ("workspace", "models", "datasets", *SECTIONS), "the file")
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    faults += [f"{name} must be a table" for name in content if name not in tables]
    faults += _strings(tables.get("workspace", {}), ("dataset",), "[workspace]")
    faults += _strings(tables.get("models", {}), _MODALITIES, "[models]")
    entries = tables.get("datasets", {})
    for name, entry in entries.items():
        where = f"[datasets.{name}]"
        if not isinstance(entry, dict):
            faults.append(f"datasets.{name} must be a table with a path")
            continue
        faults += _strings(entry, _DATASET_KEYS, where)
        if "path" not in entry:
            faults.append(f"{where} has no path")
    default = tables.get("workspace", {}).get("dataset")
    if isinstance(default, str) and HUB_NAME.fullmatch(default) and "/" not in default:
        known = [*entries, *HUB_NAMES]
        if default not in known:
            faults.append(f"[workspace] dataset {default!r}{suggestion(default, known)}")
    return faults


def _strings(table: Mapping[str, Any], known: Collection[str], where: str) -> list[str]:
    wrong = [name for name, value in table.items() if name in known and not _text(value)]
    return unknown(table, known, where) + [f"{where} {name} must be text" for name in wrong]


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def unknown(table: Mapping[str, Any], known: Collection[str], where: str) -> list[str]:
    return [
        f"unknown key {name!r} in {where}{suggestion(name, known)}"
        for name in table
        if name not in known
    ]


def suggestion(name: str, known: Collection[str]) -> str:
    close = [] if name in known else difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def invalid(path: Path, faults: list[str]) -> UsageError:
    return UsageError(f"{path}: {'; '.join(faults)}", hint="Correct or remove these lines.")
