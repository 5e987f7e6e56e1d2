"""The report's list of pairs in a real browser: facets, keys, decisions, downloads, `apply`."""

from __future__ import annotations

import csv
import json
import time

import pyarrow.parquet as pq
import pytest
from helpers.browser import CONTRAST
from helpers.planted_run import HOSTILE, planted_run
from helpers.toy_run import rows, toy
from test_report import packed_in

from noisescope import cli
from noisescope.report import listing
from noisescope.report.contents import gather
from noisescope.report.html import page


def keyed(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def wait(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def choose(browser, name, value):
    """Choose an option of a filter, as a person does."""
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", f"f-{name}")).select_by_value(value)


def options(browser, name):
    script = (
        "return [...document.querySelectorAll('#f-' + arguments[0] + ' option')].map(o => o.text)"
    )
    return browser.execute_script(script, name)


def line(browser, name="count"):
    return browser.find_element("id", name).text


def current(browser):
    return browser.find_element("css selector", ".pair.current").get_attribute("data-id")


def decided(browser):
    script = "return Object.entries(localStorage).filter(([key]) => key.includes('decisions'))"
    found = browser.execute_script(script)
    return json.loads(found[0][1]) if found else {}


@pytest.fixture
def opened(browser, tmp_path):
    """The page of 400 pairs by seven annotators from two files."""
    path = tmp_path / "report.html"
    path.write_text(page(gather(planted_run(tmp_path / "runs"))), "utf-8")
    browser.get(path.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    return browser


def test_facets_count_and_filter_all_pairs(opened):
    assert line(opened) == "Pairs 1 to 20 of 400 that match; 400 in all."
    by_annotator = options(opened, "annotator")
    assert len(by_annotator) == 8
    assert sum(int(text.rpartition("(")[2].rstrip(")")) for text in by_annotator[1:]) == 400
    assert options(opened, "source") == ["all", "part-0.jsonl (200)", "part-1.jsonl (200)"]
    assert sum(int(text.rpartition("(")[2].rstrip(")")) for text in options(opened, "p")[1:]) == 400
    choose(opened, "annotator", "<b>ann-3</b>")
    wait(lambda: line(opened) == "Pairs 1 to 20 of 57 that match; 400 in all.")
    choose(opened, "source", "part-1.jsonl")
    wait(lambda: "of 29 that match" in line(opened))
    shown = opened.find_elements("css selector", ".pair header")
    assert all("by <b>ann-3</b>" in head.text and "part-1.jsonl:" in head.text for head in shown)
    opened.find_element("id", "f-words").send_keys("Question 399")
    assert line(opened) == "No pair matches."
    opened.find_element("css selector", "#filters button").send_keys(" ")
    wait(lambda: "of 400 that match" in line(opened))
    opened.find_element("id", "f-words").send_keys("Question 399")
    assert "of 1 that match" in line(opened)


def test_pages_and_links_reach_every_pair(opened):
    ids = [pair["id"] for pair in packed_in(opened.page_source)["pairs"]]
    previous, next_ = opened.find_elements("css selector", "#pages button")
    assert not previous.is_enabled()
    opened.execute_script("arguments[0].click()", next_)
    assert line(opened).startswith("Pairs 21 to 40 of 400")
    assert current(opened) == ids[20]
    opened.execute_script("location.hash = 'pair=' + arguments[0]", ids[399])
    wait(lambda: current(opened) == ids[399])
    assert line(opened).startswith("Pairs 381 to 400")
    opened.refresh()
    wait(lambda: current(opened) == ids[399])
    opened.execute_script("location.hash = 'annotator=' + encodeURIComponent('<b>ann-3</b>')")
    wait(lambda: "of 57 that match" in line(opened))
    opened.execute_script("location.hash = 'pair=' + arguments[0]", ids[0])  # by another annotator
    wait(lambda: current(opened) == ids[0])
    assert "of 400 that match" in line(opened)
    opened.execute_script("location.hash = 'pair=%3Cimg%20src%3Dx%3E'")
    wait(lambda: line(opened) == "Pair <img src=x> is not on this page.")


def test_keys_decide_only_about_a_pair_in_sight(opened):
    opened.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
    opened.execute_script("document.getElementById('again').scrollIntoView()")
    keyed(opened, "f")
    assert decided(opened) == {}
    keyed(opened, "f")
    assert [one["decision"] for one in decided(opened).values()] == ["flip"]
    opened.find_element("id", "f-words").send_keys("kfdu")
    assert len(decided(opened)) == 1


def test_marks_of_the_judge_and_of_words(opened):
    worst = opened.find_element("css selector", ".pair .side.rejected")
    assert "the judge prefers this" in worst.text
    compared = opened.execute_script(
        "const node = document.createElement('div');"
        "const [a] = compareWords('one two  three four', 'one 2 three  four five');"
        "showWords(node, a); return [node.innerHTML, node.textContent,"
        " compareWords('a b c d', 'x y z w'), compareWords('w '.repeat(999), 'v '.repeat(999))]"
    )
    assert compared == [
        "one <mark>two</mark>  three four", "one two  three four", None, None,
    ]  # fmt: skip


def test_thirty_decisions_by_keyboard_correct_the_dataset(browser, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scored = toy(tmp_path)
    path = tmp_path / "report.html"
    assert cli.run(["report", str(scored.run.directory), "-o", str(path)]) == 0
    browser.get(path.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    browser.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
    browser.execute_script("document.querySelector('.pair h3 a').click()")
    order = [pair["id"] for pair in packed_in(path.read_text("utf-8"))["pairs"]]
    typed = "ffkdufkffd" * 3
    for at, key in enumerate(typed):
        assert current(browser) == order[at]
        keyed(browser, key)
    meant = {"k": "keep", "f": "flip", "d": "drop", "u": "unsure"}
    expected = {order[at]: meant[key] for at, key in enumerate(typed)}
    assert {name: one["decision"] for name, one in decided(browser).items()} == expected
    assert line(browser, "tally").startswith(
        "30 of 120 done · 15 of 21 were really wrong so far (the"
    )
    browser.refresh()
    assert {name: one["decision"] for name, one in decided(browser).items()} == expected
    assert line(browser, "tally").startswith("30 of 120 done")
    choose(browser, "decision", "flip")
    wait(lambda: "of 15 that match" in line(browser))

    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    browser.execute_script("document.querySelector('[data-download=decisions]').click()")
    wait((tmp_path / "decisions.csv").exists)
    with (tmp_path / "decisions.csv").open(newline="", encoding="utf-8") as stream:
        written = list(csv.DictReader(stream))
    assert {row["pair_id"]: row["decision"] for row in written} == expected

    capsys.readouterr()
    assert cli.run(["apply", "decisions.csv"]) == 0
    assert capsys.readouterr().out.startswith("6 keep, 15 flip, 6 drop, 3 unsure\n")
    place = dict(
        zip(
            pq.read_table(scored.run.pairs_path).column("pair_id").to_pylist(),
            range(120),
            strict=True,
        )
    )
    lines = (tmp_path / "toy.jsonl").read_bytes().splitlines(keepends=True)
    for name, decision in expected.items():
        pair = rows()[place[name]]
        if decision == "flip":
            flipped = pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}
            lines[place[name]] = json.dumps(flipped).encode() + b"\n"
        elif decision == "drop":
            lines[place[name]] = b""
    assert (tmp_path / "exports" / "toy-1-applied" / "toy.jsonl").read_bytes() == b"".join(lines)

    browser.execute_script("document.querySelector('.above [data-download=list]').click()")
    wait((tmp_path / "suspects.csv").exists)
    with (tmp_path / "suspects.csv").open(newline="", encoding="utf-8") as stream:
        listed = list(csv.DictReader(stream))
    assert len(listed) == 15
    assert {row["decision"] for row in listed} == {"flip"}


def test_decisions_are_taken_back_and_other_tabs_keep_theirs(opened):
    first = opened.find_element("css selector", ".pair .choice.flip")
    opened.execute_script("arguments[0].click()", first)
    assert first.get_attribute("aria-pressed") == "true"
    opened.execute_script("arguments[0].click()", first)
    assert first.get_attribute("aria-pressed") == "false"
    assert decided(opened) == {}
    opened.execute_script(
        "const data = JSON.parse(document.getElementById('data').textContent);"
        "const key = 'noisescope:decisions:' + data.dataset;"
        "localStorage.setItem(key, JSON.stringify({other: {decision: 'keep', note: ''}, bad: 7}))"
    )
    opened.execute_script("arguments[0].click()", first)  # another tab's decision is not lost
    assert {name: one["decision"] for name, one in decided(opened).items()} == {
        "other": "keep", current(opened): "flip",
    }  # fmt: skip


def test_cells_are_quoted_and_no_formulas(opened):
    found = opened.execute_script(
        "return [csv([['a,b', 'c\"d', 'e\\nf', 3]]), inert('=1+1'), inert('plain'), inert('-2')]"
    )
    assert found == ['"a,b","c""d","e\nf",3\r\n', "'=1+1", "plain", "'-2"]


def test_hostile_text_is_inert_in_the_list(opened):
    assert HOSTILE[:40] in opened.find_element("id", "list").text
    assert not opened.find_elements(
        "css selector", "#list img, #list script, #list b b, #list textarea"
    )
    assert "report" in opened.title


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_with_decisions(opened, scheme):
    chosen = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": chosen})
    opened.execute_script("document.querySelector('.choice.keep').click()")
    opened.execute_async_script("setTimeout(arguments[0], 100)")
    found = opened.execute_script(CONTRAST)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert found == {}


def test_pairs_that_do_not_fit_are_counted(tmp_path, monkeypatch):
    contents = gather(planted_run(tmp_path))
    monkeypatch.setattr(listing, "BUDGET", 20_000)
    packed = json.loads(listing.listing(contents))
    assert 20 < len(packed["pairs"]) < 200
    assert [pair["rank"] for pair in packed["pairs"]] == list(range(1, len(packed["pairs"]) + 1))
    assert packed["total"] == 400
    assert sum(count for _, count in packed["facets"]["annotator"]) == 400


def test_what_is_not_on_the_page_is_stated(browser, tmp_path):
    contents = gather(planted_run(tmp_path / "runs"), worst=30)
    path = tmp_path / "report.html"
    path.write_text(page(contents), "utf-8")
    browser.get(path.as_uri())
    assert "The 30 most suspicious of 400 pairs are on this page." in line(browser)
    assert (
        "(57, " in options(browser, "annotator")[1] or "(58, " in options(browser, "annotator")[1]
    )
    assert "on this page)" in options(browser, "annotator")[1]
