"""Draw the pictures of the README and the tutorial from a finished run of the sample.

noisescope score hh-rlhf && python docs/make_pictures.py runs/hh-rlhf-1a2b3c4d

docs/images: score.svg is the summary screen, report-first.png and report-pairs.png are the page in
Chromium, and recording.gif goes from the screen over the page to the corrected copy. The decisions
in it are those of the sample's truth. Nothing is written into the run's own reviews.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text
from selenium import webdriver

from noisescope.cli.console import OUT
from noisescope.cli.summary import print_summary
from noisescope.report.html import write_report
from noisescope.storage.run import Run

IMAGES = Path(__file__).parent / "images"
TERMINAL = "margin:0;padding:22px 26px;color:#1d2129;font:17px/1.38 DejaVu Sans Mono"
#: Size of a frame, and seconds that a screen, a page and a decision are shown.
WIDTH, HEIGHT = 1000, 640
SCREEN, PAGE, DECISION = 5.0, 3.0, 1.0
DECISIONS = 5


def drawn(print_it: Callable[[], None]) -> Console:
    """A recording console of 80 columns with what `print_it` prints."""
    console = Console(record=True, width=80, file=io.StringIO(), highlight=False)
    OUT.__dict__["console"] = console
    print_it()
    return console


def score_picture(run: Path) -> None:
    """Write score.svg, without a font from the network."""
    svg = drawn(lambda: print_summary(Run(run))).export_svg(title="noisescope score hh-rlhf")
    svg = re.sub(r"@font-face {.*?}", "", svg, flags=re.DOTALL)
    (IMAGES / "score.svg").write_text(svg.replace("Fira Code", "DejaVu Sans Mono"), "utf-8")


def terminal(command: str, output: Console | str) -> str:
    """A page that looks like a terminal after `command`."""
    console = drawn(lambda: OUT.print(Text(f"$ {command}", style="bold")))
    if isinstance(output, str):
        text = output
        output = drawn(lambda: OUT.print(Text(text)))
    pre = '<pre style="margin:0 0 1em;font:inherit">{code}</pre>'
    html = [one.export_html(inline_styles=True, code_format=pre) for one in (console, output)]
    return f'<body style="{TERMINAL}">{"".join(html)}'


class Recorder:
    """A browser whose screenshots become the frames of a film."""

    def __init__(self, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
            options.add_argument(flag)
        service = webdriver.ChromeService(str(shutil.which("chromedriver")))
        self.browser = webdriver.Chrome(options=options, service=service)
        self.folder = folder
        self.frames: list[tuple[Image.Image, float]] = []
        self.allow = {"behavior": "allow", "downloadPath": str(folder)}
        self.browser.execute_cdp_cmd("Browser.setDownloadBehavior", self.allow)

    def size(self, width: int, height: int) -> None:
        """Set the size of the picture."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def run(self, script: str) -> Any:
        """Run a script in the page."""
        return self.browser.execute_script(script)

    def picture(self) -> Image.Image:
        """What the browser shows, in 64 colours."""
        time.sleep(0.4)
        shot = Image.open(io.BytesIO(self.browser.get_screenshot_as_png()))
        return shot.convert("RGB").quantize(64, dither=Image.Dither.NONE)

    def hold(self, seconds: float) -> None:
        """Show the page for that long."""
        self.frames.append((self.picture(), seconds))

    def show(self, html: str, seconds: float) -> None:
        """Show a page for that long."""
        page = self.folder / "frame.html"
        page.write_text(f'<!doctype html><meta charset="utf-8">{html}', "utf-8")
        self.browser.get(page.as_uri())
        self.hold(seconds)

    def save(self, path: Path) -> None:
        """Write the film."""
        pictures = [frame for frame, _ in self.frames]
        lasting = [round(1000 * seconds) for _, seconds in self.frames]
        pictures[0].save(
            path, save_all=True, append_images=pictures[1:], duration=lasting, loop=0, optimize=True
        )


def decide(film: Recorder, count: int) -> None:
    """Press F where the truth of the sample says that the label is wrong, else K."""
    for _ in range(count):
        text = film.run("return document.querySelector('.pair.current').textContent")
        key = "f" if "known to be wrong" in text else "k"
        film.browser.find_element("tag name", "body").send_keys(key)
        film.hold(DECISION)


def applied(folder: Path, run: Path) -> str:
    """What `noisescope apply` prints about the decisions downloaded to `folder`."""
    words = ["apply", str(folder / "decisions.csv"), str(run), "-o", str(folder / "applied")]
    done = subprocess.run(
        [sys.executable, "-m", "noisescope", *words], capture_output=True, text=True, check=True
    )
    text = done.stdout.replace(str(folder / "applied"), f"exports/{run.name}-applied")
    return text.replace(f" --runs-dir {run.parent}", "").replace(str(run), f"runs/{run.name}")


def main(run: Path) -> None:
    """Draw all pictures of a finished run of the sample."""
    score_picture(run)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy = folder / "runs" / run.resolve().name
        shutil.copytree(run, copy)
        page, _ = write_report(Run(run), folder / "report.html")
        film = Recorder(folder)
        try:
            film.size(1280, 860)
            film.browser.get(page.as_uri())
            film.picture().save(IMAGES / "report-first.png", optimize=True)
            film.size(WIDTH, HEIGHT)
            screen = drawn(lambda: print_summary(Run(run)))
            film.show(terminal("noisescope score hh-rlhf", screen), SCREEN)
            film.browser.get(page.as_uri())
            film.run("document.documentElement.style.scrollBehavior = 'auto'")
            film.hold(PAGE)
            film.run("document.querySelector('.button.main').click()")
            film.run("document.querySelector('.pair h3 a').click()")
            film.hold(PAGE)
            decide(film, DECISIONS)
            film.size(1280, 480)
            film.picture().save(IMAGES / "report-pairs.png", optimize=True)
            film.size(WIDTH, HEIGHT)
            film.run("document.querySelector('[data-download=decisions]').click()")
            time.sleep(2)
            film.show(terminal("noisescope apply decisions.csv", applied(folder, copy)), SCREEN)
            film.save(IMAGES / "recording.gif")
        finally:
            film.browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
