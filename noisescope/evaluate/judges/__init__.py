"""Judges of two models' outputs: each is a line of JUDGES and is opened by its name.

    open_judge("pickscore", "image", JudgeOptions())              # its model from the Hub
    open_judge("reward=./my-reward-model", "text", JudgeOptions())
    open_judge("rules.py:quality", "text", JudgeOptions())        # your own function

Opening checks and fingerprints the files; a model is loaded at its first use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

from noisescope.errors import UsageError
from noisescope.evaluate.comparison import Judge
from noisescope.evaluate.judges.custom import is_custom, open_custom
from noisescope.models.image_scores import SCORERS
from noisescope.pairs import Modality


@final
@dataclass(frozen=True)
class JudgeOptions:
    """Options of judges. The key is read from its environment variable and not stored."""

    device: str = "auto"
    endpoint: str | None = None
    key_env: str | None = None

    def key(self) -> str | None:
        """Read the endpoint's key. Raises UsageError if the variable is not set."""
        from noisescope.models.chat import key_of

        return key_of(self.key_env)


@final
@dataclass(frozen=True)
class JudgeKind:
    """A known judge: modality, default model and its licence, description, and how to open it."""

    modality: Modality
    model: str | None
    licence: str
    about: str
    open: Callable[[str, str, JudgeOptions], Judge]


def _image(name: str, model: str, licence: str, options: JudgeOptions) -> Judge:
    from noisescope.evaluate.judges.models import open_image_judge

    return open_image_judge(name, model, licence, options.device)


def _reward(model: str, licence: str, options: JudgeOptions) -> Judge:
    from noisescope.evaluate.judges.models import open_reward

    return open_reward(model, options.device)


def _llm(model: str, licence: str, options: JudgeOptions) -> Judge:
    from noisescope.evaluate.judges.llm import open_llm

    return open_llm(model, options.endpoint, options.key())


JUDGES: dict[str, JudgeKind] = {
    **{
        name: JudgeKind("image", kind.model, kind.licence, kind.about, partial(_image, name))
        for name, kind in SCORERS.items()
    },
    "reward": JudgeKind(
        "text", None, "its model card's", "a sequence classifier with one output", _reward
    ),
    "llm": JudgeKind(
        "text",
        None,
        "its provider's terms",
        "a chat model, shown both outputs in both orders",
        _llm,
    ),
}


def open_judge(name: str, modality: Modality, options: JudgeOptions) -> Judge:
    """Open the judge NAME, NAME=MODEL or FILE.py:FUNCTION. Raises UsageError, ModelError."""
    if is_custom(name):
        return open_custom(name, modality)
    kind_name, _, model = name.partition("=")
    kind = JUDGES.get(kind_name)
    if kind is None:
        raise UsageError(
            f"--judge {name} is unknown",
            hint=f"One of: {', '.join(JUDGES)}; NAME=MODEL for a model of your own, or "
            "FILE.py:FUNCTION.",
        )
    if kind.modality != modality:
        fitting = [one for one, other in JUDGES.items() if other.modality == modality]
        raise UsageError(
            f"--judge {kind_name} judges {kind.modality}s, these models make {modality}s",
            hint=f"One of: {', '.join(fitting)}, or FILE.py:FUNCTION.",
        )
    if not (model or kind.model):
        raise UsageError(
            f"--judge {kind_name} needs a model", hint=f"For example --judge {kind_name}=NAME."
        )
    licence = kind.licence if not model or model == kind.model else "its model card's"
    return kind.open(model or str(kind.model), licence, options)
