"""noisescope.toml: found upward, checked at once, and what dataset names mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from noisescope.datasets import load
from noisescope.errors import DataError, UsageError
from noisescope.storage.workspace import HUB_NAMES, find_workspace, read_workspace, resolve

GOOD = """
[workspace]
dataset = "mine"
[models]
text = "models/tiny"
image = "owner/name"
[datasets.mine]
path = "data/mine.jsonl"
truth = "data/truth.parquet"
format = "trl"
split = "test"
[datasets."all of it"]
path = "data/*.jsonl"
[score]
replicas = 8
[gate]
max_flip_rate = 0.1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "noisescope.toml").write_text(GOOD)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    rows = [f'{{"prompt": "p", "chosen": "good {i}", "rejected": "bad"}}' for i in range(10)]
    (tmp_path / "data" / "mine.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_nearest_file_upward(root: Path) -> None:
    workspace = find_workspace(root / "data" / "deep")
    assert workspace is not None
    assert (workspace.root, workspace.dataset) == (root, "mine")
    assert workspace.models == {"text": str(root / "models" / "tiny"), "image": "owner/name"}
    assert workspace.datasets["mine"].truth == root / "data" / "truth.parquet"
    (root / "data" / "noisescope.toml").write_text("")
    nearer = find_workspace(root / "data" / "deep")
    assert nearer is not None
    assert (nearer.root, nearer.datasets) == (root / "data", {})


def test_no_file_is_no_workspace() -> None:
    assert find_workspace(Path("/")) is None


def test_names_in_a_workspace(root: Path) -> None:
    workspace = read_workspace(root / "noisescope.toml")
    mine = resolve("mine", workspace)
    assert (mine.kind, mine.name, mine.split, mine.format) == ("workspace", "mine", "test", "trl")
    assert mine.target == str(root / "data" / "mine.jsonl")
    assert mine.description == f"mine is data/mine.jsonl ({root / 'noisescope.toml'})"
    assert resolve("mine:dev", workspace).split == "dev"
    assert resolve("hh-rlhf", workspace).target == "Anthropic/hh-rlhf"
    dataset = load("all of it", workspace=workspace)
    assert (dataset.name, dataset.resolved) == ("all-of-it", "data/*.jsonl")


@pytest.mark.parametrize(("name", "target"), HUB_NAMES.items())
def test_well_known_names_outside_a_workspace(
    name: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = resolve(name)
    assert (found.kind, found.target, found.config, found.split) == ("hub", target, None, None)
    assert target in found.description


def test_splits_and_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = resolve("owner/name:test")
    assert (found.kind, found.target, found.split) == ("hub", "owner/name", "test")
    found = resolve("owner/name:small:dev")
    assert (found.config, found.split) == ("small", "dev")
    (tmp_path / "a:b.jsonl").touch()
    assert resolve("a:b.jsonl").target == "a:b.jsonl"
    assert resolve("a:b.jsonl").split is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/pairs.jsonl.gz", "pairs"),
        ("./data/pairs", "pairs"),
        ("a/b/c", "c"),
        ("data/*.parquet", "data"),
        ("/some/where/x.csv", "x"),
        ("~/x.json", "x"),
    ],
)
def test_paths_are_known_by_their_look(path: str, name: str) -> None:
    found = resolve(path)
    assert (found.kind, found.name) == ("path", name)


def test_a_directory_named_dot(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "data")
    assert resolve(".").name == "data"


def test_slips_of_the_pen_are_guessed(root: Path) -> None:
    workspace = read_workspace(root / "noisescope.toml")
    with pytest.raises(DataError, match=r"did you mean 'mine'\?"):
        resolve("mien", workspace)
    with pytest.raises(DataError, match="no such file, directory or dataset name"):
        resolve("what is this!", workspace)


BAD = """
scores = 1
[workspace]
datset = "mine"
[models]
txt = "a"
image = 3
[datasets]
loose = "a path"
[datasets.mine]
paht = "x"
format = ""
[training]
"""


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "noisescope.toml").write_text(BAD)
    with pytest.raises(UsageError) as caught:
        find_workspace(tmp_path)
    for fault in (
        "unknown key 'scores' in the file (did you mean 'score'?)",
        "scores must be a table",
        "unknown key 'training' in the file (did you mean 'train'?)",
        "unknown key 'datset' in [workspace] (did you mean 'dataset'?)",
        "unknown key 'txt' in [models] (did you mean 'text'?)",
        "[models] image must be text",
        "datasets.loose must be a table with a path",
        "unknown key 'paht' in [datasets.mine] (did you mean 'path'?)",
        "[datasets.mine] format must be text",
        "[datasets.mine] has no path",
    ):
        assert fault in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[workspace", "line 1: not valid TOML"),
        (b"\xff", "cannot be read"),
        (b'[workspace]\ndataset = "hh-rlfh"', "did you mean 'hh-rlhf'"),
        (b"datasets = 3", "datasets must be a table"),
    ],
)
def test_broken_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "noisescope.toml").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        find_workspace(tmp_path)


def test_settings_of_a_command(root: Path) -> None:
    workspace = read_workspace(root / "noisescope.toml")
    assert workspace.settings("score", {"replicas", "rho"}) == {"replicas": 8}
    assert workspace.settings("train", {"beta"}) == {}
    with pytest.raises(UsageError, match=r"unknown key 'replicas' in \[score\].*'replica'"):
        workspace.settings("score", {"replica"})


def test_this_repository_maps_its_names() -> None:
    workspace = find_workspace(Path(__file__).parent)
    assert workspace is not None
    assert workspace.dataset == "hh-rlhf"
    assert set(workspace.datasets) == {"hh-rlhf", "pick-a-pic"}
    assert set(workspace.models) == {"text", "image"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[score\n", "line 1: not valid TOML: Expected"),
        ('[score]\nreplicas = 8\nkind = "head\n', "line 3: not valid TOML"),
        ("[score]\nreplicas =", "line 2: not valid TOML: Invalid value"),
    ],
)
def test_a_mistake_in_the_toml_is_told_with_its_line(
    tmp_path: Path, written: str, said: str
) -> None:
    (tmp_path / "noisescope.toml").write_text(written)
    with pytest.raises(UsageError, match=said) as caught:
        read_workspace(tmp_path / "noisescope.toml")
    assert "Correct" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('replicas = "many"', 'replicas = "many": '),
        ("replicas = true", "replicas = true: expected a whole number"),
        ("kind = 3", "kind = 3: expected text"),
        ("limit = 0", "limit = 0: "),
        ("k1 = 4", None),
        ("pool = false", None),
    ],
)
def test_a_setting_of_a_wrong_type_is_blamed_on_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    said: str | None,
) -> None:
    from noisescope.cli import run

    (tmp_path / "noisescope.toml").write_text(f"[score]\n{setting}\n")
    monkeypatch.chdir(tmp_path)
    assert run(["query", "SELECT 1"]) == 2
    told = capsys.readouterr().err
    expected = "no finished run" if said is None else f"noisescope.toml: [score] {said}"
    assert expected in told
