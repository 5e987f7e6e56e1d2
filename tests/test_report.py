"""The report page: complete in itself, deaf to what dataset text asks for, usable by keyboard.

The last part opens it in headless Chromium; it is skipped where that is not installed
(Debian: apt-get install chromium chromium-driver; then pip install selenium).
"""

from __future__ import annotations

import http.server
import io
import itertools
import json
import re
import shutil
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import CONTRAST
from helpers.planted_run import HOSTILE, planted_run
from rich.console import Console

from noisescope.cli.report import print_report
from noisescope.cli.show import find_pair, pair_of_rank
from noisescope.errors import RunError, UsageError
from noisescope.report.contents import gather, held_out_losses, write_figures
from noisescope.report.ground_truth import Known
from noisescope.report.html import page, verdict
from noisescope.scoring.annotators import Annotator
from noisescope.scoring.metrics import Interval
from noisescope.storage.printable import printable
from noisescope.storage.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return planted_run(tmp_path_factory.mktemp("runs"), steps=3)


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    return page(gather(run))


class Outline(HTMLParser):
    """Tags with their attributes, and the page's visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_loads_nothing(html: str) -> None:
    outline = Outline(html)
    assert not outline.of("link")
    assert not outline.of("iframe")
    addresses = [a.get(key) for _, a in outline.tags for key in ("src", "srcset", "href")]
    assert all(re.match(r"#|data:image/", address) for address in addresses if address)
    assert "url(" not in html
    assert "@import" not in html
    policy = next(a["content"] for a in outline.of("meta") if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_dataset_text_is_text(html: str) -> None:
    assert "<script>document.title" not in html
    assert "<img src=x" not in html
    assert "{{ 7 * 7 }}" in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert [a.get("type") for a in Outline(html).of("script")] == ["application/json", None]
    assert not [a for _, a in Outline(html).tags for key in a if key.startswith("on")]


def test_everything_has_a_name(html: str) -> None:
    outline = Outline(html)
    labels = {a["for"] for a in outline.of("label")}
    fields = [a["id"] for tag in ("input", "select") for a in outline.of(tag)]
    assert set(fields) == labels
    assert all(a.get("alt") for a in outline.of("img"))
    assert all(a.get("scope") for a in outline.of("th"))
    assert outline.of("main")
    assert outline.of("nav")
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))


def packed_in(html: str) -> dict[str, Any]:
    """The data of the page's script."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return dict(json.loads(text))


def test_the_same_run_gives_the_same_page(run: Run, html: str) -> None:
    assert page(gather(run)) == html


def test_the_worst_pairs_come_first_and_in_full(run: Run, html: str) -> None:
    contents = gather(run)
    assert [pair["rank"] for pair in contents.pairs] == list(range(1, 401))
    assert contents.pairs[0]["chosen"] == HOSTILE
    packed = packed_in(html)
    assert [pair["rank"] for pair in packed["pairs"]] == list(range(1, 401))
    assert packed["pairs"][0]["chosen"]["text"] == printable(HOSTILE, lines=True)
    names = {picture.name for picture in contents.pictures}
    assert names == {
        "p-wrong",
        "data-map",
        "by-source",
        "by-length",
        "learning-curves",
    }


def test_no_annotator_has_a_flip_rate_where_the_dataset_has_none(run: Run, html: str) -> None:
    """Not identifiable: neither the page nor a figure gives one, and the page has the reason."""
    assert not run.manifest()["summary"]["flip_rate"]["identifiable"]
    table = html[html.index('id="annotators-title"') : html.index('id="method-title"')]
    assert "no flip rate is given for an annotator" in table
    assert '<th scope="col">Flip rate</th>' not in table
    assert '<th scope="col">Agree with the replicas</th>' in table


def test_figures_are_written_as_png_and_svg(run: Run, tmp_path: Path) -> None:
    pictures = gather(run).pictures[:1]
    assert [path.name for path in write_figures(pictures, tmp_path)] == [
        "p-wrong.png",
        "p-wrong.svg",
    ]


def test_losses_are_those_of_the_held_out_margins(run: Run) -> None:
    steps, losses = held_out_losses(run)
    assert steps == [10, 20, 30]
    assert losses.shape == (4, 3)
    assert 0 < losses.max() < 2


def test_the_terminal_report_prints_hostile_text_harmlessly(run: Run) -> None:
    sink = io.StringIO()
    print_report(gather(run), Console(file=sink, width=100))
    text = sink.getvalue()
    assert "\x1b[31m" not in text
    assert "[bold]markup[/bold]" in " ".join(text.split())


def test_the_terminal_report_tells_what_is_known_and_who_errs(run: Run) -> None:
    contents = gather(run)
    found = {"u": Interval(0.6, 0.5, 0.7), "p_flip": Interval(0.9, 0.8, 0.95)}
    known = Known({}, np.ones(1, bool), "Planted: 20 % of the labels.", found, 0.95)
    careless = Annotator("<b>ann</b>", 80, 0.2, 0.7, 0.6, 0.8, True, True)
    fine = Annotator("fine", 90, 0.9, 0.1, 0.05, 0.2, False, False)
    sink = io.StringIO()
    full = replace(contents, known=known, annotators=[careless, fine])
    full.manifest["summary"]["notes"].append("A note.")
    print_report(full, Console(file=sink, width=100))
    text = sink.getvalue()
    for told in (
        "• A note.",
        "Planted: 20 %",
        "0.800 to 0.950",
        "<b>ann</b>",
        "noisescope validate",
    ):
        assert told in text
    assert re.search(r"^p_flip +0.900 .*\n^u +0.600", text, re.MULTILINE)


def test_show_finds_by_unmistakable_beginning(run: Run) -> None:
    full = gather(run).pairs[0]["pair_id"]
    assert find_pair(run, full[:12])["chosen"] == HOSTILE
    assert find_pair(run, full)["rank"] == 1
    with pytest.raises(UsageError, match="400 pairs begin with"):
        find_pair(run, "")
    with pytest.raises(UsageError, match="no pair begins with"):
        find_pair(run, "zzz")


def test_show_finds_by_rank(run: Run) -> None:
    assert find_pair(run, pair_of_rank(run, 2))["rank"] == 2
    with pytest.raises(UsageError, match="no pair of rank 401"):
        pair_of_rank(run, 401)


def test_a_manifest_that_states_too_little_is_refused(run: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.directory, copy.directory)
    manifest = copy.manifest()
    copy.write_manifest({k: v for k, v in manifest.items() if k not in ("facts", "model")})
    with pytest.raises(RunError, match=r"does not contain: model, facts"):
        gather(copy)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a finished run"):
        gather(Run(tmp_path))


def test_printable_keeps_text_and_drops_tricks() -> None:
    assert printable("a\r\nb\tc\x00\u202ed", lines=True) == "a\nb\tc\ufffd\ufffdd"
    assert printable("a\r\nb\tc\x85\ufffe") == "a  b c\ufffd\ufffd"
    assert printable("👩\u200d🚀 é") == "👩\u200d🚀 é"


def test_a_run_at_chance_supports_no_verdict(run: Run) -> None:
    assert "no verdict" in verdict({**gather(run).summary, "chance": True})


@pytest.fixture
def opened(browser: Any, html: str, tmp_path: Path) -> Any:
    path = tmp_path / "report.html"
    path.write_text(html, "utf-8")
    browser.get(path.as_uri())
    return browser


def test_injected_script_does_not_run(opened: Any) -> None:
    opened.execute_async_script("setTimeout(arguments[0], 100)")
    assert "owned" not in opened.title
    assert "<script>document.title" in opened.find_element("id", "list").text
    assert not opened.find_elements("css selector", "#list img, #list script, #list b b")


def test_policy_stops_what_would_slip_through(opened: Any) -> None:
    opened.execute_script(
        "const s = document.createElement('script'); s.textContent = \"document.title = 'owned'\";"
        "document.body.append(s); const d = document.createElement('div');"
        "d.innerHTML = '<img src=x onerror=\"document.title = 1\">'; document.body.append(d);"
    )
    opened.execute_async_script("setTimeout(arguments[0], 100)")
    assert "report" in opened.title


def test_no_request_leaves_the_page(browser: Any, html: str) -> None:
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(html.encode() if self.path == "/report.html" else b"")

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get_log("performance")
        browser.get(f"http://127.0.0.1:{server.server_port}/report.html")
        browser.execute_async_script("setTimeout(arguments[0], 200)")
        sent = [e["message"] for e in browser.get_log("performance")]
        server.shutdown()
    assert set(asked) <= {"/report.html", "/favicon.ico"}
    urls = [u for m in sent for u in re.findall(r'"request":\{[^{}]*"url":"([^"]+)"', m)]
    assert all(
        re.match(r"http://127\.0\.0\.1:\d+/(report\.html|favicon\.ico)$|data:", u) for u in urls
    )


def test_every_control_is_reached_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(60):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        focus = opened.switch_to.active_element
        reached.append(focus.get_attribute("id") or focus.get_attribute("class") or focus.text)
    assert reached[0] == "skip"
    filters = {f"f-{name}" for name in ("words", "p", "annotator", "source", "decision")}
    assert filters | {"Clear", "forget", "choice keep", "choice flip", "note", "id"} <= set(reached)
    opened.execute_script("document.querySelector('.skip').focus()")
    assert opened.find_element("css selector", ".skip").is_displayed()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows_sideways(opened: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wide = opened.execute_script("return document.documentElement.scrollWidth")
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width


def test_the_console_stays_silent(opened: Any) -> None:
    opened.get_log("browser")
    opened.refresh()
    assert opened.get_log("browser") == []


NAMED = {
    "button",
    "searchbox",
    "spinbutton",
    "combobox",
    "image",
    "link",
    "article",
    "region",
    "textbox",
}
LANDMARKS = {"main", "navigation", "banner", "form", "status"}


def test_a_screen_reader_hears_what_everything_is(opened: Any) -> None:
    nodes = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    heard = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in nodes
        if not node["ignored"]
    ]
    assert {role for role, _ in heard} >= LANDMARKS
    assert [role for role, name in heard if role in NAMED and not name] == []
    assert ("combobox", "Annotator") in heard
    levels = [
        int(tag[1]) for tag, _ in Outline(opened.page_source).tags if re.fullmatch("h[1-6]", tag)
    ]
    assert all(after <= before + 1 for before, after in itertools.pairwise([0, *levels]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_in_the_dark(opened: Any, scheme: str) -> None:
    chosen = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": chosen})
    opened.execute_async_script("setTimeout(arguments[0], 100)")
    assert opened.execute_script(CONTRAST) == {}
    pictures = opened.execute_script(
        "return [...document.querySelectorAll('picture')].map(p => "
        "p.querySelector('img').currentSrc === p.querySelector('source').srcset)"
    )
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert set(pictures) == {scheme == "dark"}
