"""Explain a finished run: what its suspicious labels have in common.

    explanation = explain_run(run)
    for finding in explanation.findings:
        print(finding.sentence)

Texts are compared by `scoring.traits`, images by `image_traits`, on an even sample of at most
`LOOKED_AT` pairs; annotators, sources and places in the file are those of the same pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.pairs import PICTURE
from noisescope.report.image_traits import compare_images
from noisescope.scoring.annotators import coded
from noisescope.scoring.explain import Finding, Labels, explain
from noisescope.scoring.giveaways import run_notes
from noisescope.scoring.noise_models import fit_noise
from noisescope.scoring.pair_facts import PairFacts, read_facts
from noisescope.scoring.scores import require_scores
from noisescope.scoring.traits import Trait, compare_sides, near_identical

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from noisescope.pairs import ImageStore
    from noisescope.storage.run import Run

Int = NDArray[np.int64]

LOOKED_AT = 50_000
#: Parts of a dataset in its own order.
PARTS = 10
FIRST = Trait("first", "the response shown first")


@final
@dataclass(frozen=True)
class Explanation:
    """Findings of a run over `looked_at` of its `pairs`; `giveaways` name marks of one side.

    `compared`: the sides themselves were compared; False if the pictures are missing.
    """

    run: str
    pairs: int
    looked_at: int
    giveaways: Sequence[str]
    findings: Sequence[Finding]
    compared: bool = True

    @property
    def sentences(self) -> list[str]:
        """What to know, gravest first: labels that a mark gives away explain everything else."""
        return [*self.giveaways, *(finding.sentence for finding in self.findings)]

    def to_json(self) -> dict[str, Any]:
        """The stable JSON object of `explain --json`."""
        return {
            "run": self.run,
            "pairs": self.pairs,
            "looked_at": self.looked_at,
            "sides_compared": self.compared,
            "giveaways": list(self.giveaways),
            "findings": [finding.to_json() for finding in self.findings],
        }


def explain_run(run: Run, images: ImageStore | None = None) -> Explanation:
    """What the suspicious labels of a run have in common.

    Image runs need `images` for the traits of pictures. Raises RunError for an unfinished run.
    """
    from noisescope.storage.sql import query

    require_scores(run)
    chance = run.manifest()["summary"]["chance"]  # margins then explain nothing
    text = run.manifest().get("modality") != "image"
    rows = query(
        run,
        "SELECT margin, p_wrong FROM scores "
        "JOIN (SELECT pair_id, row_number() OVER () AS row FROM pairs) USING (pair_id) "
        "ORDER BY row",
    )
    margins = rows["margin"].to_numpy().astype(np.float64)
    facts = read_facts(run.pairs_path, "text" if text else "image")
    noise = fit_noise(margins, facts)
    some = np.linspace(0, len(margins) - 1, min(len(margins), LOOKED_AT)).astype(np.int64)
    noise = replace(noise, this=noise.this[some], other=noise.other[some])
    looked = _rows_at(run.pairs_path, some)
    sides = _sides(looked, images if not text else None, text)
    if facts.first is not None:
        first = facts.first[some]
        sides[FIRST] = np.where(first < 0, 0, 2 * first - 1).astype(np.int8)
    labels = Labels(
        margins[some],
        rows["p_wrong"].to_numpy()[some],
        sides,
        _groups(looked, facts, some, text),
        [codes[some] for codes in facts.groupings],
    )
    return Explanation(
        str(run.directory),
        len(margins),
        len(some),
        tuple(run_notes(run)) if text else (),
        tuple(f for f in explain(labels, noise) if f.kind == "follows" or not chance),
        text or images is not None,
    )


def _rows_at(pairs: Path, some: Int) -> pa.Table:
    """The texts of the pairs at these rows of pairs.parquet, ascending; no others are held."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names = {"prompt", "chosen", "rejected", "annotator", "source", "origin"}
    found, start = [], 0
    with pq.ParquetFile(pairs, pre_buffer=False) as file:
        columns = [name for name in file.schema_arrow.names if name in names]
        for batch in file.iter_batches(columns=columns, use_threads=False):
            ends = np.searchsorted(some, [start, start + len(batch)])
            found.append(batch.take(pa.array(some[slice(*ends)] - start)))
            start += len(batch)
    rows = pa.Table.from_batches(found)
    if "origin" in columns:
        source = pc.coalesce(rows["origin"], rows["source"])
        rows = rows.set_column(columns.index("source"), "source", source)
    return rows


def _sides(rows: pa.Table, images: ImageStore | None, text: bool) -> dict[Trait, NDArray[np.int8]]:
    prompt, chosen, rejected = (rows[name].to_pylist() for name in ("prompt", "chosen", "rejected"))
    if text:
        asked = [PICTURE.sub("", text) for text in prompt]
        return dict(compare_sides(asked, chosen, rejected))
    return {} if images is None else dict(compare_images(chosen, rejected, images))


def _groups(
    rows: pa.Table, facts: PairFacts, some: Int, text: bool
) -> Mapping[str, tuple[Int, Sequence[str]]]:
    """Annotators, sources, parts of the dataset, and pairs with nearly equal sides."""
    groups: dict[str, tuple[Int, Sequence[str]]] = {}
    for name in ("annotator", "source"):
        values, codes = coded(rows[name])
        if len(values) > 1:
            groups[name] = codes, values
    count = len(facts.weights) if facts.weights is not None else int(some[-1]) + 1
    part = some * PARTS // count
    ends = [
        range(count)[round(i * count / PARTS) : round((i + 1) * count / PARTS)]
        for i in range(PARTS)
    ]
    groups["rows"] = part, [f"{end[0] + 1:,} to {end[-1] + 1:,}" for end in ends if len(end)]
    if text:
        alike = [
            near_identical(*sides)
            for sides in zip(rows["chosen"].to_pylist(), rows["rejected"].to_pylist(), strict=True)
        ]
        groups["pairs"] = np.where(alike, 0, -1), ["whose sides are nearly identical"]
        shown = [PICTURE.search(prompt) is not None for prompt in rows["prompt"].to_pylist()]
        if any(shown) and not all(shown):
            groups["prompts"] = np.where(shown, 0, 1), ["with pictures", "without pictures"]
    return groups
