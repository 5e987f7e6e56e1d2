"""What a user types wrongly, stops or looks up: guesses, help in groups, completion, no secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from noisescope import cli
from noisescope.cli import completion
from noisescope.cli.console import Stopped, print_json
from noisescope.cli.options import CONSTANTS
from noisescope.errors import DataError, not_among, share_hint
from noisescope.pairs import Item
from noisescope.storage import cache
from noisescope.storage.workspace import resolve


def commands() -> dict[str, Any]:
    """All commands by name."""
    found: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]
    return found


def test_every_command_is_in_one_group_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    named = [name for group in cli.GROUPS.values() for name in group]
    assert sorted(named) == sorted(commands())
    assert cli.run(["--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())  # lines break at spaces and hyphens
    for name in named:
        assert "".join((commands()[name].help or "").partition("\n\n")[0].split()) in shown


def test_constants_come_last_and_flags_have_no_type() -> None:
    score = commands()["score"]
    with score.make_context("score", [], resilient_parsing=True) as context:
        params = score.get_params(context)
        flags = [one for one in params if getattr(one, "is_flag", False)]
        assert {"--json", "--details", "--help"} <= {name for one in flags for name in one.opts}
        assert not any(one.display_type_rich(context) for one in flags)
    panels = [getattr(one, "rich_help_panel", None) for one in params]
    first = panels.index(CONSTANTS)
    assert set(panels[first:]) == {CONSTANTS}
    assert panels[0] is None


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("flip x.jsonl --rate 20", "Shares are parts of 1: --rate 0.2"),
        ("flip x.jsonl --rate 20%", "Shares are parts of 1: 0.2"),
        ("gate --max-flip-rate 10%", "shares are parts of 1: 0.1"),
        ("export --format cleen", "Did you mean 'clean'?"),
    ],
)
def test_a_value_that_was_meant_is_named(
    words: str,
    meant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    assert cli.run(words.split()) == 2
    assert meant in " ".join(capsys.readouterr().err.split())


def test_only_percentages_are_read_as_such() -> None:
    assert share_hint("--rate", "20", 0.5) == "Shares are parts of 1: --rate 0.2"
    assert share_hint("--rate", "0.7", 0.5) is None
    assert share_hint("--rate", "80", 0.5) is None
    assert share_hint("--rate", "lots", 0.5) is None
    assert "(did you mean lora?)" in not_among("--kind", "lroa", ["head", "lora"])[0]
    assert "mean" not in not_among("--kind", "zzz", ["head", "lora"])[0]


def test_a_mistyped_file_is_guessed_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for path in ("prefs.jsonl", "data/votes.csv"):
        Path(path).write_text("x")
    with pytest.raises(DataError, match=r"did you mean 'prefs\.jsonl'"):
        resolve("prefs.jsnl")
    with pytest.raises(DataError, match=r"did you mean 'data/votes\.csv'"):
        resolve("data/votes.cvs")
    with pytest.raises(DataError, match=r"did you mean 'prefs\.jsonl'"):
        resolve("prefs")
    assert resolve("imdb").kind == "hub"
    assert "no file here" in resolve("imdb").description
    assert resolve("hh-rlhf").description == "hh-rlhf is Anthropic/hh-rlhf on the Hugging Face Hub"


def test_completion_offers_what_is_known_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("noisescope.toml").write_text(
        '[datasets.mine]\npath = "m.jsonl"\n[models]\ntext = "owner/model"\n'
    )
    run = Path("runs") / "mine-1a2b"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    assert completion.datasets("m") == ["mine"]
    assert completion.runs("") == ["mine-1a2b"]
    assert completion.datasets_and_runs("mine") == ["mine", "mine-1a2b"]
    assert completion.models("own") == ["owner/model"]
    assert completion.among("head", "lora")("h") == ["head"]
    assert "trl" in completion.formats("t")
    assert "adaptive-dpo" in completion.objectives("adaptive")
    typed = ("score", "dataset"), ("show", "run"), ("score", "model"), ("flip", "kind")
    for name, parameter in (*typed, ("validate", "kind"), ("gate", "inconclusive")):
        (found,) = [one for one in commands()[name].params if one.name == parameter]
        assert found._custom_shell_complete is not None


class Interrupted:
    """Computes rows until a signal arrives in the third chunk."""

    calls = 0

    def sizes(self, items: Any) -> Any:
        return np.full(len(items), cache.CHUNK)

    def features(self, items: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise Stopped("SIGINT")
        return {"x": np.ones((len(items), 1), np.float32)}


def test_a_stop_states_how_much_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [Item(f"k{n}", f"p{n}", None, "r") for n in range(5)]

    def stopped(**_: object) -> None:
        cache.compute_missing(Interrupted(), items, tmp_path, lambda *_: None, "feature")

    monkeypatch.setattr(cli, "app", stopped)
    assert cli.run(["score", "x"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Stopped. 2 of 5 responses are kept.\nTo continue, run it again:")


def test_no_secret_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    secret = "s3://AKID:pl4nt3d@bucket/run"
    print_json({"next": f"noisescope merge {secret}", "prompt": "kept as it is: a@b"})
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"next": "noisescope merge s3://***@bucket/run", "prompt": "kept as it is: a@b"}


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("score --modle x", "No such option: --modle", "Example: noisescope score"),
        ("scor x", "No such command 'scor'", "`noisescope --help` lists the commands."),
        ("gate", "no dataset was given, and there is no finished run", "Name a dataset"),
        ("flip a b c", "unexpected extra argument", "Example: noisescope flip"),
    ],
)
def test_all_faults_of_a_typed_line_look_alike(
    words: str,
    message: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(words.split()) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert hint in " ".join(rest)
