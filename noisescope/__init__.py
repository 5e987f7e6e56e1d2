"""noisescope: find the wrong labels of a preference dataset before DPO learns them.

    noisescope score pairs.jsonl --model ./model       # the command line

    result = noisescope.audit("pairs.jsonl", model="./model")   # the same from Python
    result.summary.flip_rate.estimate, result.scores, result.to_pandas()

Importing this package loads neither torch nor any other heavy library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisescope.errors import (
    DataError,
    EvidenceError,
    ModelError,
    NoisescopeError,
    RunError,
    UsageError,
)

if TYPE_CHECKING:
    from noisescope.auditing.api import Audited, audit, fine_tune, flip, query, validate
    from noisescope.auditing.train import train
    from noisescope.replicas.gather import EvidenceConfig
    from noisescope.scoring.score import ScoreConfig

__version__ = "0.1.0"

__all__ = [
    "Audited",
    "DataError",
    "EvidenceConfig",
    "EvidenceError",
    "ModelError",
    "NoisescopeError",
    "RunError",
    "ScoreConfig",
    "UsageError",
    "__version__",
    "audit",
    "fine_tune",
    "flip",
    "query",
    "train",
    "validate",
]

#: Public names that are loaded on first use, and their modules.
_LATER = {
    "Audited": "noisescope.auditing.api",
    **dict.fromkeys(("audit", "fine_tune", "flip", "query", "validate"), "noisescope.auditing.api"),
    "train": "noisescope.auditing.train",
    "EvidenceConfig": "noisescope.replicas.gather",
    "ScoreConfig": "noisescope.scoring.score",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'noisescope' has no attribute {name!r}")
    from importlib import import_module

    return vars(import_module(_LATER[name]))[name]
