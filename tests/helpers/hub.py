"""A Hub repository that is a folder: what is fetched of it, and how large it claims to be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError

#: End of the patterns of what is large.
LARGE = "*.safetensors"


class Hub:
    """Answers `snapshot_download`; `fetched` are the patterns of each download."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, *, gated: bool = False, size: int = 0
    ) -> None:
        self.folder, self.gated, self.size = folder, gated, size
        self.fetched: list[tuple[str, ...]] = []
        patch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def snapshot(
        self,
        name: str,
        *,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        dry_run: bool = False,
    ) -> object:
        if self.gated:
            answer = httpx2.Response(403, request=httpx2.Request("GET", "https://huggingface.co"))
            raise GatedRepoError("gated", response=answer)
        if dry_run:
            weights = any(pattern.endswith(LARGE) for pattern in allow_patterns)
            size = self.size if weights else 1000
            return [SimpleNamespace(file_size=size, will_download=True)]
        self.fetched.append(tuple(allow_patterns))
        return str(self.folder)
