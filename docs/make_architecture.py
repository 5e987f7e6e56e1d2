"""Write the generated parts of docs/architecture.md, and its picture, from the package's imports.

python docs/make_architecture.py   # a test compares both files with the code

LAYERS says which modules and packages belong together. Imports must point one way between layers;
arrows that follow from others are left out of the picture.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent / "noisescope"
PAGE, PICTURE = HERE / "architecture.md", HERE / "images" / "architecture.svg"
BEGIN, END = "<!-- generated: python docs/make_architecture.py -->", "<!-- /generated -->"

Imports = Mapping[str, set[str]]

#: What belongs together: a heading, what it does, and its modules and packages.
_LAYERS: dict[str, tuple[str, str]] = {
    "Words and files": (
        "what a pair, a run, a share and an error are; files that are whole or absent",
        "errors pairs images storage integrity locking masking places spill statistics ranks "
        "presets parts sharing margins plan run workspace_file workspace sample train_config",
    ),
    "Datasets": (
        "from rows in any format to pairs, and back into the same format",
        "datasets transcripts rewriting rewriting_csv rewriting_json rewriting_lines "
        "rewriting_tables rewriting_tokens copies",
    ),
    "Policies": (
        "the models that are asked, and what they say of responses",
        "policies features",
    ),
    "Training": (
        "objectives and the one training loop",
        "objectives training training_step training_state training_pieces",
    ),
    "Replicas": (
        "several small fits of one dataset",
        "replicas",
    ),
    "Evidence": (
        "margins on disk: in one process, several ranks, or shards",
        "gathering gathering_adapters gathering_lora members responses",
    ),
    "Verdicts": (
        "from margins to scores, rates and weights; torch is not loaded",
        "evidence spool scores re_po flip_rate detectors ranking annotators weights summary "
        "verdicts scorecard truth_files query diffing agreement",
    ),
    "Planted errors": (
        "flips of known labels, and how many were found",
        "flips stated truth planting refits validation",
    ),
    "Audits": (
        "dataset and model in, a finished run out",
        "auditing api launches shards merging merging_parts merging_members",
    ),
    "Trained policies": (
        "fine-tuning on weighted pairs, here or in TRL",
        "weighting learners trl",
    ),
    "Comparisons": (
        "which of two models is better",
        "evaluation",
    ),
    "Results": (
        "reports, gates and exports of a finished run",
        "report gate exporting",
    ),
    "Command line": (
        "one file a command: parse, call one function, print",
        "cli doctor",
    ),
}
LAYERS = {layer: (said, names.split()) for layer, (said, names) in _LAYERS.items()}


def imported(source: str, package: str) -> set[str]:
    """Modules that a file of `package` imports as it runs, in functions too; not for types alone.

    `from a import b` counts as `a.b` as well: b may be a module.
    """
    found: set[str] = set()
    for node in _run(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module
            assert start is not None
            found |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
    return found


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `tree`, without what stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from (other, *_run(other))
            continue
        yield node
        yield from _run(node)


def modules_of(root: Path) -> dict[str, str]:
    """By module of the package at `root`, its source."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        name = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(name)] = path.read_text("utf-8")
    return found


def read_imports(root: Path) -> dict[str, set[str]]:
    """By module of the package at `root`, what it imports."""
    packages = {".".join((root.name, *p.parent.relative_to(root).parts)) for p in _inits(root)}
    return {
        name: imported(source, name if name in packages else name.rpartition(".")[0])
        for name, source in modules_of(root).items()
    }


def _inits(root: Path) -> Iterator[Path]:
    return root.rglob("__init__.py")


def parts_of(modules: Imports, package: str) -> dict[str, set[str]]:
    """The same between the modules and packages right below `package`."""
    parts = {_part(name, package) for name in modules} - {""}
    result: dict[str, set[str]] = {part: set() for part in parts}
    for name, others in modules.items():
        if part := _part(name, package):
            result[part] |= {_part(other, package) for other in others} & parts - {part}
    return result


def _part(name: str, package: str) -> str:
    """`b` of `package.b.c`; nothing of what is outside it, or is the package itself."""
    return name.removeprefix(f"{package}.").split(".")[0] if name.startswith(f"{package}.") else ""


def layers(parts: Imports) -> dict[str, set[str]]:
    """By layer, the layers whose parts its own import. Raises where a part has no layer, or two."""
    listed = [name for _, names in LAYERS.values() for name in names]
    known = set(parts) - {"__main__"}
    assert sorted(listed) == sorted(known), sorted(set(listed) ^ known)
    home = {name: layer for layer, (_, names) in LAYERS.items() for name in names}
    return {
        layer: {home[other] for name in names for other in parts[name]} - {layer}
        for layer, (_, names) in LAYERS.items()
    }


def needed(graph: Imports) -> dict[str, set[str]]:
    """The arrows that do not follow from others: a transitive reduction; no cycle may be there."""
    below = {name: _reached(graph, name) for name in graph}
    return {
        name: {one for one in others if not any(one in below[two] for two in others - {one})}
        for name, others in graph.items()
    }


def _reached(graph: Imports, name: str) -> set[str]:
    found: set[str] = set()
    rest = list(graph[name])
    while rest:
        if (one := rest.pop()) not in found:
            found.add(one)
            rest += graph[one]
    return found


def levels(graph: Imports) -> dict[str, int]:
    """How far above those that import nothing each stands."""
    found: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in found:
            found[name] = 1 + max(map(level, graph[name]), default=-1)
        return found[name]

    for name in graph:
        level(name)
    return found


#: Where a layer's box stands, in boxes from the left; its height follows from what it imports.
COLUMNS = {
    "Datasets": 0.0,
    "Verdicts": 2.0,
    "Planted errors": 0.5,
    "Results": 0.5,
    "Comparisons": 0.5,
    "Audits": 1.5,
    "Trained policies": 1.5,
}
WIDTH, HEIGHT, STEP_X, STEP_Y, MARGIN = 216, 44, 256, 74, 14


def picture(graph: Imports) -> str:
    """The layers as SVG: arrows point to what is imported, those that follow are left out."""
    rows = levels(graph)
    top = max(rows.values())
    place = {
        name: (
            MARGIN + COLUMNS.get(name, 1.0) * STEP_X + WIDTH / 2,
            MARGIN + (top - rows[name]) * STEP_Y,
        )
        for name in graph
    }
    size = (2 * STEP_X + WIDTH + 2 * MARGIN, top * STEP_Y + HEIGHT + 2 * MARGIN)
    arrows = [
        _arrow(place[name], place[other])
        for name, others in needed(graph).items()
        for other in sorted(others)
    ]
    boxes = [_box(name, *place[name]) for name in graph]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:g} {size[1]:g}" '
            'font-family="sans-serif" text-anchor="middle">',
            "<title>Which parts of noisescope import which: arrows point downward</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#555e6b"/></marker>'
            "</defs>",
            f'<rect width="{size[0]:g}" height="{size[1]:g}" fill="#ffffff"/>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Down from a box, across in the gap below it, and down its target's empty column."""
    turn = start[1] + HEIGHT + (STEP_Y - HEIGHT) / 2 - 4
    path = f"M{start[0]:g} {start[1] + HEIGHT:g}V{turn:g}H{end[0]:g}V{end[1]:g}"
    return f'<path d="{path}" fill="none" stroke="#555e6b" marker-end="url(#tip)"/>'


def _box(name: str, x: float, y: float) -> str:
    names = [one for one in LAYERS[name][1] if "_" not in one]
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (
        f'<rect x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
        f'fill="#eef4fa" stroke="#0072b2"/>'
        f'<text x="{x:g}" y="{y + 18:g}" font-size="14" font-weight="bold" fill="#1c2430">{name}'
        f'</text><text x="{x:g}" y="{y + 35:g}" font-size="11" fill="#46505e">{shown}</text>'
    )


def page(text: str, sources: Mapping[str, str]) -> str:
    """`text` with what is between the marks written anew: each layer's modules, a line each."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"{PAGE.name} has lost its marks"
    lines = []
    for layer, (said, names) in LAYERS.items():
        lines += [
            f"### {layer}",
            "",
            f"{said[0].upper()}{said[1:]}.",
            "",
            "| module | job |",
            "|---|---|",
        ]
        lines += [
            f"| `{module.partition('.')[2]}` | {job(source)} |"
            for name in sorted(names)
            for module, source in sources.items()
            if _part(module, ROOT.name) == name
        ]
        lines.append("")
    return f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n{END}{after}"


def job(source: str) -> str:
    """A module's one job: the first sentence or paragraph of its docstring."""
    said = ast.get_docstring(ast.parse(source)) or ""
    return " ".join(said.partition("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    graph = layers(parts_of(read_imports(ROOT), ROOT.name))
    PICTURE.write_text(picture(graph), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text("utf-8"), modules_of(ROOT)), encoding="utf-8")
