"""A real browser for tests of pages, and texts that a page must not take for anything but text."""

import json
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver

RUN = "window.hacked=1"
FRAGMENTS = (  # each ends another surrounding
    f"<script>{RUN}</script>",
    f'"><img src=x onerror="{RUN}">',
    f"'><svg onload={RUN}>",
    f'<a href="javascript:{RUN}" autofocus onfocus={RUN}>here</a>',
    f"</script></style></title></textarea>]]><!--<script>{RUN}</script>-->",
    f'x" onmouseover="{RUN}" style="position:fixed;inset:0',
    "<meta http-equiv=refresh content='0;url=https://example.invalid/'><link rel=stylesheet href=//example.invalid/a>",
    "<iframe src=https://example.invalid/></iframe><base href=https://example.invalid/>",
    "&lt;script&gt; {{ 7 * 7 }} ${7 * 7} {% raw %} \u2028\u2029\u202e\x00\x1b[31m $x^2$",
)
HOSTILE = " ".join((*FRAGMENTS, "W" * 2000))
HOSTILE_NAME = f"x\"'><img src=x onerror={RUN}>&amp;"  # a name that a file may have


def start():
    """Chromium without a window, which keeps a log of its console and of all that it fetches."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,1250"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, Driver(driver))


def visit(browser, address: str) -> None:
    """Go to an address, with empty logs."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)


def fetched(browser) -> list[str]:
    """The addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def assert_no_text_ran(browser, own: str, kinds="script, img, iframe, a, link, object, embed, form, base") -> None:
    """No script ran, nothing has a handler, the console is empty, and nothing but addresses from `own` on was fetched.

    `kinds` are elements of which there may be none.
    """
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert browser.get_log("browser") == []
    assert [url for url in fetched(browser) if not url.startswith((own, "data:"))] == []
    assert browser.execute_script("return document.querySelectorAll(arguments[0]).length", kinds) == 0
    handlers = "[...document.querySelectorAll('*')].flatMap(x => x.getAttributeNames()).filter(x => x.startsWith('on'))"
    assert browser.execute_script(f"return {handlers}") == []
    wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    width, room = browser.execute_script(wide)
    assert width <= room, "a long word made the page wider"
