"""The documentation: its commands and Python run on a small workspace, and its links exist.

Every ```sh and ```python block of a page runs, in order, in one workspace per page: the sample with
fewer pairs, a policy that a few hundred pairs can pass, and trainings of two steps. A line that
ends in `# exit 1` must exit with that code. Blocks that cannot run here (they need a network, a GPU
or a different program) are ```console blocks under a comment: `<!-- not run: needs Docker -->`.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command

from noisescope import cli

ROOT = Path(__file__).parent.parent
HOOKS = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
TEXT_PAIRS, IMAGE_PAIRS = 250, 200

#: Their Python changes registries, which tests/test_extending.py puts back.
TESTED_ELSEWHERE = ("datasets.md", "extending.md")

SETTINGS = """
[workspace]
dataset = "hh-rlhf"
[models]
text = "SmolLM2-135M-Instruct"
image = "sample_data/models/tiny-sd"
[datasets.hh-rlhf]
path = "sample_data/hh-rlhf"
truth = "sample_data/hh-rlhf/truth.parquet"
[datasets.pick-a-pic]
path = "sample_data/pick-a-pic"
truth = "sample_data/pick-a-pic/truth.parquet"
[train]
steps = 2
batch = 4
[gate]
max_flip_rate = 0.49
max_growth = 0.9
detect = 0.5
min_reliability = "off"
inconclusive = "pass"
"""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the page's fenced blocks of a language, unindented, in order."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [
        "\n".join(line.removeprefix(indent) for line in body.splitlines())
        for indent, name, body in found
        if name == language
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Share the features of the pairs among all pages."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workspace(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a small copy of the sample, with the files that the pages use."""
    data = tmp_path / "sample_data"
    (data / "hh-rlhf").mkdir(parents=True)
    with gzip.open(ROOT / "sample_data/hh-rlhf/train.jsonl.gz", "rb") as file:
        rows = file.read().splitlines(keepends=True)[:TEXT_PAIRS]
    (data / "hh-rlhf" / "train.jsonl.gz").write_bytes(gzip.compress(b"".join(rows), 1))
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(map(_columnar, rows)))
    votes = [_vote(line, person) for line in rows for person in range(3)]
    pq.write_table(pa.Table.from_pylist(votes), tmp_path / "votes.parquet")
    (data / "pick-a-pic").mkdir()
    pictures = "train-00000-of-00001.parquet"
    table = pq.read_table(ROOT / "sample_data/pick-a-pic" / pictures)
    pq.write_table(table.slice(0, IMAGE_PAIRS), data / "pick-a-pic" / pictures)
    for name in ("hh-rlhf", "pick-a-pic"):
        shutil.copy(ROOT / "sample_data" / name / "truth.parquet", data / name)
    (data / "models").symlink_to(ROOT / "sample_data" / "models")
    (tmp_path / "SmolLM2-135M-Instruct").symlink_to(ROOT / "sample_data" / "models" / "tiny-lm")
    (tmp_path / "noisescope.toml").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".cache").symlink_to(cache)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def _columnar(line: bytes) -> bytes:
    """Convert a transcript row to prompt, chosen and rejected."""
    row = json.loads(line)
    prompt, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
    _, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
    plain = {"prompt": prompt.strip(), "chosen": chosen.strip(), "rejected": rejected.strip()}
    return json.dumps({**plain, "annotator": row.get("annotator", "")}).encode() + b"\n"


def _vote(line: bytes, person: int) -> dict[str, str]:
    """Return a columnar row by one of three people, of whom the third flips every label."""
    row = json.loads(_columnar(line))
    if person == 2:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return {**row, "annotator": f"person-{person}"}


def commands(block: str) -> list[tuple[list[str], int]]:
    """Return each line's words and its exit code, from a comment or 0."""
    lines = block.replace("\\\n", " ").splitlines()
    parts = [(part, line) for line in lines for part in line.split("&&")]
    return [
        (words, int(match[1]) if (match := re.search(r"# exit (\d)\b", line)) else 0)
        for part, line in parts
        if (words := shlex.split(part, comments=True))
    ]


def newest(word: str) -> str:
    """Replace an example `runs/NAME-1a2b3c4d` by the newest such directory."""
    match = re.fullmatch(r"((?:runs|trained)/[\w-]+-)[0-9a-f]{8}", word)
    found = (
        sorted(Path().glob(f"{match[1]}*"), key=lambda run: run.stat().st_mtime_ns) if match else []
    )
    return str(found[-1]) if found else word


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "sh") or blocks(page, "python")], ids=name_of
)
# TRL's own defaults are deprecated in transformers.
@pytest.mark.filterwarnings("ignore::FutureWarning:trl", "ignore::FutureWarning:transformers")
@pytest.mark.usefixtures("workspace")
def test_a_page_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page, "sh"):
        for (program, *words), expected in commands(block):
            arguments = [newest(word) for word in words]
            if program == "cd":
                os.chdir(arguments[0])
                continue
            assert program == "noisescope", f"put {program} into a console block"
            if arguments[0] == "export":  # an audit of so few pairs is too weak to change labels
                arguments.append("--force")
            code = cli.run(arguments)
            assert code == expected, f"{shlex.join(arguments)}:\n{capsys.readouterr().err}"
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page, "python") if page.name not in TESTED_ELSEWHERE else ():
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_that_is_not_run_has_a_reason(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *```console", text, re.MULTILINE)) == len(
        re.findall(r"<!-- not run: [^>]+ -->\n+ *```console", text)
    )
    assert not blocks(page, ""), "a block without a language"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
        for heading in headings
    }


def test_the_command_reference_has_every_command_and_option() -> None:
    sections = HOOKS["reference"]().split("\n## ")[1:]
    every = get_command(cli.app).commands  # type: ignore[attr-defined]
    commands = {name: command for name, command in every.items() if not command.hidden}
    assert [section.splitlines()[0] for section in sections] == list(commands)
    for section, command in zip(sections, commands.values(), strict=True):
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                written = rf"[` ]{parameter.opts[0]}[` /,]"
                assert re.search(written, section), (section[:20], parameter.opts)


def test_the_site_names_repository_files_instead_of_linking_them() -> None:
    page = "See [the log](../benchmarks/LOG.md) and [gates](gate.md)."
    shown = "See the log (`benchmarks/LOG.md` in the repository) and [gates](gate.md)."
    assert HOOKS["on_page_markdown"](page, page=None) == shown


def test_pages_that_the_code_names_exist() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "noisescope").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"docs/[\w-]+\.md", text)}
    assert "docs/train.md" in named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_every_page_is_in_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    listed = set(re.findall(r"([\w-]+\.md)$", navigation, re.MULTILINE))
    assert listed == {"cli.md", *(page.name for page in (ROOT / "docs").glob("*.md"))}
