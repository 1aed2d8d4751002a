"""Permits and holds: the rules by which one attestor signs them, and how the coordinator collects a quorum.

An attestor signs on the newest certified epoch, as it recomputed it itself. What it signed once counts 0 from then on,
in everything it signs afterwards: its book of permits is durable before the signature exists, and a statement that
leaves one of them out is refused (`verify_permits`). Any two quorums share an honest attestor, so no two of them can
let the same margin go, once by a permit and once by a permit or a budget. What a certified state lists, the next one
lists as long as it counts: so a set that takes over knows what the one before let go.

How long a permit counts after its expiry is its chain's *slack*: its clock may be behind, and the block at which the
vault's collateral is still counted may be from before the withdrawal.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple, NoReturn

from aggregator.core import permits as core
from aggregator.core.latency import build_tables, hold_legs
from aggregator.core.tables import World
from aggregator.core.whatif import Epoch, positions_of
from aggregator.domain.budgets import REGISTRY_VENUE, Grant, PermitRecord
from aggregator.domain.certificate import Attestation, State
from aggregator.domain.errors import (
    ConflictError,
    CrossmarginError,
    InputError,
    RefusedError,
    SourceError,
    UnknownError,
)
from aggregator.domain.latency import LatencyTables
from aggregator.domain.permits import HoldRecord, PermitMessage, SignedHold, SignedPermit
from aggregator.domain.price import Quote
from aggregator.domain.snapshot import Account, Position
from aggregator.domain.units import format_usd
from aggregator.ports import Asker, Clock, GrantBook, PermitBook, Record, Signer, Store
from aggregator.service.committed import listed_permits
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
HOLD_SECONDS = 3600
"""How long after its epoch's cut a hold ends. Vaults would take a week; but no hold ends sooner than it says."""
EPOCHS_BACK, SECONDS_BACK = 2, 300
"""How far below the newest certified epoch that of a permit or hold may be: the longer one. A person signs in between,
and what is signed is judged at the newest epoch, whatever its own is."""
ASK_SECONDS = 10.0
KEPT_ASIDE = 3
"""Statements, the newest ones, that may be told to be certified later."""
_HEX = re.compile("[0-9a-fA-F]{130}")
ANY_EPOCH = 2**62
"""Above every epoch there can be."""
OPEN_PERMITS = 3
"""How many permits of one account may be unexpired at a time, signed or asked for."""
MOST_ASKED = 8
"""How many permits the attestors are asked for at a time, of all accounts."""


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
        self._aside[digest] = self._made(computed, quotes, latency, state.permits)
        for old in list(self._aside)[:-KEPT_ASIDE]:
            del self._aside[old]

    def take(self, computed: Computed, quotes: Sequence[Quote], latency: LatencyTables) -> None:
        """Take over an epoch that is certified already."""
        self._newest = self._made(computed, quotes, latency, listed_permits(computed.preimages["state"]))

    def _made(
        self, computed: Computed, quotes: Sequence[Quote], latency: LatencyTables, permits: Sequence[PermitRecord]
    ) -> Newest:
        legs = hold_legs(latency or self._configured, self._world.chains)
        epoch = Epoch(computed.snapshot, tuple(quotes), self._world, legs, computed.report)
        return Newest(epoch, tuple(permits))

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


def epochs_back(epoch_seconds: int) -> int:
    """Return how far below the newest certified epoch that of a document may be."""
    return max(EPOCHS_BACK, SECONDS_BACK // epoch_seconds)


@dataclass(frozen=True)
class Ground:
    """What one attestor's rules stand on.

    Args:
        group: returns the set that an epoch demands.
        newest: returns the newest certified epoch, None before the first (`Vantage.newest`).
        grants: its durable record of budgets.
        vaults: addresses of the configured vaults by chain (CAIP-2).
        bounds: by destination (CAIP-2): seconds by which its clock may be behind.
        slack: by chain (CAIP-2): seconds for which permits count after their expiry.
        epoch_seconds: length of an epoch.
        turn: held while it signs. The same lock must be held from the check of a statement's permits (`verify_permits`)
            until its budgets are on record, else a permit and a budget could pass each other unseen.
    """

    deployment_id: bytes
    signer: Signer
    group: Callable[[int], AttestorSet]
    record: Record
    newest: Callable[[], Newest | None]
    grants: GrantBook
    vaults: Mapping[str, Collection[str]]
    bounds: Mapping[str, int]
    slack: Mapping[str, int]
    epoch_seconds: int
    clock: Clock
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def usable(self, account: str, at: int) -> tuple[Grant, ...]:
        """Return the budgets that it signed for an account, certified or not, and that it remembers at a cut's time."""
        return await self.grants.outstanding(at, (account,), ANY_EPOCH)

    def require_vault(self, chain: str, vault: str) -> None:
        """Refuse a vault that is not configured."""
        known = self.vaults.get(chain, ())
        if vault not in known:
            _refuse("vault", f"{chain}:{vault} given, known on that chain: {', '.join(sorted(known)) or 'none'}")

    def require_newest(self, epoch: int, now: int) -> Newest:
        """Return the newest certified epoch; refuse one that has run out, and a document that does not rest on it.

        It may rest on one just before it.
        """
        newest = self.newest()
        if newest is None:
            _refuse("epoch", f"{epoch} given, no epoch is certified yet")
        number, valid_until = _number(newest), newest.epoch.snapshot.valid_until
        _check_epoch(epoch, number, epochs_back(self.epoch_seconds))
        if now >= valid_until:
            _refuse("epoch", f"the newest attested here, {number}, was valid until {valid_until}, it is {now}")
        return newest

    async def sign(self, seat: int, digest: bytes) -> Attestation:
        """Return the signature of a digest that is on record; a token or a service takes its time."""
        r, vs = await asyncio.to_thread(self.signer.sign, digest)
        return Attestation(seat, r, vs)

    def require_seat(self, epoch: int, now: int, until: int) -> int:
        """Return the attestor's index in the set of an epoch, which must be in force from ``now`` to ``until``.

        A set that takes over knows what certified states list, and nothing that the one before signs afterwards.
        """
        group = self.group(epoch)
        for at in (now, until):
            other = self.group(at // self.epoch_seconds)
            if other.set_id != group.set_id:
                _refuse("set", f"epoch {epoch} demands set {group.set_id}, in force at {at} is set {other.set_id}")
        member = bytes.fromhex(self.signer.address[2:])
        if member not in group.members:
            _refuse("member", f"{self.signer.address} is not in the set that epoch {epoch} demands")
        return group.members.index(member)


class PermitRules:
    """Signs withdrawal permits, for one attestor.

    Rules, in this order: the terms are well formed · ``vault`` is configured · ``epoch`` is the newest certified one
    or just before, and has not run out · ``set`` and ``member``: the epoch's set is in force as long as the permit
    counts, and the attestor in it · ``account`` is in the epoch · ``request``: the controller signed the same terms ·
    ``expiry`` is ahead and within the lifetime · ``amount`` lies in the vault · ``status``: nothing of the account is
    unknown · ``registry``: all of its registries were read lately · ``free_collateral`` without this and all
    outstanding permits is not negative · ``budgets``: it covers what may still be drawn on budgets given before, also
    where what leaves counts 0 already, as it did not when they were given · ``watermark``: the account's nonce is new.
    A repeat of what was signed is signed again.

    Controllers sign with a key: a contract or a program-derived address withdraws by a request that waits its delay.

    Args:
        book: its durable list of what it signed.
        lifetime: seconds that a permit may live.
    """

    def __init__(self, ground: Ground, book: PermitBook, *, lifetime: int = LIFETIME) -> None:
        self._ground, self._book, self._lifetime = ground, book, lifetime

    async def outstanding(self, now: int | None = None) -> tuple[PermitRecord, ...]:
        """Return the permits that it signed and that still count at ``now`` (Unix seconds), ascending."""
        at = int(self._ground.clock.now()) if now is None else now
        return await _outstanding(self._book, at, self._ground.slack)

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
            now = int(ground.clock.now())
            newest = ground.require_newest(permit.epoch, now)
            ends = permit.expiry + ground.slack.get(permit.chain, 0)
            seat = ground.require_seat(permit.epoch, now, max(now, ends))
            account = _account(newest.epoch, permit.account)
            _verify_controller(terms, account, permit.request, ground.deployment_id)
            _check_expiry(permit, now, self._lifetime)
            at = newest.epoch.snapshot.cut_time  # what vaults showed then, and no later, is in its numbers
            own = await self.outstanding(at)
            if permit not in own:
                await _check_margin(permit, newest, own, await ground.usable(permit.account, at), ground.bounds)
            digest = permit_digest(terms.permit, ground.deployment_id)
            await ground.record.claim_once("permit", f"{permit.account}/{permit.nonce}", digest)
            await self._book.note(permit)
            return await ground.sign(seat, digest)


class HoldRules:
    """Signs holds, for one attestor.

    A hold is signed for an account that at the newest certified epoch is liquidatable or unhealthy, or unknown while it
    owes anything, has drawn anything, or may still draw on a budget given before. An unknown account that owes nothing
    is left alone: nobody loses by its leaving.

    Rules, in this order: the terms are well formed · ``vault`` · ``epoch`` · ``set`` · ``member`` · ``account`` as for
    permits · ``until`` is what follows from the epoch (`hold_until`), so that all sign the same, whenever they are
    asked · ``status`` as above.

    Nobody can end a hold early: to a vault a newer one prolongs, and never shortens. So each is short, and is signed
    again on a newer epoch as long as the account is in trouble; when it no longer is, the last one runs out.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

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
            now = int(ground.clock.now())
            newest, seat = ground.require_newest(hold.epoch, now), ground.require_seat(hold.epoch, now, now)
            account = _account(newest.epoch, hold.account)
            if hold.until != (until := hold_until(hold.epoch, ground.epoch_seconds)):
                _refuse("until", f"{hold.until} given, {until} expected of epoch {hold.epoch}")
            await self._check_standing(newest.epoch, account)
            digest = hold_digest(words, ground.deployment_id)
            key = f"{hold.account}/{hold.chain}:{hold.vault}/{hold.epoch}"
            await ground.record.claim_once("hold", key, digest)
            return await ground.sign(seat, digest)

    async def _check_standing(self, epoch: Epoch, account: Account) -> None:
        standing = core.standing_of(epoch, account.id)
        if standing.liquidatable or standing.status == "unhealthy":
            return
        expected = "liquidatable, unhealthy, or unknown with debts, draws or budgets expected"
        if standing.status == "unknown":
            rows = positions_of(epoch.snapshot, account.id)
            owes = any(p.side == "debt" and (p.amount or p.venue != REGISTRY_VENUE) for p in rows)
            grants = await self._ground.usable(account.id, epoch.snapshot.cut_time)
            if owes or core.unused_budgets(epoch.snapshot, grants, account.id, self._ground.bounds):
                return
        _refuse("status", f"account {account.id} is {standing.status} at epoch {epoch.snapshot.epoch}, {expected}")


def verify_permits(
    listed: Sequence[PermitRecord],
    own: Sequence[PermitRecord],
    before: Sequence[PermitRecord],
    accounts: Sequence[Account],
    at: int,
    ground: Ground,
) -> None:
    """Check the permits of a proposed state: each asked for by its account's controller, and none that counts missing.

    Args:
        listed: ascending, as proposed.
        own: what the attestor signed and still counts at ``at`` (`PermitRules.outstanding`).
        before: what the previous certified state lists.
        accounts: ascending by id.
        at: the cut time, Unix seconds.

    Raises:
        RefusedError: rule ``permits``.
    """
    if any(one >= other for one, other in pairwise(listed)):
        _refuse("permits", "they do not ascend")
    if (gone := core.missing(own, listed)) is not None:
        _refuse("permits", f"{gone.nonce} of {gone.account} is not listed, but was signed and may be used")
    if (gone := core.missing(core.outstanding(before, at, ground.slack), listed)) is not None:
        _refuse("permits", f"{gone.nonce} of {gone.account} is not listed any more, but may be used")
    alive = core.outstanding(listed, at, ground.slack)
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


def to_list(
    own: Collection[PermitRecord], before: Collection[PermitRecord], at: int, slack: Mapping[str, int]
) -> tuple[PermitRecord, ...]:
    """Return what a state must list at ``at``: what counts of one's own, and of what the last certified state lists."""
    return core.outstanding((*own, *before), at, slack)


async def _outstanding(book: PermitBook, at: int, slack: Mapping[str, int]) -> tuple[PermitRecord, ...]:
    noted = await book.since(at - max(slack.values(), default=0))
    return core.outstanding((entry.permit for entry in noted), at, slack)


async def _check_margin(
    permit: PermitRecord,
    newest: Newest,
    own: Collection[PermitRecord],
    grants: Collection[Grant],
    bounds: Mapping[str, int],
) -> None:
    """Refuse what does not lie in the vault, or what the account cannot do without."""
    epoch, account = newest.epoch, permit.account
    number = epoch.snapshot.epoch
    there = sum(p.quantity for p in positions_of(epoch.snapshot, account) if _lies_in(p, permit))
    if permit.amount > there:
        _refuse("amount", f"{permit.amount} given, {there} lie in the vault at epoch {number}")
    gone = [p for p in {*own, permit} if p.account == account and p not in newest.permits]
    left = await asyncio.to_thread(core.withdraw, epoch, account, gone, grants, bounds)
    free, owed = format_usd(left.free), format_usd(left.unused)
    if left.standing.status == "unknown":
        _refuse("status", f"account {account} is unknown at epoch {number}, healthy expected")
    if left.unread:
        _refuse("registry", f"{left.unread} was not read lately enough at epoch {number} to say what was drawn there")
    if left.free < 0:
        _refuse("free_collateral", f"of {account}: {free} USD without what permits take, at least 0 expected")
    if left.free < left.unused:
        reason = f"{free} USD would be free, {owed} USD may still be drawn on budgets given before"
        _refuse("budgets", f"of {account}: {reason}; sign lower shares and wait until they are posted")


class PermitDesk:
    """Collects permits for the coordinator. Implements ``aggregator.ports.Permits``.

    What it asks for is in its book before anybody is asked, and every statement from then on must list it
    (`outstanding`): some attestor may have signed though a quorum did not. So what attestors would refuse on the
    coordinator's own numbers nobody is asked about, and no epoch waits for attestors that answer late.

    Args:
        store: accounts.
        book: its own durable list.
        askers: one for every attestor.
        group: returns the set that an epoch demands.
        newest: returns the number of the newest certified epoch, None before the first.
        seen: returns the newest certified epoch that the coordinator computed itself, None before (`Vantage.newest`).
        grants: the coordinator's record of budgets.
        vaults, bounds, slack, lifetime: as for the attestors.
        seconds: how long each attestor has to answer.
        turn: held while the book changes; whoever proposes statements holds it from taking the state until the round is
            over, else attestors refuse an epoch that lacks what they signed meanwhile.
    """

    def __init__(
        self,
        deployment_id: bytes,
        store: Store,
        book: PermitBook,
        askers: Sequence[Asker],
        group: Callable[[int], AttestorSet],
        newest: Callable[[], Awaitable[int | None]],
        seen: Callable[[], Newest | None],
        grants: GrantBook,
        vaults: Mapping[str, Collection[str]],
        bounds: Mapping[str, int],
        slack: Mapping[str, int],
        clock: Clock,
        *,
        lifetime: int = LIFETIME,
        seconds: float = ASK_SECONDS,
        turn: asyncio.Lock | None = None,
    ) -> None:
        self._deployment_id, self._store, self._book, self._askers = deployment_id, store, book, askers
        self._group, self._newest, self._seen, self._grants, self._clock = group, newest, seen, grants, clock
        self._vaults, self._bounds, self._slack = vaults, bounds, slack
        self._lifetime, self._seconds = lifetime, seconds
        self._turn = turn or asyncio.Lock()
        self._asked: set[str] = set()  # accounts whose permits attestors are being asked for

    async def outstanding(self, now: int | None = None) -> tuple[PermitRecord, ...]:
        """Return what was asked for and still counts at ``now`` (Unix seconds), ascending."""
        return await _outstanding(self._book, int(self._clock.now()) if now is None else now, self._slack)

    async def permits(self, account: str) -> tuple[SignedPermit, ...]:
        """Return an account's permits that may still be used, signed by a quorum or not, ascending."""
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
        known, now = await self._store.account(permit.account), int(self._clock.now())
        permit = permit._replace(request=_canonical(permit.request))
        try:
            terms = _terms(permit)
            _verify_controller(terms, known, permit.request, self._deployment_id)
            _check_expiry(permit, now, self._lifetime)
        except RefusedError as error:
            raise InputError(error.rule, error.reason) from None
        if permit.vault not in self._vaults.get(permit.chain, ()):
            raise UnknownError("vault", permit.vault, self._vaults_of(permit.chain))
        earlier = {entry.permit: entry for entry in await self._book.since(now, permit.account)}
        if permit in earlier and earlier[permit].attestations:
            return earlier[permit]
        if permit not in earlier and len(earlier) >= OPEN_PERMITS:
            first = min(other.expiry for other in earlier)
            problem = f"{len(earlier)} of the account may still be used, {OPEN_PERMITS} may at a time"
            raise ConflictError("permits", problem, f"the first expires at {first} (Unix seconds)")
        if permit.account in self._asked:
            raise ConflictError("permits", "the attestors are being asked for one of this account", "ask again then")
        if len(self._asked) >= MOST_ASKED:
            raise ConflictError("permits", f"{MOST_ASKED} are being asked for, of all accounts", "ask again soon")
        self._asked.add(permit.account)
        try:
            return await self._collect_permit(permit, permit_digest(terms.permit, self._deployment_id), earlier)
        finally:
            self._asked.discard(permit.account)

    async def _collect_permit(
        self, permit: PermitRecord, digest: bytes, earlier: Collection[PermitRecord]
    ) -> SignedPermit:
        if permit not in earlier:  # else somebody may have signed it: whether one would now does not matter
            await self._check(permit)
        async with self._turn:
            await self._book.note(permit)
        document = permit._asdict() | {"amount": str(permit.amount)}  # JSON's numbers are shorter
        try:
            found = await collect(
                self._askers, "permit", document, digest, self._group(permit.epoch), seconds=self._seconds
            )
        except _NobodySignedError:
            if permit not in earlier:
                async with self._turn:
                    await self._book.drop(permit)
            raise
        await self._book.note(permit, found)
        return SignedPermit(permit, found)

    async def _check(self, permit: PermitRecord) -> None:
        """Refuse what attestors would refuse, by what the coordinator knows itself."""
        seen, number = self._seen(), await self._newest()
        if seen is None or number is None:
            raise UnknownError("epoch", "newest", "none is certified yet; try again soon")
        at = seen.epoch.snapshot.cut_time
        _check_epoch(permit.epoch, number, epochs_back(at // seen.epoch.snapshot.epoch))
        _account(seen.epoch, permit.account)
        grants = await self._grants.outstanding(at, (permit.account,), ANY_EPOCH)
        await _check_margin(permit, seen, await self.outstanding(at), grants, self._bounds)

    def _only_vault(self, chain: str) -> str:
        known = sorted(self._vaults.get(chain, ()))
        if len(known) != 1:
            raise InputError("vault", f"{len(known)} vaults are known on {chain}", self._vaults_of(chain))
        return known[0]

    def _vaults_of(self, chain: str) -> str:
        return f"vaults on {chain}: {', '.join(sorted(self._vaults.get(chain, ()))) or 'none'}"


class _NobodySignedError(RefusedError):
    """Every attestor said no, so there is no signature anywhere."""


async def collect(
    askers: Sequence[Asker],
    kind: Literal["permit", "hold"],
    document: Mapping[str, Any],
    digest: bytes,
    group: AttestorSet,
    *,
    seconds: float = ASK_SECONDS,
) -> tuple[Attestation, ...]:
    """Ask every attestor at once; return the signatures of ``group`` that verify, ascending.

    Raises:
        RefusedError: rule ``quorum``: they are none; says who refused, and why.
    """

    async def ask(asker: Asker) -> Attestation:
        async with asyncio.timeout(seconds):
            return await asker.ask(kind, document)

    answers = await asyncio.gather(*(ask(asker) for asker in askers), return_exceptions=True)
    valid: dict[int, Attestation] = {}
    told: list[str] = []
    for asker, answer in zip(askers, answers, strict=True):
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


def hold_until(epoch: int, epoch_seconds: int) -> int:
    """Return until when a hold of an epoch keeps an account in, Unix seconds."""
    return epoch * epoch_seconds + HOLD_SECONDS


async def collect_hold(
    askers: Sequence[Asker],
    deployment_id: bytes,
    group: AttestorSet,
    hold: HoldRecord,
    *,
    seconds: float = ASK_SECONDS,
) -> SignedHold:
    """Have the attestors sign a hold, of whose epoch ``group`` is the set (`hold_until` says until when it must be).

    Raises:
        RefusedError: it is malformed, or there is no quorum; says who refused, and why.
    """
    digest = hold_digest(_hold_words(hold), deployment_id)
    found = await collect(askers, "hold", hold._asdict(), digest, group, seconds=seconds)
    return SignedHold(hold, digest, found)


def read_permit(document: Mapping[str, Any]) -> PermitRecord:
    """Return the permit of a document that came over a wire: the fields of `PermitRecord` by name.

    Raises:
        RefusedError: names the field that is missing, of another type, or unknown.
    """
    found = PermitRecord(**_fields(document, PermitRecord._fields, ("amount", "epoch", "expiry")))
    return found._replace(request=_canonical(found.request))


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


def _canonical(request: str) -> str:
    """Return a signature as it is kept: hex in lower case with 0x. Two spellings would be two records of one permit."""
    digits = request[2:] if request[:2] in ("0x", "0X") else request
    return "0x" + digits.lower() if _HEX.fullmatch(digits) else request


def _verify_controller(terms: PermitTerms, account: Account, request: str, deployment_id: bytes) -> None:
    try:
        if account.controller.startswith("eip155:"):
            if _canonical(request) != request or not request.startswith("0x"):
                raise SignatureError("request", "is not 65 bytes in hex, as the keys of EVM addresses sign")
            signature = bytes.fromhex(request[2:])
        else:
            signature = decode_base58(request, 64, "request")
        verify_request(terms, account.controller, signature, deployment_id)
    except ProofError as error:
        raise RefusedError("request", error.reason) from None


def _check_epoch(epoch: int, newest: int, back: int) -> None:
    if not newest - back <= epoch <= newest:
        _refuse("epoch", f"{epoch} given, the newest certified is {newest}; at most {back} before it")


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
