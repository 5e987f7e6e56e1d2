"""Settings of `noisescope train`, in one frozen, checked dataclass.

    settings = settled("text", objective="adaptive-dpo", epochs=2.0)   # None: the default

A setting is the flag, else the preset's value, else the default of the modality.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import UsageError, not_among, out_of_range, refuse
from noisescope.pairs import Modality
from noisescope.training.config import SCHEDULES
from noisescope.training.objectives import OBJECTIVES, Objective
from noisescope.training.policy.presets import preset

if TYPE_CHECKING:
    from noisescope.scoring.weights import WeightConfig

#: Objectives whose loss has W and Gamma in it: they take an audit's weights by default.
ADAPTIVE = ("adaptive-dpo", "adaptive-ipo", "forward-dpo", "soft-dpo", "distilled-dpo")
#: Those of them whose W and Gamma can be made while training.
ONLINE = ("adaptive-dpo", "adaptive-ipo")
#: Objectives whose Gamma is a belief, not a shift, and the weighting that makes it.
BELIEFS = {"forward-dpo": "prior", "soft-dpo": "soft", "distilled-dpo": "margin"}
#: beta of Eq. 6 by whether the pipeline is SDXL (2503.16921, settings).
IMAGE_BETA = {True: 2500.0, False: 1000.0}
TEXT_BETA = 0.1


@final
@dataclass(frozen=True)
class TrainSettings:
    """How to train. `batch` pairs an optimiser step over all processes; `accumulation` None
    splits it as memory requires. `warmup` below 1 is a share of the steps, else a number of steps.
    `layers` K adapts the last K blocks only. Raises UsageError naming every impossible flag.
    """

    objective: str = "dpo"
    beta: float = TEXT_BETA
    parameters: tuple[tuple[str, float], ...] = ()
    learning_rate: float = 2e-4
    epochs: float = 1.0
    steps: int | None = None
    batch: int = 32
    accumulation: int | None = None
    warmup: float = 0.1
    schedule: str = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_r: int = 16
    lora_alpha: float = 32.0
    targets: tuple[str, ...] = ()
    layers: int | None = None
    full: bool = False
    checkpointing: bool = False
    validation: float = 0.05
    save_every: int = 50
    seed: int = 0
    online: str | None = None
    online_replicas: int = 4
    rho: float = 1.0
    k1: float | None = None
    k2: float | None = None
    c2: float | None = None

    def __post_init__(self) -> None:
        counts = {
            "--batch-size": self.batch,
            "--steps": self.steps,
            "--accumulation": self.accumulation,
            "--lora-r": self.lora_r,
            "--layers": self.layers,
            "--save-every": self.save_every,
        }
        positive = {
            "--beta": self.beta,
            "--learning-rate": self.learning_rate,
            "--epochs": self.epochs,
            "--max-grad-norm": self.max_grad_norm,
            "--lora-alpha": self.lora_alpha,
            "--rho": self.rho,
        }
        not_negative = {
            "--weight-decay": self.weight_decay,
            "--seed": self.seed,
            "--warmup": self.warmup,
        }
        faults = [
            *out_of_range(counts, low=1),
            *out_of_range(positive, above=0),
            *out_of_range(not_negative, low=0),
            *out_of_range({"--validation": self.validation}, low=0, below=1),
            *not_among("--schedule", self.schedule, SCHEDULES),
        ]
        if self.full and self.layers is not None:
            faults.append("--layers is about adapters: leave --full out")
        if self.full and self.targets:
            faults.append("--targets is about adapters: leave --full out")
        if self.online is not None and self.objective not in ONLINE:
            faults.append(f"--online is for {' and '.join(ONLINE)}, not {self.objective}")
        if self.online is not None and self.full:
            faults.append("--online needs adapters: leave --full out")
        refuse(faults, hint="Run `noisescope train --help`.")

    @property
    def weighting(self) -> str:
        """The default of --weighting: how weights are computed from an audit's scores."""
        other = "u" if self.objective in ADAPTIVE else "p_wrong"
        return BELIEFS.get(self.objective, other)

    def check_scheme(self, scheme: str) -> None:
        """Raise UsageError for weights of a scheme that the objective would misread."""
        believed = {made: objective for objective, made in BELIEFS.items()}
        needed = BELIEFS.get(self.objective, scheme)
        if scheme and (scheme != needed or believed.get(scheme, self.objective) != self.objective):
            pairs = [
                f"--weighting {made} with --objective {name}" for name, made in BELIEFS.items()
            ]
            raise UsageError(
                f"--objective {self.objective} does not work with weights made with {scheme}: with "
                f"--weighting {' or '.join(believed)}, Gamma is what {' or '.join(BELIEFS)} "
                "learns; otherwise it is a correction of the margin",
                hint=f"Use {' and '.join(pairs)}, each only with the other; other weights with "
                "--objective dpo.",
            )

    @property
    def constants(self) -> WeightConfig:
        """k1, k2 and c2, by default the usual ones."""
        from noisescope.scoring.weights import WeightConfig

        given = {"k1": self.k1, "k2": self.k2, "c2": self.c2}
        return WeightConfig(**{name: value for name, value in given.items() if value is not None})

    def make_objective(self) -> Objective:
        """The objective with its parameters. Raises UsageError for one it does not have."""
        kind = find_objective(self.objective)
        known = [f.name for f in fields(kind) if f.name != "beta"]
        unknown = [name for name, _ in self.parameters if name not in known]
        if unknown:
            raise UsageError(
                f"{self.objective} has no parameter {', '.join(unknown)}",
                hint=f"It has: {', '.join(known) or 'beta alone (--beta)'}.",
            )
        return kind(beta=self.beta, **dict(self.parameters))

    def total_steps(self, pairs: int) -> int:
        """Optimiser steps of a run over `pairs` pairs."""
        return self.steps or max(1, round(self.epochs * pairs / min(self.batch, pairs)))

    def warmup_share(self, steps: int) -> float:
        """Warm-up as a share of the steps."""
        return self.warmup if self.warmup < 1 else min(0.99, self.warmup / steps)

    def to_json(self) -> dict[str, Any]:
        """JSON object of every setting."""
        return asdict(self) | {"parameters": dict(self.parameters), "targets": list(self.targets)}


def objective_for(scheme: str) -> str:
    """The objective that weights of a scheme are made for; dpo if they are weights alone."""
    made = {"u": "adaptive-dpo"} | {believed: name for name, believed in BELIEFS.items()}
    return made.get(scheme, "dpo")


def find_objective(name: str) -> type[Objective]:
    """The objective of that name. Raises UsageError that lists all."""
    if name not in OBJECTIVES:
        close = difflib.get_close_matches(name, OBJECTIVES, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(
            f"--objective {name} is unknown{meant}", hint=f"One of: {', '.join(OBJECTIVES)}."
        )
    return OBJECTIVES[name]


def settled(
    modality: Modality,
    *,
    named: str | None = None,
    is_xl: bool = False,
    parameters: Mapping[str, float] | None = None,
    **given: Any,
) -> TrainSettings:
    """Settings of a run: `given` flags (None: not given) over preset `named` over defaults."""
    from noisescope.scoring.detectors import RHO

    given_flags = {name: value for name, value in given.items() if value is not None}
    chosen = (preset(named, modality) if named else {}) | given_flags
    _refuse_idle(modality, chosen, given_flags)
    if modality == "vision" and chosen.get("full"):
        raise UsageError(
            "--full trains every weight, and of a vision-language model adapters alone are trained",
            hint="Leave --full out.",
        )
    kind = find_objective(chosen.get("objective", "dpo"))
    image = modality == "image"
    own_beta = {f.name: f.default for f in fields(kind)}["beta"]
    defaults: dict[str, Any] = {
        "beta": IMAGE_BETA[is_xl] if image else own_beta,
        "rho": RHO[modality],
        "learning_rate": (1e-5 if image else 5e-6) if chosen.get("full") else 2e-4,
    }
    if image:
        defaults |= {"lora_r": 8, "lora_alpha": 8.0}
    elif "lora_r" in chosen:
        defaults["lora_alpha"] = 2.0 * chosen["lora_r"]
    return replace(
        TrainSettings(),
        **(defaults | chosen | {"parameters": tuple(sorted((parameters or {}).items()))}),
    )


def _refuse_idle(modality: Modality, chosen: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise UsageError naming flags that would change nothing."""
    idle = [
        f"--{name.replace('_', '-')} is about adapters, and every weight trains"
        for name in ("lora_r", "lora_alpha")
        if chosen.get("full") and name in given
    ]
    if modality == "image" and given.get("targets"):
        idle.append("--targets is about text models: a UNet's adapters are on its attention layers")
    if "online_replicas" in given and chosen.get("online") != "replicas":
        idle.append("--online-replicas is about --online replicas")
    if idle:
        raise UsageError("; ".join(idle), hint="Remove flags without an effect; see --help.")
