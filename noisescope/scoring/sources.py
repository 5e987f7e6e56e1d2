"""What each source of evidence added to an audit: one row of a table, and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

#: Agreement with the labels from which on a source is probably where they come from.
CIRCULAR = 0.97
#: The source that counts other annotators' labels of the same pairs.
VOTES = "votes"
#: Nats a pair below which a source has added nothing worth its cost.
NOTHING = 0.0005


@final
@dataclass(frozen=True)
class SourceReport:
    """A source's held-out worth: alone, and added last to all the others.

    Accuracies are shares of pairs, `nats` are gains of the mean log likelihood a pair: over a coin
    (`nats_alone`), and over the fit without the source (`nats_added`). `disagreement` is the share
    of pairs on whose better side the source and the others differ; None without others.
    `covered` is the share of pairs that the source judges alone; the others count half in
    `accuracy_alone`. `inside` is true for the audited model itself, its LoRA replicas included.
    `weight` is what a unit of a source of one column adds to a margin, alone. `doubted` has the
    shares of its and of other labels that the other evidence contradicts, if they clearly differ.
    """

    source: str
    accuracy_alone: float
    nats_alone: float
    accuracy_added: float
    nats_added: float
    disagreement: float | None
    inside: bool = False
    covered: float = 1.0
    weight: float | None = None
    doubted: Sequence[float] | None = None

    @property
    def agreement(self) -> float:
        """Share of labels that the source agrees with, of those it judges; 0 if it judges none."""
        unjudged = (1 - self.covered) / 2
        return (self.accuracy_alone - unjudged) / self.covered if self.covered else 0.0

    @property
    def may_be_origin(self) -> bool:
        """Whether the labels may come from the source: not from the model, nor other votes."""
        return not self.inside and self.source != VOTES

    @property
    def reversed(self) -> bool:
        """Whether held-out labels contradict the source, so that it counts with its sign turned."""
        known = self.nats_alone >= NOTHING * self.covered
        return self.weight is not None and self.weight < 0 and known

    def to_json(self) -> dict[str, Any]:
        """JSON object of the manifest and the summary."""
        return asdict(self)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> SourceReport:
        """The report of a JSON object. Raises TypeError."""
        return cls(**content)


def source_notes(reports: Sequence[SourceReport]) -> list[str]:
    """What a reader must know of the sources: those that look like the origin of the labels."""
    notes = [
        f"{one.source} agrees with {one.agreement:.1%} of the labels"
        f"{'' if one.covered == 1 else f' that it judges ({one.covered:.1%})'}: it looks like "
        "their origin. An audit by the labeller is circular: it confirms the labeller's errors. "
        "Leave it out unless it is independent of the labels."
        for one in reports
        if one.may_be_origin and one.agreement >= CIRCULAR
    ]
    notes += [
        f"{one.source} is read in reverse (weight {one.weight:.2g}): held-out labels contradict "
        "it. Check the sign of its numbers, or what the judge takes to be better."
        for one in reports
        if one.reversed
    ]
    notes += [
        f"The weight of {one.source} may be wrong: the other evidence contradicts "
        f"{one.doubted[0]:.0%} of the labels it covers and {one.doubted[1]:.0%} of the others, as "
        "if its pairs had been selected by their label. Add numbers of pairs drawn at random, or "
        "leave it out."
        for one in reports
        if one.doubted is not None
    ]
    useless = [
        one.source for one in reports if not one.inside and one.nats_added < NOTHING * one.covered
    ]
    if useless:
        notes.append(
            f"{', '.join(useless)} added nothing to what the other evidence knows of the labels."
        )
    return notes
