"""Margins of LoRA replicas and external adapters as evidence beside the audited model's features.

    opened = open_replicas(Source("lora", ""), dataset, policy, config, setting)

The margins are those of an own run (`fine_tune`), made once and reused. They are held out: no
replica that judges a pair has trained on it, nor on anything that the audit holds out with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisescope.errors import UsageError
from noisescope.pairs import PreferenceDataset
from noisescope.replicas.gather import EvidenceConfig
from noisescope.replicas.groups import halves_by
from noisescope.replicas.numbers import numbers_fingerprint
from noisescope.replicas.sources import Opened, Source
from noisescope.scoring.margins import read_margins

if TYPE_CHECKING:
    from noisescope.auditing.audit import FineTuned

#: Makes the replicas of a config, or finds them.
Make = Callable[[EvidenceConfig], "FineTuned"]


def replica_config(
    source: Source, config: EvidenceConfig, dataset: PreferenceDataset
) -> EvidenceConfig:
    """The settings of the replicas of `source`, in an audit with `config`. Raises UsageError."""
    common: dict[str, Any] = {"kind": source.kind, "sources": (), "pool": False}
    if source.kind == "lora":
        by = halves_by(dataset.table, config.held_out_together)
        return replace(config, **common, held_out=False, folds_by=by)
    if not config.held_out:
        raise UsageError(
            f"--evidence {source}: adapters that trained on these pairs repeat their labels",
            hint="Add --held-out if they were trained without these pairs; otherwise "
            "--evidence lora trains replicas that hold out each pair.",
        )
    from noisescope.training.lora.peft_files import adapter_directories

    found = adapter_directories([Path(source.name).expanduser()])
    own: dict[str, Any] = {
        "adapters": tuple(found),
        "replicas": len(found),
        "lora": {},
        "folds_by": None,
    }
    return replace(config, **common, **own)


def open_replicas(
    source: Source, dataset: PreferenceDataset, config: EvidenceConfig, make: Make
) -> Opened:
    """The mean held-out margin of each pair under the replicas of `source`, made by `make`.

    Raises what `make` raises, and UsageError.
    """
    tuned = make(replica_config(source, config, dataset))
    found = read_margins(tuned.run.directory)
    mean = np.full(len(found), np.nan)
    for block, margins, counted in found.blocks():
        total = np.where(counted, margins, 0.0).sum(axis=0)
        judged = counted.any(axis=0)
        mean[block][judged] = total[judged] / counted.sum(axis=0)[judged]
    numbers = {source.kind: mean}
    ids = dataset.table.column("pair_id").to_pylist()
    remark = f"{source}: margins of {tuned.run.directory}{', made before' if tuned.reused else ''}"
    return Opened(source, numbers_fingerprint(ids, numbers), None, numbers, remark)
