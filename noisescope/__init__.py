"""noisescope: find the wrong labels of a preference dataset before DPO learns them.

    noisescope score pairs.jsonl --model ./model       # the command line

    result = noisescope.audit("pairs.jsonl", model="./model")   # the same from Python
    result.answer, result.suspects(20), result.annotators, result.to_pandas()
    noisescope.explain_run(result.run).sentences

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
    from noisescope.api import audit, fine_tune, flip, query, validate
    from noisescope.audited import Audited
    from noisescope.auditing.train import train
    from noisescope.export.clean import export_clean
    from noisescope.export.weights import export_weights
    from noisescope.gate.evaluate import check_gate
    from noisescope.replicas.gather import EvidenceConfig
    from noisescope.report.explain import explain_run
    from noisescope.report.html import write_report
    from noisescope.scoring.run_scores import find_run_scores
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
    "check_gate",
    "explain_run",
    "export_clean",
    "export_weights",
    "find_run_scores",
    "fine_tune",
    "flip",
    "query",
    "train",
    "validate",
    "write_report",
]

#: Public names that are loaded on first use, and their modules.
_LATER = {
    "Audited": "noisescope.audited",
    **dict.fromkeys(("audit", "fine_tune", "flip", "query", "validate"), "noisescope.api"),
    "train": "noisescope.auditing.train",
    "check_gate": "noisescope.gate.evaluate",
    "explain_run": "noisescope.report.explain",
    "write_report": "noisescope.report.html",
    "export_clean": "noisescope.export.clean",
    "export_weights": "noisescope.export.weights",
    "find_run_scores": "noisescope.scoring.run_scores",
    "EvidenceConfig": "noisescope.replicas.gather",
    "ScoreConfig": "noisescope.scoring.score",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'noisescope' has no attribute {name!r}")
    from importlib import import_module

    return vars(import_module(_LATER[name]))[name]
