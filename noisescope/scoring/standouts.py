"""Name the annotators or sources whose labels are wrong more often than the others'.

    found = find_standouts(run, noise, margins)    # None if nobody differs
    found.worst[0].name, found.worst[0].label      # june, votes backwards

Somebody stands out only if rates of their own explain the held-out labels better than one rate for
all, by `DECISIVE` nats, and the interval of their rate is above the crowd's mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from noisescope.scoring.annotators import Annotator, annotator_table, coded
from noisescope.scoring.noise_models import DECISIVE, Noise
from noisescope.storage.run import Run

Float = NDArray[np.float64]
Kind = Literal["annotator", "source"]


@final
@dataclass(frozen=True)
class Standouts:
    """Those who stand out, worst first; the others by their number and mean rate.

    `kind` is annotator or source; `mean` is 0 without others.
    """

    kind: Kind
    worst: tuple[Annotator, ...]
    others: int
    mean: float

    def to_json(self) -> dict[str, Any]:
        """JSON object of the summary."""
        return {
            "kind": self.kind,
            "worst": [
                {
                    "name": one.name,
                    "labels": one.labels,
                    "flip_rate": one.flip_rate,
                    "low": one.low,
                    "high": one.high,
                    "label": label(one),
                }
                for one in self.worst
            ],
            "others": {"count": self.others, "flip_rate": self.mean},
        }


def least_alike(by_source: Mapping[str, Any]) -> tuple[str, str, float]:
    """The two sources whose heads are least alike, and the cosine of their margins."""
    alike, names = by_source["alike"], by_source["sources"]
    pairs = [(alike[i][j], j, i) for i in range(len(names)) for j in range(i)]
    cosine, one, other = min(pairs)
    return names[one], names[other], cosine


def notes_on_sources(by_source: Mapping[str, Any] | None) -> list[str]:
    """Notes on sources that want other things, or contradict the others as if reversed.

    `by_source` is the manifest's comparison of heads by source with one head.
    """
    if by_source and by_source["own_heads"]:
        one, other, cosine = least_alike(by_source)
        return [
            f"Sources prefer different things ({one} and {other} least alike, cosine "
            f"{cosine:.2f}): each is judged by a head of its own, so a bias that all labels of a "
            "source share counts as its preference. If they should prefer the same, join them in "
            "one file."
        ]
    if by_source and by_source["reversed"]:
        return [
            f"The labels of {', '.join(by_source['reversed'])} contradict those of "
            f"{by_source['sources'][0]} as if chosen and rejected were swapped: with them "
            "reversed, one head explains both as well as a head each does. Check the columns of "
            "these sources; if people there do prefer the opposite, audit each source alone."
        ]
    return []


#: What an interval above 1/2 means.
BACKWARDS = "votes backwards"


def label(one: Annotator) -> str:
    """What an outlying rate means: votes backwards, or careless."""
    return BACKWARDS if one.contrarian else "careless"


def find_standouts(run: Run, noise: Noise, margins: Float) -> Standouts | None:
    """Annotators that stand out, else sources; mean held-out margins [N] of the run's pairs."""
    gains = {model.name: model.gain for model in noise.models}
    kinds: tuple[Kind, ...] = ("annotator", "source")
    for kind in kinds:
        if gains.get(kind, 0.0) > DECISIVE:
            table = annotator_table(*_names(run, kind), margins, noise.single)
            worst = tuple(one for one in table if one.careless or one.contrarian)
            if worst:
                rest = [one for one in table if one not in worst]
                wrong = sum(one.labels * one.flip_rate for one in rest)
                mean = wrong / max(sum(one.labels for one in rest), 1)
                return Standouts(kind, worst, len(rest), mean)
    return None


def _names(run: Run, kind: Kind) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct annotators or sources, and each pair's place among them [N], -1 if unknown."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    schema = pq.read_schema(run.pairs_path).names
    columns = [kind] if kind == "annotator" else [n for n in ("origin", "source") if n in schema]
    table = pq.read_table(run.pairs_path, columns=columns, read_dictionary=columns)
    plain = [table.column(name).cast("string") for name in columns]
    return coded(pc.coalesce(*plain))
