"""Draw docs/images/score.svg, the picture of the summary screen in the README.

noisescope score hh-rlhf && python docs/make_score_picture.py runs/hh-rlhf-0d3563aa
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from noisescope.cli.console import OUT
from noisescope.cli.summary import print_summary
from noisescope.storage.run import Run


def main(run: Path) -> None:
    """Render the summary of a finished run, 80 columns wide."""
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False)
    OUT.__dict__["console"] = console
    print_summary(Run(run))
    picture = Path(__file__).parent / "images" / "score.svg"
    drawn = console.export_svg(title="noisescope score hh-rlhf")
    drawn = re.sub(r"@font-face {.*?}", "", drawn, flags=re.DOTALL)  # no font from the network
    picture.write_text(drawn.replace("Fira Code", "DejaVu Sans Mono"), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
