"""People link and unlink addresses with their wallets: real keys sign what the page shows, the service checks it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from eth_account import Account as Wallet
from eth_account.messages import encode_typed_data
from playwright.sync_api import Page, expect
from solders.keypair import Keypair

from aggregator.domain.snapshot import Account
from aggregator.service.accounts import AccountBook
from proofs.hashing import keccak256
from tests.api.synthetic_epochs import CHAIN_A, CHAIN_S
from tests.browser.conftest import Site

T = TypeVar("T")
OWNER, FRIEND = Wallet.from_key(keccak256(b"owner")), Wallet.from_key(keccak256(b"friend"))
KEYPAIR = Keypair.from_seed(keccak256(b"a solana wallet"))
PROVIDERS = """
window.ethereum = { request: async ({ method, params }) => {
  if (method === "eth_requestAccounts") return [await window.evmAddress()];
  if (method === "eth_signTypedData_v4") return await window.evmSign(params[0], params[1]);
  throw new Error(`unexpected ${method}`);
} };
window.solana = {
  connect: async () => ({ publicKey: await window.solanaAddress() }),
  signMessage: async (bytes) => ({ signature: new Uint8Array(await window.solanaSign(Array.from(bytes))) }),
};
"""


class Wallets:
    """A browser's wallets: one EVM key at a time, one Solana key; ``signed`` is what they were asked to sign."""

    def __init__(self, page: Page) -> None:
        self.evm = OWNER
        self.signed: list[str] = []
        page.expose_function("evmAddress", lambda: self.evm.address)  # checksummed, as wallets give it
        page.expose_function("evmSign", self._sign_evm)
        page.expose_function("solanaAddress", lambda: str(KEYPAIR.pubkey()))
        page.expose_function("solanaSign", self._sign_solana)
        page.add_init_script(PROVIDERS)

    def _sign_evm(self, address: str, message: str) -> str:
        if address != self.evm.address:
            raise ValueError("not this wallet's address")
        self.signed.append(message)
        signable = encode_typed_data(full_message=json.loads(message))
        return "0x" + bytes(self.evm.sign_message(signable).signature).hex()

    def _sign_solana(self, message: list[int]) -> list[int]:
        self.signed.append(bytes(message).decode())
        return list(bytes(KEYPAIR.sign_message(bytes(message))))


@pytest.fixture
def wallets(page: Page) -> Wallets:
    return Wallets(page)


def wait(site: Site, work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, site.loop).result(10)


@pytest.fixture
def account(site: Site) -> Account:
    """An account that the owner controls, in a service that checks every signature."""
    service = site.world.service
    chains, destinations = [c.id for c in service.chains], [d.chain for d in service.destinations]
    book = AccountBook(site.world.store, site.world.clock, service.deployment_id, chains, destinations)
    object.__setattr__(service, "accounts", book)
    controller = f"{CHAIN_A}:{OWNER.address.lower()}"
    return wait(site, book.open_account(controller, "0x" + "05" * 32, "risk-bearing", None, "owned"))


def side(page: Page, verb: str) -> Any:
    return page.locator(f'article[data-verb="{verb}"]')


def stored(site: Site) -> Account:
    return wait(site, site.world.store.account("owned"))


def test_two_people_link_their_addresses(
    site: Site, page: Page, wallets: Wallets, account: Account, tmp_path: Path
) -> None:
    """The owner invites a friend and sends a code; the friend sees the same terms, accepts, and records the link."""
    member = f"{CHAIN_A}:{FRIEND.address.lower()}"
    page.goto(f"{site.url}/accounts/owned")
    page.get_by_role("link", name="Link an address").click()
    page.get_by_label("Address that backs the account").fill(member)
    page.get_by_role("button", name="Show what is signed").click()
    page.get_by_role("button", name="Connect an EVM wallet").click()
    expect(page.locator("#wallet")).to_contain_text(OWNER.address.lower())
    side(page, "invite").get_by_role("button", name="Sign with the wallet").click()
    expect(side(page, "invite").locator("[data-signature]")).to_have_value(re.compile("^0x[0-9a-f]{130}$"))
    assert wallets.signed == [side(page, "invite").locator("[data-message]").text_content()]
    expect(page.locator("#missing")).to_contain_text(member)
    expect(page.get_by_role("button", name="Record it")).to_be_disabled()
    page.get_by_role("button", name="Make a link for the other side").click()
    code = page.locator("#code").input_value()
    page.screenshot(path=tmp_path / "link.png", full_page=True)

    wallets.evm = FRIEND
    page.goto("about:blank")
    page.goto(code)
    expect(side(page, "accept").locator("[data-signer]")).to_have_text(member)
    page.get_by_role("button", name="Connect an EVM wallet").click()
    expect(page.locator("#wallet")).to_contain_text(FRIEND.address.lower())
    side(page, "accept").get_by_role("button", name="Sign with the wallet").click()
    page.get_by_role("button", name="Record it").click()
    expect(page.locator("#outcome")).to_contain_text(f"{member} backs the account")
    assert stored(site).links == (member,)
    invited, accepted = (json.loads(text)["message"] for text in wallets.signed)
    assert invited == accepted


def test_a_solana_wallet_accepts_and_the_controller_revokes(
    site: Site, page: Page, wallets: Wallets, account: Account
) -> None:
    page.goto(f"{site.url}/accounts/owned/link")
    page.get_by_role("button", name="Connect a Solana wallet").click()
    page.get_by_role("button", name="Use it as the address").click()
    member = f"{CHAIN_S}:{KEYPAIR.pubkey()}"
    expect(page.get_by_label("Address that backs the account")).to_have_value(member)
    page.get_by_role("button", name="Show what is signed").click()
    side(page, "accept").get_by_role("button", name="Sign with the wallet").click()
    expect(page.locator("#missing")).to_contain_text(OWNER.address.lower())
    page.get_by_role("button", name="Connect an EVM wallet").click()
    expect(page.locator("#wallet")).to_contain_text(OWNER.address.lower())
    side(page, "invite").get_by_role("button", name="Sign with the wallet").click()
    page.get_by_role("button", name="Record it").click()
    expect(page.locator("#outcome")).to_contain_text("backs the account")
    assert wallets.signed[0].startswith("crossmargin link accept\n")

    page.goto(f"{site.url}/accounts/owned/link")
    page.get_by_label("Revoke a link").check()
    page.get_by_label("Address that backs the account").fill(member)
    page.get_by_role("button", name="Show what is signed").click()
    page.get_by_role("button", name="Connect an EVM wallet").click()
    expect(page.locator("#wallet")).to_contain_text(OWNER.address.lower())
    side(page, "revoke").get_by_role("button", name="Sign with the wallet").click()
    page.get_by_role("button", name="Record it").click()
    expect(page.locator("#outcome")).to_contain_text("does not count any more")
    assert (stored(site).links, stored(site).ending) == ((member,), (member,))
    page.goto(f"{site.url}/accounts/owned")
    expect(page.locator("main")).to_contain_text("Revoked and not ended yet")


def test_what_goes_wrong_is_said_and_nothing_is_recorded(
    site: Site, page: Page, wallets: Wallets, account: Account
) -> None:
    page.goto(f"{site.url}/accounts/owned/link")
    page.get_by_label("Address that backs the account").fill(f"{CHAIN_A}:0x1234")
    page.get_by_role("button", name="Show what is signed").click()
    expect(page.locator("#outcome")).to_contain_text("member")
    page.get_by_label("Address that backs the account").fill(f"{CHAIN_A}:{FRIEND.address.lower()}")
    page.get_by_role("button", name="Show what is signed").click()
    page.get_by_role("button", name="Connect an EVM wallet").click()
    expect(page.locator("#wallet")).to_contain_text(OWNER.address.lower())
    side(page, "accept").get_by_role("button", name="Sign with the wallet").click()
    expect(page.locator("#outcome")).to_contain_text("this side is")
    for verb in ("invite", "accept"):  # the controller signs for both
        side(page, verb).locator("[data-signature]").fill("0x" + "11" * 65)
    page.get_by_role("button", name="Record it").click()
    expect(page.locator("#outcome")).to_contain_text("not signed by")
    assert stored(site).links == ()


def test_a_hostile_code_is_text_or_refused(site: Site, page: Page, account: Account) -> None:
    def fragment(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    evil = "<img src=x onerror=alert(1)>"
    sound = {"act": "link", "by": "controller", "member": f"{CHAIN_A}:0x{'11' * 20}", "nonce": "1", "expiry": "9"}
    for code in ("%%%", fragment({**sound, "member": evil, "signatures": {}}), fragment([1]), "A" * 50_000):
        page.goto("about:blank")
        page.goto(f"{site.url}/accounts/owned/link#{code}")
        expect(page.locator("#outcome")).to_contain_text("damaged")
    page.goto("about:blank")
    page.goto(f"{site.url}/accounts/owned/link#{fragment({**sound, 'signatures': {'invite': evil, 'accept': 'ab12'}})}")
    expect(side(page, "accept").locator("[data-signature]")).to_have_value("ab12")
    expect(side(page, "invite").locator("[data-signature]")).to_have_value("")
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits(site: Site, page: Page, wallets: Wallets, account: Account, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{site.url}/accounts/owned/link")
    page.get_by_label("Address that backs the account").fill(f"{CHAIN_A}:{FRIEND.address.lower()}")
    page.get_by_role("button", name="Show what is signed").click()
    expect(side(page, "accept").locator("[data-message]")).to_contain_text("LinkAccept")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
