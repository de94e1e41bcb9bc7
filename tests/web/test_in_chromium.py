"""The shop in a real browser: typing, buying, a phone's screen, and what axe says of it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from fastapi import FastAPI

from raysys.serving.pages import ServiceAnswers
from raysys.web import Refused
from tests.web.conftest import Recorded

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def address(pages: FastAPI) -> Iterator[str]:
    with listening(pages) as found:
        yield found


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Where an application answers, on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not (server.started and server.servers):
        assert time.monotonic() < until, "uvicorn did not start"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def serious(page: Page) -> list[Any]:
    """What axe holds to be serious or worse."""
    from axe_core_python.sync_playwright import Axe

    found = Axe().run(page)["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found
            if each["impact"] in ("serious", "critical")]  # fmt: skip


def test_a_visit(browser: Browser, address: str, events: Recorded) -> None:
    context = browser.new_context(bypass_csp=False)
    page = context.new_page()
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda said: broken.append(said.text) if said.type == "error" else None)

    page.goto(address)
    page.locator("#user").focus()
    page.keyboard.press("ArrowDown")  # looking through the list leads nowhere by itself
    assert page.locator("#user").input_value().startswith("u")
    assert page.locator("text=What we know of").count() == 0
    page.click("button:has-text('Switch')")
    page.wait_for_selector("text=What we know of")

    said = page.locator("[role=status]#said")
    kept = said.element_handle()
    page.locator("#q").press_sequentially("bread", delay=20)
    page.wait_for_selector("h1:has-text('items for “bread”')")
    assert "items for “bread”" in said.inner_text() and said.evaluate("(e, k) => e === k", kept)
    assert page.url.endswith("/search?q=bread")
    first = page.locator(".card").first
    first.locator("summary").click()
    first.locator("dd").first.wait_for()

    first.locator("a").click()
    page.wait_for_selector("text=Add to cart")
    page.click("text=Add to cart")
    page.wait_for_selector("text=Together")
    assert page.locator(".basket b").inner_text() == "1"
    page.click("button:has-text('Buy')")
    page.wait_for_selector("text=Bought: 1 item")

    shown = events.told("impression")
    assert shown and all(event["request_id"] and event["position"] for event in shown)
    for kind in ("view", "click", "cart", "purchase"):
        assert len(events.told(kind)) == 1, kind
    assert not broken
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_can_be_used_by_everybody(browser: Browser, address: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, bypass_csp=True)
    page = context.new_page()
    page.goto(address)
    item = page.locator(".card a").first.get_attribute("href")
    for path in (
        "/",
        "/search?q=bread",
        "/search?q=zzzz&min_price=900",
        item,
        "/cart",
        "/item/none",
    ):
        page.goto(f"{address}{path}")
        assert not serious(page), path
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{path} is {overflow} pixels too wide at {width}"
    context.close()


def test_a_busy_shop_is_told_while_one_types(
    browser: Browser, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, busy = ServiceAnswers.ask, True

    async def ask(self: ServiceAnswers, call: str, body: dict[str, Any], **how: Any) -> Any:
        if busy and call == "search":
            raise Refused(503, "too many", 1)
        return await answer(self, call, body, **how)

    monkeypatch.setattr(ServiceAnswers, "ask", ask)
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.locator("#q").press_sequentially("bread", delay=20)
    page.wait_for_selector("h1:has-text('The shop is busy')")
    assert page.locator("#said").inner_text() == "The shop is busy"
    assert not serious(page)
    busy = False
    page.locator("#q").press_sequentially("s", delay=20)
    page.wait_for_selector("h1:has-text('items for “breads”')")

    busy = True  # so are the reasons, which can be asked for again
    first = page.locator(".card").first
    first.locator("summary").click()
    first.locator("a:has-text('The shop is busy')").wait_for()
    first.locator("summary").click()
    busy = False
    first.locator("summary").click()
    first.locator("dd").first.wait_for()
    context.close()
