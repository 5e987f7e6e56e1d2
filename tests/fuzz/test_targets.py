"""Random and damaged bytes at every place that reads somebody else's: only NoisescopeError escapes.

`make fuzz` draws new examples, and many; `python tests/fuzz/guided.py` follows coverage.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import Target, survive, targets

TEXTS = ["rows", "names", "toml", "sql", "manifest", "adapter"]
PEOPLE = ["answers", "answers.csv", "decisions", "decisions.csv"]
TEXTS += [*PEOPLE, "columns", "judge", "judge answers"]
FILES = ["image", "weights", "truth"]
DATA = [".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".parquet", ".arrow"]
NAMES = [*TEXTS, *FILES, *(f"data{ending}" for ending in DATA)]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


@st.composite
def damaged(draw: Any, seeds: tuple[bytes, ...]) -> bytes:
    """Random bytes, or a sound file with some places overwritten, cut out or said twice."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=80))
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 12)))
        how = draw(st.sampled_from(("over", "out", "twice", "end")))
        if how == "over":
            data = data[:at] + draw(st.binary(max_size=12)) + data[end:]
        elif how == "out":
            data = data[:at] + data[end:]
        elif how == "twice":
            data = data[:end] + data[at:]
        else:
            data = data[:at]
    return data


@pytest.mark.parametrize("name", NAMES)
def test_only_our_own_errors_escape(name: str, places: dict[str, Target]) -> None:
    target = places[name]
    examples = (settings.default or settings()).max_examples
    slow = 4 if name == "sql" else 1  # a query takes 40 ms

    @settings(suppress_health_check=list(HealthCheck), max_examples=examples // slow)
    @given(damaged(target.seeds))
    def holds(data: bytes) -> None:
        survive(target, data)

    holds()


def test_all_targets_are_tried(places: dict[str, Target]) -> None:
    assert set(NAMES) | {"weight index"} == set(places)


def test_every_seed_is_taken_or_refused_in_words(places: dict[str, Target]) -> None:
    for target in places.values():
        for seed in target.seeds:
            survive(target, seed)


def test_the_net_would_catch_something() -> None:
    with pytest.raises(ZeroDivisionError):
        survive(Target(lambda data: 1 / len(data), ()), b"")
