"""Opening accounts and linking addresses to them: the few writes that people make."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from aggregator.domain.certificate import LinkRecord
from aggregator.domain.errors import InputError, UnknownError
from aggregator.domain.snapshot import Account
from aggregator.ports import Clock, Store
from proofs.errors import FieldError, ProofError
from proofs.links import LinkTerms, Verb, account_id, decode_base58, link_text, parse_caip10, verify_link


def decode_signature(signer: str, text: str, field: str) -> bytes:
    """Return signature bytes: 0x hex of r, s, v (65 bytes) on EVM chains, base58 of 64 bytes on Solana.

    Raises:
        InputError: names ``field``.
    """
    if not signer.startswith("eip155:"):
        return decode_base58(text, 64, field)
    try:
        signature = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        signature = b""
    if len(signature) != 65:
        raise InputError(field, "is not 65 bytes in hex", "give 0x and r, s, v as wallets return them")
    return signature


class AccountBook:
    """Implements :class:`aggregator.ports.Accounts` over the store."""

    def __init__(
        self, store: Store, clock: Clock, deployment_id: bytes, chains: Collection[str], destinations: Collection[str]
    ) -> None:
        self._store, self._clock, self._deployment_id = store, clock, deployment_id
        self._chains, self._destinations = sorted(chains), sorted(destinations)

    def _address(self, field: str, text: str) -> str:
        try:
            parsed = parse_caip10(text, field)
        except FieldError as error:
            raise InputError(field, error.reason, "give CAIP-10, for example eip155:1:0x… or solana:…:…") from None
        if parsed.chain not in self._chains:
            raise UnknownError(field, parsed.chain, f"configured chains: {', '.join(self._chains)}")
        return str(parsed)

    async def open_account(self, controller: str, salt: str, kind: str, home: str | None, label: str) -> Account:
        """Open an account for ``controller`` (CAIP-10); the same controller and salt give the same account.

        Args:
            salt: 0x and 64 hex digits.
            kind: ``risk-bearing`` or ``monitored``.
            home: CAIP-2 of the destination that holds its budget; None = the controller's chain if it is one.

        Raises:
            InputError: names the field at fault.
        """
        who = self._address("controller", controller)
        try:
            salt_bytes = bytes.fromhex(salt.removeprefix("0x"))
        except ValueError:
            salt_bytes = b""
        if len(salt_bytes) != 32:
            raise InputError("salt", "is not 32 bytes in hex", "give 0x and 64 hex digits")
        if kind not in ("risk-bearing", "monitored"):
            raise InputError("kind", f"{kind!r} is not known", "give risk-bearing or monitored")
        chain = parse_caip10(who).chain
        place = home or (chain if chain in self._destinations else self._destinations[0])
        if place not in self._destinations:
            raise UnknownError("home", place, f"destinations: {', '.join(self._destinations)}")
        account = Account(
            "0x" + account_id(who, salt_bytes).hex(),
            who,
            "risk-bearing" if kind == "risk-bearing" else "monitored",
            place,
            label,
        )
        await self._store.add_account(account, salt_bytes)
        return account

    async def add_link(
        self,
        account: str,
        controller: str,
        member: str,
        nonce: int,
        expiry: int,
        invite_signature: str,
        accept_signature: str,
    ) -> LinkRecord:
        """Record that ``member`` backs ``account``, signed by both sides.

        Raises:
            InputError: names the field at fault: an unknown account, a controller that is not the account's, a
                signature that does not verify, an expired link, an address that already backs an account.
        """
        known = await self._store.account(account)
        who, backing = self._address("controller", controller), self._address("member", member)
        if who != known.controller:
            raise InputError(
                "controller", f"{who} does not control account {known.id[:10]}…", f"it is {known.controller}"
            )
        now = int(self._clock.now())
        try:
            terms = LinkTerms(bytes.fromhex(known.id[2:]), who, backing, nonce, expiry)
            invite = decode_signature(who, invite_signature, "invite_signature")
            accept = decode_signature(backing, accept_signature, "accept_signature")
            verify_link(self._deployment_id, terms, invite, accept, now)
        except ProofError as error:
            raise InputError(error.field, error.reason) from None
        return await self._store.append_link(
            LinkRecord(-1, known.id, who, backing, nonce, expiry, invite_signature, accept_signature, now)
        )


def link_message(
    deployment_id: bytes, account: Account, member: str, nonce: int, expiry: int, side: str
) -> str | dict[str, Any]:
    """Return what one side of a link signs: a text for Solana addresses, EIP-712 JSON for EVM addresses.

    Args:
        side: ``invite`` (the controller signs) or ``accept`` (the member signs).

    Raises:
        InputError: names the field at fault.
    """
    if side not in ("invite", "accept"):
        raise InputError("side", f"{side!r} is not known", "give invite or accept")
    verb: Verb = "invite" if side == "invite" else "accept"
    try:
        canonical = str(parse_caip10(member, "member"))
        terms = LinkTerms(bytes.fromhex(account.id[2:]), account.controller, canonical, nonce, expiry)
    except ProofError as error:
        raise InputError(error.field, error.reason) from None
    signer = account.controller if verb == "invite" else canonical
    if signer.startswith("solana:"):
        return link_text(deployment_id, verb, terms).decode()
    fields = [("account", "bytes32"), ("controller", "string"), ("member", "string")]
    fields += [("nonce", "uint64"), ("expiry", "uint64")]
    domain = [("name", "string"), ("version", "string"), ("salt", "bytes32")]
    primary = f"Link{verb.capitalize()}"
    return {
        "types": {
            "EIP712Domain": [{"name": n, "type": t} for n, t in domain],
            primary: [{"name": n, "type": t} for n, t in fields],
        },
        "primaryType": primary,
        "domain": {"name": "crossmargin", "version": "1", "salt": "0x" + deployment_id.hex()},
        "message": {
            "account": account.id,
            "controller": account.controller,
            "member": canonical,
            "nonce": nonce,
            "expiry": expiry,
        },
    }
