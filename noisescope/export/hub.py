"""`--format hub`: a dataset repository with a card that states how it was cleaned.

The directory is written first and only then uploaded: text as TRL reads it, images in the source's
own files. The repository is private unless asked otherwise; its name is never guessed; the token
comes from HF_TOKEN alone; and a repository that no export made is never written to.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope import __version__
from noisescope.errors import DataError, UsageError, first_line
from noisescope.export.clean import DECISIONS, count, plan_cleaning, write_decisions
from noisescope.export.removal import CleanPolicy
from noisescope.export.run_scores import Scored
from noisescope.export.trl import write_trl
from noisescope.export.weights import facts_of
from noisescope.storage.files import write_atomic
from noisescope.storage.output import MARK, claim, write_directory

if TYPE_CHECKING:
    from noisescope.datasets import Source


def card(scored: Scored, facts: Mapping[str, Any], data: str) -> str:
    """README.md of a dataset repository; `data` is the glob of its files."""
    summary, counts = scored.summary, facts["counts"]
    rate = summary.get("flip_rate", {})
    changed = counts["drop"] + counts["flip"]
    known = "" if rate.get("identifiable", True) else " (not identifiable at this size)"
    header = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {json.dumps(data)}",
        "tags:",
        "- preference-data",
        "- dpo",
        "- noisescope",
        "---",
    ]
    lines = [
        *header,
        "",
        f"# {_plain(facts['dataset'])}, cleaned",
        "",
        f"Preference pairs of `{_plain(facts['dataset'])}`, audited and cleaned with noisescope "
        f"{__version__}. No label was looked at by a human in this step.",
        "",
        "## How it was cleaned",
        "",
        f"- Policy: {facts['policy']}.",
        f"- Of {len(scored):,} pairs {counts['keep']:,} were kept, {counts['drop']:,} dropped and "
        f"{counts['flip']:,} turned round ({changed / max(len(scored), 1):.1%} changed).",
        "- `p_flip` is the probability that a label is wrong, from held-out margins of "
        f"{_plain(scored.manifest.get('evidence', {}).get('replicas', 'several'))} replicas of "
        f"`{_plain(facts['model'])}`.",
        "",
        "## What the audit says of itself",
        "",
        "| | estimate | interval |",
        "|---|---|---|",
        f"| flip rate{known} | {_share(rate.get('estimate'))} | {_interval(rate)} |",
        f"| held-out accuracy | {_share(summary.get('held_out_accuracy'))} | "
        f"{_between(summary.get('held_out_accuracy_interval'))} |",
        f"| expected AUROC of finding wrong labels | {_number(summary.get('expected_auroc'))} | "
        f"{_between(summary.get('expected_auroc_interval'), '.3f')} |",
        "",
        "At that AUROC some dropped labels were right and some kept ones are wrong; labels on "
        "which all annotators share a bias look right to any such audit.",
        "",
        f"Dataset fingerprint `{_plain(facts['dataset_fingerprint'])}`, model fingerprint "
        f"`{_plain(facts['model_fingerprint'])}`.",
        "",
    ]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """A name that cannot end its line, its code span or its table cell."""
    return "".join(
        " " if unicodedata.category(c).startswith(("C", "Z")) or c in "`|<>[]" else c
        for c in str(value)
    )


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "unknown"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "unknown"


def _interval(rate: Mapping[str, Any]) -> str:
    return _between([rate.get("low"), rate.get("high")])


def _between(ends: Any, shape: str = ".1%") -> str:
    good = isinstance(ends, list | tuple) and len(ends) == 2
    if not good or not all(isinstance(end, int | float) for end in ends):
        return ""
    return f"{format(ends[0], shape)} to {format(ends[1], shape)}"


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
        raise DataError(f"{repo_id}: not uploaded ({first_line(error)})", hint=_LATER) from error
    return str(done.commit_url)


def _check_ours(api: Any, repo_id: str) -> None:
    if not api.file_exists(repo_id, MARK, repo_type="dataset"):
        raise UsageError(
            f"{repo_id} exists and no export made it",
            hint="Choose a new name with --repo-id.",
        )
