"""Feature caches that an audit cannot use: named, then ignored."""

from __future__ import annotations

from pathlib import Path


def other_caches(runs_directory: Path, fingerprint: str) -> list[str]:
    """A remark for each cache beside the runs that another model, or other settings, made.

    Features are kept by the content of a response under the fingerprint of their model; a cache
    under another fingerprint never matches. Nothing is said where the right one is there too.
    """
    caches = runs_directory / ".cache" / "features"
    if (caches / fingerprint).is_dir() or not caches.is_dir():
        return []
    return [
        f"ignored: the cached features {path.name} are of another model or other settings "
        f"(this one is {fingerprint})"
        for path in sorted(caches.iterdir())
        if path.is_dir()
    ]
