"""noisescope.audit from Python: paths and tables give one result; answers come as tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer
from helpers.toy_run import rows as toy_rows
from helpers.toy_run import scored_run
from user_script import suspicious

import noisescope
import noisescope.errors
from noisescope.datasets.in_memory import as_table, load_table
from noisescope.storage.run import Run

EVIDENCE = noisescope.EvidenceConfig(replicas=2, folds=2)
ROWS = [
    {"prompt": f"Question {n}?", "chosen": f"Yes, {n} loaves", "rejected": "no" * (n % 5 + 1)}
    for n in range(24)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny_llama(), tiny_tokenizer(None))


@pytest.fixture(scope="module")
def result(model: Path, tmp_path_factory: pytest.TempPathFactory) -> noisescope.Audited:
    place = tmp_path_factory.mktemp("runs")
    return noisescope.audit(
        pd.DataFrame(ROWS), model=model, evidence=EVIDENCE, runs_directory=place, name="frame"
    )


def test_scores_and_pairs_are_tables_in_the_order_given(result: noisescope.Audited) -> None:
    assert isinstance(result.scores, pa.Table)
    assert result.pairs["prompt"].to_pylist() == [row["prompt"] for row in ROWS]
    assert result.scores["pair_id"] == result.pairs["pair_id"]
    assert sorted(result.scores["rank"].to_pylist()) == list(range(1, 25))
    assert result.summary.pairs == 24
    assert result.run.directory.name.startswith("frame-")


def test_answers_leave_as_frames_of_other_libraries(result: noisescope.Audited) -> None:
    frame = result.to_pandas()
    assert list(frame["chosen"]) == [row["chosen"] for row in ROWS]
    assert list(frame["p_flip"]) == result.scores["p_flip"].to_pylist()
    dataset = result.to_dataset()
    assert dataset["rank"][:] == result.scores["rank"].to_pylist()
    again = load_table(dataset)
    assert again.table["chosen"] == result.pairs["chosen"]


def test_answers_and_rows_pass_through_polars(result: noisescope.Audited) -> None:
    frame = result.to_polars()
    assert isinstance(frame, pl.DataFrame)
    assert frame["chosen"].to_list() == [row["chosen"] for row in ROWS]
    assert frame["p_flip"].to_list() == result.scores["p_flip"].to_pylist()
    worst = frame.sort("rank").head(5)
    assert load_table(frame).table["pair_id"] == result.pairs["pair_id"]
    assert len(load_table(pl.concat([worst, frame.sort("rank").tail(19)]))) == 24


def test_a_users_script_gets_what_its_types_say(
    result: noisescope.Audited, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "frame.parquet")
    names = suspicious(tmp_path / "frame.parquet", model, tmp_path / "runs")
    assert set(names) <= set(result.pairs["pair_id"].to_pylist())
    assert "runs" in capsys.readouterr().out
    assert suspicious(tmp_path / "none.parquet", model, tmp_path / "runs") == []
    assert "no such file" in capsys.readouterr().err


def test_a_finished_run_and_a_path_are_taken_too(
    result: noisescope.Audited, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "frame.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    there = result.run.directory.parent
    other = noisescope.audit(path, model=model, evidence=EVIDENCE, runs_directory=there)
    assert other.run.directory == result.run.directory
    assert other.scores == result.scores


def frames() -> list[Any]:
    """The rows of ROWS in everything that holds tables here."""
    from datasets import Dataset

    table = pa.Table.from_pylist(ROWS)
    shuffled = Dataset.from_list(ROWS[::-1]).select(range(23, -1, -1))
    frame = pd.DataFrame(ROWS, index=range(5, 29))
    return [table, frame, shuffled, duckdb.from_arrow(table), pl.DataFrame(ROWS)]


def test_what_is_loaded_already_takes_no_settings(model: Path, tmp_path: Path) -> None:
    from noisescope.datasets import load
    from noisescope.models.load import load_policy

    path = tmp_path / "frame.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    pairs = load(path)
    policy = load_policy(str(model), pairs)
    with pytest.raises(noisescope.UsageError, match="dtype: the model is already loaded"):
        noisescope.audit(pairs, policy, dtype="float32")
    with pytest.raises(noisescope.UsageError, match="format, limit: the dataset is already"):
        noisescope.audit(pairs, policy, format="trl", limit=3)
    done = noisescope.audit(pairs, policy, evidence=EVIDENCE, run_directory=tmp_path / "run")
    assert done.run.directory == tmp_path / "run"
    assert done.summary.pairs == 24
    with pytest.raises(noisescope.UsageError, match="about images, and frame holds text"):
        load_policy(str(model), pairs, draws=2)
    with pytest.raises(noisescope.UsageError, match="no model to judge text pairs with"):
        load_policy(None, pairs)


@pytest.mark.parametrize("place", range(5))
def test_every_kind_of_table_is_the_same_dataset(place: int) -> None:
    expected = load_table(pa.Table.from_pylist(ROWS), name="one")
    found = load_table(frames()[place], name="one")
    assert found.fingerprint == expected.fingerprint
    assert found.adapter == "trl"


def test_a_row_that_is_no_text_is_set_aside() -> None:
    texts = pa.array([row["chosen"].encode() for row in ROWS[:-1]] + [b"\xff\xfe"])
    table = pa.Table.from_pylist(ROWS)
    broken = pa.StringArray.from_buffers(len(texts), *texts.buffers()[1:])
    dataset = load_table(table.set_column(1, "chosen", broken))
    assert len(dataset) == 23
    assert dataset.facts.rejected == {"unreadable": 1}


def test_what_is_no_table_is_refused_with_a_way_out() -> None:
    from datasets import Dataset, DatasetDict

    with pytest.raises(noisescope.UsageError, match="a list is no dataset"):
        as_table([1, 2])
    with pytest.raises(noisescope.UsageError) as caught:
        as_table(DatasetDict({"train": Dataset.from_list(ROWS)}))
    assert "dataset['train']" in caught.value.hint
    with pytest.raises(noisescope.UsageError, match="split: the dataset is already in memory"):
        noisescope.audit(pd.DataFrame(ROWS), "model", split="train")


def test_a_list_of_dicts_is_a_dataset() -> None:
    assert load_table(ROWS).table["prompt"].to_pylist() == [row["prompt"] for row in ROWS]
    late = [row if n < 12 else row | {"annotator": f"ann-{n % 3}"} for n, row in enumerate(ROWS)]
    assert load_table(late).table["annotator"].to_pylist()[10:14] == [None, None, "ann-0", "ann-1"]
    with pytest.raises(noisescope.DataError, match="does not turn into an Arrow table"):
        load_table([*ROWS, ROWS[0] | {"prompt": 7}])


def test_a_wrong_argument_is_named_with_its_place(model: Path) -> None:
    with pytest.raises(noisescope.UsageError, match="no argument 'replicas'") as caught:
        noisescope.audit(ROWS, model, replicas=4)
    assert "EvidenceConfig(replicas=...)" in str(caught.value.hint)
    with pytest.raises(noisescope.UsageError, match="no argument 'replica'") as caught:
        noisescope.audit(ROWS, model, replica=4)
    assert "EvidenceConfig(replicas=...)" in str(caught.value.hint)
    with pytest.raises(noisescope.UsageError, match="no argument 'modle'") as caught:
        noisescope.audit(ROWS, modle="x")
    assert caught.value.hint == "Did you mean model?"
    with pytest.raises(noisescope.UsageError, match="no argument 'max_lenght'") as caught:
        noisescope.audit(ROWS, model, max_lenght=9)
    assert caught.value.hint == "Did you mean max_length?"


def test_a_notebook_shows_the_answer_and_hostile_text_inert(model: Path, tmp_path: Path) -> None:
    rows = [row | {"chosen": f"<script>{row['chosen']}", "annotator": "<b>x"} for row in ROWS]
    result = noisescope.audit(rows, model, evidence=EVIDENCE, runs_directory=tmp_path)
    shown = result._repr_html_()
    assert result.answer in shown
    assert "<script>" not in shown
    assert "<b>x" not in shown
    assert repr(result).startswith("<Audited 24 pairs, ")
    worst = result.suspects(3)
    assert worst["rank"].to_pylist() == [1, 2, 3]
    assert set(result.table.column_names) == set(worst.column_names)
    assert result.annotators["name"].to_pylist() == ["<b>x"]
    assert noisescope.explain_run(result.run).pairs == 24


def test_the_summary_has_the_names_of_the_json(result: noisescope.Audited) -> None:
    stated = result.run.manifest()["summary"]
    assert set(vars(result.summary)) == set(stated)
    assert result.summary.mislabelled_share.low == stated["mislabelled_share"]["low"]
    assert result.summary.suspects[0].pair_id == result.suspects(1)["pair_id"][0].as_py()
    assert result.to_json() == stated | {"reviews": None}


def test_an_audit_typed_again_computes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "frame.parquet")
    for data in (tmp_path / "frame.parquet", ROWS):

        def again(rows: Any = data, **changed: Any) -> noisescope.Audited:
            given = {"evidence": EVIDENCE, "runs_directory": tmp_path / "runs"} | changed
            return noisescope.audit(rows, model, **given)

        first = again()

        def fail(*_: object, **__: object) -> None:
            raise LookupError("an audit began")

        with monkeypatch.context() as patched:
            patched.setattr("noisescope.auditing.audit.audit", fail)
            assert again().run.directory == first.run.directory
            assert again().to_json() == first.to_json()
            for change in ({"score": noisescope.ScoreConfig(k1=3.0)}, {"limit": 20}):
                with pytest.raises(LookupError):
                    again(**change)
            with pytest.raises(LookupError):
                again([*ROWS[:-1], ROWS[-1] | {"annotator": "ann"}])


def test_a_result_holds_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = toy_rows()
    scored_run(load_table(table), Path("runs/pairs-1"))
    result = noisescope.Audited(Run(Path("runs/pairs-1")))
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert result.suspects(3).num_rows == 3
    with pytest.raises(noisescope.errors.DataError, match="were a table in memory") as caught:
        result.export("clean", drop_top=0.1)
    assert 'result.export("clean", source="PATH")' in caught.value.hint
    pq.write_table(pa.Table.from_pylist(table), "saved.parquet")
    made = result.export("clean", drop_top=0.1, source="saved.parquet")
    assert pq.read_table(made / "saved.parquet").num_rows == 108


def test_a_finished_audit_explains_draws_reports_and_exports(
    result: noisescope.Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    monkeypatch.chdir(tmp_path)
    assert result.explain().pairs == 24
    assert isinstance(result.plot(), Figure)
    assert result.plot("data-map").axes[0].get_xlabel()
    with pytest.raises(noisescope.UsageError, match="no figure 'finds'") as caught:
        result.plot("finds")  # of an audit too weak to promise any
    assert "data-map" in caught.value.hint
    page = result.report(tmp_path / "page.html")
    assert b"<html" in page.read_bytes()
    with pytest.raises(noisescope.EvidenceError, match="A mark in the texts"):
        result.export()
    weights = result.export("trl", force=True)
    assert weights == Path("exports") / f"{result.run.directory.name}-trl.parquet"
    assert pq.read_table(weights).num_rows == 24
    queue = result.export("review", "queue", count=5, force=True)
    assert queue.is_dir()
    with pytest.raises(noisescope.UsageError, match="no argument 'drop_abov'") as caught:
        result.export("clean", drop_abov=0.7)
    for format, given in (("weights", {"drop_above": 0.5}), ("clean", {"count": 3})):
        with pytest.raises(noisescope.errors.UsageError, match="has no argument"):
            result.export(format, force=True, **given)
    for format in ("hub", "foo"):
        with pytest.raises(noisescope.errors.UsageError, match=f"no format '{format}'"):
            result.export(format, force=True, repo_id="a/b")
    with pytest.raises(noisescope.errors.UsageError, match="count=0"):
        result.export("review", tmp_path / "none", count=0, force=True)
    with pytest.raises(noisescope.errors.UsageError, match="annotators reverze: one of"):
        result.export("trl", tmp_path / "t.parquet", annotators="reverze", force=True)
    mine = tmp_path / "mine.jsonl"
    mine.write_text("precious")
    with pytest.raises(noisescope.errors.UsageError, match=r"must end in \.html"):
        result.report(mine)
    assert mine.read_text() == "precious"
    assert caught.value.hint == "Did you mean drop_above?"
    with pytest.raises(noisescope.UsageError, match="no format 'cleen'"):
        result.export("cleen", force=True)


def test_pairs_are_reviewed_on_a_page_from_python(
    result: noisescope.Audited, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "noisescope.report.review.server.ReviewServer.wait",
        lambda server: server.session.answer(server.session.current().content_id, "first"),
    )
    found = result.review(3, reviewer="ann", opened=False)
    assert found is not None
    assert found.judgements == 1
    assert "page: http://127.0.0.1:" in capsys.readouterr().out
    assert result.to_json()["reviews"]["judgements"] == 1


def test_every_public_name_loads() -> None:
    for name in noisescope.__all__:
        assert getattr(noisescope, name) is not None


def test_audit_stays_the_function_and_loads_nothing_before_the_call() -> None:
    code = (
        "import sys, noisescope\n"
        "assert callable(noisescope.audit)\n"
        "assert not {'torch', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "import noisescope.auditing.audit\n"
        "assert noisescope.audit.__module__ == 'noisescope.api'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_command_has_its_function(
    result: noisescope.Audited, model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "frame.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), source)
    copy = noisescope.flip(source, rate=0.5, seed=1, output=tmp_path / "copy")
    assert (copy.pairs, copy.directory) == (24, tmp_path / "copy")
    counted = noisescope.query("SELECT count(*) AS n FROM scores", result.run)
    assert counted["n"].to_pylist() == [24]
    found = noisescope.validate(result.run, rates=(0.25,), seeds=1)
    assert found["by_rate"][0]["rate"] == 0.25
    made = noisescope.fine_tune(source, model, evidence=EVIDENCE, runs_directory=tmp_path / "runs")
    assert made.run.evidence_only


def test_a_policy_is_trained_from_python(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "frame.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), source)
    done = noisescope.train(
        source, str(model), objective="dpo", steps=2, batch=4, output=tmp_path / "tuned"
    )
    assert done.manifest()["result"]["steps"] == 2
    with pytest.raises(noisescope.UsageError, match="--k1 would change nothing"):
        noisescope.train(source, str(model), objective="dpo", k1=3.0, output=tmp_path / "other")
