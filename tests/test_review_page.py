"""The review page in a real browser: keys, undo, kill and resume, hostile text, two tabs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from helpers.browser import CONTRAST
from helpers.planted_run import HOSTILE
from helpers.toy_run import rows, scored_run, write_lines

from noisescope.datasets import load
from noisescope.storage.reviews import FILE, read_log, side_key


@pytest.fixture
def run(tmp_path):
    """Forty pairs; every chosen side is hostile text."""
    write_lines(
        tmp_path / "toy.jsonl",
        [row | {"chosen": f"{HOSTILE} {number}"} for number, row in enumerate(rows(40))],
    )
    return scored_run(load(tmp_path / "toy.jsonl"), tmp_path / "runs" / "toy-1").run


@contextmanager
def reviewing(run, *options):
    """The command at work, and its page's address."""
    command = [sys.executable, "-m", "noisescope", "review", str(run.directory), "--no-browser"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "300"},
    )
    with process:
        lines = []
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/\S+/", "".join(lines[-1:]))):
            line = process.stderr.readline()
            assert line, lines
            lines.append(line)
        try:
            yield process, found[0]
        finally:
            process.kill()


def log(run):
    return read_log([run.directory / FILE])


def count(browser):
    return browser.find_element("id", "count").text


def wait(browser, condition, seconds=10.0):
    """Until the page fulfils `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(browser.find_element("tag name", "body").text)


def press(browser, key):
    """Press one key, and wait until it has had its effect."""
    from selenium.webdriver.common.action_chains import ActionChains

    before = count(browser)
    ActionChains(browser).send_keys(key).perform()
    wait(browser, lambda: count(browser) != before)


def opened(browser, url):
    browser.get(url)
    wait(browser, lambda: count(browser))


def test_twenty_answers_by_keyboard(browser, run):
    with reviewing(run, "--reviewer", "ann", "--count", "30") as (process, url):
        opened(browser, url)
        assert count(browser) == "0 of 30"
        assert "ann" in browser.find_element("css selector", ".who").text
        keys = "12ts1" * 4
        for key in keys:
            press(browser, key)
        assert count(browser) == "20 of 30"
        press(browser, "u")
        assert count(browser) == "19 of 30"
        press(browser, "2")
        answers = [answer.answer for answer in log(run).answers]
        names = {"1": "first", "2": "second", "t": "tie", "s": "skip"}
        assert answers == [names[key] for key in keys[:-1]] + ["second"]
        shown = browser.find_element("css selector", "#side-1 .text").text
        browser.refresh()
        wait(browser, lambda: count(browser) == "20 of 30")
        assert browser.find_element("css selector", "#side-1 .text").text == shown
        process.kill()
        process.wait()
    with reviewing(run, "--reviewer", "ann", "--count", "30") as (process, url):
        opened(browser, url)
        assert count(browser) == "20 of 30"
        assert browser.find_element("css selector", "#side-1 .text").text == shown
        press(browser, "u")  # also what was answered before the kill
        for key in "11111111111":
            press(browser, key)
        assert browser.find_element("id", "done").is_displayed()
        browser.find_element("id", "finish").click()
        output, _ = process.communicate(timeout=20)
    assert "reviewed: " in output
    assert "by 1 reviewer" in output
    assert len(log(run).answers) == 30


def test_the_answer_names_the_side_that_was_shown(browser, run):
    with reviewing(run, "--count", "30") as (_, url):
        opened(browser, url)
        for _ in range(10):
            first = browser.find_element("css selector", "#side-1 .text").text
            press(browser, "1")
            found = log(run).answers[-1]
            assert ("second " in first) == (
                found.better in {side_key(f'second "{i}"') for i in range(40)}
            )
        lefts = {answer.sides[0] == answer.better for answer in log(run).answers}
        assert lefts == {True}
        chosen = {side_key(f"{HOSTILE} {number}") for number in range(40)}
        order = [answer.sides[0] in chosen for answer in log(run).answers]
        assert len(set(order)) == 2  # the label's side is on either side


def test_hostile_text_is_inert(browser, run):
    with reviewing(run) as (_, url):
        opened(browser, url)
        browser.get_log("browser")
        for _ in range(5):
            press(browser, "s")
        assert browser.title == "Review · noisescope"
        assert "<script>" in browser.find_element("id", "pair").text
        assert not browser.find_elements("css selector", "main img, main script, main b")
        assert "\u202e" not in browser.find_element("id", "pair").text
        browser.execute_script(
            "const s = document.createElement('script'); s.textContent = 'document.title = 1';"
            "document.body.append(s); const i = document.createElement('img');"
            "i.src = 'http://127.0.0.1:9/x'; document.body.append(i)"
        )
        browser.execute_async_script("setTimeout(arguments[0], 100)")
        assert browser.title == "Review · noisescope"
        refused = [entry["message"] for entry in browser.get_log("browser")]
        assert len([text for text in refused if "Content Security Policy" in text]) == 2


def test_two_tabs_merge(browser, run):
    with reviewing(run) as (_, url):
        opened(browser, url)
        one = browser.current_window_handle
        browser.switch_to.new_window("tab")
        opened(browser, url)
        two = browser.current_window_handle
        press(browser, "1")
        press(browser, "1")
        browser.switch_to.window(one)
        answered = browser.execute_async_script(
            "const done = arguments[1];"
            "fetch('answer', {method: 'POST', headers: {'Content-Type': 'application/json'},"
            "body: JSON.stringify({pair: arguments[0], answer: 'second'})})"
            ".then(r => done(r.status))",
            log(run).answers[0].content_id,
        )
        assert answered == 409
        assert [answer.answer for answer in log(run).answers] == ["first", "first"]
        wait(browser, lambda: count(browser) == "2 of 40")
        browser.switch_to.window(two)
        browser.close()
        browser.switch_to.window(one)


def test_a_second_process_is_refused(run):
    with reviewing(run, "--reviewer", "ann"):
        again = subprocess.run(
            [sys.executable, "-m", "noisescope", "review", run.directory, "--reviewer", "ann"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 2
        assert "in another process" in again.stderr
        with reviewing(run, "--reviewer", "bob"):
            pass


def fetch(url, data=None, **headers):
    request = urllib.request.Request(
        url, data, {k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def preflight(url):
    """Status of the question whether another origin may post here, and what permits it."""
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    request = urllib.request.Request(url, headers=asked, method="OPTIONS")
    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(request):
        pass
    with refused.value as error:
        return error.code, [name for name in error.headers if name.startswith("Access-Control")]


def test_only_the_page_itself_is_answered(run):
    with reviewing(run) as (_, url):
        root, token = url.rstrip("/").rsplit("/", 1)
        status, headers, _ = fetch(url)
        assert status == 200
        assert headers["Content-Security-Policy"].startswith(
            "default-src 'none'; connect-src 'self'"
        )
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert not [name for name in headers if name.startswith("Access-Control")]
        state = json.loads(fetch(url + "state")[2])
        assert {"chosen", "rejected", "label"}.isdisjoint(json.dumps(state).split('"'))
        good = json.dumps({"pair": state["pair"]["id"], "answer": "first"}).encode()
        kind = {"Content_Type": "application/json"}
        refused = [
            fetch(f"{root}/"),
            fetch(f"{root}/{token}x/state"),
            fetch(f"{root}/state"),
            fetch(url + "../../etc/passwd"),
            fetch(url + "image/../../../etc/passwd"),
            fetch(url + "image/" + "0" * 20),
            fetch(url + "state", Host="evil.example"),
            fetch(url + "state", Host="evil.example:80"),
            fetch(url + "state", Host=f"0.0.0.0:{root.rpartition(':')[2]}"),
            fetch(url + "state", Sec_Fetch_Site="same-site"),
            fetch(url + "image/%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
            fetch(url + "answer", good, Origin="https://evil.example", **kind),
            fetch(url + "answer", good, Origin="null", **kind),
            fetch(url + "answer", good, Sec_Fetch_Site="cross-site", **kind),
            fetch(url + "answer", good, Content_Type="text/plain"),
            fetch(url + "answer", good),
            fetch(url + "answer", b"[" * 3000, **kind),
            fetch(url + "answer", b'{"pair": 1, "answer": "first"}', **kind),
            fetch(url + "answer", good.replace(b"first", b"third"), **kind),
            fetch(url + "answer", b" " * 5000 + good, **kind),
            fetch(f"{root}/{token}x/answer", good, **kind),
        ]
        assert [status for status, _, _ in refused if status < 400] == []
        assert preflight(url + "answer") == (501, [])
        assert not log(run).answers
        assert fetch(url + "answer", good, Origin=root, **kind)[0] == 200
        assert len(log(run).answers) == 1


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_text_can_be_read(browser, run, width, scheme):
    with reviewing(run) as (_, url):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chosen = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": chosen})
        opened(browser, url)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        low = browser.execute_script(CONTRAST)
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        assert wide <= width
        assert {name: ratio for name, ratio in low.items() if "disabled" not in name} == {}
