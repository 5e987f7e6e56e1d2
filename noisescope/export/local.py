"""Write one export of a run to this machine, by the name of its format.

done = export_local(scores, "clean", Path("cleaned"), source=lambda: open_source("pairs.jsonl"))
done["counts"], done["policy"]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.errors import UsageError
from noisescope.export.removal import CleanPolicy, expected_wrong, in_words, refuse_weak
from noisescope.scoring.run_scores import RunScores

if TYPE_CHECKING:
    from noisescope.datasets import Source
    from noisescope.pairs import ImageStore

FORMATS = ("weights", "trl", "clean", "review")
_CLEANING = ("drop_above", "drop_top", "flip_above", "flip_top", "most", "annotators")
#: Options of a format, in addition to those of all formats.
TAKES: dict[str, tuple[str, ...]] = {
    "weights": ("weight",),
    "trl": ("weight", *_CLEANING),
    "clean": ("source", *_CLEANING),
    "review": ("source", "count", "threshold", "annotators"),
    "hub": ("source", "weight", "repo_id", "dry_run", "public", *_CLEANING),
}


def default_output(scores: RunScores, format: str) -> Path:
    """exports/RUN-FORMAT: a Parquet file for weights and TRL, else a directory."""
    suffix = ".parquet" if format in ("weights", "trl") else ""
    return Path("exports") / f"{scores.run.directory.resolve().name}-{format}{suffix}"


def export_local(
    scores: RunScores,
    format: str,
    out: Path,
    policy: CleanPolicy | None = None,
    *,
    weight: str = "p_wrong",
    source: Callable[[], Source],
    images: Callable[[], ImageStore | None] = lambda: None,
    count: int = 200,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Write `out` in one of `FORMATS`; return what was written, as `export --json` prints it.

    `source` opens the audited dataset (clean), `images` its pictures (review). Raises UsageError,
    DataError or RunError, and EvidenceError if the audit is too weak, unless the policy forces it.
    """
    check_format(format)
    policy = policy or CleanPolicy()
    if format == "weights":
        from noisescope.export.weights import export_weights

        refuse_weak_weights(scores, policy, weight)
        return {"pairs": export_weights(scores, out, weight), "weight": weight}
    if format == "trl":
        from noisescope.export.trl import export_trl

        refuse_weak_weights(scores, policy, weight)
        counts = export_trl(scores, out, policy, weight)
        return {"counts": counts, "policy": in_words(policy, scores.verdicts), "weight": weight}
    if format == "clean":
        from noisescope.export.clean import export_clean, words_of

        counts = export_clean(scores, source(), policy, out)
        done = {"counts": counts, "policy": words_of(scores, policy)}
        wrong = expected_wrong(scores, policy.or_default())
        return {
            **done,
            "expected_wrong": wrong,
            "unchanged_rows": dict(scores.manifest.get("facts", {}).get("rejected", {})),
        }
    from noisescope.export.review import export_review

    who = policy.annotators is not None
    number = export_review(
        scores, out, number=count, threshold=threshold, images=images(), annotators=who
    )
    return {"pairs": number}


def check_format(format: str) -> None:
    """Raise UsageError for what is none of `FORMATS`."""
    if format not in FORMATS:
        raise UsageError(
            f"no format {format!r} to export to a file", hint=f"One of {', '.join(FORMATS)}."
        )


def refuse_weak_weights(scores: RunScores, policy: CleanPolicy, weight: str) -> None:
    """Raise EvidenceError for weights made of probabilities that the audit is too weak to give.

    The paper's u, and people's decisions alone, are exported whatever the audit is worth.
    """
    if weight not in ("u", "reviews") and not policy.force:
        refuse_weak(scores)
