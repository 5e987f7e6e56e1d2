"""noisescope diff: new, removed and relabelled pairs, noise by group, changed verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.gate_runs import made_pairs, made_run, margins_of, noisescope, parsed

from noisescope.errors import RunError
from noisescope.scoring.diff import Difference, compare
from noisescope.storage.run import Run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A: pairs 0..399. B: 50..449, the first 20 of them relabelled, one verdict turned."""
    place = tmp_path_factory.mktemp("diff")
    margins = margins_of(450, 0.1, 0)
    margins[200] = 6.0
    a = made_run(place, made_pairs(400), margins[:400])
    pairs = made_pairs(450)[50:]
    turned = [replace(p, chosen=p.rejected, rejected=p.chosen, source="more.jsonl") for p in pairs]
    later = margins[50:].copy()
    later[:20] *= -1
    later[150] = -6.0
    return a, made_run(place, turned[:20] + pairs[20:], later)


def test_every_kind_of_change_is_counted(runs: tuple[Run, Run]) -> None:
    found = compare(*runs)
    assert (found.new, found.removed, found.relabelled) == (50, 50, 20)
    assert {change.row for change in found.new_pairs} <= set(range(400, 450))
    assert {change.row for change in found.removed_pairs} <= set(range(50))
    assert {change.row for change in found.relabelled_pairs} <= set(range(50, 70))
    assert 200 in [change.row for change in found.changed_pairs]
    assert all(
        (change.p_flip_a > 0.5) != (change.p_flip_b > 0.5)
        for change in found.changed_pairs
        if change.p_flip_a is not None and change.p_flip_b is not None
    )
    sources = {group.name: (group.pairs_a, group.pairs_b) for group in found.sources}
    assert sources == {"more.jsonl": (0, 20), "pairs.jsonl": (400, 380)}
    assert sum(group.pairs_b for group in found.annotators) == 400
    back = compare(*reversed(runs))
    assert (back.new, back.removed, back.relabelled) == (50, 50, 20)


def test_a_run_beside_itself_changes_nothing(runs: tuple[Run, Run]) -> None:
    found = compare(runs[0], runs[0])
    counts = (found.new, found.removed, found.relabelled, found.changed_verdicts)
    assert counts == (0, 0, 0, 0)
    assert found.notes == ("the dataset is the same: what changed is the audit",)


def test_a_content_labelled_both_ways_is_not_relabelled(tmp_path: Path) -> None:
    pairs = made_pairs(60)
    both = [*pairs, replace(pairs[0], chosen=pairs[0].rejected, rejected=pairs[0].chosen)]
    a = made_run(tmp_path, pairs, margins_of(60, 0, 0))
    b = made_run(tmp_path, both, np.append(margins_of(60, 0, 0), 1.0))
    found = compare(a, b)
    assert (found.new, found.removed, found.relabelled) == (0, 0, 0)


def test_the_command_prints_a_table_or_json(runs: tuple[Run, Run], tmp_path: Path) -> None:
    names = [str(run.directory) for run in runs]
    table = noisescope("diff", *names, cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    for words in ("50 new pairs", "50 removed pairs", "20 relabelled pairs", "more.jsonl"):
        assert words in table.stdout
    relabelled = compare(*runs).relabelled_pairs[0]
    assert f"next  noisescope show {relabelled.pair_id} {names[1]}" in table.stdout
    content = parsed(noisescope("diff", *names, "--json", cwd=tmp_path))
    assert set(content) == set(Difference.__dataclass_fields__)
    page = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in page for key in content)
    missing = noisescope("diff", names[0], "nothing", cwd=tmp_path)
    assert missing.returncode == 2
    assert "noisescope score" in missing.stderr


def test_a_damaged_run_is_a_clear_error(runs: tuple[Run, Run], tmp_path: Path) -> None:
    broken = made_run(tmp_path, made_pairs(30), margins_of(30, 0, 0))
    broken.pairs_path.write_bytes(b"PAR1")
    with pytest.raises(RunError, match="cannot be compared"):
        compare(runs[0], broken)
