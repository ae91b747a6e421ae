"""The picture of the server's page: python -m studies.serving.page --model=runs/tiny --output=docs/serve.png"""

import argparse
import shutil

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from studies.serving.parts import server

CONVERSATION, RESPONSES = "s1 o1 o2 o3 o4 o5", ("s2 warm", "s5 curt")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    given = parser.parse_args(arguments)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,1600"):
        options.add_argument(flag)
    with server([f"--model={given.model}", "--sizes=4"]) as running:
        browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            browser.get(running.url)
            browser.find_element(By.ID, "conversation").send_keys(CONVERSATION)
            for number, text in enumerate(RESPONSES, 1):
                browser.find_element(By.ID, f"response{number}").send_keys(text)
            browser.find_element(By.ID, "judge").click()
            WebDriverWait(browser, 60).until(lambda page: page.find_elements(By.CSS_SELECTOR, "article"))
            browser.save_screenshot(given.output)
        finally:
            browser.quit()
    print(given.output)


if __name__ == "__main__":
    main()
