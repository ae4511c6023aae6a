"""A person at the UI: fills in the form of an audit, is refused, mends it, watches the run and reads what came out."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.flows.served import Served, until
from tests.flows.world import tiny_world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: install chromium and chromium-driver to test the UI"
)

SMALL = [
    (("Settings", "Memorized"), 4),
    (("Settings", "Nulls"), 4),
    (("Settings", "Threshold Nulls"), 2),
    (("Settings", "Ordinary"), 2),
    (("Settings", "Seeds"), 2),
    (("Settings", "Attacked"), 0),
    (("Sampling", "Steps"), 2),
    (("NeMo", "Seeds"), 3),
    (("Wanda", "Sparsity"), 0.1),
]
"""What is typed into the form: an audit of seconds."""


class Page:
    """The UI as a person sees it: fields are found by their labels."""

    def __init__(self, shots: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        flags = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars")
        for flag in (*flags, "window-size=1280,1000"):
            options.add_argument(f"--{flag}")
        self.browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        self.shots = shots
        shots.mkdir(parents=True, exist_ok=True)

    def shoot(self, name: str) -> None:
        time.sleep(1)  # for what moves
        self.browser.save_screenshot(str(self.shots / f"{name}.png"))

    def says(self, words: str) -> bool:
        return words in self.browser.find_element(By.TAG_NAME, "body").text

    def wait_for(self, words: str, seconds: float = 60) -> None:
        until(lambda: self.says(words), seconds)

    def click(self, words: str, kind: str = "*") -> None:
        """On the first thing that is labelled so and can be seen."""
        said = f"[normalize-space()='{words}']"
        self._click_first(f"//*{said}[not(.//*{said})]" if kind == "*" else f"//{kind}{said}")

    def click_link(self, address: str) -> None:
        """On the first link whose address has this in it."""
        self._click_first(f"//a[contains(@href, '{address}')]")

    def _click_first(self, path: str) -> None:
        def clicked() -> bool:
            try:
                for each in self.browser.find_elements(By.XPATH, path):
                    if each.is_displayed():
                        self._click(each)
                        return True
            except (StaleElementReferenceException, ElementClickInterceptedException):
                pass  # the page is still moving
            return False

        until(clicked, 30)

    def _click(self, element: WebElement) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def field(self, *labels: str) -> WebElement:
        """The field of the last label that stands below the others."""
        found = self.browser.find_elements(By.CSS_SELECTOR, "label[for]")
        texts = [each.text.removesuffix(" (Optional)") for each in found]
        at = -1
        for label in labels:
            at = texts.index(label, at + 1)
        label = found[at]
        (field,) = self.browser.find_elements(By.ID, label.get_attribute("for") or "") or [None]
        if field is None or field.tag_name not in ("input", "textarea"):
            # A field that may be empty: choose that it is not.
            around = label.find_element(By.XPATH, "./ancestor::div[.//*[@role='tab']][1]")
            self._click(around.find_element(By.XPATH, ".//*[@role='tab'][1]"))
            field = around.find_element(By.XPATH, ".//input | .//textarea")
        return field

    def choose(self, label: str) -> None:
        """Something rather than nothing, in a field that is a form of its own and may be empty."""
        found = self.browser.find_elements(By.CSS_SELECTOR, "label[for]")
        texts = [each.text.removesuffix(" (Optional)") for each in found]
        own = found[texts.index(label)]
        around = own.find_element(By.XPATH, "./ancestor::div[.//*[@role='tab']][1]")
        self._click(around.find_element(By.XPATH, ".//*[@role='tab'][1]"))

    def fill(self, value: object, *labels: str) -> None:
        field = self.field(*labels)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value))
        assert field.get_attribute("value") == str(value)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page(Path(os.environ.get("ENGRAM_SCREENSHOTS") or tmp_path / "screenshots"))
    try:
        yield page
    except BaseException:
        page.shoot("failed")
        raise
    finally:
        page.browser.quit()


def runs_of(served: Served) -> list[Any]:
    with served.client() as client:
        audit = client.read_deployment_by_name("audit/audit")
        return [run for run in client.read_flow_runs(limit=200) if run.deployment_id == audit.id]


def test_an_audit_from_the_form_to_its_artifacts(served: Served, page: Page) -> None:
    tiny_world(served.folder / "world")
    page.browser.get(served.url)
    page.click("Deployments", "a")
    page.click("audit", "a[contains(@href, '/deployments/deployment/')]")
    page.click("Run", "button")
    page.click("Custom run")
    page.wait_for("What is audited.")
    page.fill("world/model", "params", "Model")
    page.shoot("form")
    page.choose("Settings")
    for labels, value in SMALL:
        page.fill(value, *labels)

    page.fill(0, "Settings", "Seeds")
    page.click("Submit", "button")
    told = page.field("Settings", "Seeds").get_attribute("validationMessage")
    assert told == "Value must be greater than or equal to 1."
    page.shoot("form-refused")
    assert runs_of(served) == []

    page.fill(2, "Settings", "Seeds")
    page.click("Submit", "button")
    page.click("View run")
    until(lambda: page.says("Running") or page.says("Completed"), 60)
    page.shoot("run-at-work")
    page.wait_for("Completed", 900)
    page.browser.refresh()
    page.wait_for("Completed")
    page.shoot("run")
    (run,) = runs_of(served)
    settings = run.parameters["params"]["settings"]
    assert (settings["memorized"], settings["sampling"]["steps"], settings["wanda"]["sparsity"]) == (4, 2, 0.1)

    page.click("Artifacts")
    page.wait_for("What the model copies")
    page.shoot("artifacts")
    for key, words in (("audit", "Report: "), ("copies", "copies"), ("subspace", "iou_chance")):
        page.click_link(f"/artifacts/key/{key}")
        page.click_link("/artifacts/artifact/")
        page.wait_for(words)
        page.shoot(f"artifact-{key}")
        for _ in range(2):
            page.browser.back()
