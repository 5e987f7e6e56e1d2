#!/usr/bin/env bash
# Run every benchmark, arguments passed on; then list published figures older than their code.
#
#   benchmarks/all.sh [--quick]      hours, or with --quick about ten minutes each
#   benchmarks/all.sh --stale        the list alone
# A figure is as old as the youngest line of a page that names its command (git blame), its code as
# young as the last commit to the benchmark's own files and to the modules that they import.
set -u
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python}
mapfile -t names < <(grep -lE '^ *main\((.*__doc__|SCRIPT)' -r benchmarks --include='*.py' | sort |
  sed -e 's|/__main__.py$||' -e 's|\.py$||' -e 's|/|.|g')

failed=()
if [ "${1:-}" != --stale ]; then
  for name in "${names[@]}"; do
    echo "== python -m $name $*"
    "$python" -m "$name" "$@" || failed+=("$name")
  done
fi

"$python" - "${names[@]}" <<'PYTHON'
import ast, re, subprocess, sys
from datetime import datetime
from pathlib import Path


def git(*words):
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def files_of(name):
    """The benchmark's own files, and those of the modules that they import."""
    own = Path(*name.split("."))
    found = sorted(own.rglob("*.py")) if own.is_dir() else [own.with_suffix(".py")]
    for path in list(found):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith(("noisescope.", "benchmarks.")):
                found.append(Path(*node.module.split(".")).with_suffix(".py"))
    return [str(path) for path in dict.fromkeys(found) if path.is_file() and path.stem != "harness"]

pages = ["README.md", *map(str, [*Path("docs").glob("*.md"), *Path("benchmarks").rglob("*.md")])]
figures = {}
for page in git("ls-files", *pages).split():
    when = 0
    for line in git("blame", "--line-porcelain", page).splitlines():
        if line.startswith("committer-time "):
            when = int(line.split()[1])
        elif line.startswith("\t"):
            for name in re.findall(r"python -m (benchmarks[.\w]*\w)", line):
                figures[page, name] = max(when, figures.get((page, name), 0))
for (page, name), when in sorted(figures.items()):
    if name in sys.argv:
        changed, *files = git("log", "-1", "--format=%ct", "--name-only", "--", *files_of(name)).split()
        if int(changed) > when:
            dates = (f"{datetime.fromtimestamp(int(t)):%F %R}" for t in (when, changed))
            print(f"{page}: {name}:", "figures of {}, code of {}".format(*dates), f"({files[0]} ...)")
PYTHON
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
