"""The model card of a trained policy: data, objective, settings, how its weights were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

LOADING = {
    ("text", False): (
        "from peft import AutoPeftModelForCausalLM\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/directory")'
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
        "from diffusers import AutoPipelineForText2Image, UNet2DConditionModel\n\n"
        'unet = UNet2DConditionModel.from_pretrained("path/to/this/directory", subfolder="unet")\n'
        "pipeline = AutoPipelineForText2Image.from_pretrained({base}, unet=unet)"
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
            ("text", True): "transformers",
        }.get(kind, "diffusers"),
        "tags": tags,
    }
    loading = LOADING[kind].format(base=json.dumps(plan["model"]))
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
