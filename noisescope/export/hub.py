"""Export a dataset repository for the Hub, with a card that documents how it was cleaned.

    export_hub(scores, Path("exports/hh-hub"), CleanPolicy())
    push(Path("exports/hh-hub"), "owner/name")

The directory is complete before anything is uploaded: text as TRL reads it, images in the source's
files, `decisions.parquet`, and the card. The repository is private by default and its name must be
given; the token is read from HF_TOKEN only. An existing repository is changed only if it contains
the metadata file of an export.
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
from noisescope.export.removal import CleanPolicy, decide
from noisescope.export.trl import write_trl
from noisescope.export.weights import facts_of
from noisescope.scoring.run_scores import RunScores
from noisescope.storage.files import write_atomic
from noisescope.storage.output import MARK, claim, write_directory

if TYPE_CHECKING:
    from noisescope.datasets import Source


def card(scores: RunScores, facts: Mapping[str, Any], data: str) -> str:
    """Render the README.md of a dataset repository; `data` is the glob of its files."""
    summary, counts = scores.summary, facts["counts"]
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
        f"{__version__}. {_people(scores)}",
        "",
        "## How it was cleaned",
        "",
        f"- Policy: {facts['policy']}.",
        f"- Of {len(scores):,} pairs {counts['keep']:,} were kept, {counts['drop']:,} dropped and "
        f"{counts['flip']:,} flipped ({changed / max(len(scores), 1):.1%} changed).",
        "- `p_wrong` is the probability that a label is wrong, from held-out margins of "
        f"{_plain(scores.manifest.get('evidence', {}).get('replicas', 'several'))} replicas of "
        f"`{_plain(facts['model'])}`{_recalibrated(scores)}.",
        "",
        "## Quality of the audit",
        "",
        "| | estimate | interval |",
        "|---|---|---|",
        f"| flip rate{known} | {_share(rate.get('estimate'))} | {_interval(rate)} |",
        f"| held-out accuracy | {_share(summary.get('held_out_accuracy'))} | "
        f"{_between(summary.get('held_out_accuracy_interval'))} |",
        f"| expected AUROC of finding wrong labels | {_number(summary.get('expected_auroc'))} | "
        f"{_between(summary.get('expected_auroc_interval'), '.3f')} |",
        "",
        "At this AUROC some dropped labels were right and some kept ones are wrong. An audit "
        "cannot find a bias that all annotators share.",
        "",
        f"Dataset fingerprint `{_plain(facts['dataset_fingerprint'])}`, model fingerprint "
        f"`{_plain(facts['model_fingerprint'])}`.",
        "",
    ]
    return "\n".join(lines)


def _people(scores: RunScores) -> str:
    """How many labels people judged."""
    judged = len(scores.verdicts)
    if not judged:
        return "No label was checked by a person in this step."
    return f"People judged the labels of {judged:,} pairs, and no other."


def _recalibrated(scores: RunScores) -> str:
    found = scores.summary.get("recalibration")
    return f", recalibrated on {found['judgements']:,} judgements of reviewers" if found else ""


def _plain(value: Any) -> str:
    """Replace characters that could end a line, a code span or a table cell."""
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
#: Image formats whose files contain the images themselves, so that a copy is complete.
WHOLE = ("pick_a_pic",)
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_LATER = "The directory is complete. Try again later, or upload it by hand."


def export_hub(
    scores: RunScores,
    out: Path,
    policy: CleanPolicy,
    *,
    source: Source | None = None,
    scheme: str = "p_wrong",
) -> dict[str, Any]:
    """Write the repository's directory; return the facts of its mark: counts, policy...

    `source` is needed for images. Raises as `export_trl` and `export_clean` do, and UsageError
    for images in separate files.
    """
    claim(out)
    policy = policy.or_default()
    if scores.modality == "text":
        actions, words = decide(scores, policy)
        counts = count(actions)
        facts = facts_of(scores, "hub", weight=scheme, policy=words, counts=counts)
    else:
        adapter = scores.manifest.get("adapter")
        if source is None or adapter not in WHOLE:
            raise UsageError(
                f"{adapter} may refer to its images by path: an upload would not contain them",
                hint="Use --format clean, and upload its files and the images by hand.",
            )
        if scheme != "p_wrong":
            raise UsageError(
                f"--format hub writes no weights into a dataset of pictures: --weight {scheme}",
                hint="Write them into a file: noisescope export --format weights",
            )
        cleaner = plan_cleaning(scores, source, policy)
        facts = {**cleaner.facts, "format": "hub"}

    def fill(folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        if scores.modality == "text":
            write_trl(data / "train-00000-of-00001.parquet", scores, actions, scheme, facts)
            write_decisions(scores, actions, folder / DECISIONS)
        else:
            cleaner.fill(folder, data)
        write_atomic(folder / "README.md", card(scores, facts, "data/**"))

    write_directory(out, facts, fill)
    return facts


def check_repo(repo_id: str | None) -> str:
    """Check the repository's name. Raises UsageError unless it is OWNER/NAME."""
    if not repo_id:
        raise UsageError(
            "--format hub needs a repository",
            hint="Add --repo-id OWNER/NAME; a private one is made.",
        )
    owner, slash, name = repo_id.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise UsageError(f"--repo-id {repo_id} is not of the form OWNER/NAME")
    return repo_id


def push(
    directory: Path,
    repo_id: str,
    *,
    public: bool = False,
    environment: Mapping[str, str] = os.environ,
    endpoint: str | None = None,
) -> str:
    """Upload an export's directory to the dataset repository `repo_id`; return the commit's URL.

    Raises UsageError without HF_TOKEN or if the repository is not an export, DataError if the Hub
    is switched off, unreachable or refuses.
    """
    check_repo(repo_id)
    off = [name for name in _OFFLINE if environment.get(name, "").lower() in ("1", "true", "yes")]
    if off:
        raise DataError(f"the Hugging Face Hub is switched off ({off[0]} is set)", hint=_LATER)
    token = environment.get(TOKEN)
    if not token:
        raise UsageError(
            f"{TOKEN} is not set: an upload needs a token",
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
    except Exception as error:  # errors of several HTTP libraries
        raise DataError(f"{repo_id}: not uploaded ({first_line(error)})", hint=_LATER) from error
    return str(done.commit_url)


def _check_ours(api: Any, repo_id: str) -> None:
    if not api.file_exists(repo_id, MARK, repo_type="dataset"):
        raise UsageError(
            f"{repo_id} exists and is not an export",
            hint="Choose a new name with --repo-id.",
        )
