"""The pages in a real browser: they sort, by mouse and by keyboard, say nothing on the console and ask nothing of any network."""

import io

import numpy as np
import pytest
from browser import Browser, need_chromium
from make_run import make_run
from PIL import Image

from raylora.report.compare import compare
from raylora.report.html import write_report

pytestmark = [pytest.mark.system, pytest.mark.slow]

COLUMN = """
const table = [...document.querySelectorAll("table.sortable")].find(t => t.caption.textContent.startsWith(arguments[0]));
return [...table.tBodies[0].rows].map(row => row.cells[arguments[1]].textContent.trim());
"""
HEADER = """
const table = [...document.querySelectorAll("table.sortable")].find(t => t.caption.textContent.startsWith(arguments[0]));
return table.tHead.rows[0].cells[arguments[1]]
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    need_chromium()
    root = tmp_path_factory.mktemp("pages")
    made = (("fedit", 0.85, 0.1), ("rate_my_lora", 0.9, 0.25), ("local", 0.8, 0.05))
    runs = [make_run(root / s, strategy=s, quality=q, rounds=2, config={"training.lr": lr}) for s, q, lr in made]
    return {"report": write_report(runs[0]), "comparison": compare(runs, replicates=200).write_html(root / "comparison.html")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_open_quietly_in_both_schemes(pages, tmp_path, scheme):
    with Browser(tmp_path / "profile", f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}") as browser:
        for name, page in pages.items():
            browser.open(page)
            assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 100)"), name
            assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth"), f"{name} is wider than the window"
            corner = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))[5, 5]
            assert (corner.max() < 60) == (scheme == "dark"), name
            turned = browser.run("return getComputedStyle(document.querySelector('img.light')).filter") != "none"
            assert turned == (scheme == "dark"), f"{name}: light pictures are turned in the dark"
            assert browser.console() == [], name
            asked = browser.requests()
            assert asked and [url[:60] for url in asked if not url.startswith(("file://", "data:"))] == [], name


def test_tables_sort_by_mouse_and_by_keyboard_with_missing_values_last(pages, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(pages["comparison"])
        title, validation = "Dice and cost", 2
        assert browser.run(COLUMN, title, 0) == ["frozen model", "fedit", "rate_my_lora", "local"]
        browser.run(HEADER + '.querySelector("button").click()', title, validation)
        shown = browser.run(COLUMN, title, validation)
        assert shown[-1] == "n/a" and shown[:-1] == sorted(shown[:-1], key=float, reverse=True)
        assert browser.run(HEADER + '.getAttribute("aria-sort")', title, validation) == "descending"
        assert "sorted by Validation, descending" in browser.run('return document.getElementById("said").textContent')
        browser.run(HEADER + '.querySelector("button").focus()', title, validation)
        browser.press("\ue007", HEADER + '.getAttribute("aria-sort") === "ascending"', title, validation)  # Enter
        shown = browser.run(COLUMN, title, validation)
        assert shown[-1] == "n/a" and shown[:-1] == sorted(shown[:-1], key=float)
        browser.run(HEADER + '.querySelector("button").click()', title, 0)
        assert browser.run(COLUMN, title, 0) == ["fedit", "frozen model", "local", "rate_my_lora"]
        assert browser.run("return document.querySelectorAll('[aria-sort]').length") == 1
        browser.run(HEADER + '.querySelector("button").click()', "What differs", 2)
        assert browser.run(COLUMN, "What differs", 2) == ["0.05", "0.1", "0.25"], "settings are words that are numbers here"
        assert browser.console() == []


def test_the_first_key_press_reaches_the_skip_link_and_details_open(pages, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(pages["report"])
        browser.press("\ue004", "return document.activeElement !== document.body")  # Tab
        assert browser.run("return document.activeElement.textContent") == "Skip to the content"
        browser.run('document.querySelector("figure summary").focus()')
        is_open = 'return document.querySelector("figure details").open'
        browser.press("\ue007", is_open)
        assert browser.run(is_open)
        assert browser.run('return document.querySelector("figure table").getBoundingClientRect().height > 40')
