"""A person at the UI: fills in the form of an audit, is refused, mends it, watches the run and reads what came out.

And the pages of others, which a browser on this machine has open beside it.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from flows.alerts import REGRESSION
from tests.support.served import Served, until
from tests.support.world import tiny_world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no browser: install chromium and chromium-driver to test the UI"
    ),
]

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

    def __init__(self, shots: Path, *more: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        flags = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars")
        for flag in (*flags, "window-size=1280,1000", *more):
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
        own = found[at]
        fields = self.browser.find_elements(By.ID, own.get_attribute("for") or "")
        if fields and fields[0].tag_name in ("input", "textarea"):
            return fields[0]
        # A field that may be empty: choose that it is not.
        around = own.find_element(By.XPATH, "./ancestor::div[.//*[@role='tab']][1]")
        self._click(around.find_element(By.XPATH, ".//*[@role='tab'][1]"))
        return around.find_element(By.XPATH, ".//input | .//textarea")

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
    before = {run.id for run in runs_of(served)}
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
    message = page.field("Settings", "Seeds").get_attribute("validationMessage")
    assert message == "Value must be greater than or equal to 1."
    page.shoot("form-refused")
    assert {run.id for run in runs_of(served)} == before

    page.fill(2, "Settings", "Seeds")
    for _ in range(3):  # a click is lost while the page takes note of what was typed
        page.click("Submit", "button")
        with suppress(AssertionError):
            page.click("View run")
        if found := [run for run in runs_of(served) if run.id not in before]:
            break
    (run,) = found
    until(lambda: page.says("Running") or page.says("Completed"), 60)
    page.shoot("run-at-work")
    page.wait_for("Completed", 900)
    page.browser.refresh()
    page.wait_for("Completed")
    page.shoot("run")
    settings = run.parameters["params"]["settings"]
    assert (settings["memorized"], settings["sampling"]["steps"], settings["wanda"]["sparsity"]) == (4, 2, 0.1)

    page.click("Artifacts")
    page.wait_for("What the model copies")
    page.shoot("artifacts")
    # Random weights copy nothing, so nothing is localized: there is no overlap of what was found.
    for key, words in (("audit", "Report: "), ("copies", "copies")):
        page.click_link(f"/artifacts/key/{key}")
        page.click_link("/artifacts/artifact/")
        page.wait_for(words)
        page.shoot(f"artifact-{key}")
        for _ in range(2):
            page.browser.back()


ATTACK = """
const [base, path, deployment, done] = [...arguments];
const out = {};
const tried = async (name, attempt) => {
    try { out[name] = await attempt(); } catch (error) { out[name] = "nothing"; }
};
const socket = (url) => new Promise((resolve) => {
    const opened = new WebSocket(url, ["prefect"]);
    opened.onopen = () => { opened.send(JSON.stringify({type: "auth", token: null})); resolve("open"); };
    opened.onerror = () => resolve("nothing");
});
const read = async (answer) => answer.type === "opaque" ? "opaque" : `${answer.status}`;
(async () => {
    const json = {"Content-Type": "application/json"};
    const run = JSON.stringify({state: {type: "SCHEDULED"}, name: "stolen", job_variables: {command: "touch stolen"}});
    const make = `${base}/api/deployments/${deployment}/create_flow_run`;
    await tried("read", async () => read(await fetch(`${base}/api/csrf-token?client=me`)));
    await tried("settings", async () => read(await fetch(`${base}/ui-settings`)));
    let known = {};
    await tried("token", async () => {
        const answer = await (await fetch(`${base}/api/csrf-token?client=me`)).json();
        known = {"Prefect-Csrf-Token": answer.token, "Prefect-Csrf-Client": "me"};
        return answer.token ? "token" : "nothing";
    });
    await tried("run", async () => read(await fetch(make, {method: "POST", headers: {...json, ...known}, body: run})));
    await tried("blind", async () => read(await fetch(make, {method: "POST", mode: "no-cors", body: run})));
    await tried("unnamed", async () =>
        read(await fetch(make, {method: "POST", mode: "no-cors", body: run, referrerPolicy: "no-referrer"})));
    const fake = JSON.stringify([{event: "engram.audit.regression", id: "00000000-0000-4000-8000-000000000001",
        occurred: new Date().toISOString(), resource: {"prefect.resource.id": "engram.model.faked"}}]);
    await tried("fake", async () =>
        read(await fetch(`${base}/api/events`, {method: "POST", mode: "no-cors", body: fake})));
    for (const each of ["events/in", "events/out", "logs/out"])
        await tried(each, () => socket(`${base.replace("http", "ws")}/api/${each}`));
    await tried("script", () => new Promise((resolve) => {
        const script = document.createElement("script");
        script.onload = () => resolve("loaded");
        script.onerror = () => resolve("nothing");
        script.src = `${base}${path}`;
        document.body.append(script);
    }));
    const form = document.createElement("form");
    const frame = document.createElement("iframe");
    frame.name = "inside";
    Object.assign(form, {method: "POST", action: make, enctype: "text/plain", target: "inside"});
    const field = document.createElement("input");
    [field.name, field.value] = [run.slice(0, -1) + ', "ignored": "', '"}'];
    form.append(field);
    document.body.append(frame, form);
    form.submit();
    const framed = document.createElement("iframe");
    framed.src = base;
    document.body.append(framed);
    setTimeout(() => done(out), 3000);
})();
"""
"""What a hostile page tries; by each attempt what came of it."""


class Site:
    """Another page of this machine, at a port of its own."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<!doctype html><title>another</title><body></body>")

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1", "localhost"])
def test_no_page_of_another_name_starts_reads_or_fakes_anything(
    served: Served, site: Site, tmp_path: Path, name: str
) -> None:
    """A page on the web, and pages of other programs on this machine; and the first one after DNS rebinding."""
    with served.client() as client:
        deployment = client.read_deployment_by_name("nightly/nightly").id
        before = {run.id for run in client.read_flow_runs(limit=200)}
    page = Page(tmp_path, "host-resolver-rules=MAP evil.example 127.0.0.1")
    port = served.url.rpartition(":")[2]
    try:
        page.browser.set_script_timeout(60)
        page.browser.get(served.url)
        script = page.browser.execute_script("return document.querySelector('script[src]').getAttribute('src')")
        assert script.startswith("/")
        for base in (served.url, f"http://evil.example:{port}"):
            page.browser.get(f"http://{name}:{site.port}/")
            came = page.browser.execute_async_script(ATTACK, base, script, str(deployment))
            # A page is not told what came of what it sends blindly.
            assert {key: said for key, said in came.items() if said not in ("nothing", "opaque")} == {}, base
            texts = [frame_text(page, number) for number in range(2)]
            assert not [text for text in texts if "Dashboard" in text or "Flow Runs" in text or "stolen" in text]
        if name == "evil.example":  # rebound: the page's own name leads to the server now
            page.browser.get(f"http://evil.example:{port}/")
            assert page.says("403: not served as 'evil.example")
            came = page.browser.execute_async_script(ATTACK, f"http://evil.example:{port}", script, str(deployment))
            assert set(came.values()) <= {"nothing", "403"}, came
    finally:
        page.browser.quit()
    time.sleep(3)
    with served.client() as client:
        assert {run.id for run in client.read_flow_runs(limit=200)} == before
        events = client.request("POST", "/events/filter", json={"filter": {"event": {"name": [REGRESSION]}}}).json()
        assert "faked" not in str(events)
    assert not list(served.folder.rglob("stolen"))


def frame_text(page: Page, number: int) -> str:
    page.browser.switch_to.frame(number)
    try:
        return page.browser.find_element(By.TAG_NAME, "body").text
    finally:
        page.browser.switch_to.default_content()


def test_its_own_page_is_let_through(served: Served, page: Page) -> None:
    """By each loopback name; and by a link from elsewhere, as notices have it."""
    port = served.url.rpartition(":")[2]
    for name in ("127.0.0.1", "localhost"):
        page.browser.get(f"http://{name}:{port}/runs")
        page.wait_for("Runs")
        script = (
            "const done = arguments[0]; fetch('/api/deployments/filter', {method: 'POST'}).then(a => done(a.status))"
        )
        assert page.browser.execute_async_script(script) == 403  # without the token that the UI's code asks for
        script = "const done = arguments[0]; fetch('/api/csrf-token?client=me').then(a => done(a.status))"
        assert page.browser.execute_async_script(script) == 200
    page.browser.get("data:text/html,<a id=link href='" + served.url + "/runs'>a notice</a>")
    page.browser.find_element(By.ID, "link").click()
    page.wait_for("Runs")
