"""The page in a real browser: it judges, names what is wrong, and runs no text that a model or a person wrote."""

import json
import shutil
import socket
import threading
import urllib.request

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from dwrl_jax.serving.server import make_app
from dwrl_jax.serving.service import make_service
from tests.serving.conftest import SETTINGS, until


@pytest.fixture(scope="module")
def address(judge):
    """The server behind a real socket, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        service = make_service(judge, SETTINGS, "random")
        running = uvicorn.Server(uvicorn.Config(make_app(service), log_level="error"))
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        until(lambda: service.batcher.warm)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,1250"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, Driver(driver))
    yield browser
    browser.quit()


def judged(browser, address, conversation, responses, votes="4"):
    """Fill in the page and press its button; wait for results or a problem."""
    browser.get(address)
    fields = {"conversation": conversation, "votes": votes}
    browser.find_element(By.ID, "votes").clear()
    for _ in responses[2:]:
        browser.find_element(By.ID, "more").click()
    fields |= {f"response{number}": text for number, text in enumerate(responses, 1)}
    for name, text in fields.items():
        browser.find_element(By.ID, name).send_keys(text)
    browser.find_element(By.ID, "judge").click()
    shown = (By.CSS_SELECTOR, "article"), (By.CSS_SELECTOR, "#problem:not(:empty)")
    WebDriverWait(browser, 30).until(lambda page: any(page.find_elements(*place) for place in shown))


def test_the_page_shows_thoughts_scores_and_votes(browser, address):
    judged(browser, address, "s1 o1 o2 o3 o4 o5", ["s2 warm", "s5 curt", "s3 plain"])
    cards = browser.find_elements(By.CSS_SELECTOR, "article")
    assert len(cards) == 3 and len(browser.find_elements(By.CSS_SELECTOR, "article.best")) >= 1
    asked = {"messages": "s1 o1 o2 o3 o4 o5", "responses": ["s2 warm", "s5 curt", "s3 plain"], "votes": 4}
    asked = json.dumps(asked | {"return": ["thoughts"]}).encode()
    request = urllib.request.Request(f"{address}/v1/judge", asked, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        thoughts = json.load(answer)["thoughts"]
    assert "<" in str(thoughts), "no thought could be taken for a tag"
    for card, written in zip(cards, thoughts):
        votes = [float(cell.text) for cell in card.find_elements(By.CSS_SELECTOR, "td.vote")]
        score = float(card.find_element(By.CSS_SELECTOR, ".score").text)
        assert len(votes) == 4 and score == pytest.approx(sum(votes) / 4, abs=1e-4)
        assert [cell.text for cell in card.find_elements(By.CSS_SELECTOR, "td.thought")] == written
    assert "random, a judge of kind verdict" in browser.find_element(By.ID, "about").text
    assert not [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]


def test_the_page_names_what_is_wrong_and_runs_no_text(browser, address):
    judged(browser, address, "s1 <img/src=x/onerror=document.title='run'>", ["s2 warm"])
    problem = browser.find_element(By.ID, "problem").text
    assert problem.startswith("messages: unknown word: <img/src=x") and browser.title == "A judge at work"
    assert not browser.find_elements(By.CSS_SELECTOR, "article, #problem img")
