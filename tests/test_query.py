"""SQL over a run reads, and does nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisescope.errors import RunError, UsageError
from noisescope.scoring import margins as evidence
from noisescope.scoring.margins import write_margins
from noisescope.storage.run import Run
from noisescope.storage.sql import connect, describe, query


@pytest.fixture
def run(tmp_path: Path) -> Run:
    directory = tmp_path / "toy-00000000"
    directory.mkdir()
    ids = pa.array(["a", "b", "c"])
    pq.write_table(
        pa.table({"pair_id": ids, "p_flip": [0.9, 0.1, 0.5]}), directory / "scores.parquet"
    )
    margins = np.array([[[1.0, -2.0, np.nan]], [[0.5, 0.25, -1.0]]], np.float32)
    for part in range(2):
        write_margins(
            directory / "margins" / f"part-{part}.parquet",
            ids,
            margins[part : part + 1],
            steps=[1],
            held_out=np.ones((1, 3), bool),
            first_replica=part,
        )
    return Run(directory)


def test_tables_join_across_parts(run: Run) -> None:
    table = query(
        run,
        "SELECT pair_id, count(*) AS n, sum(margin) AS total FROM margins JOIN scores "
        "USING (pair_id) WHERE p_flip > 0.2 GROUP BY 1 ORDER BY 1",
    )
    assert table.to_pylist() == [
        {"pair_id": "a", "n": 2, "total": 1.5},
        {"pair_id": "c", "n": 1, "total": -1.0},
    ]
    assert describe(run) == [
        "margins(pair_id, replica, step, margin, held_out)",
        "scores(pair_id, p_flip)",
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY scores TO '{directory}/stolen.csv'",
        "SELECT * FROM read_csv('{directory}/secret.csv')",
        "SELECT * FROM read_text('{directory}/secret.csv')",
        "SELECT * FROM '{directory}/secret.csv'",
        "EXPLAIN SELECT * FROM scores",
        "EXPLAIN ANALYZE COPY scores TO '{directory}/scores.parquet'",
        "COPY (SELECT 1) TO '{directory}/scores.parquet'",
        "SELECT * FROM glob('{directory}/*')",
        "ATTACH '{directory}/other.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "CREATE TABLE t AS SELECT 1",
        "DELETE FROM scores",
        "DROP VIEW scores",
        "SELECT 1; SELECT 2",
        "",
        "SELEC 1",
        "SELECT missing FROM scores",
        "EXPORT DATABASE '{directory}/out'",
        "PRAGMA database_list",
        "/* a */ -- b\n /**/ pragma version",
    ],
)
def test_everything_but_reading_the_tables_is_refused(run: Run, sql: str) -> None:
    (run.directory / "secret.csv").write_text("password\nhunter2\n")
    before = sorted(path.name for path in run.directory.iterdir())
    with pytest.raises(UsageError):
        query(run, sql.format(directory=run.directory))
    assert sorted(path.name for path in run.directory.iterdir()) == before


def test_a_mistake_in_sql_names_the_tables(run: Run) -> None:
    with pytest.raises(UsageError) as caught:
        query(run, "SELECT * FROM score")
    assert "scores(pair_id, p_flip)" in str(caught.value)


def test_a_damaged_part_is_named(run: Run) -> None:
    run.scores_path.write_bytes(b"not parquet")
    with pytest.raises(RunError, match="scores cannot be read"):
        query(run, "SELECT 1")


def test_summarize_and_describe_are_reading_too(run: Run) -> None:
    assert query(run, "DESCRIBE scores").num_rows == 2
    assert query(run, "SUMMARIZE scores").num_rows == 2


def test_no_progress_bar_is_drawn_on_stdout(run: Run) -> None:
    """DuckDB draws one after two seconds unless told not to, and stdout belongs to results."""
    with connect(run) as connection, evidence.connect() as other:
        for each in (connection, other):
            shown = each.execute("SELECT current_setting('enable_progress_bar')").fetchone()
            assert shown is not None
            assert not shown[0]


def test_results_stay_whole_in_every_form(run: Run) -> None:
    from noisescope.cli.query import Format, _encode, _named_apart

    table = query(run, "SELECT 1 AS a, 2 AS a, 3 AS a_1, 'NaN'::double AS x, INTERVAL 1 DAY AS i")
    told = _named_apart(table)
    assert told.column_names[:3] == ["a", "a_1", "a_1_1"]
    (row,) = json.loads(_encode(told, Format.json))
    assert row["a"] == 1
    assert row["a_1"] == 2
    assert row["a_1_1"] == 3
    assert row["x"] is None
    assert len(_encode(told, Format.csv).splitlines()) == 2


def test_a_query_spills_among_the_systems_temporary_files(run: Run) -> None:
    with connect(run) as connection:
        ((place,),) = connection.execute("SELECT current_setting('temp_directory')").fetchall()
    assert Path(place).parent == Path(tempfile.gettempdir())
    assert not Path(place).exists()
