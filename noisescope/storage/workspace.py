"""Read and check `noisescope.toml`: short names of datasets and models, settings of commands.

    [workspace]
    dataset = "hh-rlhf"                  # the default DATASET

    [models]
    text = "models/tiny-lm"              # the default model of each modality
    image = "models/tiny-sd"
    vision = "models/tiny-vlm"           # of texts about pictures

    [datasets.hh-rlhf]
    path = "data/hh-rlhf"                # file, directory or glob, relative to this file
    truth = "data/hh-rlhf/truth.parquet" # optional: pair_id, mislabelled
    format = "hh_rlhf"                   # optional: an adapter's name
    split = "train"                      # optional
    judge = "rules.py:quality"           # optional: the judge of evaluate
    columns = {prompt = "question"}      # optional: which column plays which role
    pairs = "all"                        # optional: pairs of ranked answers: all, best, adjacent

    [score]                              # settings of the commands; flags override them
    [train]
    [gate]

The nearest file in the working directory or above it is used. Unknown keys are errors, reported
together. Without a workspace, well-known names are Hub datasets.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from noisescope.errors import DataError, UsageError
from noisescope.pairs import Modality

FILE_NAME = "noisescope.toml"

#: Hub datasets of the well-known names, unless a workspace maps them.
HUB_NAMES = {
    "pick-a-pic": "yuvalkirstain/pickapic_v2",
    "hh-rlhf": "Anthropic/hh-rlhf",
    "ultrafeedback": "HuggingFaceH4/ultrafeedback_binarized",
    "hpdv2": "ymhao/HPDv2",
    "image-reward": "THUDM/ImageRewardDB",
}

Section = Literal["score", "train", "gate"]
SECTIONS: tuple[Section, ...] = ("score", "train", "gate")
_MODALITIES: tuple[Modality, ...] = ("text", "image", "vision")
_DATASET_KEYS = ("path", "truth", "format", "split", "judge", "columns", "pairs")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def parsed(path: Path) -> dict[str, Any]:
    """The file as TOML. Raises UsageError naming the line."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror})", hint="Check its permissions (`ls -l`)."
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
        texts = {key: value for key, value in entry.items() if key != "columns"}
        faults += _strings(texts, _DATASET_KEYS, where)
        columns = entry.get("columns", {})
        if not isinstance(columns, dict) or not all(isinstance(c, str) for c in columns.values()):
            faults.append(f'{where} columns must be a table of role = "column"')
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


_SPLIT = re.compile(r"[\w.\-+%\[\]]+")


@final
@dataclass(frozen=True)
class DatasetEntry:
    """One `[datasets.NAME]`: paths are absolute, `written` is the path as in the file."""

    path: str
    written: str
    truth: Path | None = None
    format: str | None = None
    split: str | None = None
    judge: str | None = None
    columns: dict[str, str] | None = None
    pairs: str | None = None


@final
@dataclass(frozen=True)
class Workspace:
    """A checked noisescope.toml; `root` is its directory."""

    root: Path
    dataset: str | None = None
    models: dict[Modality, str] = field(default_factory=dict)
    datasets: dict[str, DatasetEntry] = field(default_factory=dict)
    sections: dict[Section, dict[str, Any]] = field(default_factory=dict)

    def settings(self, section: Section, known: Collection[str]) -> dict[str, Any]:
        """The settings of a command. Raises UsageError naming every key that is not `known`."""
        values = self.sections.get(section, {})
        faults = unknown(values, known, f"[{section}]")
        if faults:
            raise invalid(self.root / FILE_NAME, faults)
        return dict(values)


@final
@dataclass(frozen=True)
class Resolved:
    """What a dataset name means: `target` is a path, glob or Hub name; `description` is printed.

    `written` is a workspace's path as in its file, for records that outlive this machine.
    """

    kind: Literal["workspace", "path", "hub"]
    name: str
    target: str
    description: str
    config: str | None = None
    split: str | None = None
    format: str | None = None
    truth: Path | None = None
    written: str | None = None
    columns: dict[str, str] | None = None
    pairs: str | None = None


def find_workspace(start: Path | None = None) -> Workspace | None:
    """Read the nearest noisescope.toml in `start` or above it, or return None."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            return read_workspace(folder / FILE_NAME)
    return None


def read_workspace(path: Path) -> Workspace:
    """Read and check one file. Raises UsageError with all its faults."""
    content = parsed(path)
    faults = faults_of(content)
    if faults:
        raise invalid(path, faults)
    root = path.parent
    models = {name: _model(root, value) for name, value in content.get("models", {}).items()}
    return Workspace(
        root=root,
        dataset=content.get("workspace", {}).get("dataset"),
        models=models,
        datasets={name: _entry(root, table) for name, table in content.get("datasets", {}).items()},
        sections={section: content.get(section, {}) for section in SECTIONS},
    )


def resolve(name: str, workspace: Workspace | None = None) -> Resolved:
    """Resolve a DATASET argument: workspace name, else path or glob, else Hub name.

    A split may follow as `name:split`, a Hub configuration as `name:config:split`. Raises
    DataError if the name can be none of these.
    """
    if not name.strip():
        raise DataError("the dataset's name is empty", hint="Name a path, a glob or a Hub name.")
    base, config, split = _parts(name, workspace)
    entries = workspace.datasets if workspace else {}
    if workspace and base in entries:
        entry = entries[base]
        return Resolved(
            kind="workspace",
            name=base,
            target=entry.path,
            description=f"{base} is {entry.written} ({workspace.root / FILE_NAME})",
            config=config,
            split=split or entry.split,
            format=entry.format,
            truth=entry.truth,
            written=entry.written,
            columns=entry.columns,
            pairs=entry.pairs,
        )
    if _is_path(base):
        _check_home(base)
        return Resolved("path", _stem(base), base, f"{base} is a local path", config, split)
    close = "" if "/" in base else suggestion(base, [*entries, *HUB_NAMES])
    close = close or _beside(base)
    if close or not HUB_NAME.fullmatch(base):
        raise DataError(
            f"{name}: no such file, directory or dataset name{close}",
            hint="List what is known here with `noisescope datasets`.",
        )
    hub = HUB_NAMES.get(base, base)
    return Resolved(
        "hub",
        base.rpartition("/")[2],
        hub,
        f"{base} is {hub} on the Hugging Face Hub"
        if base in HUB_NAMES
        else f"{base} is no file here, so it is read from the Hugging Face Hub",
        config=config,
        split=split,
    )


def _parts(name: str, workspace: Workspace | None) -> tuple[str, str | None, str | None]:
    """(base, config, split) of an argument; a path with a colon in it stays whole."""
    if (workspace and name in workspace.datasets) or _exists(name):
        return name, None, None
    base, *rest = name.split(":")
    if not base or not 1 <= len(rest) <= 2 or not all(map(_SPLIT.fullmatch, rest)):
        return name, None, None
    return base, (rest[0] if len(rest) == 2 else None), rest[-1]


#: Endings of data files.
_ENDING = re.compile(r"(\.(parquet|arrow|jsonl|ndjson|json|csv|tsv|gz|txt))+$", re.IGNORECASE)


def _beside(name: str) -> str:
    """A suggestion of the file beside `name` that is most like it, with or without its ending."""
    path = Path(name)
    try:
        names = [other.name for other in path.parent.iterdir() if other.name[0] != "."]
    except OSError:
        return ""
    whole = {_ENDING.sub("", other): other for other in names if _ENDING.search(other)}
    whole |= {other: other for other in names}
    close = difflib.get_close_matches(path.name, list(whole), n=1, cutoff=0.8)
    return f" (did you mean {str(path.parent / whole[close[0]])!r}?)" if close else ""


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _is_path(name: str) -> bool:
    """Whether a name exists as a path, or can only be one."""
    if _exists(name) or re.search(r"[*?\[\\]", name) or name.startswith((".", "/", "~")):
        return True
    return bool(_ENDING.search(name)) or name.count("/") > 1


def _check_home(path: str) -> None:
    """Raise DataError for the home directory of an unknown user (~name)."""
    try:
        Path(path).expanduser()
    except (RuntimeError, ValueError) as error:  # no such user; a NUL in the name
        raise DataError(
            f"{path}: no such user's home directory", hint="Write the path in full."
        ) from error


def _stem(path: str) -> str:
    """A short name for a path: its last part without endings or wildcards."""
    parts = [part for part in Path(path).parts if not re.search(r"[*?\[]", part)]
    last = parts[-1] if parts else ""
    if last in ("", "..", "~"):
        last = Path(*parts).expanduser().resolve().name
    short = re.sub(r"(\.(parquet|arrow|jsonl|ndjson|json|csv|tsv|gz))+$", "", last)
    return short or "dataset"


def _entry(root: Path, table: Mapping[str, Any]) -> DatasetEntry:
    return DatasetEntry(
        path=str(_under(root, table["path"])),
        written=table["path"],
        truth=_under(root, table["truth"]) if "truth" in table else None,
        format=table.get("format"),
        split=table.get("split"),
        judge=_judge(root, table.get("judge")),
        columns=table.get("columns"),
        pairs=table.get("pairs"),
    )


def _judge(root: Path, written: str | None) -> str | None:
    """A judge's name; the file of FILE.py:FUNCTION is relative to the workspace."""
    if written is None or ".py:" not in written:
        return written
    file, _, function = written.rpartition(":")
    return f"{_under(root, file)}:{function}"


def _under(root: Path, written: str) -> Path:
    return root / Path(written).expanduser()


def _model(root: Path, written: str) -> str:
    """The path under the workspace if it exists, else the Hub name as written."""
    path = _under(root, written)
    is_hub = HUB_NAME.fullmatch(written) and not written.startswith(".")
    return written if is_hub and not path.exists() else str(path)


def default_dataset(dataset: str | None, workspace: Workspace | None) -> str:
    """The DATASET argument, else the workspace's default. Raises UsageError if there is neither."""
    named = dataset or (workspace and workspace.dataset)
    if not named:
        raise UsageError(
            "no dataset was given",
            hint="Give a path, a glob or a Hub name, or set a default in noisescope.toml: "
            '[workspace] dataset = "NAME". `noisescope datasets` lists the names known here.',
        )
    return named


def default_model(model: str | None, modality: Modality, workspace: Workspace | None) -> str | None:
    """The --model option, else the workspace's model for this modality, else None.

    A path below the working directory is given relative to it, as a user would type it.
    """
    named = model or (workspace.models.get(modality) if workspace else None)
    if named and Path(named).is_absolute() and Path(named).is_relative_to(Path.cwd()):
        return str(Path(named).relative_to(Path.cwd()))
    return named
