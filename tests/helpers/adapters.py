"""PEFT adapter directories with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch

from helpers.tiny_models import tiny_llama
from noisescope.training.lora.peft_files import ADAPTER_CONFIG


def adapter(directory: Path, seed: int = 0, **settings: Any) -> Path:
    """PEFT's own directory of one random adapter of the tiny model."""
    torch.manual_seed(seed)
    given = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    tuned = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**given | settings))
    tuned.save_pretrained(directory)
    return edited(directory, base_model_name_or_path="hub/model")


def edited(directory: Path, **changes: object) -> Path:
    """The same directory with other settings."""
    file = directory / ADAPTER_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return directory
