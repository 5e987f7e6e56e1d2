"""What determines a run's evidence, and the name of the directory that follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

from noisescope.pairs import digest
from noisescope.storage import slug

#: Version of the file formats of a run directory; raised when a reader must change.
FORMAT = 1


@final
@dataclass(frozen=True)
class Plan:
    """What determines a run's evidence: change any of it and it is another run."""

    dataset: str
    dataset_fingerprint: str
    model: str
    model_fingerprint: str
    evidence: Mapping[str, Any]
    modality: str = "text"

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Plan:
        """The plan that a `plan.json` states. Raises KeyError."""
        return cls(**{field.name: content[field.name] for field in fields(cls)})

    @property
    def fingerprint(self) -> str:
        """20 hex digits over the dataset's and model's fingerprints and the evidence settings."""
        settings = json.dumps(dict(self.evidence), sort_keys=True)
        return digest("plan", self.dataset_fingerprint, self.model_fingerprint, settings)

    @property
    def directory_name(self) -> str:
        """Name of its run directory."""
        return f"{slug(self.dataset)}-{self.fingerprint[:8]}"

    def to_json(self) -> dict[str, Any]:
        """JSON object of `plan.json`."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "dataset": self.dataset,
            "dataset_fingerprint": self.dataset_fingerprint,
            "model": self.model,
            "model_fingerprint": self.model_fingerprint,
            "modality": self.modality,
            "evidence": dict(self.evidence),
        }
