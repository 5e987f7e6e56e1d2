"""Collect what a report shows from a run: numbers, worst pairs, annotators, figures.

contents = gather(find_run(None, Path("runs")))
contents.pictures, contents.pairs, contents.annotators
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.report import bars, curves, dots
from noisescope.report import dots as scatter
from noisescope.report.ground_truth import DRAWN, Known, column, known_labels, read_known
from noisescope.report.style import Picture
from noisescope.scoring.annotators import Annotator, annotator_table, coded
from noisescope.scoring.flip_rate import fit_flip_rate
from noisescope.scoring.history import History, earlier_runs, history
from noisescope.scoring.metrics import Interval
from noisescope.scoring.reviews import RunReviews, read_latest, reviews_of
from noisescope.scoring.scores import require_scores
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float64]

#: Keys of the manifest that a report needs.
NEEDED = (
    "dataset",
    "resolved",
    "adapter",
    "dataset_fingerprint",
    "model",
    "model_fingerprint",
    "evidence",
    "facts",
    "summary",
)
#: Most pairs on the page.
MOST = 10_000
#: Lower ends of the groups of p_wrong, and their names.
BINS = ((0.9, "0.9 and more"), (0.5, "0.5 to 0.9"), (0.1, "0.1 to 0.5"), (0.0, "below 0.1"))
#: Most figures on the page.
FIGURES = 6
#: Most names of a facet.
NAMES = 200
#: Upper ends of the length groups, in characters.
LENGTHS = (100, 200, 400, 800, 1600, 3200)


@final
@dataclass(frozen=True)
class Contents:
    """The content of a report.

    `pairs` are rows of scores and pairs, worst first; `known` of a row describes the truth about
    its label, `reviewed` the reviewers' judgement; both may be None. `facets` count all pairs of
    the run by annotator, source, group of p_wrong and issue. `history` is None without other runs;
    `truth_file` is where `known` is from.
    """

    run: Run
    manifest: Mapping[str, Any]
    pairs: Sequence[Mapping[str, Any]]
    annotators: Sequence[Annotator]
    pictures: Sequence[Picture]
    known: Known | None
    reviews: RunReviews | None
    facets: Mapping[str, Mapping[str, int]]
    history: History | None = None
    truth_file: Path | None = None

    @property
    def summary(self) -> Mapping[str, Any]:
        summary: Mapping[str, Any] = self.manifest["summary"]
        return summary


def gather(run: Run, *, worst: int = MOST, earlier: Sequence[Run] = ()) -> Contents:
    """Collect the content of a report with the `worst` pairs, and the `earlier` runs before it.

    Without any they are those of earlier states of the same dataset (`earlier_runs`). Raises
    RunError for an unfinished or damaged run.
    """
    from noisescope.storage.sql import query

    manifest = run.manifest()
    require_scores(run)
    missing = [name for name in NEEDED if manifest.get(name) is None]
    if missing:
        raise RunError(
            f"{run.manifest_path} does not contain: {', '.join(missing)}",
            hint="Make the run again: noisescope score DATASET",
        )
    facts = query(
        run,
        "SELECT margin, p_wrong, stability, annotator, source, "
        "greatest(length(chosen), length(rejected)) AS length "
        "FROM scores s JOIN pairs USING (pair_id) ORDER BY rank",
    )
    pairs = query(
        run,
        "SELECT s.*, prompt, turns, chosen, rejected, annotator, source, row FROM scores s "
        f"JOIN pairs USING (pair_id) WHERE rank <= {worst:d} ORDER BY rank",
    ).to_pylist()
    truth, truth_file = known_labels(run, [pair["pair_id"] for pair in pairs])
    people = reviews_of(run)
    judged = {one.pair_id: one.verdict for one in read_latest(run)}
    pairs = [
        pair | {"known": truth.get(pair["pair_id"]), "reviewed": judged.get(pair["pair_id"])}
        for pair in pairs
    ]
    known = read_known(run)
    table = _annotators(facts)
    return Contents(
        run,
        manifest,
        pairs,
        table,
        list(draw(run, manifest, facts, table, known))[:FIGURES],
        known,
        people,
        _facets(run),
        history([*before, run]) if (before := earlier or earlier_runs(run)) else None,
        truth_file if truth else None,
    )


def _facets(run: Run) -> dict[str, dict[str, int]]:
    """Count all pairs by value, the most frequent first; facets of one value are not made."""
    from noisescope.storage.sql import query

    p = np.nan_to_num(column(query(run, "SELECT p_wrong FROM scores"), "p_wrong"), nan=-1.0)
    tops = [2.0, *(least for least, _ in BINS)]
    inside = [int(((p >= low) & (p < high)).sum()) for high, low in pairwise(tops)]
    found = {"p_wrong": {text: n for (_, text), n in zip(BINS, inside, strict=True)}}
    for name in ("annotator", "source", *(n for n in ("issue",) if n in _score_columns(run))):
        rows = query(
            run,
            f"SELECT {name} AS name, count(*) AS pairs FROM scores JOIN pairs USING (pair_id) "
            f"WHERE {name} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {NAMES}",
        ).to_pylist()
        if len(rows) > 1:
            found[name] = {str(row["name"]): row["pairs"] for row in rows}
    return found


def _score_columns(run: Run) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(run.scores_path).names)


def _annotators(facts: pa.Table) -> list[Annotator]:
    names, codes = coded(facts.column("annotator"))
    if not any(names):
        return []
    margins = column(facts, "margin")
    return annotator_table(names, codes, margins, fit_flip_rate(margins))


def draw(
    run: Run,
    manifest: Mapping[str, Any],
    facts: pa.Table,
    table: Sequence[Annotator],
    known: Known | None,
) -> Sequence[Picture]:
    """Draw the figures that this run supports, the most telling first."""
    if known is not None:
        pictures = _of_known(known)
    else:
        pictures = [bars.p_wrong_histogram(column(facts, "p_wrong"))]
        spread = np.sqrt(column(facts, "stability"))
        pictures.append(scatter.data_map(column(facts, "margin"), spread))
    if table and manifest["summary"]["flip_rate"]["identifiable"]:
        pictures.append(dots.annotators(table))
    pictures += _of_groups(facts, str(manifest.get("modality", "text")))
    steps, losses = held_out_losses(run)
    if len(steps) > 1 and len(losses):
        pictures.append(curves.learning_curves(steps, losses))
    return pictures


def _of_known(known: Known) -> list[Picture]:
    columns, wrong = known.columns, known.wrong
    scores = {name: columns[name] for name in DRAWN if name in columns}
    scores = {name: score for name, score in scores.items() if np.isfinite(score).all()}
    ranked = known.score
    return [
        bars.flips_by_decile(columns[ranked], wrong, ranked, known.what),
        curves.reliability(columns[ranked], wrong, ranked, known.what),
        dots.detectors(known.detectors, known.ceiling, known.what),
        curves.precision_recall(_distinct(scores), wrong, known.what),
    ]


def _distinct(scores: Mapping[str, Float]) -> dict[str, Float]:
    """Scores by name, those that rank the pairs alike once, under all their names."""
    same: dict[bytes, list[str]] = {}
    for name, score in scores.items():
        same.setdefault(np.argsort(score, kind="stable").tobytes(), []).append(name)
    return {", ".join(names): scores[names[0]] for names in same.values()}


def _of_groups(facts: pa.Table, modality: str) -> list[Picture]:
    """Draw expected wrong labels per source file and, for text, per length of the response."""
    p_wrong = column(facts, "p_wrong")
    base = float(p_wrong.mean())
    pictures = []
    sources, codes = coded(facts.column("source"))
    if len(sources) > 1:
        rates = {name: mean_interval(p_wrong[codes == at]) for at, name in enumerate(sources)}
        title = "Expected wrong labels by the file a pair comes from"
        pictures.append(dots.groups("by-source", title, rates, base))
    if modality != "image":
        lengths = column(facts, "length")
        edges = (0, *LENGTHS, np.inf)
        rates = {}
        for low, high in pairwise(edges):
            inside = (lengths >= low) & (lengths < high)
            if inside.sum() >= 20:
                name = f"from {low:,}" if np.isinf(high) else f"{low:,} to {high:,}"
                rates[f"{name} ({int(inside.sum()):,})"] = mean_interval(p_wrong[inside])
        if len(rates) > 1:
            title = "Expected wrong labels by characters of the longer response"
            pictures.append(dots.groups("by-length", title, rates, base))
    return pictures


def mean_interval(p: Float) -> Interval:
    """Compute the mean of probabilities p [n] with its 90 % normal interval."""
    mean = float(p.mean())
    half = 1.645 * float(p.std(ddof=1)) / np.sqrt(len(p)) if len(p) > 1 else mean
    return Interval(mean, max(0.0, mean - float(half)), min(1.0, mean + float(half)))


def held_out_losses(run: Run) -> tuple[list[int], Float]:
    """Read steps [T] and mean -log sigma(margin) [M, T] of held-out pairs."""
    from noisescope.storage.sql import query

    table = query(
        run,
        "SELECT replica, step, avg(ln(1 + exp(-greatest(margin, -80)))) AS loss FROM margins "
        "WHERE held_out GROUP BY 1, 2 ORDER BY 1, 2",
    )
    steps = sorted(set(table.column("step").to_pylist()))
    replicas = sorted(set(table.column("replica").to_pylist()))
    losses = np.full((len(replicas), len(steps)), np.nan)
    for row in table.to_pylist():
        losses[replicas.index(row["replica"]), steps.index(row["step"])] = row["loss"]
    return steps, losses[np.isfinite(losses).all(axis=1)]


def write_figures(pictures: Sequence[Picture], directory: Path) -> list[Path]:
    """Save every picture as PNG and SVG; return their paths."""
    from noisescope.storage.files import write_atomic

    written = []
    for picture in pictures:
        for kind in ("png", "svg"):
            path = directory / f"{picture.name}.{kind}"
            write_atomic(path, picture.encode(kind))
            written.append(path)
    return written
