"""What a person reads: the numbers, their age, and loudly when they are old."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.api.synthetic_epochs import LIFETIME, account_id, make_margin, make_record
from tests.browser.conftest import Site

WIDTHS = [pytest.param(1280, id="wide"), pytest.param(400, id="narrow")]


def shoot(page: Page, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size > 10_000


def fits(page: Page) -> bool:
    """Whether nothing reaches beyond the window's width."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_overview_reads_at_a_glance(site: Site, page: Page, tmp_path: Path, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(site.url)
    alice = page.locator("tr", has=page.get_by_role("link", name="alice"))
    for text in ("healthy", "$4,999.12", "$3,700.00", "1.90 – 1.94 – 1.97", "$2,345.67", "34 s", "fresh"):
        expect(alice).to_contain_text(text)
    carol = page.locator("tr", has=page.get_by_role("link", name="carol"))
    for text in ("unhealthy", "−$1,234.56", "0.93 – 0.99 – 1.04", "$0.00", "stale"):
        expect(carol).to_contain_text(text)
    main = page.locator("main")
    for text in ("Devnet", "3 of 4 attestors must sign", "Valid for", "Anvil B", "node refused the connection"):
        expect(main).to_contain_text(text)
    for text in ("ETH/USD", "2,987.50", "no quorum", "attestor-3: no answer", "payer has 0 lamports", "1 behind"):
        expect(main).to_contain_text(text)
    assert fits(page)
    shoot(page, tmp_path, f"overview-{width}-{scheme}")


@pytest.mark.parametrize("width", WIDTHS)
def test_an_account_explains_every_number(site: Site, page: Page, tmp_path: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(site.url)
    page.get_by_role("link", name="alice").click()
    main = page.locator("main")
    for text in ("$2,345.67", "the attested budget", "$4,500.00 – $4,700.00 – $4,900.00", "10,000 USDC"):
        expect(main).to_contain_text(text)
    for text in ("1,000 being withdrawn", "seizable in the vault", "vault on Anvil A", "12 blocks deep"):
        expect(main).to_contain_text(text)
    expect(page.get_by_text("1.23%").first).to_be_hidden()
    page.locator("summary").first.click()
    expect(page.get_by_text("1.23%").first).to_be_visible()
    assert fits(page)
    shoot(page, tmp_path, f"account-{width}")


def test_opened_details_survive_the_refresh(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/accounts/alice")
    page.locator("summary").first.click()
    site.world.clock.time += 7
    expect(page.locator("main")).to_contain_text("41 s ago", timeout=10_000)
    expect(page.get_by_text("1.23%").first).to_be_visible()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_the_page_follows_new_epochs_by_itself(site: Site, page: Page) -> None:
    page.goto(site.url)
    record = make_record(4, (make_margin(account_id("alice"), 4, equity=7_777_00000000),))
    asyncio.run_coroutine_threadsafe(site.world.store.save_epoch(record), site.loop).result(10)
    expect(page.locator("main")).to_contain_text("$7,777.00", timeout=10_000)


def test_an_expired_epoch_is_loud_and_offers_nothing(site: Site, page: Page, tmp_path: Path) -> None:
    site.world.clock.time += LIFETIME
    page.goto(site.url)
    expect(page.locator(".notice.bad", has_text="expired")).to_be_visible()
    alice = page.locator("tr", has=page.get_by_role("link", name="alice"))
    expect(alice).to_contain_text("stale")
    expect(alice).not_to_contain_text("$2,345.67")
    shoot(page, tmp_path, "expired")


def test_a_dead_service_is_loud(site: Site, page: Page, tmp_path: Path) -> None:
    page.goto(site.url)
    expect(page.locator("#lost")).to_be_hidden()
    site.stop()
    expect(page.locator("#lost")).to_contain_text("No answer from the service since", timeout=20_000)
    expect(page.locator("#lost")).to_be_visible()
    shoot(page, tmp_path, "dead")


def test_the_reference_lists_every_route(site: Site, page: Page, tmp_path: Path) -> None:
    page.goto(f"{site.url}/docs")
    for path in ("/v1/accounts/{ref}/margin/proof", "/v1/epochs/{number}/statement", "/readyz"):
        expect(page.get_by_text(path, exact=True)).to_be_visible()
    linking = page.locator("#post-v1-accounts-ref-links")
    linking.locator("summary").first.click()
    expect(linking.get_by_text("invite_signature").first).to_be_visible()
    assert fits(page)
    shoot(page, tmp_path, "docs")


def test_an_unknown_account_is_a_page_with_a_way_back(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/accounts/nobody")
    expect(page.locator("main")).to_contain_text("'nobody' is not known")
    page.get_by_role("link", name="Back to the overview").click()
    expect(page.locator("main")).to_contain_text("Accounts")
