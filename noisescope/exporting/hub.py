"""`--format hub`: a dataset repository with a card that states how it was cleaned.

The directory is written first and only then uploaded: text as TRL reads it, images in the source's
own files. The repository is private unless asked otherwise; its name is never guessed; the token
comes from HF_TOKEN alone; and a repository that no export made is never written to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.errors import DataError, UsageError
from noisescope.exporting.card import card
from noisescope.exporting.clean import DECISIONS, count, plan_cleaning, write_decisions
from noisescope.exporting.places import MARK, claim, write_directory
from noisescope.exporting.policy import CleanPolicy
from noisescope.exporting.scored import Scored
from noisescope.exporting.trl import write_trl
from noisescope.exporting.weights import facts_of
from noisescope.storage import write_atomic

if TYPE_CHECKING:
    from noisescope.datasets import Source

TOKEN = "HF_TOKEN"
#: Image formats whose files hold the pictures themselves, so that a copy of them is complete.
WHOLE = ("pick_a_pic",)
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_LATER = "The directory is complete: try again later, or upload it by hand."


def export_hub(
    scored: Scored,
    out: Path,
    policy: CleanPolicy,
    *,
    source: Source | None = None,
    scheme: str = "u",
) -> dict[str, int]:
    """Write the repository's directory; the counts of keep, drop and flip.

    `source` is needed for images. Raises what `export_trl` and `export_clean` raise, and
    UsageError for images that lie in files of their own.
    """
    claim(out)
    policy = policy.or_default()
    if scored.modality == "text":
        actions = policy.decide(scored.columns)
        counts, said = count(actions), policy.said()
        facts = facts_of(scored, "hub", weight=scheme, policy=said, counts=counts)
    else:
        adapter = scored.manifest.get("adapter")
        if source is None or adapter not in WHOLE:
            raise UsageError(
                f"{adapter} names its pictures by path: an upload would lack them",
                hint="Use --format clean beside the pictures, and upload both by hand.",
            )
        cleaner = plan_cleaning(scored, source, policy)
        facts = {**cleaner.facts, "format": "hub"}

    def fill(folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        if scored.modality == "text":
            write_trl(data / "train-00000-of-00001.parquet", scored, actions, scheme, facts)
            write_decisions(scored, actions, folder / DECISIONS)
        else:
            cleaner.fill(folder, data)
        write_atomic(folder / "README.md", card(scored, facts, "data/**"))

    write_directory(out, facts, fill)
    return dict(facts["counts"])


def check_repo(repo_id: str | None) -> str:
    """The repository's name. Raises UsageError where it is none, or has no owner."""
    if not repo_id:
        raise UsageError(
            "which repository?", hint="Name it: --repo-id OWNER/NAME (a private one is made)."
        )
    owner, slash, name = repo_id.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise UsageError(f"--repo-id {repo_id}: not of the form OWNER/NAME")
    return repo_id


def push(
    directory: Path,
    repo_id: str,
    *,
    public: bool = False,
    environment: Mapping[str, str] = os.environ,
    endpoint: str | None = None,
) -> str:
    """Upload an export's directory to the dataset repository `repo_id`; its address.

    Raises UsageError without HF_TOKEN or where the repository is not an export's, DataError where
    the Hub is switched off, unreachable or refuses.
    """
    check_repo(repo_id)
    off = [name for name in _OFFLINE if environment.get(name, "").lower() in ("1", "true", "yes")]
    if off:
        raise DataError(f"the Hugging Face Hub is switched off ({off[0]} is set)", hint=_LATER)
    token = environment.get(TOKEN)
    if not token:
        raise UsageError(
            f"{TOKEN} is not set: the Hub takes no upload without a token",
            hint=f"Set {TOKEN} to a token with write access, or add --dry-run.",
        )
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    try:
        if api.repo_exists(repo_id, repo_type="dataset"):
            _check_ours(api, repo_id)
        else:
            api.create_repo(repo_id, repo_type="dataset", private=not public)
        done = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=directory,
            commit_message="Upload a cleaned preference dataset",
        )
    except UsageError:
        raise
    except Exception as error:  # the client raises the errors of several HTTP libraries
        raise DataError(f"{repo_id}: not uploaded ({_first_line(error)})", hint=_LATER) from error
    return str(done.commit_url)


def _check_ours(api: Any, repo_id: str) -> None:
    if not api.file_exists(repo_id, MARK, repo_type="dataset"):
        raise UsageError(
            f"{repo_id} exists and no export made it",
            hint="Choose a new name with --repo-id.",
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
