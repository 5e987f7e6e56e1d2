"""The feature cache: complete, resumable to the same bytes, suspicious of damaged parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.models import Item, ModelIdentity
from noisescope.models.features import compute_features, uncached
from noisescope.pairs import digest, response_key
from noisescope.storage import cache as parts
from noisescope.storage.cache import Rows, compute_missing, plan_chunks


class Counting:
    """A policy whose features are a function of the text, and which counts what it is asked."""

    modality = "text"
    identity = ModelIdentity("counting", None, "0123456789abcdef0123")

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.calls = 0
        self.dies_after = dies_after

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        return np.array([len(item.response) for item in items], np.int64)

    def open_encodings(self, directory: Path) -> None:

        return None

    def features(self, items: Sequence[Item]) -> dict[str, NDArray[np.float32]]:
        if self.calls == self.dies_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.asked += [item.key for item in items]
        seeds = [int(digest(item.response), 16) % 1000 for item in items]
        return {
            "wide": np.array([[seed, seed / 3, -seed] for seed in seeds], np.float32),
            "narrow": np.array([[len(item.response)] for item in items], np.float32),
        }


def make(prompt: str, response: str) -> Item:
    return Item(response_key(prompt, response), prompt, None, response)


ITEMS = [make(f"p{n % 7}", f"{n} " * (1 + n % 30)) for n in range(300)]


class Notes:
    """A progress callback that remembers."""

    def __init__(self) -> None:
        self.done: list[float] = []
        self.total = 0.0
        self.texts: list[str] = []

    def __call__(self, done_work: float, total_work: float, note: str | None) -> None:
        self.done.append(done_work)
        self.total = total_work
        self.texts += [note] if note else []


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CHUNK", 1000)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def check(found: dict[str, NDArray[np.float32]], items: Sequence[Item]) -> None:
    wanted = Counting().features(items)
    assert set(found) == set(wanted)
    for group, values in wanted.items():
        np.testing.assert_array_equal(found[group], values)


def test_computed_once_in_the_asked_order(tmp_path: Path) -> None:
    policy, notes = Counting(), Notes()
    check(compute_features(policy, ITEMS, tmp_path, notes), ITEMS)
    assert sorted(policy.asked) == sorted(item.key for item in ITEMS)
    assert notes.done == sorted(notes.done)
    assert notes.done[-1] == notes.total == sum(len(item.response) for item in ITEMS)
    again = Counting()
    backwards = [*reversed(ITEMS), ITEMS[5]]
    check(compute_features(again, backwards, tmp_path, Notes()), backwards)
    assert again.calls == 0


def test_only_missing_keys_are_computed(tmp_path: Path) -> None:
    compute_features(Counting(), ITEMS[:100], tmp_path, Notes())
    more = Counting()
    check(compute_features(more, ITEMS[50:], tmp_path, Notes()), ITEMS[50:])
    assert sorted(more.asked) == sorted(item.key for item in ITEMS[100:])


@pytest.mark.parametrize("calls", [0, 1, 4])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path, calls: int) -> None:
    compute_features(Counting(), ITEMS, tmp_path / "whole", Notes())
    with pytest.raises(KeyboardInterrupt):
        compute_features(Counting(dies_after=calls), ITEMS, tmp_path / "killed", Notes())
    place = tmp_path / "killed" / Counting.identity.fingerprint
    place.mkdir(parents=True, exist_ok=True)
    (place / ".partial-x.safetensors").write_bytes(b"half")
    rest = Counting()
    compute_features(rest, ITEMS, tmp_path / "killed", Notes())
    (place / ".partial-x.safetensors").unlink()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert rest.calls == len(files(tmp_path / "whole")) - calls


def _truncate(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-7])


def _flip(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(bytes(content))


def _forget_keys(part: Path) -> None:
    part.write_bytes(part.read_bytes().replace(b"noisescope", b"noisescape"))


@pytest.mark.parametrize(
    "damage",
    [_truncate, _flip, _forget_keys, lambda part: part.write_bytes(b"")],
    ids=["cut short", "a flipped bit", "keys gone", "empty"],
)
def test_a_damaged_part_is_computed_again(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    compute_features(Counting(), ITEMS, tmp_path, Notes())
    before = files(tmp_path)
    part = sorted(tmp_path.rglob("*.safetensors"))[2]
    damage(part)
    policy, notes = Counting(), Notes()
    check(compute_features(policy, ITEMS, tmp_path, notes), ITEMS)
    assert policy.calls == 1
    assert notes.texts == [f"{part.name} in the feature cache is damaged: computing it again"]
    assert files(tmp_path) == before


def test_a_part_of_another_format_is_named_and_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(parts, "FORMAT", parts.FORMAT + 1)
        compute_features(Counting(), ITEMS[:5], tmp_path, Notes())
    policy, notes = Counting(), Notes()
    check(compute_features(policy, ITEMS[:5], tmp_path, notes), ITEMS[:5])
    assert policy.calls == 1
    assert "is of a different version of noisescope: computing it again" in notes.texts[0]


def test_an_unreadable_file_is_an_error_and_no_damage(tmp_path: Path) -> None:
    compute_features(Counting(), ITEMS[:5], tmp_path, Notes())
    before = files(tmp_path)
    odd = tmp_path / Counting.identity.fingerprint / "0.safetensors"
    odd.mkdir()
    with pytest.raises(RunError, match=r"cannot read the cache .*0\.safetensors") as caught:
        compute_features(Counting(), ITEMS[:5], tmp_path, Notes())
    assert "remove it" in str(caught.value.hint)
    assert files(tmp_path) == before


def test_a_part_is_read_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    compute_features(Counting(), ITEMS, tmp_path, Notes())
    assert uncached(Counting(), ITEMS, tmp_path) == []
    read = parts._checked.cache_info().misses
    compute_features(Counting(), ITEMS, tmp_path, Notes())
    assert parts._checked.cache_info().misses == read


def test_two_processes_write_the_same_files(tmp_path: Path) -> None:
    other = Counting()

    class Overtaken(Counting):
        """While it computes its first chunk, another process finishes them all."""

        def features(self, items: Sequence[Item]) -> dict[str, NDArray[np.float32]]:
            if not self.calls:
                compute_features(other, ITEMS, tmp_path, Notes())
            return super().features(items)

    slow = Overtaken()
    check(compute_features(slow, ITEMS, tmp_path, Notes()), ITEMS)
    assert slow.calls == 1
    assert other.calls == len(files(tmp_path))


def test_an_unwritable_cache_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        compute_features(Counting(), ITEMS[:3], tmp_path / "file", Notes())


def test_no_items_no_features(tmp_path: Path) -> None:
    assert compute_features(Counting(), [], tmp_path, Notes()) == {}


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 900), max_size=40),
    gone=st.sets(st.integers(0, 20)),
)
def test_taking_whole_chunks_away_leaves_the_others(lengths: list[int], gone: set[int]) -> None:
    items = [make(f"p{n % 5}", f"{n:03}" + "x" * length) for n, length in enumerate(lengths)]
    chunks = list(plan_chunks(items, Counting().sizes(items)))
    assert sorted(i.key for c in chunks for i in c.items) == sorted(i.key for i in items)
    kept = [chunk for index, chunk in enumerate(chunks) if index not in gone]
    left = [item for chunk in reversed(kept) for item in chunk.items]
    assert list(plan_chunks(left, Counting().sizes(left))) == kept


def test_single_rows_of_any_shape_come_back_as_they_went(tmp_path: Path) -> None:
    class Square:
        def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
            return np.full(len(items), 400, np.int64)

        def features(self, items: Sequence[Item]) -> dict[str, NDArray[np.float16]]:
            numbers = np.array([int(item.key, 16) % 99 for item in items], np.float16)
            return {"square": np.broadcast_to(numbers[:, None, None], (len(items), 2, 3))}

    rows = Rows(compute_missing(Square(), ITEMS[:9], tmp_path, Notes(), "square"))
    for item in ITEMS[:9]:
        row = rows.get(item.key)
        assert row is not None
        assert (row["square"] == int(item.key, 16) % 99).all()
        assert (row["square"].shape, row["square"].dtype) == ((2, 3), np.float16)
    assert ITEMS[0].key in rows
    assert rows.get(ITEMS[10].key) is None
    for part in tmp_path.iterdir():
        part.unlink()
    assert rows.get(ITEMS[0].key) is None
