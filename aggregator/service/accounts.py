"""Opening accounts and linking addresses to them: the few writes that people make."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import structlog

from aggregator.domain.certificate import EpochRecord, LinkRecord, State
from aggregator.domain.errors import ConflictError, InputError, SourceError, UnknownError
from aggregator.domain.links import LinkMessage, endable, next_nonce
from aggregator.domain.snapshot import Account, Subject
from aggregator.ports import Clock, Store
from aggregator.service.seals import questions, to_shares, to_terms
from proofs.errors import FieldError, ProofError
from proofs.links import (
    Consent,
    LinkTerms,
    SharesTerms,
    Side,
    Verb,
    account_id,
    decode_base58,
    link_digest,
    link_text,
    parse_caip10,
    parse_chain_consent,
    parse_shares,
    shares_digest,
    shares_text,
    verify_link,
    verify_revoke,
    verify_shares,
)

log = structlog.get_logger("accounts")

MESSAGE_SECONDS = 86_400
"""How long a signature may be used when nobody says otherwise."""

Witness = Callable[[str, Sequence[tuple[Subject, int]]], Awaitable[Sequence[str | SourceError]]]
"""Asks a chain (CAIP-2) about sealed subjects, each as of the last block that is final and not after its time (Unix
seconds; Solana serves no past state and answers as of now). An answer is "" where the chain confirms, else what it says
instead, or why it cannot tell."""


def decode_signature(signer: str, text: str, field: str) -> Consent:
    """Return a signature: 0x hex of r, s, v (65 bytes) on EVM chains, base58 of 64 bytes on Solana.

    An address without a key gives eip1271:0x… or pda:<base58>.

    Raises:
        FieldError, InputError: names ``field``.
    """
    if (consent := parse_chain_consent(text, field)) is not None:
        return consent
    if not signer.startswith("eip155:"):
        return decode_base58(text, 64, field)
    try:
        signature = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        signature = b""
    if len(signature) != 65:
        raise InputError(
            field,
            "is not 65 bytes in hex",
            "give 0x and r, s, v as wallets return them, or eip1271:0x… for a contract that answers for itself",
        )
    return signature


class AccountBook:
    """Implements :class:`aggregator.ports.Accounts` over the store.

    Args:
        witness: asks chains about addresses without a key; without one, such addresses are refused.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        deployment_id: bytes,
        chains: Collection[str],
        destinations: Collection[str],
        witness: Witness | None = None,
    ) -> None:
        self._store, self._clock, self._deployment_id = store, clock, deployment_id
        self._chains, self._destinations = sorted(chains), sorted(destinations)
        self._witness = witness

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
        known, who, backing = await self._pair(account, controller, member)
        now = int(self._clock.now())
        record = LinkRecord(-1, known.id, who, backing, nonce, expiry, invite_signature, accept_signature, now)
        try:
            invite = decode_signature(who, invite_signature, "invite_signature")
            accept = decode_signature(backing, accept_signature, "accept_signature")
            verify_link(self._deployment_id, to_terms(record), invite, accept, now, ask_chain=True)
            await self._ask(record, {"controller": "invite_signature", "member": "accept_signature"})
        except ProofError as error:
            raise InputError(error.field, error.reason) from None
        return await self._store.append_link(record, self._clock.now)

    async def revoke_link(
        self, account: str, controller: str, member: str, nonce: int, expiry: int, by: str, signature: str
    ) -> LinkRecord:
        """Record that one side revokes the link: its assets count 0 from now on, its debts stand until it ends.

        Args:
            by: whose signature it is, ``controller`` or ``member``.

        Raises:
            InputError: names the field at fault; ConflictError if there is nothing to revoke, or if ``nonce`` is not
                above the last one of the pair.
        """
        known, who, backing = await self._pair(account, controller, member)
        side = _side(by)
        now = int(self._clock.now())
        given = (signature, "") if side == "controller" else ("", signature)
        record = LinkRecord(-1, known.id, who, backing, nonce, expiry, *given, now, "revoke")
        try:
            consent = decode_signature(who if side == "controller" else backing, signature, "signature")
            verify_revoke(self._deployment_id, to_terms(record), side, consent, now, ask_chain=True)
            await self._ask(record, {side: "signature"})
        except ProofError as error:
            raise InputError(error.field, error.reason) from None
        return await self._store.append_link(record, self._clock.now)

    async def message(
        self, account: str, member: str, verb: str, by: str, nonce: int | None = None, expiry: int | None = None
    ) -> LinkMessage:
        """Return what one side signs to invite, to accept or to revoke.

        Args:
            by: who signs a revoke; the controller invites and the member accepts, whatever it says.
            nonce: None for the least that may be used.
            expiry: Unix seconds; None for in a day.

        Raises:
            InputError: names the field at fault.
        """
        known = await self._store.account(account)
        canonical = self._address("member", member)
        if nonce is None:
            nonce = max(1, next_nonce(await self._store.links(known.id), known.id, canonical))
        until = int(self._clock.now()) + MESSAGE_SECONDS if expiry is None else expiry
        return link_message(self._deployment_id, known, canonical, nonce, until, verb, by)

    async def set_shares(
        self, account: str, controller: str, shares: str, nonce: int, expiry: int, signature: str
    ) -> LinkRecord:
        """Record how the controller shares its account's margin out among destinations.

        It takes effect with the next statement; what earlier ones allow elsewhere stays charged until it cannot be
        drawn any more.

        Args:
            shares: "eip155:1=7000,solana:…=3000", see :func:`proofs.links.parse_shares`.

        Raises:
            InputError: names the field at fault; ConflictError if ``nonce`` is not above the account's last one.
        """
        known = await self._store.account(account)
        self._check_controller(known, self._address("controller", controller))
        self._check_destinations(shares)
        now = int(self._clock.now())
        record = LinkRecord(-1, known.id, known.controller, "", nonce, expiry, signature, "", now, "shares", shares)
        try:
            consent = decode_signature(known.controller, signature, "signature")
            verify_shares(self._deployment_id, to_shares(record), consent, now, ask_chain=True)
            await self._ask(record, {"controller": "signature"})
        except ProofError as error:
            raise InputError(error.field, error.reason) from None
        return await self._store.append_link(record, self._clock.now)

    async def shares_message(
        self, account: str, shares: str, nonce: int | None = None, expiry: int | None = None
    ) -> LinkMessage:
        """Return what the controller signs to share its account out; arguments as of :meth:`message`.

        Raises:
            InputError: names the field at fault.
        """
        known = await self._store.account(account)
        self._check_destinations(shares)
        if nonce is None:
            nonce = max(1, next_nonce(await self._store.links(known.id), known.id, ""))
        until = int(self._clock.now()) + MESSAGE_SECONDS if expiry is None else expiry
        return shares_message(self._deployment_id, known, shares, nonce, until)

    def _check_destinations(self, shares: str) -> None:
        try:
            named = parse_shares(shares)
        except ProofError as error:
            remedy = "for example eip155:1=7000,eip155:10=3000: parts of 10,000"
            raise InputError("shares", error.reason, remedy) from None
        for chain, _ in named:
            if chain not in self._destinations:
                raise UnknownError("shares", chain, f"destinations: {', '.join(self._destinations)}")

    @staticmethod
    def _check_controller(known: Account, who: str) -> None:
        if who != known.controller:
            raise InputError(
                "controller", f"{who} does not control account {known.id[:10]}…", f"it is {known.controller}"
            )

    async def _pair(self, account: str, controller: str, member: str) -> tuple[Account, str, str]:
        known = await self._store.account(account)
        who, backing = self._address("controller", controller), self._address("member", member)
        self._check_controller(known, who)
        return known, who, backing

    async def _ask(self, record: LinkRecord, fields: dict[Side, str]) -> None:
        """Have the chains confirm the consents that no key gave; ``fields`` names each side's for errors."""
        for side, chain, subject in questions(self._deployment_id, record):
            if self._witness is None:
                raise InputError(fields[side], f"{chain} must be asked, and nobody here can", "use the service's API")
            (answer,) = await self._witness(chain, [(subject, record.recorded_at)])
            if isinstance(answer, SourceError):
                raise answer
            if answer:
                raise InputError(fields[side], answer, "the address must agree on its own chain first")


class LinkEnder:
    """Appends the end of revoked links when it is due."""

    def __init__(self, store: Store, clock: Clock, cooldown: int) -> None:
        self._store, self._clock, self._cooldown = store, clock, cooldown

    async def settle(self, record: EpochRecord, state: State) -> tuple[LinkRecord, ...]:
        """End what may end by ``record``, the newest certified epoch; return the entries as appended.

        Args:
            state: the log, not older than the one that ``record`` commits to.
        """
        ended: list[LinkRecord] = []
        for entry in endable(record.margins, record.chains, state, record.cut_time, self._cooldown):
            try:
                ended.append(await self._store.append_link(entry, self._clock.now))
            except ConflictError as error:  # both sides signed anew in this moment
                log.info("link does not end", member=entry.member, cause=str(error))
        return tuple(ended)


def _side(by: str) -> Side:
    if by not in ("controller", "member"):
        raise InputError("by", f"{by!r} is not known", "give controller or member")
    return "controller" if by == "controller" else "member"


def link_message(
    deployment_id: bytes, account: Account, member: str, nonce: int, expiry: int, verb: str, by: str = "controller"
) -> LinkMessage:
    """Return what one side of a link signs: a text for Solana addresses, EIP-712 JSON for EVM addresses.

    Args:
        verb: ``invite`` (the controller signs), ``accept`` (the member signs) or ``revoke`` (``by`` signs).

    Raises:
        InputError: names the field at fault.
    """
    verbs: dict[str, Verb] = {"invite": "invite", "accept": "accept", "revoke": "revoke"}
    if verb not in verbs:
        raise InputError("verb", f"{verb!r} is not known", f"give {', '.join(verbs)}")
    act = verbs[verb]
    side = _side({"invite": "controller", "accept": "member"}.get(verb, by))
    try:
        canonical = str(parse_caip10(member, "member"))
        terms = LinkTerms(bytes.fromhex(account.id[2:]), account.controller, canonical, nonce, expiry)
    except ProofError as error:
        raise InputError(error.field, error.reason) from None
    signer = account.controller if side == "controller" else canonical
    if signer.startswith("solana:"):
        text = link_text(deployment_id, act, terms).decode()
        return LinkMessage(act, signer, nonce, expiry, text, None, "")
    typed = _typed(deployment_id, f"Link{act.capitalize()}", account, ("member", canonical), nonce, expiry)
    return LinkMessage(act, signer, nonce, expiry, "", typed, "0x" + link_digest(deployment_id, act, terms).hex())


def shares_message(deployment_id: bytes, account: Account, shares: str, nonce: int, expiry: int) -> LinkMessage:
    """Return what an account's controller signs to share it out among destinations.

    Raises:
        InputError: names the field at fault.
    """
    try:
        terms = SharesTerms(bytes.fromhex(account.id[2:]), account.controller, shares, nonce, expiry)
    except ProofError as error:
        raise InputError(error.field, error.reason) from None
    if account.controller.startswith("solana:"):
        text = shares_text(deployment_id, terms).decode()
        return LinkMessage("shares", account.controller, nonce, expiry, text, None, "")
    typed = _typed(deployment_id, "BudgetShares", account, ("shares", shares), nonce, expiry)
    digest = "0x" + shares_digest(deployment_id, terms).hex()
    return LinkMessage("shares", account.controller, nonce, expiry, "", typed, digest)


def _typed(
    deployment_id: bytes, primary: str, account: Account, what: tuple[str, str], nonce: int, expiry: int
) -> dict[str, Any]:
    """Return EIP-712 JSON of terms whose third field is ``what``, a name and a text."""
    fields = [("account", "bytes32"), ("controller", "string"), (what[0], "string")]
    fields += [("nonce", "uint64"), ("expiry", "uint64")]
    domain = [("name", "string"), ("version", "string"), ("salt", "bytes32")]
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
            what[0]: what[1],
            "nonce": nonce,
            "expiry": expiry,
        },
    }
