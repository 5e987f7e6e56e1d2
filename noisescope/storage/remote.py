"""Read-only directories, local or on object storage, behind one interface.

    place_of("s3://bucket/runs") / "hh-rlhf-1a2b3c4d" / "plan.json"

Any protocol with an fsspec file system: s3://, gs://, hf://, memory://, or a local path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from noisescope.errors import RunError


@final
@dataclass(frozen=True)
class Place:
    """A file or directory of a file system; `local` is its path if it is on this machine."""

    system: Any  # fsspec.AbstractFileSystem
    path: str
    local: Path | None = None

    def __truediv__(self, name: str) -> Place:
        local = None if self.local is None else self.local / name
        return Place(self.system, f"{self.path.rstrip('/')}/{name}", local)

    def __str__(self) -> str:
        return str(self.local) if self.local is not None else self.url

    @property
    def url(self) -> str:
        """The path with its protocol, as DuckDB and fsspec read it."""
        return str(self.system.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        """Last part of its path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Place:
        """Its parent directory."""
        local = None if self.local is None else self.local.parent
        return Place(self.system, self.path.rstrip("/").rpartition("/")[0], local)

    def is_at(self, path: Path) -> bool:
        """Whether it is the local file or directory `path`."""
        return self.local is not None and self.local.resolve() == path.resolve()

    def is_file(self) -> bool:
        """Whether it is an existing file."""
        return bool(self._call(self.system.isfile, self.path))

    def read(self) -> bytes:
        """Contents of a file. Raises RunError."""
        content: bytes = self._call(self.system.cat_file, self.path)
        return content

    def files(self) -> list[Place]:
        """Files in a directory by name; none if it does not exist."""
        return self._inside("file")

    def folders(self) -> list[Place]:
        """Directories in a directory by name."""
        return self._inside("directory")

    def _inside(self, kind: str) -> list[Place]:
        try:
            found = self._call(self.system.ls, self.path, detail=True)
        except FileNotFoundError:
            return []
        names = [str(entry["name"]) for entry in found if entry["type"] == kind]
        return [self / name.rstrip("/").rpartition("/")[2] for name in sorted(names)]

    def _call(self, ask: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return ask(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise RunError(
                f"{self} cannot be read: {error}",
                hint="Check the path, and that you have access to it.",
            ) from error


def place_of(name: str) -> Place:
    """The place that a path or URL names. Raises RunError if its protocol is not installed."""
    from fsspec.core import url_to_fs

    if "://" not in name and "::" not in name:
        path = Path(name)
        local = path if path.name not in ("", "..") else path.resolve()
        return Place(url_to_fs("")[0], path.resolve().as_posix(), local)
    try:
        system, path = url_to_fs(name)
    except (ImportError, ValueError) as error:
        raise RunError(f"{name} cannot be opened: {error}") from error
    return Place(system, path, Path(path) if "file" in _protocols(system) else None)


def _protocols(system: Any) -> tuple[str, ...]:
    found = system.protocol
    return (found,) if isinstance(found, str) else tuple(found)
