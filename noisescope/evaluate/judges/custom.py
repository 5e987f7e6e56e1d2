"""Judge by a function in the user's Python file, `--judge rules.py:quality`.

    def quality(prompt, response): ...      # prompt: noisescope.evaluate.Prompt; higher is better

Text judges get the response, image judges a PIL image. The file is executed: use only files you
trust.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from noisescope.errors import UsageError
from noisescope.evaluate.comparison import Comparison, JudgeCard, Output, Prompt, Verdict, by_score
from noisescope.pairs import Modality

HINT = "For example --judge rules.py:quality, with def quality(prompt, response) in rules.py."


@final
@dataclass(frozen=True)
class CustomJudge:
    """Scores each output with a function."""

    card: JudgeCard
    function: Callable[[Prompt, Any], float]

    def cost(self, comparisons: int) -> str:
        return ""

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        return by_score(
            [self._score(c.prompt, c.policy) for c in comparisons],
            [self._score(c.prompt, c.against) for c in comparisons],
        )

    def _score(self, prompt: Prompt, output: Output) -> float:
        shown: Any = output
        if isinstance(output, bytes):
            from noisescope.datasets.images import decode

            shown = decode(output)
        value = self.function(prompt, shown)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(
                f"{self.card.model} returned {type(value).__name__}, not a number", hint=HINT
            )
        return float(value)


def is_custom(name: str) -> bool:
    """Return whether a judge's name is FILE.py:FUNCTION."""
    return ".py:" in name


def open_custom(name: str, modality: Modality) -> CustomJudge:
    """Open the judge `FILE.py:FUNCTION`. Raises UsageError."""
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"--judge {name}: no such file: {path}", hint=HINT)
    found = vars(_run(path)).get(function)
    if not callable(found):
        raise UsageError(f"--judge {name}: {path.name} has no function {function}", hint=HINT)
    sha = hashlib.sha256(function.encode())
    for source in sorted(path.parent.glob("*.py")):  # modules that it may import
        sha.update(source.read_bytes())
    card = JudgeCard(function, f"{path.name}:{function}", "your own", modality, sha.hexdigest())
    return CustomJudge(card, found)


def _run(path: Path) -> Any:
    """Import a file as a module; it may import other files of its folder."""
    spec = importlib.util.spec_from_file_location(f"noisescope_judge_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does
        raise UsageError(f"{path} does not run: {type(error).__name__}: {error}", hint=HINT) from (
            error
        )
    finally:
        sys.path.remove(folder)
    return module
