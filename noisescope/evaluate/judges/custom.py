"""A judge of one's own: a function in a Python file, `--judge rules.py:quality`.

    def quality(prompt, response): ...      # prompt: noisescope.evaluate.Prompt; higher is better

Text judges get the response, image judges a PIL picture. The file is run: name only your own.
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
from noisescope.evaluate.results import Duel, JudgeCard, Output, Prompt, Verdict, by_score
from noisescope.pairs import Modality

HINT = "Such as --judge rules.py:quality, with def quality(prompt, response) in rules.py."


@final
@dataclass(frozen=True)
class HouseJudge:
    """Scores each output by a function."""

    card: JudgeCard
    function: Callable[[Prompt, Any], float]

    def cost(self, duels: int) -> str:
        return ""

    def judge(self, duels: Sequence[Duel]) -> list[Verdict]:
        return by_score(
            [self._score(duel.prompt, duel.policy) for duel in duels],
            [self._score(duel.prompt, duel.against) for duel in duels],
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


def is_house(name: str) -> bool:
    """Whether a judge's name means a function in a file."""
    return ".py:" in name


def open_house(name: str, modality: Modality) -> HouseJudge:
    """The judge `FILE.py:FUNCTION`. Raises UsageError."""
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"--judge {name}: no such file: {path}", hint=HINT)
    found = vars(_run(path)).get(function)
    if not callable(found):
        raise UsageError(f"--judge {name}: {path.name} has no function {function}", hint=HINT)
    sha = hashlib.sha256(function.encode())
    for source in sorted(path.parent.glob("*.py")):  # what it may import counts too
        sha.update(source.read_bytes())
    card = JudgeCard(function, f"{path.name}:{function}", "your own", modality, sha.hexdigest())
    return HouseJudge(card, found)


def _run(path: Path) -> Any:
    """The module of a file, which may import its neighbours as a script does."""
    spec = importlib.util.spec_from_file_location(f"noisescope_house_{path.stem}", path)
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
