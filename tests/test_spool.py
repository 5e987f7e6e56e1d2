"""Verdicts in blocks: the same numbers as with everything in memory, and a place for the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from noisescope.errors import RunError, UsageError
from noisescope.pairs import pairs_schema
from noisescope.scoring.margins import BLOCK, read_margins, write_margins
from noisescope.scoring.pair_facts import read_facts
from noisescope.scoring.score import ScoreConfig, judge, read_averages, score_run
from noisescope.scoring.scores import COLUMNS, in_blocks
from noisescope.storage.run import Run
from noisescope.storage.sql import Spill

BETA = 0.1


def names_of(count: int) -> pa.Array:
    return pa.array([f"{(i * 2654435761) % 2**32:08x}{i:06x}" for i in range(count)])


def made_run(directory: Path, margins: np.ndarray, held: np.ndarray, *, parts: int = 1) -> Path:
    """A run of margins [M, N]; pairs stand in another order in each part."""
    count = margins.shape[1]
    ids, text = names_of(count), pa.repeat("-", count)
    columns = {name: text for name in ("prompt", "chosen", "rejected", "source")}
    columns |= {"pair_id": ids, "content_id": ids, "chosen": ids, "row": pa.array(np.arange(count))}
    schema = pairs_schema()
    for name in set(schema.names) - set(columns):
        columns[name] = pa.nulls(count, schema.field(name).type)
    directory.mkdir(parents=True)
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    pq.write_table(table, directory / "pairs.parquet", row_group_size=1000)
    write_parts(directory / "margins", ids, margins, held, parts)
    (directory / "plan.json").write_text(json.dumps({"evidence": {"beta": BETA}}))
    return directory


def write_parts(
    folder: Path, ids: pa.Array, margins: np.ndarray, held: np.ndarray, parts: int
) -> None:
    rng = np.random.default_rng(1)
    shares = np.array_split(np.arange(len(ids)) if parts == 1 else rng.permutation(len(ids)), parts)
    for number, share in enumerate(shares):
        write_margins(
            folder / f"part-{number}.parquet",
            ids.take(pa.array(share)),
            margins[:, None, share],
            steps=[3],
            held_out=held[:, share],
        )


def simulated(count: int, replicas: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gap = rng.normal(1, 2, count)
    margins = (gap + rng.normal(0, 0.5, (replicas, count))).astype(np.float32)
    held = rng.random((replicas, count)) < 0.6
    held[rng.integers(replicas, size=count), np.arange(count)] = True
    return margins, held


def assert_as_in_memory(directory: Path, config: ScoreConfig) -> None:
    """scores.parquet against `judge` of the whole evidence: every bit, every rank."""
    found = read_margins(directory)
    averages = read_averages(Run(directory))
    facts = read_facts(directory / "pairs.parquet")
    columns, _ = judge(found, beta=BETA, rho=1.0, config=config, averages=averages, facts=facts)
    order = np.lexsort((columns["margin"], -columns["p_wrong"]))
    table = pq.read_table(directory / "scores.parquet")
    ids = pq.read_table(directory / "pairs.parquet", columns=["pair_id"]).column(0)
    assert table.column("pair_id").equals(ids.take(pa.array(order)))
    assert_array_equal(table.column("rank").to_numpy(), np.arange(1, len(order) + 1))
    for name in COLUMNS:
        got = table.column(name).to_numpy()
        assert_array_equal(got, columns[name][order], err_msg=name)


def test_two_blocks_are_judged_as_one_to_the_bit(tmp_path: Path) -> None:
    count = BLOCK + 5000
    margins, held = simulated(count, replicas=2)
    run = made_run(tmp_path / "run", margins, held, parts=3)
    config = ScoreConfig(spill=Spill("128MB", tmp_path / "elsewhere"))
    summary = score_run(run, config)
    assert_as_in_memory(run, config)
    file = pq.ParquetFile(run / "scores.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [BLOCK, 5000]
    p = pq.read_table(run / "scores.parquet", columns=["p_wrong", "contested"])
    likely = p.column("p_wrong").to_numpy().mean()
    within = np.clip(likely, summary.mislabelled.low, summary.mislabelled.high)
    assert_allclose(summary.mislabelled.estimate, within, rtol=1e-12)
    assert sum(summary.histogram) == count
    assert summary.contested_share == (p.column("contested").to_numpy() >= 0.8).mean()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("parts", [1, 4])
def test_averaged_copies_and_gaps_are_judged_as_in_memory(tmp_path: Path, parts: int) -> None:
    margins, held = simulated(500)
    margins[0, 7] = np.nan
    held[:, 7] = [False, True, True]
    run = made_run(tmp_path / "run", margins, held, parts=parts)
    copies = np.repeat(margins, 2, axis=0) * np.float32(0.9)
    write_parts(run / "averages", names_of(500), copies, np.repeat(held, 2, axis=0), parts)
    config = ScoreConfig(released=True)
    score_run(run, config)
    assert_as_in_memory(run, config)


def test_margins_of_no_replica_held_out_all_count(tmp_path: Path) -> None:
    margins, held = simulated(100)
    run = made_run(tmp_path / "run", margins, np.zeros_like(held))
    with Spill().folder(tmp_path) as folder:
        found = read_margins(run, scratch=folder)
        ((pairs, values, counted),) = found.blocks()
    assert found.in_sample
    assert pairs == slice(0, 100)
    assert_array_equal(values, margins)
    assert counted.all()
    assert "in-sample" in score_run(run).notes[0]


def test_pairs_without_margins_are_named_from_the_end_of_a_run_too(tmp_path: Path) -> None:
    margins, held = simulated(40)
    margins[:, 33:] = np.nan
    run = made_run(tmp_path / "run", margins, held, parts=2)
    first = str(names_of(40)[33])
    with pytest.raises(RunError, match=f"7 of 40 pairs have no margin: {first}; .*and 2 more"):
        score_run(run)
    assert not (run / "scores.parquet").exists()
    assert not list(run.glob(".partial-*"))


def test_what_a_killed_process_spilled_is_removed(tmp_path: Path) -> None:
    margins, held = simulated(40)
    run = made_run(tmp_path / "run", margins, held)
    left = run / ".partial-spill-abc"
    left.mkdir()
    (left / "margins.values").write_bytes(b"half")
    score_run(run)
    assert not list(run.glob(".partial-*"))


def test_memory_and_place_of_spills_are_checked(tmp_path: Path) -> None:
    for memory in ("", "1", "lots", "1MB", "-1GB", "1GB; DROP"):
        with pytest.raises(UsageError, match="--memory"):
            Spill(memory)
    assert Spill("1.5 gib").memory == "1.5 gib"
    margins, held = simulated(40)
    run = made_run(tmp_path / "run", margins, held)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot spill to") as failed:
        score_run(run, ScoreConfig(spill=Spill(directory=tmp_path / "file")))
    assert "--spill-dir" in str(failed.value.hint)


def test_blocks_hold_every_row_once_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    batches = [pa.record_batch({"x": np.arange(n)}) for n in rng.integers(0, 9, 50)]
    tables = list(in_blocks(batches, 7))
    assert [len(table) for table in tables[:-1]] == [7] * (len(tables) - 1)
    assert 0 < len(tables[-1]) <= 7
    joined = pa.concat_tables(tables).column("x").to_pylist()
    assert joined == [x for batch in batches for x in batch.column("x").to_pylist()]
