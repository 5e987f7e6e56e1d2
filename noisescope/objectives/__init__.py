"""Preference objectives: frozen callables from what a policy said about [B] pairs to [B] losses.

Notation (method.md): l = logratio, h = beta * l, p = sigma(h). An objective returns one loss a
pair, already times `weight` where given; the caller averages. Nothing here knows of models.

    loss = OBJECTIVES["adaptive-dpo"](beta=0.1)(PairValues(l, weight=W, gamma=gamma)).mean()
"""

from __future__ import annotations

from noisescope.objectives.adaptive import AdaptiveDPO, AdaptiveIPO, DistilledDPO
from noisescope.objectives.objective import Objective, PairValues
from noisescope.objectives.plain import DPO, IPO, RPO, Hinge, LengthNormalisedDPO, MaPO
from noisescope.objectives.robust import CDPO, RDPO, REPO, ROPO, DrDPO, HolderDPO

OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": DPO,
    "ipo": IPO,
    "hinge": Hinge,
    "adaptive-dpo": AdaptiveDPO,
    "adaptive-ipo": AdaptiveIPO,
    "distilled-dpo": DistilledDPO,
    "cdpo": CDPO,
    "rdpo": RDPO,
    "ropo": ROPO,
    "dr-dpo": DrDPO,
    "holder-dpo": HolderDPO,
    "re-po": REPO,
    "mapo": MaPO,
    "ln-dpo": LengthNormalisedDPO,
    "rpo": RPO,
}

__all__ = [
    "CDPO",
    "DPO",
    "IPO",
    "OBJECTIVES",
    "RDPO",
    "REPO",
    "ROPO",
    "RPO",
    "AdaptiveDPO",
    "AdaptiveIPO",
    "DistilledDPO",
    "DrDPO",
    "Hinge",
    "HolderDPO",
    "LengthNormalisedDPO",
    "MaPO",
    "Objective",
    "PairValues",
]
