"""Decide for every pair: keep, drop or flip, by a threshold on p_wrong or a share of the worst.

    actions = CleanPolicy(drop_above=0.5).decide(scores.columns)     # [N] of KEEP, DROP, FLIP

Dropping is the default: over many datasets and methods removal does better than flipping, and
removing more than 30 % of a dataset does harm (PrefCleanBench, 2509.23564), so more is refused
without `force`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import EvidenceError, UsageError
from noisescope.export.annotators import REVERSE, acted_on, positions_of
from noisescope.scoring.reviews import UNDECIDED
from noisescope.scoring.run_scores import RunScores
from noisescope.storage.printable import plural
from noisescope.storage.run import dataset_words, filled

Float = NDArray[np.float64]
Actions = NDArray[np.int8]

KEEP, DROP, FLIP = 0, 1, 2
#: Names of the actions, by number.
ACTIONS = ("keep", "drop", "flip")
_VERDICTS = {"right": KEEP, "wrong": FLIP, "drop": DROP}
#: What `annotators` did, without names: exports are shared.
_PEOPLE = {
    "drop": "all pairs of annotators who are wrong more often than the crowd were dropped",
    REVERSE: "all pairs of annotators who vote backwards were flipped",
}
#: Default rule: drop a label that is more likely wrong than right.
DROP_ABOVE = 0.5


@final
@dataclass(frozen=True)
class CleanPolicy:
    """Which pairs change. Raises UsageError for impossible or contradictory shares.

    A pair is flipped at p_wrong >= `flip_above`, or among the worst `flip_top` of all; otherwise
    dropped at p_wrong >= `drop_above`, or among the worst `drop_top`. No more than `most` of all
    pairs may change, corrections by reviewers included, unless `force`. A pair without p_wrong is
    kept. `annotators` "drop" or "reverse" acts on all pairs of those who stand out, whatever their
    p_wrong (export/annotators.py).
    """

    drop_above: float | None = None
    flip_above: float | None = None
    drop_top: float | None = None
    flip_top: float | None = None
    most: float = 0.3
    force: bool = False
    annotators: str | None = None

    def __post_init__(self) -> None:
        faults = [
            f"--{field.name.replace('_', '-')} {value:g}: between 0 and 1"
            for field in fields(self)
            if field.name not in ("force", "annotators")
            and (value := getattr(self, field.name)) is not None
            and not 0 <= value <= 1
        ]
        faults += [
            f"--{action}-above and --{action}-top exclude each other"
            for action, above, top in (
                ("drop", self.drop_above, self.drop_top),
                ("flip", self.flip_above, self.flip_top),
            )
            if above is not None and top is not None
        ]
        if faults:
            raise UsageError("; ".join(faults), hint="Try --drop-above 0.5 or --drop-top 0.1.")

    @property
    def stated(self) -> bool:
        """Whether it contains any rule."""
        rules = (self.drop_above, self.flip_above, self.drop_top, self.flip_top, self.annotators)
        return any(rule is not None for rule in rules)

    @property
    def flips(self) -> bool:
        """Whether it flips any label."""
        above, top = self.flip_above, self.flip_top
        return above is not None or top is not None or self.annotators == REVERSE

    def or_default(self) -> CleanPolicy:
        """Return the policy, with the default rule if it contains none."""
        return self if self.stated else CleanPolicy(DROP_ABOVE, most=self.most, force=self.force)

    def decide(
        self,
        columns: Mapping[str, Float],
        judged: Mapping[int, str] = {},
        theirs: NDArray[np.int64] | None = None,
    ) -> Actions:
        """Return the action [N] of each pair, from `p_wrong` and `rank` [N] (1 is the worst).

        `theirs` are the positions of the pairs that `annotators` acts on. `judged` are reviewers'
        verdicts by position, which come first: a label found wrong is flipped, one found right is
        kept, a pair to drop is dropped. Raises UsageError if more than `most` would change and
        `force` is not set.
        """
        p_wrong, rank = columns["p_wrong"], columns["rank"]
        actions = np.full(len(p_wrong), KEEP, np.int8)
        actions[_chosen(p_wrong, rank, self.drop_above, self.drop_top)] = DROP
        actions[_chosen(p_wrong, rank, self.flip_above, self.flip_top)] = FLIP
        if theirs is not None:
            actions[theirs] = FLIP if self.annotators == REVERSE else DROP
        for place, verdict in judged.items():
            if verdict != UNDECIDED:
                actions[place] = _VERDICTS[verdict]
        share = float((actions != KEEP).mean()) if len(actions) else 0.0
        if share > self.most and not self.force:
            verdicts = list(judged.values())
            raise self._too_much(share, len(actions), sum(map(verdicts.count, ("wrong", "drop"))))
        return actions

    def _too_much(self, share: float, pairs: int, reviewed: int) -> UsageError:
        """The error for a share that exceeds `most`; `reviewed` corrections are by reviewers."""
        message = (
            f"this would change {share:.1%} of {pairs:,} pairs, more than --most {self.most:g}"
        )
        if not reviewed:
            hint = f"--drop-top {self.most:g} changes only the worst; --force changes them all."
            return UsageError(message, hint=hint)
        people = f"; {reviewed:,} of these {round(share * pairs):,} changes are from reviews"
        return UsageError(
            message + people,
            hint="Have a second person check the reviews (`noisescope review --reviewer NAME`); "
            "--force changes them all.",
        )

    def describe(self) -> str:
        """Describe the policy, for cards and metadata."""
        rules = [] if self.annotators is None else [_PEOPLE[self.annotators]]
        for action, above, top in (
            ("flipped", self.flip_above, self.flip_top),
            ("dropped", self.drop_above, self.drop_top),
        ):
            if above is not None:
                rules.append(f"pairs with p_wrong of {above:g} or more were {action}")
            if top is not None:
                rules.append(f"the worst {top:.1%} of all pairs were {action}")
        return "; otherwise ".join(rules) or "no pair was dropped or flipped"


def decide(scores: RunScores, policy: CleanPolicy) -> tuple[Actions, str]:
    """Return the action [N] of each pair, and the policy in words.

    What people judged comes before what the audit suspects. Raises UsageError as
    `CleanPolicy.decide` does, and EvidenceError if the audit is too weak for the policy.
    """
    judged = scores.verdicts
    if policy.stated and not policy.force:
        refuse_weak(scores)
    theirs = None
    if policy.annotators is not None:
        people = [one for one in acted_on(scores, policy.annotators) if one.action != "keep"]
        theirs = positions_of(scores, people)
    actions = policy.decide(scores.columns, judged, theirs)
    if policy.flips and not policy.force:
        _refuse_harm(scores, actions, judged)
    return actions, in_words(policy, judged)


def expected_wrong(scores: RunScores, policy: CleanPolicy) -> float:
    """How many of the pairs that `decide` drops or flips are expected to be wrong: sum p_wrong."""
    return float(np.nansum(scores.columns["p_wrong"][decide(scores, policy)[0] != KEEP]))


def refuse_weak(scores: RunScores) -> None:
    """Raise EvidenceError unless the audit is strong enough to change labels (scoring/trust.py)."""
    trust = scores.summary.get("trust")
    if trust is None:
        raise EvidenceError(
            f"{scores.run.directory} was scored by an older version, which did not state how far "
            "to trust it",
            hint="Repeat the `noisescope score` command of this run, which takes seconds.",
        )
    if not trust["acts"]:
        words = dataset_words(scores.manifest), shlex.quote(str(scores.run.directory))
        helps = "; ".join(filled(one, *words) for one in trust["helps"])
        raise EvidenceError(
            f"{scores.run.directory}: {trust['word']}. {trust['sentence']}",
            hint=f"What would help: {helps}. --force acts on it all the same.",
        )


def _refuse_harm(scores: RunScores, actions: Actions, judged: Mapping[int, str]) -> None:
    """Raise EvidenceError if most of the labels to be flipped unseen are expected to be right."""
    flipped = actions == FLIP
    flipped[[place for place, verdict in judged.items() if verdict != UNDECIDED]] = False
    count, wrong = int(flipped.sum()), float(scores.columns["p_wrong"][flipped].sum())
    if count and wrong < count / 2:
        raise EvidenceError(
            f"of the {plural(count, 'label')} to flip about {wrong:,.0f} are wrong: flipping them "
            "would do more harm than good",
            hint="--flip-above 0.5 flips only labels that are more likely wrong than right; "
            "--force flips these all the same.",
        )


def in_words(policy: CleanPolicy, judged: Mapping[int, str], corrected: str = "flipped") -> str:
    """What `decide` does, for cards, manifests and the terminal.

    `corrected` is what happens to labels that reviewers found wrong: flipped or dropped.
    """
    wrong, right, drop = map(list(judged.values()).count, ("wrong", "right", "drop"))
    if not wrong + right + drop:
        return policy.describe()
    people = f"{plural(wrong, 'label')} that reviewers found wrong {_were(wrong)} {corrected}, "
    people += f"{plural(right, 'right one')} kept"
    people += f", {plural(drop, 'pair')} dropped" if drop else ""
    return f"{people}; otherwise {policy.describe()}"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _chosen(
    p_wrong: Float, rank: Float, above: float | None, top: float | None
) -> NDArray[np.bool_]:
    """Select pairs at or above a threshold, or among the worst share; none without a rule."""
    judged = np.isfinite(p_wrong)
    if above is not None:
        return np.asarray(judged & (np.nan_to_num(p_wrong) >= above))
    if top is not None:
        return np.asarray(judged & (rank <= np.floor(top * len(rank) + 1e-9)))
    return np.zeros(len(p_wrong), bool)
