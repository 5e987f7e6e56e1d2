"""Layout and plan of an evaluation's directory.

evaluations/<policy>-vs-<against>-<fingerprint8>/
  plan.json                       written first: which models, prompts and settings
  generations/{policy,against}/   one Parquet part per batch
  scores/<judge>-<fingerprint8>/  one Parquet part per 16 comparisons
  results.parquet                 one row per prompt, with every judge's verdict
  report.html
  manifest.json                   written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from noisescope.evaluate.comparison import JudgeCard
from noisescope.evaluate.generate import GenerationSettings
from noisescope.evaluate.models import ModelSpec
from noisescope.evaluate.prompts import Prompts
from noisescope.pairs import digest
from noisescope.storage.files import refuse_link, write_atomic
from noisescope.storage.owned import PLAN_FILE as PLAN_FILE
from noisescope.storage.owned import OwnedDirectory

MANIFEST_FILE = "manifest.json"
RESULTS_FILE, REPORT_FILE = "results.parquet", "report.html"
FORMAT = 1
#: Flags whose names are not their setting's.
FLAGS = {"size": "image_size", "batch": "batch_size"}


@final
@dataclass(frozen=True)
class EvaluationPlan:
    """What determines the outputs; an evaluation with a different plan has a different directory.

    Judges are not part of the plan: further judges can judge the same outputs later.
    """

    policy: ModelSpec
    against: ModelSpec
    prompts: Prompts
    settings: GenerationSettings

    @property
    def used(self) -> dict[str, Any]:
        """The settings that matter for this modality."""
        return self.settings.used(self.policy.modality)

    @property
    def fingerprint(self) -> str:
        """20 hex digits over models, prompts and settings."""
        return digest(
            "evaluation",
            self.policy.fingerprint,
            self.against.fingerprint,
            self.prompts.fingerprint,
            json.dumps(self.used, sort_keys=True),
        )

    @property
    def default_directory(self) -> Path:
        name = f"{self.policy.short}-vs-{self.against.short}-{self.fingerprint[:8]}"
        return Path("evaluations") / name

    def to_json(self) -> dict[str, Any]:
        """JSON object of `plan.json`."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "modality": self.policy.modality,
            "policy": self.policy.to_json(),
            "against": self.against.to_json(),
            "prompts": {
                "source": self.prompts.source,
                "count": len(self.prompts.kept),
                "distinct": self.prompts.distinct,
                "fingerprint": self.prompts.fingerprint,
            },
            "settings": self.used,
        }


@final
@dataclass(frozen=True)
class EvaluationDirectory:
    """Paths of one evaluation."""

    path: Path

    def generations(self, side: str) -> Path:
        return self.path / "generations" / side

    def scores(self, card: JudgeCard) -> Path:
        """Directory of a judge's verdicts; a different version of the judge has a different one."""
        safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in card.name)[:60]
        return self.path / "scores" / f"{safe}-{card.fingerprint[:8]}"

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.path / name, text)


def open_directory(plan: EvaluationPlan, path: Path) -> EvaluationDirectory:
    """Open the directory for `plan`, made if missing.

    Raises RunError if it holds something else, is a symbolic link, or cannot be written.
    """
    refuse_link(path, "--output")
    OwnedDirectory(path, "evaluation", "--output", flags=FLAGS).claim(plan.to_json())
    return EvaluationDirectory(path)
