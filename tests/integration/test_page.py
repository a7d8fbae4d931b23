"""The status page in a real browser, before a real daemon."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.browser import Browser
from support.http import Caller
from support.processes import Product, _free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GOOD = {"name": "usage", "external_customer_id": "c"}
# Only Polar can know that there is no such customer. The name tries to become markup.
STRANGER = {
    "name": "<img src=x onerror=window.hacked=1>",
    "customer_id": "5b0a9f0e-3d3e-4a36-9e4c-1d1f5f6a7b8c",
    "external_id": "stranger",
}

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture
def port(product: Product) -> int:
    """The port of a daemon that has delivered, refused, and buried something."""
    port = _free_port()
    product.set(api_listen=f"127.0.0.1:{port}")
    product.start_emulator()
    product.start_daemon()
    api = Caller(port).wait()
    assert api("POST", "/v1/events/ingest", {"events": [GOOD] * 1234}).status == 200
    assert api("POST", "/v1/events/ingest", {"events": [{"name": "usage"}]}).status == 422
    assert api("POST", "/v1/events/ingest", {"events": [STRANGER]}).status == 200
    wait_until(lambda: product.polled()["queue"]["dead"] == 1)
    wait_until(lambda: product.polled()["queue"]["events"] == 0)
    return port


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "browser")
    yield browser
    browser.close()


def test_it_shows_how_everything_stands_and_loads_nothing_from_elsewhere(
    product: Product, port: int, browser: Browser, tmp_path: Path
) -> None:
    origin = f"http://127.0.0.1:{port}"
    browser.open(origin)

    browser.wait("document.querySelector('#card-accepted')?.textContent === '1,235'")
    assert browser.evaluate("document.querySelector('#card-delivered').textContent") == "1,234"
    pills = "[...document.querySelectorAll('.pill')].map((pill) => pill.textContent).join(' ')"
    assert browser.evaluate(pills) == "live ready delivering"
    assert "external_customer_id" in browser.evaluate("document.querySelector('#refusals').innerText")
    browser.wait("!document.querySelector('#dead').hidden")
    # Samples of the last hour come every quarter of a minute; there is one at least by now or soon.
    browser.wait("document.querySelector('#rate-top').textContent !== ''")
    assert all(url.startswith(origin) for url in browser.requests())
    assert [one for one in browser.complaints() if "favicon" not in one] == []
    for scheme in ("light", "dark"):
        browser.colours(scheme)
        (tmp_path / f"{scheme}.png").write_bytes(browser.screenshot())
    assert product.daemon is not None


def test_what_a_program_wrote_stays_text(port: int, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{port}")

    browser.wait("document.querySelector('#dead tbody tr')")

    assert STRANGER["name"] in browser.evaluate("document.querySelector('#dead').innerText")
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("window.hacked ?? null") is None


def test_a_dead_letter_is_retried_by_its_button(product: Product, port: int, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{port}")
    browser.wait("document.querySelector('#dead tbody button')")
    # Meanwhile somebody has created the customer.
    product.stop_emulator()
    product.start_emulator("--customer", STRANGER["customer_id"])

    browser.evaluate("document.querySelector('#dead tbody button').click()")

    browser.wait("document.querySelector('#dead').hidden")
    wait_until(lambda: product.polled()["ledger"]["delivered"] == 1235)
    assert product.status()["queue"]["dead"] == 0


def test_of_many_dead_letters_the_latest_are_shown_whole(port: int, browser: Browser) -> None:
    many = [{**STRANGER, "name": "y" * 120, "external_id": f"s{number}"} for number in range(60)]
    assert Caller(port)("POST", "/v1/events/ingest", {"events": many}).status == 200
    browser.open(f"http://127.0.0.1:{port}")
    browser.wait("document.querySelector('#dead-count')?.textContent === '61'")

    browser.wait("document.querySelectorAll('#dead tbody tr').length === 50")

    assert browser.evaluate("document.querySelector('#dead-more').textContent").startswith("the latest 50;")
    parts = "document.querySelectorAll('#dead tbody button, #dead thead th')"
    heights = f"[...{parts}].map((one) => one.offsetHeight)"
    assert max(browser.evaluate(heights)) < 40  # pixels: one line each


def test_a_page_of_another_origin_can_neither_read_nor_retry(
    product: Product, port: int, browser: Browser
) -> None:
    browser.open(f"{product.url}/")  # another port of this machine is another origin

    def tries(path: str, options: dict[str, object]) -> str:
        call = f"fetch('http://127.0.0.1:{port}{path}', {json.dumps(options)})"
        return browser.evaluate(f"{call}.then((answer) => answer.text()).catch((error) => 'blocked')")

    browser.wait("document.readyState === 'complete'")
    assert tries("/status", {}) == "blocked"
    assert tries("/dead/retry", {"method": "POST", "body": '{"ids": null}'}) == "blocked"
    assert tries("/dead/retry", {"method": "POST", "mode": "no-cors", "body": '{"ids": null}'}) == ""
    assert product.status()["queue"]["dead"] == 1
    assert product.stats()["by_status"].get("422") == 1


def test_it_says_so_when_the_agent_is_gone(product: Product, port: int, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{port}")
    browser.wait("document.querySelector('#card-accepted')")
    product.stop_daemon()

    browser.evaluate("look()")

    browser.wait("document.querySelector('#trouble').textContent.includes('does not answer')")
