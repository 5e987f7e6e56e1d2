"""The result directory of `noisescope train`: its plan, its files, and the model card.

A directory that holds a different training is refused.

trained/<dataset>-<objective>-<fingerprint8>/
  plan.json          written first: what this directory is for
  state.safetensors  the last checkpoint, until training ends
  history.jsonl      one record a step
  adapter_model.safetensors, ...   the trained policy, in its library's own format
  README.md          the model card
  .lock              held by the process that writes here, removed once it is done
  manifest.json      written last: its existence means complete
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from noisescope.pairs import digest
from noisescope.storage.files import LOCK, refuse_link, sweep, write_atomic
from noisescope.storage.owned import PLAN_FILE, OwnedDirectory, read_json
from noisescope.storage.redact import without_secrets
from noisescope.training.state import STATE_FILE

LOADING = {
    ("text", False): (
        "from peft import AutoPeftModelForCausalLM\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/directory")'
    ),
    ("vision", False): (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForImageTextToText\n\n"
        "base = AutoModelForImageTextToText.from_pretrained({base})\n"
        'model = PeftModel.from_pretrained(base, "path/to/this/directory")'
    ),
    ("text", True): (
        "from transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")'
    ),
    ("image", False): (
        "from diffusers import AutoPipelineForText2Image\n\n"
        "pipeline = AutoPipelineForText2Image.from_pretrained({base})\n"
        'pipeline.load_lora_weights("path/to/this/directory")'
    ),
    ("image", True): (
        "from diffusers import AutoModel, AutoPipelineForText2Image\n\n"
        'model = AutoModel.from_pretrained("path/to/this/directory", subfolder="{role}")\n'
        "pipeline = AutoPipelineForText2Image.from_pretrained({base}, {role}=model)"
    ),
}


def model_card(manifest: Mapping[str, Any]) -> str:
    """Markdown with the YAML header that the Hugging Face Hub reads."""
    plan, result = manifest["plan"], manifest["result"]
    settings = plan["settings"]
    kind = (plan["modality"], bool(settings["full"]))
    tags = ["noisescope", settings["objective"], *([] if settings["full"] else ["lora"])]
    head = {
        "base_model": plan["model"],
        "library_name": {
            ("text", False): "peft",
            ("vision", False): "peft",
            ("text", True): "transformers",
        }.get(kind, "diffusers"),
        "tags": tags,
    }
    role = str(manifest["files"][0]).partition("/")[0]  # of a whole denoiser: its folder
    loading = LOADING[kind].format(base=json.dumps(plan["model"]), role=role)
    return "\n".join(
        [
            "---",
            *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()),
            "---",
            "",
            f"# {_text(plan['model'])}, trained on {_text(plan['dataset'])} "
            f"with {settings['objective']}",
            "",
            f"{'Every weight' if settings['full'] else 'A LoRA adapter'} trained by noisescope "
            f"{manifest['versions']['noisescope']} on preference pairs.",
            "",
            "## Data",
            "",
            f"- {_text(plan['dataset'])} ({_text(str(manifest['resolved']))}), fingerprint "
            f"`{plan['dataset_fingerprint']}`",
            f"- {result['trained_pairs']:,} pairs trained on, {result['validation_pairs']:,} held "
            f"out for validation, {result['set_aside_pairs']:,} set aside",
            f"- weights: {_text(plan['weights'])}",
            "",
            "## Result",
            "",
            *_table(("", "first steps", "last steps"), _compared(result)),
            "",
            "Validation losses are unweighted (W = 1, Gamma = 0). Accuracy is the share of pairs "
            "whose labelled side the policy prefers, measured against the labels as they are, "
            "wrong ones included.",
            "",
            "## Use",
            "",
            "```python",
            loading,
            "```",
            "",
            "## Settings",
            "",
            *_table(
                ("setting", "value"),
                [(name, json.dumps(value)) for name, value in settings.items()],
            ),
            "",
        ]
    )


def _compared(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (name, f"{result['first'][name]:.4f}", f"{result['last'][name]:.4f}")
        for name in ("loss", "margin", "accuracy", "weight")
    ]
    if result["validation"]:
        rows += [
            (f"validation {name}", "", f"{value:.4f}")
            for name, value in result["validation"].items()
        ]
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _text(value: str) -> str:
    """One line without Markdown's or HTML's special characters taking effect."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in " ".join(value.split()))


HISTORY_FILE, MANIFEST_FILE, CARD_FILE = "history.jsonl", "manifest.json", "README.md"
#: Reference log-probabilities, kept until training ends.
REFERENCE_DIRECTORY = "reference"
FORMAT = 1


@final
@dataclass(frozen=True)
class TrainPlan:
    """Everything that determines the trained weights; a change of it needs a new directory."""

    dataset: str
    dataset_fingerprint: str
    model: str
    model_fingerprint: str
    modality: str
    weights: str
    weights_fingerprint: str
    settings: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """20 hex digits over data, model, weights and settings."""
        settings = json.dumps(dict(self.settings), sort_keys=True)
        return digest(
            "train",
            self.dataset_fingerprint,
            self.model_fingerprint,
            self.weights_fingerprint,
            settings,
        )

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
            "weights": self.weights,
            "weights_fingerprint": self.weights_fingerprint,
            "settings": dict(self.settings),
        }


@final
@dataclass(frozen=True)
class Trained:
    """Paths of one result directory."""

    directory: Path

    @property
    def complete(self) -> bool:
        """Whether the manifest, written last, is there."""
        return (self.directory / MANIFEST_FILE).is_file()

    @property
    def reference(self) -> Path:
        return self.directory / REFERENCE_DIRECTORY

    def manifest(self) -> dict[str, Any]:
        """Contents of `manifest.json`. Raises RunError."""
        return read_json(self.directory / MANIFEST_FILE, f"Remove {self.directory} to train again.")

    def write_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """One JSON object a step."""
        lines = "".join(json.dumps(record) + "\n" for record in history)
        write_atomic(self.directory / HISTORY_FILE, lines)

    def abandon(self) -> None:
        """Free the directory for another plan, where no checkpoint or result is in it yet."""
        if self.complete or (self.directory / STATE_FILE).exists():
            return
        shutil.rmtree(self.reference, ignore_errors=True)
        for name in (HISTORY_FILE, PLAN_FILE, LOCK):
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not ours alone
            self.directory.rmdir()

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the card, then the manifest; then `tidy`."""
        manifest = without_secrets(manifest)
        write_atomic(self.directory / CARD_FILE, model_card(manifest))
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.directory / MANIFEST_FILE, text)
        self.tidy()

    def tidy(self) -> None:
        """Drop what only resuming needed, and what killed writes left, of a finished training."""
        for name in (STATE_FILE, LOCK):
            with contextlib.suppress(OSError):  # it is complete with them, too
                (self.directory / name).unlink(missing_ok=True)
        shutil.rmtree(self.reference, ignore_errors=True)
        sweep(self.directory)


@contextmanager
def open_trained(plan: TrainPlan, directory: Path, *, writes: bool = True) -> Iterator[Trained]:
    """The directory for `plan`, made if missing, that no other process writes in the block.

    Of several processes of one training only the first `writes`. Raises RunError if it holds
    another plan's training or other files, is a link, cannot be written, or is being written.
    """
    refuse_link(directory)
    found, owned = Trained(directory), OwnedDirectory(directory, "training", "--output")
    if writes and not found.complete:
        with owned.locked(plan.to_json()):
            yield found
        return
    owned.claim(plan.to_json())
    if writes:
        found.tidy()  # a kill right after the manifest was written prevented it
    yield found
