"""What changed between two audits: pairs, labels, noise by source and annotator, verdicts.

    found = compare(Run(Path("runs/pairs-old")), Run(Path("runs/pairs-new")))
    found.to_json()["relabelled"]

Pairs are matched by content (`content_id`), labels by content and direction, so a dataset's own
ids may change. All joins run in DuckDB over the runs' Parquet files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

from noisescope.errors import RunError, first_line
from noisescope.storage.run import Run

#: Rows shown of each kind of change, and groups of each kind.
SHOWN = 10
#: A verdict changes where p_flip crosses this.
FLIPPED = 0.5

#: One row a content and direction: how many labels, their mean p_flip, and the place of one.
_LABELS = """
CREATE TEMP TABLE {name} AS
SELECT content_id, chosen < rejected AS direction, count(*) AS labels,
       avg(p_flip) AS p_flip, avg(margin) AS margin, min(pair_id) AS pair_id,
       arg_min(source, pair_id) AS source, arg_min(row, pair_id) AS row,
       arg_min(left(prompt, 160), pair_id) AS prompt
FROM read_parquet(${name}_pairs) AS p JOIN read_parquet(${name}_scores) AS s USING (pair_id)
GROUP BY ALL
"""
_ONLY = """
SELECT pair_id, source, row, p_flip, prompt FROM {this} AS t
WHERE content_id NOT IN (SELECT content_id FROM {other}) ORDER BY margin, pair_id
"""
_RELABELLED = """
SELECT b.pair_id, b.source, b.row, a.p_flip, b.p_flip, b.prompt
FROM a JOIN b USING (content_id)
WHERE a.direction <> b.direction
  AND (content_id, b.direction) NOT IN (SELECT (content_id, direction) FROM a)
  AND (content_id, a.direction) NOT IN (SELECT (content_id, direction) FROM b)
ORDER BY b.margin, b.pair_id
"""
_CHANGED = """
SELECT b.pair_id, b.source, b.row, a.p_flip, b.p_flip, b.prompt
FROM a JOIN b USING (content_id, direction)
WHERE (a.p_flip > $flipped) <> (b.p_flip > $flipped)
ORDER BY abs(b.p_flip - a.p_flip) DESC, b.pair_id
"""
_GROUPS = """
WITH sides AS (
    SELECT 'a' AS run, {by} AS name, p_flip
    FROM read_parquet($a_pairs) AS p JOIN read_parquet($a_scores) AS s USING (pair_id)
    UNION ALL
    SELECT 'b', {by}, p_flip
    FROM read_parquet($b_pairs) AS p JOIN read_parquet($b_scores) AS s USING (pair_id))
SELECT name, count(*) FILTER (run = 'a'), avg(p_flip) FILTER (run = 'a'),
       count(*) FILTER (run = 'b'), avg(p_flip) FILTER (run = 'b')
FROM sides WHERE name IS NOT NULL GROUP BY name
ORDER BY coalesce(avg(p_flip) FILTER (run = 'b'), 0) - coalesce(avg(p_flip) FILTER (run = 'a'), 0)
         DESC, name
"""


@final
@dataclass(frozen=True)
class Change:
    """One pair: its place (in B, for a removed one in A) and its p_flip on both sides."""

    pair_id: str
    source: str
    row: int
    p_flip_a: float | None
    p_flip_b: float | None
    prompt: str


@final
@dataclass(frozen=True)
class Group:
    """Pairs of one source or annotator in both runs, with their mean p_flip (None: no pairs)."""

    name: str
    pairs_a: int
    noise_a: float | None
    pairs_b: int
    noise_b: float | None


@final
@dataclass(frozen=True)
class Difference:
    """Changes from run A to run B; counts are of contents, lists hold the most suspicious ten."""

    a: dict[str, Any]
    b: dict[str, Any]
    new: int
    removed: int
    relabelled: int
    changed_verdicts: int
    new_pairs: tuple[Change, ...]
    removed_pairs: tuple[Change, ...]
    relabelled_pairs: tuple[Change, ...]
    changed_pairs: tuple[Change, ...]
    sources: tuple[Group, ...]
    annotators: tuple[Group, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The stable JSON object of `diff --json`."""
        return asdict(self)


def compare(a: Run, b: Run) -> Difference:
    """Difference from `a` to `b`. Raises RunError where a run is unfinished or damaged."""
    import duckdb

    from noisescope.scoring.margins import connect

    facts = [_facts(run) for run in (a, b)]
    files = {
        f"{name}_{kind}": str(path)
        for name, run in (("a", a), ("b", b))
        for kind, path in (("pairs", run.pairs_path), ("scores", run.scores_path))
    }
    try:
        with connect() as connection:
            for name in ("a", "b"):
                bound = {key: path for key, path in files.items() if key.startswith(f"{name}_")}
                connection.execute(_LABELS.format(name=name), bound)
            new = connection.execute(_ONLY.format(this="b", other="a")).fetchall()
            removed = connection.execute(_ONLY.format(this="a", other="b")).fetchall()
            relabelled = connection.execute(_RELABELLED).fetchall()
            changed = connection.execute(_CHANGED, {"flipped": FLIPPED}).fetchall()
            groups = {
                by: tuple(
                    Group(str(row[0]), *row[1:])
                    for row in connection.execute(_GROUPS.format(by=by), files).fetchall()
                )
                for by in ("source", "annotator")
            }
    except duckdb.Error as error:
        raise RunError(
            f"{a.directory} and {b.directory} cannot be compared: {first_line(error)}",
            hint="Score their datasets again: noisescope score DATASET",
        ) from error
    return Difference(
        a=facts[0],
        b=facts[1],
        new=len(new),
        removed=len(removed),
        relabelled=len(relabelled),
        changed_verdicts=len(changed),
        new_pairs=tuple(
            Change(name, source, row, None, p, prompt)
            for name, source, row, p, prompt in new[:SHOWN]
        ),
        removed_pairs=tuple(
            Change(name, source, row, p, None, prompt)
            for name, source, row, p, prompt in removed[:SHOWN]
        ),
        relabelled_pairs=tuple(Change(*row) for row in relabelled[:SHOWN]),
        changed_pairs=tuple(Change(*row) for row in changed[:SHOWN]),
        sources=groups["source"],
        annotators=groups["annotator"],
        notes=tuple(_notes(a, b)),
    )


def _facts(run: Run) -> dict[str, Any]:
    """Name, size and rates of a run, from its manifest."""
    manifest = run.manifest()
    summary = manifest.get("summary", {})
    keys = ("pairs", "held_out_accuracy", "flip_rate", "mislabelled_share", "contested_share")
    return {
        "run": str(run.directory),
        "dataset": manifest.get("dataset"),
        "model": manifest.get("model"),
        **{key: summary.get(key) for key in keys},
    }


def _notes(a: Run, b: Run) -> list[str]:
    """What makes the two hard to compare."""
    one, other = a.manifest(), b.manifest()
    notes = []
    if one.get("model_fingerprint") != other.get("model_fingerprint"):
        notes.append("the two runs were judged by different models: p_flip changes with the model")
    if one.get("evidence") != other.get("evidence"):
        notes.append("the two runs gathered evidence with different settings")
    if one.get("dataset_fingerprint") == other.get("dataset_fingerprint"):
        notes.append("the dataset is the same: what changed is the audit")
    return notes
