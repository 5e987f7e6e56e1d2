"""noisescope: find the wrong labels of a preference dataset before DPO learns them.

    noisescope score pairs.jsonl --model ./model       # the command line

    from noisescope.audit import audit                 # the same from Python
    from noisescope.datasets import load
    from noisescope.policies.load import load_policy

    dataset = load("pairs.jsonl")
    audit(dataset, load_policy("./model", dataset)).summary.flip_rate

Importing this package loads neither torch nor any other heavy library.
"""

from __future__ import annotations

from noisescope.errors import (
    DataError,
    EvidenceError,
    ModelError,
    NoisescopeError,
    RunError,
    UsageError,
)

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "EvidenceError",
    "ModelError",
    "NoisescopeError",
    "RunError",
    "UsageError",
    "__version__",
]
