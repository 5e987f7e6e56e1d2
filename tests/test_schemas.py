"""Schemas of public preference sets, and unlike tables, are read as their authors meant them.

The files are twelve rows each in ../shared/data (README.md there gives the expected reading).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from noisescope.datasets import load
from noisescope.datasets.in_memory import load_table
from noisescope.errors import DataError
from noisescope.pairs import PICTURE, PreferenceDataset

SHARED = Path(os.environ.get("NOISESCOPE_SHARED", Path(__file__).parents[2] / "shared/data"))
ASKED = "What causes ants in the kitchen 0?"
HUMAN = f"Human: {ASKED}"
GOOD = "Crumbs and sweet spills draw them in, case 0."
BAD = "I do not know about number 0, ask somebody else."


def read(path: str, **options: Any) -> PreferenceDataset:
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED}")
    return load(f"{SHARED}/{path}", fewest=1, **options)


def first(dataset: PreferenceDataset) -> dict[str, Any]:
    return dataset.table.slice(0, 1).to_pylist()[0]


#: file -> (pairs, ties, prompt of the first pair, its strength, its annotator).
TEXTS: dict[str, tuple[int, int, str, float | None, str | None]] = {
    "hh_helpful": (12, 0, HUMAN, None, None),
    "skywork_pref": (12, 0, HUMAN, None, None),
    "rewardbench": (12, 0, ASKED, None, None),
    "ultrafeedback_binarized_h4": (10, 2, "Human: How do I bake bread 1?", 4.0, None),
    "argilla_uf_cleaned": (10, 2, "Human: How do I bake bread 1?", 2.0, None),
    "tulu3_mix": (9, 3, "Human: How do I bake bread 1?", 3.0, None),
    "argilla_dpo_mix_7k": (9, 3, "Human: How do I bake bread 1?", 1.0, None),
    "argilla_orca_dpo": (
        9, 3, "System: You are an AI.\n\nHuman: How do I bake bread 1?", 4.0, None,
    ),
    "intel_orca_dpo": (12, 0, f"System: You are an AI.\n\n{HUMAN}", None, None),
    "llamafactory_alpaca": (12, 0, ASKED, None, None),
    "llamafactory_sharegpt": (12, 0, HUMAN, None, None),
    "axolotl_chatml_argilla": (12, 0, f"System: s\n\n{HUMAN}", None, None),
    "argilla_math_pref": (12, 0, ASKED, 2.0, None),
    "trl_thinking": (12, 0, HUMAN, None, None),
    "helpsteer2_preference": (10, 2, ASKED, 3.0, None),
    "helpsteer3_preference": (10, 2, HUMAN, 3.0, None),
    "offsetbias": (12, 0, ASKED, None, None),
    "pku_saferlhf": (12, 0, ASKED, None, None),
    "arena55k": (8, 4, HUMAN, None, None),
    "arena140k": (6, 6, HUMAN, None, None),
    "chatbot_arena_conversations": (6, 6, HUMAN, None, "arena_user_0"),
    "shp": (12, 0, ASKED, 10.0, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_two_texts_are_read_as_meant(name: str) -> None:
    pairs, ties, prompt, strength, annotator = TEXTS[name]
    dataset = read(f"schemas/{name}.parquet")
    pair = first(dataset)
    assert (len(dataset), dataset.facts.rejected) == (pairs, {"tie": ties} if ties else {})
    assert (pair["prompt"], pair["strength"], pair["annotator"]) == (prompt, strength, annotator)
    for row in dataset.table.to_pylist():
        good, bad = "Crumbs and sweet spills", "I do not know about"
        reversed_ = name in ("helpsteer2_preference", "helpsteer3_preference", "pku_saferlhf")
        reversed_ |= name.startswith(("arena", "chatbot"))
        if reversed_:
            assert {row["chosen"][:5], row["rejected"][:5]} == {good[:5], bad[:5]}
        else:
            assert row["chosen"].removeprefix("<think>\nLet me think ").find(good) < 30
            assert row["rejected"].startswith(bad)


#: file -> which of the first pairs have the answer that the file holds first as the better one.
LABELS = {
    "helpsteer2_preference": [True, True, True, False, False, False],
    "helpsteer3_preference": [True, True, True, False, False, False],
    "pku_saferlhf": [True, False] * 3,
    "arena55k": [True, False] * 3,
    "arena140k": [True, False] * 3,
    "chatbot_arena_conversations": [True, False] * 3,
    "summarize_from_feedback": [True, False] * 3,
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_keep_their_direction(name: str) -> None:
    rows = read(f"schemas/{name}.parquet").table.slice(0, 6).to_pylist()
    assert [row["chosen"].startswith("Crumbs") for row in rows] == LABELS[name]


def test_votes_and_graded_labels() -> None:
    rows = read("schemas/helpsteer3_preference.parquet").table.to_pylist()
    assert {row["votes"] for row in rows} == {3}
    assert [row["strength"] for row in rows[:5]] == [3.0, 2.0, 1.0, 1.0, 2.0]
    assert [row["agreement"] for row in rows[:5]] == [1.0, 1.0, 1.0, 0.0, 0.0]
    summary = first(read("schemas/summarize_from_feedback.parquet"))
    assert (summary["annotator"], summary["strength"]) == ("w0", 7.0)
    assert summary["prompt"].startswith(f"{ASKED}\nA long post.")
    image = first(read("schemas/rapidata_t2i.parquet"))
    assert image["agreement"] == 0.7


def test_the_safety_axis_is_a_choice() -> None:
    mapped = read("schemas/pku_saferlhf.parquet", columns="preference=safer_response_id")
    assert all(row.startswith("Crumbs") for row in mapped.table["chosen"].to_pylist()[::2])
    assert mapped.facts.labels == {"0": 12}


#: file -> pairs by mode, ties, ratings or ranks of the first pair.
LISTS = {
    "nectar": ({"all": 252, "best": 72, "adjacent": 72}, 0),
    "ultrafeedback_openbmb": ({"all": 72, "best": 36, "adjacent": 36}, 0),
    "helpsteer2_ratings": ({"all": 6, "best": 6, "adjacent": 6}, 0),
    "imagereward_group": ({"all": 60, "best": 36, "adjacent": 24}, 12),
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("mode", ["all", "best", "adjacent"])
def test_ranked_and_rated_answers_become_pairs(name: str, mode: str) -> None:
    counts, ties = LISTS[name]
    dataset = read(f"schemas/{name}.parquet", pairs=mode)
    assert len(dataset) == counts[mode]
    assert dataset.facts.rejected.get("tie", 0) == (0 if mode == "best" else ties)
    groups = dataset.table["group"].to_pylist()
    prompts = dataset.table["prompt"].to_pylist()
    assert None not in groups
    assert len(set(zip(groups, prompts, strict=True))) == len(set(prompts)) == len(set(groups))
    assert all(strength > 0 for strength in dataset.table["strength"].to_pylist())
    if name == "helpsteer2_ratings":
        assert all(row.startswith("Crumbs") for row in dataset.table["chosen"].to_pylist())


@pytest.mark.parametrize(
    ("name", "adapter", "pairs"),
    [("imagereward_pair", "image_reward_pair", 12), ("pickapic_v2", "pick_a_pic", 8),
     ("rapidata_t2i", "rapidata", 12)],
)  # fmt: skip
def test_two_pictures(name: str, adapter: str, pairs: int) -> None:
    dataset = read(f"schemas/{name}.parquet")
    assert (dataset.adapter, dataset.modality, len(dataset)) == (adapter, "image", pairs)


def test_one_vote_a_row() -> None:
    dataset = read("schemas/multi_annotator_columnar.parquet")
    assert (len(dataset), dataset.facts.annotators, dataset.facts.contradictions) == (12, 3, 4)


@pytest.mark.parametrize(
    ("name", "adapter", "lead"),
    [
        ("rlaif_v", "columns", ""),
        ("rlaif_v_trl", "trl_vision", "Human: "),
        ("rlhf_v", "columns", ""),
    ],
)
def test_texts_about_a_picture(name: str, adapter: str, lead: str) -> None:
    dataset = read(f"schemas/{name}.parquet")
    assert (dataset.adapter, dataset.modality, len(dataset)) == (adapter, "vision", 12)
    pair = first(dataset)
    (key,) = PICTURE.findall(pair["prompt"])
    assert pair["prompt"] == f"{lead}<image:{key}>\n{ASKED}"
    assert dataset.images is not None
    assert dataset.images.get(key).startswith(b"\x89PNG")


def test_texts_about_pictures_that_are_not_there() -> None:
    with pytest.raises(DataError, match=r"0\.png: No such file"):
        read("schemas/mm_rlhf.parquet")


def test_texts_about_a_picture_keep_their_question_if_judged_alone() -> None:
    alone = read("schemas/rlaif_v.parquet", format="trl", columns="images=")
    assert first(alone)["prompt"] == ASKED
    with pytest.raises(DataError, match="--format trl reads texts, and image, ") as caught:
        read("schemas/rlaif_v.parquet", format="trl")
    assert "--columns images=image" in str(caught.value.hint)


def test_tools_are_part_of_the_prompt() -> None:
    pair = first(read("schemas/trl_tools.parquet"))
    assert [turn["role"] for turn in pair["turns"]] == ["tools", "user"]
    assert json.loads(pair["turns"][0]["content"])[0]["function"]["name"] == "f"
    assert pair["chosen"].startswith("<tool_call>")


def test_unused_columns_are_listed() -> None:
    assert read("schemas/tulu3_mix.parquet").facts.unused_columns == (
        "id",
        "source",
        "chosen_model",
        "rejected_model",
    )


# --- cases ----------------------------------------------------------------------------------

#: Datasets of shared/data/cases that are read whole.
WHOLE = {
    "cache-folder-of-datasets/cache": 40,
    "image-paths-judged-as-text/manifest.jsonl": 12,
    "json-by-columns/pairs.json": 40,
    "messages-as-json-text/pairs.jsonl": 40,
    "odd-time-zone-in-an-unused-column/pairs.parquet": 40,
    "pick-a-pic-as-csv/pairs.csv": 12,
    "prompt-called-instruction/pairs.jsonl": 40,
    "prompt-column-with-trailing-space/pairs.jsonl": 40,
    "ranked-text-responses/pairs.jsonl": 40,
    "reasoning-content-ignored/pairs.jsonl": 40,
    "roles-human-and-gpt/pairs.jsonl": 40,
    "sharegpt-with-single-message-sides/pairs.jsonl": 40,
    "sharegpt-with-single-message-sides/renamed.jsonl": 40,
    "sides-repeat-the-user-turn-without-system/pairs.jsonl": 40,
    "splits-called-train_prefs/hub-copy:train_prefs": 40,
    "system-column-makes-contradictions/pairs.jsonl": 40,
    "truth-ids-with-leading-zeros/pairs.jsonl": 30,
    "wrapped-json-on-one-line/pairs.json": 40,
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_case_is_read_whole(name: str) -> None:
    dataset = read(f"cases/{name}")
    assert (len(dataset), dataset.facts.rejected) == (WHOLE[name], {})
    prompts = dataset.table["prompt"].to_pylist()
    assert all(prompt.strip() for prompt in prompts)
    assert not any(text.startswith("[{") for text in dataset.table["chosen"].to_pylist())
    if "system-column" in name:
        assert dataset.facts.contradictions == 0
    if "repeat-the-user" in name:
        assert all(prompt.count("Human:") == 1 for prompt in prompts)
    if "image-paths" in name:
        assert dataset.modality == "image"
    if "instruction" in name:
        assert any("\n" in prompt for prompt in prompts)  # with its input


#: Datasets of shared/data/cases that are refused: (what the message says, what the hint says).
REFUSED = {
    "csv-in-windows-1252/pairs.csv": ("not UTF-8.*Windows-1252", "iconv -f WINDOWS-1252"),
    "csv-with-a-line-above-the-header/pairs.csv": (
        r"first line names 2 columns and rows have 3 fields.*above the header",
        "tail -n",
    ),
    "images-as-url-or-base64/url.jsonl": ("a URL: fetch the pictures first", ""),
    "images-as-url-or-base64/base64.jsonl": ("base64 text: decode it, or give a path", ""),
    "label-0-means-first/pairs.jsonl": (
        r"label \(0: 16, 1: 12, 2: 12\) beside chosen and rejected",
        "a_wins=0,b_wins=1",
    ),
    "lfs-pointer-as-jsonl/pairs.jsonl": ("a Git LFS pointer", "git lfs pull"),
    "sides-with-different-prompts/pairs.jsonl": ("the two sides answer different prompts", ""),
    "splits-called-train_prefs/hub-copy": (
        "there are: test_prefs, train_gen, train_prefs, train_sft",
        "hub-copy:",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_with_its_cause(name: str) -> None:
    message, hint = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        read(f"cases/{name}")
    assert hint in str(caught.value.hint)


def test_what_a_file_says_of_its_own_labels() -> None:
    dataset = read("cases/scores-contradict-the-label/pairs.jsonl")
    assert dataset.facts.contradicted == 10
    assert "scores contradict the label" in dataset.facts.notes[0]
    assert min(dataset.table["strength"].to_pylist()) < 0
    missing = read("cases/nan-as-a-response/pairs.jsonl")
    assert missing.facts.rejected == {"empty response": 14}
    rendered = read("cases/template-text-in-plain-columns/pairs.jsonl")
    assert "chat-template text already (<|im_start|>)" in rendered.facts.notes[0]


def test_both_readings_of_a_label_can_be_typed() -> None:
    path = "cases/label-0-means-first/pairs.jsonl"
    as_written = read(path, columns="chosen=chosen,rejected=rejected")
    assert len(as_written) == 40
    roles = "a=chosen,b=rejected,preference=label,a_wins=0,b_wins=1,tie=2"
    by_label = read(path, columns=roles)
    assert (len(by_label), by_label.facts.rejected) == (28, {"tie": 12})
    assert by_label.facts.labels == {"0": 16, "1": 12, "2": 12}
    with pytest.raises(DataError, match=r"label holds '0' 16 times.*'2' names neither"):
        read(path, columns=roles.removesuffix(",tie=2"))


def test_splits_as_the_readme_of_a_hub_copy_names_them(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "good answer", "rejected": "bad"}
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 12)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  default: true\n  data_files:\n"
        "  - split: train\n    path: one.jsonl\n  - split: test\n    path: [two.jsonl]\n"
        "- config_name: other\n  data_files: three.jsonl\n---\n# About\n"
    )
    sources = {
        name: set(load(f"{tmp_path}{name}").table["source"].to_pylist())
        for name in ("", ":train", ":test", ":other:train")
    }
    assert sources == {
        "": {"one.jsonl"},
        ":train": {"one.jsonl"},
        ":test": {"two.jsonl"},
        ":other:train": {"three.jsonl"},
    }
    with pytest.raises(DataError, match="no configuration 'absent'"):
        load(f"{tmp_path}:absent:train")
    shutil.rmtree(tmp_path)


# --- labels in other spellings ----------------------------------------------------------------


def judged(**cells: Any) -> dict[str, list[Any]]:
    """Twelve rows of two answers, the better one first in every other row."""
    good, bad = ([f"a {word} answer {i}" for i in range(12)] for word in ("good", "bad"))
    first = [good[i] if i % 2 else bad[i] for i in range(12)]
    second = [bad[i] if i % 2 else good[i] for i in range(12)]
    asked = {"question": [f"ask {i}" for i in range(12)]}
    return asked | {"response_a": first, "response_b": second} | cells


def alternate(even: Any, odd: Any) -> list[Any]:
    return [odd if i % 2 else even for i in range(12)]


SPELLED: dict[str, dict[str, list[Any]]] = {
    "words": {"winner": alternate("B", "A")},
    "orders": {"verdict": alternate("A<B", "A>>B")},
    "sentences": {"preference": alternate("Response B is better", "response a is better")},
    "brackets": {"choice": alternate("[[B]]", "[[A]]")},
    "ids": {"label": alternate(2, 1)},
    "model names": {
        "model_a": alternate("x", "y"), "model_b": ["z"] * 12, "winner": alternate("z", "y"),
    },
    "one hot": {"winner_a": alternate(0, 1), "winner_b": alternate(1, 0)},
    "counts": {"votes_a": alternate(1, 4), "votes_b": alternate(4, 1)},
    "scores": {"score_a": alternate(1.5, 3), "score_b": alternate("2.5", "2")},
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLED)
def test_a_label_in_any_spelling(name: str) -> None:
    columns = judged(**SPELLED[name])
    dataset = load_table(pa.table({key: list(map(str, cells)) for key, cells in columns.items()}))
    for row in dataset.table.to_pylist():
        assert (row["chosen"][:6], row["rejected"][:5]) == ("a good", "a bad")
    assert len(dataset) == 12
    assert [row["votes"] for row in dataset.table.to_pylist()[:1]] == (
        [5] if name == "counts" else [None]
    )


@pytest.mark.parametrize(
    ("labels", "flag"),
    [
        (alternate(1, 0), "a_wins=0,b_wins=1"),
        (alternate(-2, 2), "a_wins=negative,b_wins=positive,tie=0"),
        ([0, 1, 2] * 4, "a_wins=0,b_wins=1,tie=2"),
    ],
)
def test_a_label_that_can_be_read_both_ways_is_refused(labels: list[int], flag: str) -> None:
    with pytest.raises(DataError, match=r"label holds .*does not show by itself") as caught:
        load_table(pa.table(judged(label=labels)))
    assert f"prompt=question,a=response_a,b=response_b,preference=label,{flag}" in str(
        caught.value.hint
    )


def test_a_prompt_that_contains_a_response_is_no_prompt() -> None:
    asked = {"role": "user", "content": "ask"}
    rows = [
        {"messages": [asked, {"role": "assistant", "content": f"good {i}"}],
         "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(12)
    ]  # fmt: skip
    with pytest.raises(DataError, match="the prompt contains one of the responses"):
        load_table(pa.Table.from_pylist(rows))


def rewriting(copied: int, **more: object) -> list[dict[str, object]]:
    """Rows of an instruction, its input and two rewritings, of which the first `copied` copy it."""
    texts = [f"it is, so to say, a somewhat long sentence number {n}" for n in range(12)]
    return [
        {"instruction": f"Shorten sentence number {n}.", "input": text,
         "response1": f"sentence {n}", "response2": text if n < copied else f"a sentence {n}",
         "verdict": 1} | more
        for n, text in enumerate(texts)
    ]  # fmt: skip


CODED = {"a": "response1", "b": "response2", "preference": "verdict", "a_wins": "1", "b_wins": "2"}


def test_a_response_that_copies_the_text_to_rewrite_is_read() -> None:
    table = pa.Table.from_pylist(rewriting(3))
    dataset = load_table(table, columns=CODED)
    assert len(dataset) == 12
    assert "unreadable" not in dataset.facts.rejected
    assert dataset.table["prompt"][0].as_py().endswith(dataset.table["rejected"][0].as_py())
    assert any("3 responses copy the end of their prompt" in note for note in dataset.facts.notes)


def test_prompts_that_hold_the_answer_are_refused() -> None:
    """Nearly all prompts end with one side, or one does after the name of a speaker."""
    with pytest.raises(DataError, match=r"one of the responses \(rejected\) in 10 of 12 pairs"):
        load_table(pa.Table.from_pylist(rewriting(10)), columns=CODED)
    rows = rewriting(0)
    rows[0] |= {"input": "What is it?\nAssistant: it is a rather long answer",
                "response1": "it is a rather long answer"}  # fmt: skip
    dataset = load_table(pa.Table.from_pylist(rows), columns=CODED)
    assert dataset.facts.rejected == {"unreadable": 1}


def test_an_instruction_is_offered_and_read_with_its_input() -> None:
    """A hint that names the prompt, and the one after it, keep the input; without it is a note."""
    rows = rewriting(0)
    unknown = [row | {"annotator1": row["verdict"]} for row in rows]
    for row in unknown:
        del row["verdict"]
    with pytest.raises(DataError) as caught:
        load_table(pa.Table.from_pylist(unknown))
    assert "--columns prompt=instruction+input,a=response1,b=response2" in str(caught.value.hint)
    odd = pa.Table.from_pylist([row | {"verdict": n % 3} for n, row in enumerate(rows)])
    with pytest.raises(DataError) as caught:
        load_table(odd, columns=CODED | {"a_wins": "7"})
    assert "prompt=instruction+input,a=response1,b=response2" in str(caught.value.hint)
    alone = load_table(pa.Table.from_pylist(rows), columns=CODED | {"prompt": "instruction"})
    (note,) = (text for text in alone.facts.notes if "input is not read" in text)
    assert "--columns prompt=instruction+input,a=response1" in note
    blank = pa.Table.from_pylist(rewriting(0, input=""))
    alone = load_table(blank, columns=CODED | {"prompt": "instruction"})
    assert not any("is not read" in text for text in alone.facts.notes)


def test_bare_a_and_b_are_two_answers_and_never_chosen_and_rejected(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"What is bread number {n} made of?",
            "a": f"Flour and water, loaf {n}",
            "b": f"I do not know loaf {n}",
            "preference": "ab"[n % 2],
        }
        for n in range(40)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load(path).table
    assert table["chosen"].to_pylist()[:2] == [rows[0]["a"], rows[1]["b"]]
