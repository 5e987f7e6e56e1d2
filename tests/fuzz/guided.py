"""Coverage-guided fuzzing by hand, for minutes or hours; needs `pip install atheris`.

    python tests/fuzz/guided.py TARGET [-max_total_time=60] [FOLDER OF INPUTS]

TARGET is a name of `targets.py`. Python code of noisescope is instrumented; whatever escapes and
is no NoisescopeError ends the run, with the bytes that made it in `crash-...`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["noisescope"]):
    from targets import clear, survive, targets


def main() -> None:
    """Fuzz one target with its seeds as the first inputs."""
    name, arguments = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as place:
        target = targets(Path(place))[name]
        inputs = clear(Path(place) / "inputs")
        for number, seed in enumerate(target.seeds):
            (inputs / f"{number}").write_bytes(seed)
        atheris.Setup(
            [sys.argv[0], *arguments, str(inputs)],
            lambda data: survive(target, data),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
