"""Who may back an account: both sides sign, once, in time, on chains that are configured."""

from __future__ import annotations

from typing import Any

import pytest

from aggregator.domain.errors import ConflictError, InputError, UnknownError
from aggregator.service.accounts import link_message
from proofs.links import LinkTerms
from tests.worlds.documents import ALPHA, BETA, SOL
from tests.worlds.world import EvmPerson, Person, SimulatedWorld, SolanaPerson

SALT = "0x" + "07" * 32
EVM, EVM_TOO, SOLANA = EvmPerson("controller"), EvmPerson("member", BETA), SolanaPerson("member")


@pytest.mark.parametrize(
    ("controller", "member"),
    [(EVM, EVM_TOO), (EVM, SOLANA), (SOLANA, EVM), (SOLANA, SolanaPerson("other")), (EVM, EVM)],
    ids=["evm-evm", "evm-solana", "solana-evm", "solana-solana", "itself"],
)
async def test_both_sides_sign_a_link(world: SimulatedWorld, controller: Person, member: Person) -> None:
    account = await world.book.open_account(controller.address, SALT, "risk-bearing", None, "mine")
    assert account.home == controller.address.rpartition(":")[0]
    record = await world.link(account, controller, member)
    assert (record.position, record.account, record.member) == (1, account.id, member.address)
    assert (await world.store.account("mine")).links == (member.address,)


async def test_addresses_are_kept_canonical(world: SimulatedWorld) -> None:
    checksummed = f"{ALPHA}:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"  # EIP-55's own example
    account = await world.book.open_account(checksummed, SALT, "risk-bearing", SOL, "")
    assert account.controller == checksummed.lower()
    assert account.home == SOL
    with pytest.raises(ConflictError, match="salt"):
        await world.book.open_account(checksummed.lower(), SALT, "risk-bearing", SOL, "")


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"controller": "0x" + "11" * 20}, "controller", "CAIP-10"),
        ({"controller": f"{ALPHA}:0x1234"}, "controller", "40 hex digits"),
        ({"controller": f"{ALPHA}:0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed"}, "controller", "checksum"),
        ({"controller": "eip155:10:0x" + "11" * 20}, "controller", "eip155:10"),
        ({"controller": "cosmos:hub:x"}, "controller", "cosmos"),
        ({"salt": "0x12"}, "salt", "64 hex digits"),
        ({"salt": "zz" * 32}, "salt", "64 hex digits"),
        ({"kind": "rich"}, "kind", "monitored"),
        ({"home": "eip155:10"}, "home", ALPHA),
        ({"label": "0xlabel"}, "label", "label"),
        ({"label": "a/b"}, "label", "label"),
    ],
)
async def test_an_account_that_cannot_be_opened_names_the_field(
    world: SimulatedWorld, changes: dict[str, Any], field: str, says: str
) -> None:
    given = {"controller": EVM.address, "salt": SALT, "kind": "monitored", "home": None, "label": "x"} | changes
    with pytest.raises(InputError, match=says) as caught:
        await world.book.open_account(**given)
    assert caught.value.field == field
    assert await world.store.accounts() == ()


async def _refused(world: SimulatedWorld, field: str, says: str, **changes: Any) -> None:
    account = (await world.store.accounts())[0]
    before = await world.store.links()
    with pytest.raises(InputError, match=says) as caught:
        await world.link(account, EVM, SOLANA, **changes)
    assert caught.value.field == field
    assert await world.store.links() == before


async def test_a_link_that_is_wrong_in_one_place_names_it(world: SimulatedWorld) -> None:
    account = await world.book.open_account(EVM.address, SALT, "risk-bearing", None, "mine")
    terms = LinkTerms(bytes.fromhex(account.id[2:]), EVM.address, SOLANA.address, 1, int(world.clock.now()) + 600)
    id = world.deployment.deployment_id()
    stranger, invite, accept = EvmPerson("x"), EVM.sign(id, "invite", terms), SOLANA.sign(id, "accept", terms)

    await _refused(world, "account", "0xabcdabcd", account="0xabcdabcd")
    await _refused(world, "account", "nobody", account="nobody")
    await _refused(world, "controller", "does not control", controller=stranger.address)
    await _refused(world, "controller", "CAIP-10", controller="0x12")
    await _refused(world, "member", "eip155:10", member="eip155:10:0x" + "11" * 20)
    await _refused(world, "member", "CAIP-10", member="solana:abc")
    await _refused(world, "invite_signature", "65 bytes", invite_signature="0x1234")
    await _refused(world, "invite_signature", "65 bytes", invite_signature=accept)
    await _refused(world, "accept_signature", "base58", accept_signature=invite)
    await _refused(world, "invite", "not signed by", invite_signature=stranger.sign(id, "invite", terms))
    await _refused(world, "invite", "not signed by", invite_signature=EVM.sign(id, "accept", terms))
    await _refused(world, "invite", "not signed by", invite_signature=EVM.sign(b"\x01" * 32, "invite", terms))
    await _refused(world, "accept", "not signed by", accept_signature=SolanaPerson("y").sign(id, "accept", terms))
    await _refused(world, "invite", "not signed by", expiry=terms.expiry + 1)
    await _refused(world, "invite", "not signed by", nonce=2)
    await _refused(world, "invite", "not signed by", member=SolanaPerson("y").address)
    await _refused(world, "expiry", "later expiry", expiry=int(world.clock.now()))
    low = await world.link(account, EVM, SOLANA, 1, invite_signature=invite, accept_signature=accept)
    assert low.position == 1


@pytest.mark.parametrize(("field", "number"), [("nonce", -1), ("nonce", 2**64), ("expiry", 2**64), ("expiry", -5)])
async def test_numbers_out_of_range_name_their_field(world: SimulatedWorld, field: str, number: int) -> None:
    await world.book.open_account(EVM.address, SALT, "risk-bearing", None, "mine")
    account = await world.store.account("mine")
    given = {"nonce": 1, "expiry": 2_000_000_000} | {field: number}
    with pytest.raises(InputError) as caught:
        await world.book.add_link(
            account.id,
            EVM.address,
            SOLANA.address,
            **given,
            invite_signature="0x" + "00" * 65,
            accept_signature="1" * 64,
        )
    assert caught.value.field == field


async def test_an_address_backs_one_account(world: SimulatedWorld) -> None:
    first = await world.book.open_account(EVM.address, SALT, "risk-bearing", None, "first")
    second = await world.book.open_account(EVM.address, "0x" + "08" * 32, "risk-bearing", None, "second")
    await world.link(first, EVM, SOLANA)
    with pytest.raises(ConflictError, match=rf"{SOLANA.address} backs account {first.id}") as caught:
        await world.link(second, EVM, SOLANA)
    assert caught.value.field == "member"
    assert (await world.store.account("second")).links == ()


async def test_a_nonce_counts_once(world: SimulatedWorld) -> None:
    account = await world.book.open_account(EVM.address, SALT, "risk-bearing", None, "mine")
    await world.link(account, EVM, SOLANA, 3)
    for used in (3, 2):
        with pytest.raises(ConflictError, match="sign with nonce 4") as caught:
            await world.link(account, EVM, SOLANA, used)
        assert caught.value.field == "nonce"
    assert (await world.link(account, EVM, SOLANA, 4)).position == 2


async def test_a_label_and_an_id_find_one_account(world: SimulatedWorld) -> None:
    account = await world.book.open_account(EVM.address, SALT, "risk-bearing", None, "mine")
    for reference in ("mine", account.id, account.id[:10]):
        assert await world.store.account(reference) == account
    with pytest.raises(ConflictError, match="label"):
        await world.book.open_account(SOLANA.address, SALT, "risk-bearing", None, "mine")
    with pytest.raises(UnknownError, match="0x123"):
        await world.store.account("0x123")


async def test_a_message_says_what_each_side_signs(world: SimulatedWorld) -> None:
    account = await world.book.open_account(EVM.address, SALT, "risk-bearing", None, "mine")
    id = world.deployment.deployment_id()
    invite = link_message(id, account, SOLANA.address, 1, 9, "invite")
    assert invite.typed is not None
    assert invite.typed["primaryType"] == "LinkInvite"
    assert invite.typed["domain"]["salt"] == "0x" + id.hex()
    accept = link_message(id, account, SOLANA.address, 1, 9, "accept")
    assert accept.typed is None
    assert accept.text.splitlines() == [
        "crossmargin link accept",
        f"deployment: 0x{id.hex()}",
        f"account: {account.id}",
        f"controller: {EVM.address}",
        f"member: {SOLANA.address}",
        "nonce: 1",
        "expiry: 9",
    ]
    for by, signer in (("controller", EVM.address), ("member", SOLANA.address)):
        assert link_message(id, account, SOLANA.address, 1, 9, "revoke", by).signer == signer
    sound: dict[str, Any] = {"member": SOLANA.address, "nonce": 1, "expiry": 9, "verb": "invite"}
    wrong: list[tuple[dict[str, Any], str]] = [
        *(({"verb": "both"}, "verb"), ({"member": "x"}, "member"), ({"nonce": -1}, "nonce")),
        ({"verb": "revoke", "by": "me"}, "by"),
    ]
    for changes, field in wrong:
        with pytest.raises(InputError) as caught:
            link_message(id, account, **(sound | changes))
        assert caught.value.field == field


async def test_a_wallet_signs_the_message_as_printed(world: SimulatedWorld) -> None:
    """An independent EIP-712 implementation over the printed JSON gives a signature that is accepted."""
    from eth_account import Account as Wallet
    from eth_account.messages import encode_typed_data

    account = await world.book.open_account(EVM.address, SALT, "risk-bearing", None, "mine")
    expiry = int(world.clock.now()) + 600
    signatures = {}
    for side, person in (("invite", EVM), ("accept", EVM_TOO)):
        message = await world.book.message("mine", EVM_TOO.address, side, "member", expiry=expiry)
        assert (message.signer, message.nonce) == (person.address, 1)
        signable = encode_typed_data(full_message=message.typed)
        signed = Wallet.sign_message(signable, person.key.secret)
        assert message.digest == "0x" + bytes(signed.message_hash).hex()
        signatures[f"{side}_signature"] = "0x" + signed.signature.hex()
    await world.book.add_link(account.id, EVM.address, EVM_TOO.address, 1, expiry, **signatures)
    assert (await world.store.account("mine")).links == (EVM_TOO.address,)
