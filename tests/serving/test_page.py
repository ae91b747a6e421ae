"""The page in a real browser: it judges, names what is wrong, and runs no text that a model or a person wrote."""

import json
import socket
import threading
import urllib.request

import pytest
import uvicorn
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from dwrl_jax.serving.server import make_app
from dwrl_jax.serving.service import make_service
from tests.browser import FRAGMENTS, HOSTILE, RUN, assert_no_text_ran, visit
from tests.serving.conftest import SETTINGS, until

FOREIGN = "img, iframe, a, svg, meta[http-equiv], base"  # elements that the page itself has not
ANSWERED = """
const said = arguments[0], ok = arguments[1];
window.fetch = async () => ({ ok, json: async () => said });
document.getElementById("results").replaceChildren();
await Promise.all([introduce(), judge(new Event("submit"))]);
"""


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


def judged(browser, address, conversation, responses, votes="4"):
    """Fill in the page and press its button; wait for results or a problem."""
    visit(browser, address)
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
    assert_no_text_ran(browser, address, FOREIGN)


def test_the_page_names_what_is_wrong_and_runs_no_text(browser, address):
    judged(browser, address, "s1 <img/src=x/onerror=document.title='run'>", ["s2 warm"])
    problem = browser.find_element(By.ID, "problem").text
    assert problem.startswith("messages: unknown word: <img/src=x") and browser.title == "A judge at work"
    assert not browser.find_elements(By.CSS_SELECTOR, "article, #problem img")


def test_hostile_answers_are_shown_and_not_run(browser, address):
    """Responses, thoughts, the model's name and the words of an error."""
    visit(browser, address)
    fill = "for (const area of document.querySelectorAll('textarea')) area.value = arguments[0]"
    browser.execute_script(fill, HOSTILE)
    two = {name: [0.5, 0.5] for name in ("score", "log_odds")} | {"interval": [[0, 1], None], "rank": [1, 2]}
    said = two | {"votes": [[0.5]] * 2, "thoughts": [[HOSTILE]] * 2, "model": HOSTILE, "kind": HOSTILE, "ready": True}
    said["usage"] = {"votes": HOSTILE, "total_tokens": HOSTILE, "seconds": 1.0}
    browser.execute_script(ANSWERED, said, True)
    assert len(browser.find_elements(By.CSS_SELECTOR, "article")) == 2
    shown = browser.execute_script("return document.body.innerText")
    assert all(shown.count(fragment) >= 4 for fragment in FRAGMENTS[:-1])
    assert_no_text_ran(browser, address, FOREIGN)
    browser.execute_script(ANSWERED, {"error": {"param": HOSTILE, "message": HOSTILE}}, False)
    assert browser.find_element(By.ID, "problem").text.count(FRAGMENTS[2]) == 2
    assert_no_text_ran(browser, address, FOREIGN)


def test_even_a_text_that_became_part_of_the_page_would_not_run(browser, address):
    """The policy that the server sends lets the page's own script run, and no other."""
    visit(browser, address)
    inside = f"<img src=https://example.invalid/x onerror='{RUN}'><iframe src=https://example.invalid/></iframe>"
    browser.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", inside)
    script = "const made = document.createElement('script'); made.text = arguments[0]; document.body.append(made)"
    browser.execute_script(script, RUN)
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert len(said) >= 3 and all("Content Security Policy" in message for message in said), said
    assert browser.execute_script("return typeof window.hacked") == "undefined"
