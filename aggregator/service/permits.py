"""Permits and holds: the rules by which one attestor signs them, and how the coordinator collects a quorum.

An attestor signs on the newest certified epoch, as it recomputed it itself. What it signed once counts 0 from then on,
in everything it signs afterwards: its book of permits is durable before the signature exists, and a statement that
leaves one of them out is refused (`verify_permits`). Any two quorums share an honest attestor, so no two of them can
let the same margin go, once by a permit and once by a permit or a budget.
"""

from __future__ import annotations

import asyncio
import secrets
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from aggregator.core import permits as core
from aggregator.core.latency import build_tables, hold_legs
from aggregator.core.tables import World
from aggregator.core.whatif import Epoch, positions_of
from aggregator.domain.budgets import REGISTRY_VENUE, Grant, PermitRecord
from aggregator.domain.certificate import Attestation, State
from aggregator.domain.errors import CrossmarginError, InputError, RefusedError, SourceError, UnknownError
from aggregator.domain.latency import LatencyTables
from aggregator.domain.permits import HoldRecord, PermitMessage, SignedHold, SignedPermit
from aggregator.domain.price import Quote
from aggregator.domain.snapshot import Account, Position
from aggregator.domain.units import format_usd
from aggregator.ports import Asker, Clock, GrantBook, PermitBook, Record, Signer, Store
from aggregator.service.workbench import Computed
from proofs.errors import FieldError, ProofError, SignatureError
from proofs.fields import require_uint
from proofs.links import decode_base58, parse_caip10
from proofs.permits import (
    Hold,
    PermitTerms,
    address_word,
    chain_word,
    hold_digest,
    permit_digest,
    request_digest,
    request_text,
    verify_request,
)
from proofs.quorum import IndexedSignature, verify_quorum
from proofs.sets import AttestorSet

LIFETIME = 3600
"""Seconds that a permit may live, unless said otherwise."""
LONGEST_HOLD = 7 * 86_400
"""Seconds; vaults take none that ends later."""
EPOCHS_BACK = 2
"""How far below the newest certified epoch that of a permit or hold may be."""
ASK_SECONDS = 10.0
KEPT_ASIDE = 3
"""Statements, the newest ones, that may be told to be certified later."""
ANY_EPOCH = 2**62
"""Above every epoch there can be."""


class Newest(NamedTuple):
    """The newest certified epoch as one attestor recomputed it."""

    epoch: Epoch
    permits: tuple[PermitRecord, ...]  # of the state that it commits to: its positions have them as pending


class Vantage:
    """Keeps, for one attestor, what it recomputed of the newest epoch that is certified by now.

    What it attests is kept aside until it is known to be certified. An epoch that was certified without this attestor
    is not known here: until it has attested a newer one, it signs nothing that rests on such an epoch.

    Args:
        world: as valuations are configured.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._configured = build_tables((), world.chains, world.destinations)
        self._aside: dict[bytes, Newest] = {}
        self._newest: Newest | None = None

    def attested(
        self, digest: bytes, computed: Computed, quotes: Sequence[Quote], latency: LatencyTables, state: State
    ) -> None:
        """Put aside what a statement (by its digest) was recomputed from, and what came out."""
        legs = hold_legs(latency or self._configured, self._world.chains)
        epoch = Epoch(computed.snapshot, tuple(quotes), self._world, legs, computed.report)
        self._aside[digest] = Newest(epoch, state.permits)
        for old in list(self._aside)[:-KEPT_ASIDE]:
            del self._aside[old]

    def certified(self, digest: bytes) -> None:
        """Take over what was put aside for a statement that is certified; ignore one that was not attested here."""
        found = self._aside.pop(digest, None)
        if found is not None and (self._newest is None or _number(found) > _number(self._newest)):
            self._newest = found
            self._aside = {other: kept for other, kept in self._aside.items() if _number(kept) > _number(found)}

    def newest(self) -> Newest | None:
        """Return the newest certified epoch that was attested here, None before the first."""
        return self._newest


def _number(newest: Newest) -> int:
    return newest.epoch.snapshot.epoch


@dataclass(frozen=True)
class Ground:
    """What one attestor's rules stand on.

    Args:
        seat: returns its index in the set that an epoch demands, None if it is not in it.
        newest: returns the newest certified epoch, None before the first (`Vantage.newest`).
        grants: its durable record of budgets.
        vaults: addresses of the configured vaults by chain (CAIP-2).
        bounds: by destination (CAIP-2): seconds by which its clock may be behind.
        epochs_back: how far below the newest epoch that of a document may be.
        turn: held while it signs. The same lock must be held from the check of a statement's permits (`verify_permits`)
            until its budgets are on record, else a permit and a budget could pass each other unseen.
    """

    deployment_id: bytes
    signer: Signer
    seat: Callable[[int], int | None]
    record: Record
    newest: Callable[[], Newest | None]
    grants: GrantBook
    vaults: Mapping[str, Collection[str]]
    bounds: Mapping[str, int]
    clock: Clock
    epochs_back: int = EPOCHS_BACK
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def usable(self, account: str, now: int) -> tuple[Grant, ...]:
        """Return the budgets that it signed for an account, certified or not, and that have not expired."""
        return await self.grants.outstanding(now, (account,), ANY_EPOCH)

    def require_vault(self, chain: str, vault: str) -> None:
        """Refuse a vault that is not configured."""
        known = self.vaults.get(chain, ())
        if vault not in known:
            _refuse("vault", f"{chain}:{vault} given, known on that chain: {', '.join(sorted(known)) or 'none'}")

    def require_newest(self, epoch: int) -> Newest:
        """Return the newest certified epoch; refuse a document that does not rest on it, or on one just before."""
        newest = self.newest()
        if newest is None:
            _refuse("epoch", f"{epoch} given, no epoch is certified yet")
        number = _number(newest)
        if not number - self.epochs_back <= epoch <= number:
            _refuse("epoch", f"{epoch} given, the newest certified is {number}; at most {self.epochs_back} before it")
        return newest

    async def sign(self, seat: int, digest: bytes) -> Attestation:
        """Return the signature of a digest that is on record; a token or a service takes its time."""
        r, vs = await asyncio.to_thread(self.signer.sign, digest)
        return Attestation(seat, r, vs)

    def require_seat(self, epoch: int) -> int:
        """Return the attestor's index in the set of an epoch."""
        seat = self.seat(epoch)
        if seat is None:
            _refuse("member", f"{self.signer.address} is not in the set that epoch {epoch} demands")
        return seat


class PermitRules:
    """Signs withdrawal permits, for one attestor.

    Rules, in this order: the terms are well formed · ``vault`` is configured · ``epoch`` is the newest certified one
    or just before · ``account`` is in it · ``request``: the controller signed the same terms · ``expiry`` is ahead and
    within the lifetime · ``amount`` lies in the vault · ``status``: nothing of the account is unknown ·
    ``free_collateral`` without this and all outstanding permits is not negative · ``budgets``: it covers what may still
    be drawn on budgets given before, or the withdrawal takes nothing from it · ``permit``: the nonce is new. A repeat
    of what was signed is signed again.

    Controllers sign with a key: a contract or a program-derived address withdraws by a request that waits its delay.

    Args:
        book: its durable list of what it signed.
        lifetime: seconds that a permit may live.
    """

    def __init__(self, ground: Ground, book: PermitBook, *, lifetime: int = LIFETIME) -> None:
        self._ground, self._book, self._lifetime = ground, book, lifetime

    async def outstanding(self, now: int | None = None) -> tuple[PermitRecord, ...]:
        """Return the permits that it signed and that some vault may still take at ``now`` (Unix seconds), by nonce."""
        bounds = self._ground.bounds
        at = int(self._ground.clock.now()) if now is None else now
        noted = await self._book.since(at - max(bounds.values(), default=0))
        return core.outstanding((entry.permit for entry in noted), at, bounds)

    async def sign(self, document: Mapping[str, Any]) -> Attestation:
        """Check a permit (the fields of `PermitRecord` by name), record it durably, then sign it.

        Raises:
            RefusedError: names the rule and both values.
        """
        ground = self._ground
        permit = read_permit(document)
        terms = _terms(permit)
        async with ground.turn:
            ground.require_vault(permit.chain, permit.vault)
            newest, seat = ground.require_newest(permit.epoch), ground.require_seat(permit.epoch)
            account = _account(newest.epoch, permit.account)
            _verify_controller(terms, account, permit.request, ground.deployment_id)
            now = int(ground.clock.now())
            _check_expiry(permit, now, self._lifetime)
            own = await self.outstanding(now)
            if permit not in own:
                await self._check_margin(permit, newest, own, now)
            digest = permit_digest(terms.permit, ground.deployment_id)
            await ground.record.claim_once("permit", permit.nonce, digest)
            await self._book.note(permit)
            return await ground.sign(seat, digest)

    async def _check_margin(self, permit: PermitRecord, newest: Newest, own: Sequence[PermitRecord], now: int) -> None:
        ground, epoch = self._ground, newest.epoch
        rows = positions_of(epoch.snapshot, permit.account)
        there = sum(p.quantity for p in rows if _lies_in(p, permit))
        if permit.amount > there:
            _refuse("amount", f"{permit.amount} given, {there} lie in the vault at epoch {epoch.snapshot.epoch}")
        others = [p for p in own if p.account == permit.account and p not in newest.permits]
        grants = await ground.usable(permit.account, now)
        before, after = [
            await asyncio.to_thread(core.withdraw, epoch, permit.account, chosen, grants, now, ground.bounds)
            for chosen in (others, [*others, permit])
        ]
        if after.standing.status == "unknown":
            _refuse("status", f"account {permit.account} is unknown at epoch {epoch.snapshot.epoch}, healthy expected")
        if after.free < 0:
            was, left = format_usd(before.free), format_usd(after.free)
            _refuse("free_collateral", f"of {permit.account}: {was} USD before, {left} USD without the permit's amount")
        if after.free < after.unused and after.free < before.free:
            left, owed = format_usd(after.free), format_usd(after.unused)
            reason = f"{left} USD would be free, {owed} USD may still be drawn on budgets given before"
            _refuse("budgets", f"of {permit.account}: {reason}; sign lower shares and wait until they are posted")


class HoldRules:
    """Signs holds, for one attestor.

    A hold is signed for an account that at the newest certified epoch is liquidatable or unhealthy, or unknown while it
    owes anything, has drawn anything, or may still draw on a budget given before. An unknown account that owes nothing
    is left alone: nobody loses by its leaving.

    Rules, in this order: the terms are well formed · ``vault`` · ``epoch`` · ``account`` as for permits · ``until`` is
    ahead and at most ``longest`` seconds away · ``status`` as above · ``hold``: one per account, vault and epoch.

    Args:
        longest: seconds that a hold may last.
    """

    def __init__(self, ground: Ground, *, longest: int = LONGEST_HOLD) -> None:
        self._ground, self._longest = ground, min(longest, LONGEST_HOLD)

    async def sign(self, document: Mapping[str, Any]) -> Attestation:
        """Check a hold (the fields of `HoldRecord` by name), record it durably, then sign it.

        Raises:
            RefusedError: names the rule and both values.
        """
        ground = self._ground
        hold = read_hold(document)
        words = _hold_words(hold)
        async with ground.turn:
            ground.require_vault(hold.chain, hold.vault)
            newest, seat = ground.require_newest(hold.epoch), ground.require_seat(hold.epoch)
            account = _account(newest.epoch, hold.account)
            now = int(ground.clock.now())
            if not now < hold.until <= now + self._longest:
                _refuse("until", f"{hold.until} given, after {now} and at most {now + self._longest} expected")
            await self._check_standing(newest.epoch, account, now)
            digest = hold_digest(words, ground.deployment_id)
            key = f"{hold.account}/{hold.chain}:{hold.vault}/{hold.epoch}"
            await ground.record.claim_once("hold", key, digest)
            return await ground.sign(seat, digest)

    async def _check_standing(self, epoch: Epoch, account: Account, now: int) -> None:
        standing = core.standing_of(epoch, account.id)
        if standing.liquidatable or standing.status == "unhealthy":
            return
        expected = "liquidatable, unhealthy, or unknown with debts, draws or budgets expected"
        if standing.status == "unknown":
            rows = positions_of(epoch.snapshot, account.id)
            owes = any(p.side == "debt" and (p.amount or p.venue != REGISTRY_VENUE) for p in rows)
            grants = await self._ground.usable(account.id, now)
            if owes or core.unused_budgets(rows, grants, account.id, now, self._ground.bounds):
                return
        _refuse("status", f"account {account.id} is {standing.status} at epoch {epoch.snapshot.epoch}, {expected}")


def verify_permits(
    listed: Sequence[PermitRecord],
    own: Sequence[PermitRecord],
    accounts: Sequence[Account],
    at: int,
    ground: Ground,
) -> None:
    """Check the permits of a proposed state: each asked for by its account's controller, and none of one's own missing.

    Args:
        listed: ascending by nonce, as proposed.
        own: what the attestor signed and may still be used at ``at`` (`PermitRules.outstanding`).
        accounts: ascending by id.
        at: the cut time, Unix seconds.

    Raises:
        RefusedError: rule ``permits``.
    """
    if any(one.nonce >= other.nonce for one, other in pairwise(listed)):
        _refuse("permits", "they do not ascend by nonce")
    if (gone := core.missing(own, listed)) is not None:
        _refuse("permits", f"{gone.nonce} of {gone.account} is not listed, but was signed and may be used")
    alive = core.outstanding(listed, at, ground.bounds)
    by_id = {account.id: account for account in accounts}
    for permit in listed:
        if permit not in alive:
            _refuse("permits", f"{permit.nonce} expired at {permit.expiry}, the cut is at {at}")
        if permit.account not in by_id:
            _refuse("permits", f"{permit.nonce} is of {permit.account}, which is no account")
        try:
            terms = _terms(permit)
            ground.require_vault(permit.chain, permit.vault)
            _verify_controller(terms, by_id[permit.account], permit.request, ground.deployment_id)
        except RefusedError as error:
            raise RefusedError("permits", f"{permit.nonce}: {error}") from None


class PermitDesk:
    """Collects permits and holds for the coordinator. Implements ``aggregator.ports.Permits``.

    What it asks for is in its book before anybody is asked, and every statement from then on must list it
    (`outstanding`): some attestor may have signed though a quorum did not.

    Args:
        store: accounts.
        book: its own durable list.
        askers: one for every attestor.
        group: returns the set that an epoch demands.
        newest: returns the number of the newest certified epoch, None before the first.
        vaults, bounds, lifetime: as for the attestors.
        turn: held while permits are collected; whoever proposes statements holds it from taking the state until the
            round is over, else attestors refuse an epoch that lacks what they signed meanwhile.
    """

    def __init__(
        self,
        deployment_id: bytes,
        store: Store,
        book: PermitBook,
        askers: Sequence[Asker],
        group: Callable[[int], AttestorSet],
        newest: Callable[[], Awaitable[int | None]],
        vaults: Mapping[str, Collection[str]],
        bounds: Mapping[str, int],
        clock: Clock,
        *,
        lifetime: int = LIFETIME,
        seconds: float = ASK_SECONDS,
        turn: asyncio.Lock | None = None,
    ) -> None:
        self._deployment_id, self._store, self._book, self._askers = deployment_id, store, book, askers
        self._group, self._newest, self._clock = group, newest, clock
        self._vaults, self._bounds, self._lifetime, self._seconds = vaults, bounds, lifetime, seconds
        self._turn = turn or asyncio.Lock()

    async def outstanding(self, now: int | None = None) -> tuple[PermitRecord, ...]:
        """Return what a state must list at ``now`` (Unix seconds): all that was asked for and may still be used."""
        at = int(self._clock.now()) if now is None else now
        noted = await self._book.since(at - max(self._bounds.values(), default=0))
        return core.outstanding((entry.permit for entry in noted), at, self._bounds)

    async def permits(self, account: str) -> tuple[SignedPermit, ...]:
        """Return an account's permits that may still be used, signed by a quorum or not, by nonce."""
        return await self._book.since(int(self._clock.now()), account)

    async def message(
        self,
        account: str,
        asset: str,
        amount: int,
        to: str,
        vault: str | None = None,
        nonce: str | None = None,
        epoch: int | None = None,
        expiry: int | None = None,
    ) -> PermitMessage:
        """Return what the controller signs; see ``aggregator.ports.Permits``."""
        known = await self._store.account(account)
        chain = asset.partition("/")[0]
        newest = await self._newest() if epoch is None else epoch
        if newest is None:
            raise UnknownError("epoch", "newest", "none is certified yet; try again soon")
        permit = PermitRecord(
            known.id,
            chain,
            self._only_vault(chain) if vault is None else vault,
            asset,
            amount,
            to,
            "0x" + secrets.token_hex(32) if nonce is None else nonce,
            newest,
            int(self._clock.now()) + self._lifetime if expiry is None else expiry,
            "",
        )
        try:
            return permit_message(self._deployment_id, permit, known.controller)
        except RefusedError as error:
            raise InputError(error.rule, error.reason) from None

    async def collect_permit(self, permit: PermitRecord) -> SignedPermit:
        """Have the attestors sign; see ``aggregator.ports.Permits``."""
        known = await self._store.account(permit.account)
        try:
            terms = _terms(permit)
            _verify_controller(terms, known, permit.request, self._deployment_id)
            _check_expiry(permit, int(self._clock.now()), self._lifetime)
        except RefusedError as error:
            raise InputError(error.rule, error.reason) from None
        if permit.vault not in self._vaults.get(permit.chain, ()):
            raise UnknownError("vault", permit.vault, self._vaults_of(permit.chain))
        async with self._turn:
            earlier = await self._book.since(permit.expiry, permit.account)
            signed = next((e for e in earlier if e.permit == permit and e.attestations), None)
            if signed is not None:
                return signed
            await self._book.note(permit)
            digest = permit_digest(terms.permit, self._deployment_id)
            try:
                document = permit._asdict() | {"amount": str(permit.amount)}  # JSON's numbers are shorter
                found = await self._collect("permit", document, permit.epoch, digest)
            except _NobodySignedError:
                await self._book.drop(permit)
                raise
            await self._book.note(permit, found)
            return SignedPermit(permit, found)

    async def collect_hold(self, account: str, chain: str, vault: str, until: int) -> SignedHold:
        """Have the attestors sign a hold on an account in a vault until a time (Unix seconds).

        Raises:
            UnknownError: no epoch is certified yet. RefusedError: there is no quorum; says who refused, and why.
        """
        newest = await self._newest()
        if newest is None:
            raise UnknownError("epoch", "newest", "none is certified yet; try again soon")
        hold = HoldRecord(account, chain, vault, until, newest)
        digest = hold_digest(_hold_words(hold), self._deployment_id)
        return SignedHold(hold, await self._collect("hold", hold._asdict(), newest, digest))

    async def _collect(
        self, kind: Any, document: Mapping[str, Any], epoch: int, digest: bytes
    ) -> tuple[Attestation, ...]:
        """Ask everybody at once; return the signatures that verify, ascending, if they are a quorum."""
        group = self._group(epoch)

        async def ask(asker: Asker) -> Attestation:
            async with asyncio.timeout(self._seconds):
                return await asker.ask(kind, document)

        answers = await asyncio.gather(*(ask(asker) for asker in self._askers), return_exceptions=True)
        valid: dict[int, Attestation] = {}
        told: list[str] = []
        for asker, answer in zip(self._askers, answers, strict=True):
            problem = _problem(answer, digest, group)
            if problem:
                told.append(f"{asker.name}: {problem}")
            elif isinstance(answer, Attestation):
                valid[answer.index] = answer
        if len(valid) >= group.threshold:
            return tuple(sorted(valid.values()))
        reason = f"{len(valid)} of {group.threshold} signatures; {'; '.join(told)}"
        if not valid and all(isinstance(answer, RefusedError) for answer in answers):
            raise _NobodySignedError("quorum", reason)
        raise RefusedError("quorum", reason)

    def _only_vault(self, chain: str) -> str:
        known = sorted(self._vaults.get(chain, ()))
        if len(known) != 1:
            raise InputError("vault", f"{len(known)} vaults are known on {chain}", self._vaults_of(chain))
        return known[0]

    def _vaults_of(self, chain: str) -> str:
        return f"vaults on {chain}: {', '.join(sorted(self._vaults.get(chain, ()))) or 'none'}"


class _NobodySignedError(RefusedError):
    """Every attestor said no, so there is no signature anywhere."""


def read_permit(document: Mapping[str, Any]) -> PermitRecord:
    """Return the permit of a document that came over a wire: the fields of `PermitRecord` by name.

    Raises:
        RefusedError: names the field that is missing, of another type, or unknown.
    """
    texts = _fields(document, PermitRecord._fields, ("amount", "epoch", "expiry"))
    return PermitRecord(**texts)


def read_hold(document: Mapping[str, Any]) -> HoldRecord:
    """Return the hold of a document that came over a wire: the fields of `HoldRecord` by name. Raises as above."""
    return HoldRecord(**_fields(document, HoldRecord._fields, ("until", "epoch")))


def permit_message(deployment_id: bytes, permit: PermitRecord, controller: str) -> PermitMessage:
    """Return what the controller (CAIP-10) signs: a text for a Solana address, EIP-712 JSON for an EVM address.

    Raises:
        RefusedError: names the field that is malformed.
    """
    terms = _terms(permit)
    if parse_caip10(controller).namespace != "eip155":
        return PermitMessage(permit, controller, request_text(terms, deployment_id).decode(), None, "")
    words = terms.permit
    kinds = {"amount": "uint256", "epoch": "uint64", "expiry": "uint64"}
    names = ("account", "chain", "vault", "asset", "amount", "to", "nonce", "epoch", "expiry")
    values = {name: getattr(words, name) for name in names}
    typed = {
        "types": {
            "EIP712Domain": [
                {"name": n, "type": t} for n, t in (("name", "string"), ("version", "string"), ("salt", "bytes32"))
            ],
            "PermitRequest": [{"name": name, "type": kinds.get(name, "bytes32")} for name in names],
        },
        "primaryType": "PermitRequest",
        "domain": {"name": "crossmargin", "version": "1", "salt": "0x" + deployment_id.hex()},
        # Amounts as text: they do not fit the numbers of JavaScript.
        "message": {n: "0x" + v.hex() if isinstance(v, bytes) else str(v) for n, v in values.items()},
    }
    return PermitMessage(permit, controller, "", typed, "0x" + request_digest(words, deployment_id).hex())


def _fields(document: Mapping[str, Any], names: Sequence[str], numbers: Collection[str]) -> dict[str, Any]:
    for name in document:
        if name not in names:
            _refuse("document", f"{str(name)[:40]!r} given, {', '.join(names)} expected")
    read: dict[str, Any] = {}
    for name in names:
        value = document.get(name)
        if name in numbers and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 40:
            value = int(value)
        expected: type = int if name in numbers else str
        if type(value) is not expected:
            _refuse(name, f"{type(value).__name__} given, {expected.__name__} expected")
        read[name] = value
    return read


def _bytes32(field: str, text: str) -> bytes:
    digits = text.removeprefix("0x")
    if len(text) != 66 or len(digits) != 64 or digits.lower() != digits:
        raise FieldError(field, f"{text[:80]!r} is not 0x and 64 lower-case hex digits")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise FieldError(field, f"{text!r} is not 0x and 64 lower-case hex digits") from None


def _terms(permit: PermitRecord) -> PermitTerms:
    try:
        return PermitTerms(
            _bytes32("account", permit.account),
            permit.chain,
            permit.vault,
            permit.asset,
            permit.amount,
            permit.to,
            _bytes32("nonce", permit.nonce),
            permit.epoch,
            permit.expiry,
        )
    except ProofError as error:
        raise RefusedError(error.field, error.reason) from None


def _hold_words(hold: HoldRecord) -> Hold:
    try:
        vault = address_word(hold.chain, hold.vault, "vault")
        require_uint("until", hold.until, 64)
        return Hold(_bytes32("account", hold.account), chain_word(hold.chain), vault, hold.until, hold.epoch)
    except ProofError as error:
        raise RefusedError(error.field, error.reason) from None


def _verify_controller(terms: PermitTerms, account: Account, request: str, deployment_id: bytes) -> None:
    try:
        if account.controller.startswith("eip155:"):
            try:
                signature = bytes.fromhex(request.removeprefix("0x"))
            except ValueError:
                raise SignatureError("request", "is not 65 bytes in hex, as the keys of EVM addresses sign") from None
        else:
            signature = decode_base58(request, 64, "request")
        verify_request(terms, account.controller, signature, deployment_id)
    except ProofError as error:
        raise RefusedError("request", error.reason) from None


def _check_expiry(permit: PermitRecord, now: int, lifetime: int) -> None:
    if not now < permit.expiry <= now + lifetime:
        _refuse("expiry", f"{permit.expiry} given, after {now} and at most {now + lifetime} expected")


def _account(epoch: Epoch, id: str) -> Account:
    accounts = epoch.snapshot.accounts
    place = bisect_left(accounts, id, key=lambda account: account.id)
    if place == len(accounts) or accounts[place].id != id:
        _refuse("account", f"{id} is not among the {len(accounts)} of epoch {epoch.snapshot.epoch}")
    return accounts[place]


def _lies_in(position: Position, permit: PermitRecord) -> bool:
    place = (position.chain, position.origin, position.asset, position.side)
    return place == (permit.chain, permit.vault, permit.asset, "asset") and not position.contract.kind


def _problem(answer: Attestation | BaseException, digest: bytes, group: AttestorSet) -> str:
    """Return what is wrong with an attestor's answer, "" if nothing is."""
    match answer:
        case RefusedError() | SourceError() | CrossmarginError():
            return str(answer)
        case TimeoutError():
            return "no answer in time"
        case BaseException():
            raise answer
    if answer.index >= len(group.members):
        return f"index {answer.index}, the set has {len(group.members)} members"
    alone = (group.members[answer.index],)
    try:
        verify_quorum(digest, [IndexedSignature(0, answer.r, answer.vs)], alone, 1)
    except ProofError as error:
        return f"a bad signature ({error})"
    return ""


def _refuse(rule: str, reason: str) -> NoReturn:
    raise RefusedError(rule, reason)
