"""A training in words and numbers: one line of progress, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noisescope.learners.split import Split

MEASURES = ("loss", "margin", "accuracy", "weight", "light")


def line(record: Mapping[str, float], steps: int) -> str:
    """One line of progress."""
    text = (
        f"step {record['step']:,}/{steps:,}  loss {record['loss']:.4f}  "
        f"margin {record['margin']:+.3f}  accuracy {record['accuracy']:.1%}  "
        f"W {record['weight']:.3f} ({record['light']:.0%} below ½)"
    )
    if "validation_loss" in record:
        text += (
            f"  validation loss {record['validation_loss']:.4f}, "
            f"accuracy {record['validation_accuracy']:.1%}"
        )
    return text


def summary(history: Sequence[Mapping[str, float]], split: Split) -> dict[str, Any]:
    """What a training came to: means over its first and last tenth, and the last validation."""
    tenth = max(1, len(history) // 10)
    found = [record for record in history if "validation_loss" in record]
    prefix = "validation_"
    return {
        "trained_pairs": len(split.train),
        "validation_pairs": len(split.validation),
        "set_aside_pairs": sum(split.aside.values()),
        "set_aside": dict(split.aside),
        "steps": len(history),
        "first": _means(history[:tenth]),
        "last": _means(history[-tenth:]),
        "validation": {k.removeprefix(prefix): v for k, v in found[-1].items() if prefix in k}
        if found
        else {},
    }


def _means(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([record[name] for record in records])) for name in MEASURES}
