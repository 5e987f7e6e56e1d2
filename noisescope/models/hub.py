"""Download the files of a Hub repository that are needed, after a look at its small ones.

folder = fetch(name, ["config.json"], hint=HINT)           # to be checked first
folder = fetch(name, ["*.safetensors"], hint=HINT)         # weights: their size comes first
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from noisescope.errors import ModelError, first_line

#: Bytes to download that are worth a note.
NOTED = 10_000_000


def fetch(name: str, allowed: Sequence[str], ignored: Sequence[str] = (), *, hint: str) -> Path:
    """The folder with a repository's files of some patterns, downloaded where they are not cached.

    Logs how much is to be downloaded. Raises ModelError for a repository that is not there or whose
    licence is not accepted, and before a download that does not fit on the disk.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    allow, ignore = list(allowed), list(ignored)
    try:
        _check_size(name, allow, ignore)
        return Path(snapshot_download(name, allow_patterns=allow, ignore_patterns=ignore))
    except HFValidationError as error:
        raise ModelError(f"{name} is no model directory nor Hub name", hint=hint) from error
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: its licence has to be accepted first",
            hint=f"Accept it on https://huggingface.co/{name}, then: hf auth login",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{name} is no directory here, and the Hugging Face Hub did not give it: {reason}",
            hint=hint,
        ) from error


def _check_size(name: str, allowed: list[str], ignored: list[str]) -> None:
    """Log the size of the files that are not in the Hub cache yet; ModelError where it does not fit
    on the cache's disk."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import DryRunError

    try:
        due = snapshot_download(name, allow_patterns=allowed, ignore_patterns=ignored, dry_run=True)
    except DryRunError:  # offline: nothing is downloaded
        return
    size = sum(file.file_size or 0 for file in due if file.will_download)
    cache = Path(HF_HUB_CACHE)
    anchor = next(path for path in (cache, *cache.parents) if path.is_dir())
    free = shutil.disk_usage(anchor).free
    if size > free:
        raise ModelError(
            f"{name}: {size / 1e9:.1f} GB to download, {free / 1e9:.1f} GB free in {anchor}",
            hint="Free some space, or set HF_HOME to a directory on a larger disk.",
        )
    if size > NOTED:
        logging.getLogger("noisescope").warning(
            "%s: %.2f GB to download to %s", name, size / 1e9, cache
        )
