"""Open the source of rows: a file, a glob, a directory, a saved dataset, or the Hub.

    source = open_source("data/hh-rlhf:test")
    for row in source.rows(): ...

`DATASET` is what a user typed: a workspace name, a path, a glob or a Hub name, with an optional
`:split` or `:config:split`. A source opens lazily and can be read as often as needed.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, final

from noisescope.datasets.hub import hub_source
from noisescope.datasets.readers import READERS, Row, check_suffix, read_file, suffix
from noisescope.errors import DataError
from noisescope.storage.workspace import Resolved, Workspace, resolve

#: What `noisescope flip` writes beside a flipped copy.
FLIPS = "flips.parquet"
#: Files beside a dataset that state something about it and hold no preferences.
SIDECARS = (
    "truth.parquet",
    FLIPS,
    "annotators.parquet",
    "weights.parquet",
    "decisions.parquet",
)
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_SHARD = re.compile(r"(?:^|/)(\w+(?:\.\w+)*)-\d{5}-of-\d{5,}\.")
_SAVE_AGAIN = "Copy the whole directory again, or save the dataset again with save_to_disk."
_FAMILIES = {".json": "json", ".ndjson": "jsonl", ".tsv": "csv"}


class Rows(Protocol):
    """Streams the rows of a source; of a columnar one, only the columns that are needed."""

    def __call__(self, columns: Collection[str] | None = None) -> Iterator[Row]: ...


@final
@dataclass(frozen=True)
class Source:
    """Rows of one dataset. `files` is empty for the Hub; `resolved` is its full name."""

    name: str
    resolved: str
    description: str
    rows: Rows
    files: tuple[Path, ...] = ()
    root: Path | None = None
    format: str | None = None
    truth: Path | None = None
    columns: Mapping[str, str] | None = None
    pairs: str | None = None


def open_source(
    target: str | Path, *, split: str | None = None, workspace: Workspace | None = None
) -> Source:
    """Find what `target` means. Raises DataError if there is nothing to read."""
    found = resolve(str(target), workspace)
    wanted = split or found.split
    if found.kind == "hub":
        rows, resolved = hub_source(found.target, found.config, wanted)
        return Source(
            found.name,
            resolved,
            found.description,
            rows,
            format=found.format,
            columns=found.columns,
            pairs=found.pairs,
        )
    return _local(found, wanted)


def _local(found: Resolved, split: str | None) -> Source:
    """A source of local files, checked to exist and to be of known kinds."""
    path = Path(found.target).expanduser()
    if path.is_dir():
        root, files, chosen = _directory(path, split, found.config)
    elif path.exists():
        root, files, chosen = path.parent, [path], None
    elif re.search(r"[*?\[]", found.target):
        root, files, chosen = *_glob(path), None
    else:
        raise DataError(
            f"{found.target}: no such file or directory",
            hint=f"{_alike(path)}Check the path, or list what is known here with "
            "`noisescope datasets`.",
        )
    if split and not path.is_dir():
        raise DataError(
            f"{found.target}: files have no splits, and --split {split} was asked",
            hint="Leave the split out, or name the directory that holds the splits.",
        )
    for file in files:
        check_suffix(file)
    if all(file.stat().st_size == 0 for file in files):
        raise DataError(f"{found.target}: the file is empty", hint="Write the data to it first.")
    written = found.written or found.target
    resolved = written if chosen is None else f"{written}:{chosen}"
    sources = [(file, _relative(file, root)) for file in files]
    return Source(
        name=found.name,
        resolved=resolved,
        description=found.description,
        rows=lambda columns=None: (
            row for file, name in sources for row in read_file(file, name, columns)
        ),
        files=tuple(files),
        root=root,
        format=found.format,
        truth=found.truth,
        columns=found.columns,
        pairs=found.pairs,
    )


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _alike(path: Path) -> str:
    """A question about the file or directory beside `path` whose name is most like it, or ''."""
    try:
        beside = [other.name for other in path.parent.iterdir()]
    except OSError:
        return ""
    alike = get_close_matches(path.name, beside, n=1, cutoff=0.8)
    return f"Did you mean {path.parent / alike[0]}? " if alike else ""


def _glob(pattern: Path) -> tuple[Path, list[Path]]:
    """The directory above the first wildcard, and the sorted data files that match."""
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if re.search(r"[*?\[]", part))
    root = Path(*parts[:first]) if first else Path()
    matches = sorted(path for path in root.glob("/".join(parts[first:])) if path.is_file())
    files = [path for path in matches if suffix(path) and not _aside(path)]
    if not files:
        raise DataError(
            f"{pattern}: no data file matches ({len(matches)} other files do)",
            hint="Quote the pattern so that the shell leaves it alone, and check its ending.",
        )
    return root, files


def _directory(
    path: Path, split: str | None, config: str | None
) -> tuple[Path, list[Path], str | None]:
    """(root, files, split) of a saved dataset, a dictionary of them, or a folder of files."""
    if (path / "dataset_dict.json").is_file():
        names = _saved_splits(path)
        chosen = _choose(path, names, split)
        return path, _saved_files(path / chosen), chosen
    if (path / "state.json").is_file():
        if split:
            raise DataError(
                f"{path}: a single saved dataset, without a split {split!r}",
                hint="Leave the split out.",
            )
        return path, _saved_files(path), None
    return _folder(path, split, config)


def _saved_splits(path: Path) -> list[str]:
    names = _metadata(path / "dataset_dict.json").get("splits")
    if not isinstance(names, list):
        raise DataError(f"{path / 'dataset_dict.json'}: names no splits", hint=_SAVE_AGAIN)
    return [str(name) for name in names if (path / Path(str(name)).name).is_dir()]


def _saved_files(path: Path) -> list[Path]:
    """The Arrow files of a dataset written by `save_to_disk`, in order."""
    state = _metadata(path / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{path}: saved with an index mapping, as old versions of `datasets` did",
            hint="Load it and save it again with save_to_disk, or export it to Parquet.",
        )
    entries = state.get("_data_files")
    listed = entries if isinstance(entries, list) else []
    names = [str(entry.get("filename")) for entry in listed if isinstance(entry, dict)]
    files = [path / Path(name).name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise DataError(
            f"{path}: data files named in state.json are missing: {', '.join(missing) or 'all'}",
            hint=_SAVE_AGAIN,
        )
    return files


def _metadata(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error})", hint=_SAVE_AGAIN) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object", hint=_SAVE_AGAIN)
    return content


def _folder(
    path: Path, split: str | None, config: str | None
) -> tuple[Path, list[Path], str | None]:
    """Data files of a plain folder: of one kind, and of one split if there are several."""
    if configured := _configured(path, config, split):
        return configured
    if config is not None:
        raise DataError(
            f"{path}: its README.md names no configuration {config!r}",
            hint="Name a split alone, or the files by a glob.",
        )
    families: dict[str, list[Path]] = defaultdict(list)
    for file in _walk(path):
        ending = suffix(file).removesuffix(".gz")
        families[_FAMILIES.get(ending, ending.removeprefix("."))].append(file)
    if len(families) > 1:
        families.pop("json", None)
    if not families:
        raise DataError(
            f"{path}: no data files in this directory",
            hint=f"Known endings: {', '.join(READERS)}.",
        )
    if len(families) > 1:
        counts = ", ".join(f"{len(files)} {kind}" for kind, files in sorted(families.items()))
        raise DataError(
            f"{path}: data files of several kinds ({counts})",
            hint=f"Name the ones to read by a glob, such as '{path}/*.{min(families)}'.",
        )
    (files,) = families.values()
    splits: dict[str | None, list[Path]] = defaultdict(list)
    for file in files:
        splits[_split_of(_relative(file, path))].append(file)
    named = [name for name in splits if name]
    if split is None and len(named) < 2:
        return path, files, None
    chosen = _choose(path, named, split)
    return path, splits[chosen], chosen


def _configured(
    path: Path, config: str | None, split: str | None
) -> tuple[Path, list[Path], str | None] | None:
    """Files as the `configs:` of a README.md name them, as on the Hub; None without any."""
    configs = {str(entry.get("config_name", "default")): entry for entry in _configs(path)}
    with_files = {name: entry for name, entry in configs.items() if entry.get("data_files")}
    if not with_files:
        return None
    names = list(with_files)
    marked = [name for name in names if with_files[name].get("default")]
    name = config or next(iter(marked or (names if len(names) == 1 else ["default"])))
    if name not in with_files:
        fault = f"no configuration {name!r}; there are" if config else "several configurations"
        raise DataError(
            f"{path}: {fault}: {', '.join(names)}",
            hint=f"Name one and a split, as in {path}:{names[0]}:{split or 'train'}",
        )
    splits = _data_files(with_files[name]["data_files"])
    chosen = _choose(path, list(splits), split)
    files = [
        file
        for pattern in splits[chosen]
        for file in sorted(path.glob(pattern))
        if file.is_file() and file.resolve().is_relative_to(path.resolve()) and suffix(file)
    ]
    if not files:
        raise DataError(
            f"{path}: README.md names {', '.join(splits[chosen])} for the split {chosen}, "
            "and no such data file is there",
            hint="Fetch the files, or name those that are there by a glob.",
        )
    return path, list(dict.fromkeys(files)), chosen


def _configs(path: Path) -> list[dict[str, Any]]:
    """The `configs` of the metadata at the head of a README.md."""
    import yaml

    try:
        text = (path / "README.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    match = re.match(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", text, re.DOTALL)
    if match is None:
        return []
    try:
        found = yaml.safe_load(match[1])
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(
            f"{path / 'README.md'}: its metadata is not valid YAML",
            hint="Correct it, or name the data files by a glob.",
        ) from error
    configs = found.get("configs") if isinstance(found, dict) else None
    return [entry for entry in configs or [] if isinstance(entry, dict)]


def _data_files(found: Any) -> dict[str, list[str]]:
    """Split -> patterns of `data_files`, in any of the forms that the Hub takes."""
    if isinstance(found, str):
        return {"train": [found]}
    if isinstance(found, dict):
        found = [{"split": split, "path": paths} for split, paths in found.items()]
    splits: dict[str, list[str]] = {}
    for entry in found if isinstance(found, list) else []:
        if isinstance(entry, str):
            entry = {"path": entry}
        paths = entry.get("path") if isinstance(entry, dict) else None
        paths = [paths] if isinstance(paths, str) else paths or []
        inside = [one for one in paths if isinstance(one, str) and not _leaves(one)]
        splits.setdefault(str(entry.get("split", "train")), []).extend(inside)
    return {split: paths for split, paths in splits.items() if paths}


def _leaves(pattern: str) -> bool:
    """Whether a pattern leads out of its folder."""
    return Path(pattern).is_absolute() or ".." in Path(pattern).parts


def _walk(path: Path) -> list[Path]:
    """Data files below `path` in order, through symbolic links but never round a loop."""
    files: list[Path] = []
    seen: set[Path] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        here = Path(folder)
        real = here.resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [here / name for name in names if not name.startswith(".")]
    return sorted(file for file in files if suffix(file) and not _aside(file) and file.is_file())


def _aside(path: Path) -> bool:
    """Whether a file holds no rows of the data: truth, metadata, caches of `datasets`."""
    cache = path.suffix == ".arrow" and path.name.startswith(("cache-", "tmp"))
    return path.name in SIDECARS or path.name in _METADATA or cache


def _split_of(name: str) -> str | None:
    """The split that a file's name or folder states, as the Hub reads them."""
    if sharded := _SHARD.search(name):
        return sharded[1]
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((word for word in words if word in _SPLITS), None)


def _choose(path: Path, names: Sequence[str], split: str | None) -> str:
    """The wanted split, else `train`, else the only one. Raises DataError."""
    if split is None and len(names) == 1:
        return names[0]
    wanted = split or "train"
    if wanted in names:
        return wanted
    raise DataError(
        f"{path}: no split {wanted!r}; there are: {', '.join(names) or 'none'}",
        hint=f"Name one, as in {path}:{names[0]}." if names else None,
    )
