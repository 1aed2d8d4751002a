"""Attestors, and the quorum collected from them (protocol.md, "Quorum").

The proposer is not trusted: a :class:`Proposal` carries everything it chose, and an :class:`Attestor` checks each
choice against its clock, its record, the log and its own recomputation before one signature exists. What an attestor
refuses, it refuses as :class:`RefusedError` with the rule's name and both values.

Rules, in the order they are checked: ``deployment`` · ``digest`` · ``clock`` · ``expired`` · ``lifetime`` · ``epoch``
· ``rotations`` · ``set`` · ``member`` · ``previous`` · ``floor`` · ``start`` · ``chain-highest`` · ``leaves`` ·
``root`` · ``accounts-root`` · ``cut`` · ``prices`` · ``policy`` · ``risk`` · ``state`` · ``watermark`` · ``expired``
again, right before signing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NoReturn, Protocol

from aggregator.domain.budgets import Grant
from aggregator.domain.certificate import Attestation, Certificate, Refusal, State, to_leaf
from aggregator.domain.errors import CrossmarginError, DissentError, RefusedError
from aggregator.domain.latency import LatencyTables
from aggregator.domain.report import Flag, LeafValues
from aggregator.domain.snapshot import Cut
from aggregator.ports import Clock, GrantBook, Signer, Watermark
from proofs import leaf as leaves_of
from proofs import merkle
from proofs.errors import ProofError
from proofs.quorum import IndexedSignature, verify_quorum
from proofs.sets import AttestorSet, Rotation, never_recovered, set_at, verify_history
from proofs.signing import recover
from proofs.statement import DEVNET, Deployment, Header, StatementBody, body_hash
from proofs.statement import digest as statement_digest

GRACE = 0.25
"""Seconds that the others have left, unless said otherwise, once enough attestors have signed."""
NAMED = 20
"""Differences between leaves that one refusal names."""
NO_STATE = State((), (), {})
INFORMATIONAL_SLACK = (10**8, 10**4)  # one USD (in 1e-8), and one part in this many
RELATIVE_QUANTUM = 10**12  # one part in this many, on top of one unit of 1e-8 USD


@dataclass(frozen=True, slots=True)
class Proposal:
    """One epoch as proposed: the statement, and every input an attestor needs to recompute it.

    Args:
        header, body, digest: the statement and its EIP-712 digest.
        cut: the pinned blocks, one per chain.
        updates: raw price updates (bytes as published), in the order they were fetched.
        state: accounts, links log and salts as the proposer has them.
        leaves: every leaf, in the order of the commitment; () where they were not sent, as one's own may be the same.
        previous: the newest certified statement, None before the first; `body.previous` is its digest.
        latency: the measured laws that the valuation uses, committed with the risk tables.
        previous_state: the state text that `previous` commits to, for the levels that it left; "" without `previous`.
        preimages: the canonical texts behind the body's digests (cut, prices, policy, risk, state).
        extends: whether whoever proposes records links and accounts; set by who receives it, never sent.
    """

    header: Header
    body: StatementBody
    digest: bytes
    cut: Cut
    leaves: tuple[LeafValues, ...]
    updates: tuple[bytes, ...] = ()
    state: State = NO_STATE
    previous: Certificate | None = None
    latency: LatencyTables = ()
    preimages: Mapping[str, str] = field(default_factory=dict)
    previous_state: str = ""
    extends: bool = True


class LeavesNeededError(RefusedError):
    """The proposal came without leaves, and those found are others: which ones must be shown."""

    def __init__(self) -> None:
        super().__init__("leaves", "other leaves were found than the proposal commits to, which came without them")


class Recomputed(NamedTuple):
    """What an attestor found by itself on the proposal's inputs and its own reads."""

    leaves: tuple[LeafValues, ...]
    cut_digest: bytes
    price_digest: bytes
    policy_digest: bytes
    risk_digest: bytes
    state_digest: bytes
    accounts_root: bytes  # over `leaves`


Recompute = Callable[[Proposal], Awaitable[Recomputed]]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a deployment's attestors agree on besides the valuation. Times are seconds.

    ``start_delay`` is Δ plus the longest life of a proposal and the clock bound: after a start only epochs whose cut is
    later than the start by more than this are signed, so that an attestor restored from an old backup outlives whatever
    it may have signed before. 0 switches the rule off; only a devnet may. ``recovered`` says of a set's digest whether
    the operator of this machine knows that governance recovered it.
    """

    deployment: Deployment
    epoch_seconds: int
    clock_skew: int
    max_lifetime: int
    start_delay: int
    recovered: Callable[[bytes], bool] = never_recovered

    @property
    def deployment_id(self) -> bytes:
        """The id that salts every signature."""
        return self.deployment.deployment_id()

    @property
    def longest(self) -> int:
        """Seconds after a proposal was made by which every statement before it has ended."""
        return self.max_lifetime + 2 * self.clock_skew


class Attesting(Protocol):
    """Whoever is asked for a signature: in this process, or behind a wire."""

    @property
    def name(self) -> str: ...

    @property
    def member(self) -> bytes:
        """The address it signs with, 20 bytes; its place in a set follows from it."""
        ...

    async def attest(self, proposal: Proposal) -> Attestation: ...


class Sets:
    """The sets of attestors that one party knows: the genesis set, and what follows by verified rotations."""

    def __init__(
        self,
        deployment: Deployment,
        rotations: Sequence[Rotation] = (),
        recovered: Callable[[bytes], bool] = never_recovered,
    ) -> None:
        self._deployment, self._recovered = deployment, recovered
        self.rotations: tuple[Rotation, ...] = ()
        self._sets = verify_history(deployment, ())
        self.learn(rotations)

    def learn(self, rotations: Sequence[Rotation]) -> bool:
        """Take over a longer history; say whether it was one.

        Raises:
            RefusedError: rule ``rotations``: it contradicts what is known, is shorter, or is not signed.
        """
        known, given = [r.to for r in self.rotations], [r.to for r in rotations]
        if given == known:
            return False
        if given[: len(known)] != known:
            _refuse("rotations", f"sets up to {len(given) + 1} proposed, other ones up to {len(known) + 1} are known")
        try:
            self._sets = verify_history(self._deployment, rotations, self._recovered)
        except ProofError as error:
            raise RefusedError("rotations", str(error)) from None
        self.rotations = tuple(rotations)
        return True

    def at(self, epoch: int) -> AttestorSet:
        """Return the set that must sign ``epoch``."""
        return set_at(self._sets, epoch)

    def seat(self, member: bytes, epoch: int) -> int | None:
        """Return the index of an address in the set of ``epoch``, None if it is not in it."""
        members = self.at(epoch).members
        return members.index(member) if member in members else None

    def verify(self, certificate: Certificate) -> None:
        """Check a certificate: the digest of its header and body, and a quorum of the set that its epoch demands.

        Raises:
            RefusedError: rule ``certificate``.
        """
        header, group = certificate.header, self.at(certificate.header.epoch)
        signatures = [IndexedSignature(a.index, a.r, a.vs) for a in certificate.attestations]
        try:
            if header.body != body_hash(certificate.body):
                _refuse("certificate", f"header.body of epoch {header.epoch} is not its body's")
            if certificate.digest != statement_digest(header, self._deployment.deployment_id()):
                _refuse("certificate", f"0x{certificate.digest.hex()} is not the digest of its header")
            if header.set_id != group.set_id:
                _refuse("certificate", f"setId {header.set_id} given, epoch {header.epoch} demands {group.set_id}")
            verify_quorum(certificate.digest, signatures, group.members, group.threshold)
        except ProofError as error:
            raise RefusedError("certificate", str(error)) from None


class Attestor:
    """One attestor, whose checks and signature these are.

    Args:
        name: for people, in refusals and metrics.
        index: its position in the genesis set; None for one that joins by a rotation.
        signer: its key; the address must be the member's.
        watermark: its durable record.
        recompute: its own reading and valuation of a proposal.
        rules, clock: as above.
        last: the newest certificate it knows, None for an empty log. Newer ones arrive with proposals, verified.
        chain_highest: the highest epoch on any destination when it started; it signs only above.
        rotations: those it knows of; newer ones arrive with proposals, verified.
        grants: its durable record of the budgets it signed; without one (tests alone) none is kept.

    Raises:
        RefusedError: the key is not the member's, or ``start_delay`` is 0 outside a devnet.
    """

    def __init__(
        self,
        name: str,
        index: int | None,
        signer: Signer,
        watermark: Watermark,
        recompute: Recompute,
        *,
        rules: Rules,
        clock: Clock,
        last: Certificate | None = None,
        chain_highest: int = 0,
        rotations: Sequence[Rotation] = (),
        grants: GrantBook | None = None,
    ) -> None:
        self._grants = grants
        members = rules.deployment.members
        if index is not None:
            member = "0x" + members[index].hex() if 0 <= index < len(members) else "nobody"
            if signer.address != member:
                raise RefusedError("member", f"{name} holds {signer.address}, member {index} is {member}")
        if rules.start_delay <= 0 and rules.deployment.network_class != DEVNET:
            raise RefusedError("start", f"start_delay {rules.start_delay} is for devnets (network class 3) only")
        self._name, self._signer, self._watermark, self._recompute = name, signer, watermark, recompute
        self._rules, self._clock = rules, clock
        self._deployment_id = rules.deployment_id
        self._last, self._chain_highest = last, chain_highest
        self.sets = Sets(rules.deployment, rotations, rules.recovered)
        self._started = clock.now()
        self._turn = asyncio.Lock()

    @property
    def name(self) -> str:
        """Its name, for people."""
        return self._name

    @property
    def member(self) -> bytes:
        """Its address, 20 bytes."""
        return bytes.fromhex(self._signer.address[2:])

    @property
    def turn(self) -> asyncio.Lock:
        """Held while a proposal is checked and signed; whatever must not come in between holds it too."""
        return self._turn

    @property
    def last(self) -> Certificate | None:
        """The newest certificate it knows."""
        return self._last

    def may_sign(self, epoch: int) -> bool:
        """Say whether this start, the chains and the log leave ``epoch`` to be signed; its record may still refuse."""
        cut_time, delay = epoch * self._rules.epoch_seconds, self._rules.start_delay
        waited = not delay or cut_time > self._started + delay
        return waited and epoch > max(self._chain_highest, self._last.header.epoch if self._last else 0)

    async def learn(self, certificate: Certificate, then: Callable[[Certificate], Awaitable[None]]) -> bool:
        """Take over a certificate newer than what is known; say whether it was one.

        Args:
            then: awaited with it before the next proposal is looked at.

        Raises:
            RefusedError: it does not verify.
        """
        async with self._turn:
            if self._last is not None and certificate.header.epoch <= self._last.header.epoch:
                return False
            self.sets.verify(certificate)
            self._last = certificate
            await then(certificate)
            return True

    async def attest(self, proposal: Proposal) -> Attestation:
        """Check a proposal, record the intent durably, then sign.

        Raises:
            RefusedError: the first rule the proposal breaks.
            SourceError: its own reads failed, so that it cannot tell.
        """
        async with self._turn:  # one at a time: the log and the record move together
            seat = self._check_statement(proposal)
            last = self._check_log(proposal)
            self._check_start(proposal)
            # What the proposal calls the previous statement is worth nothing until it is verified.
            recomputed = await self._recompute(replace(proposal, previous=last))
            if proposal.body.leaf_count and not proposal.leaves:
                if recomputed.accounts_root != proposal.body.accounts_root:
                    raise LeavesNeededError
                proposal = replace(proposal, leaves=recomputed.leaves)
            _check_leaves(proposal, recomputed.leaves)
            _check_roots(proposal, recomputed)
            _check_digests(proposal.body, recomputed)
            if self._grants is not None:  # first: a claim without them would sign them on a repeat
                await self._grants.note(proposal.header.epoch, proposal.header.valid_until, proposal.leaves)
            await self._watermark.claim(proposal.header.epoch, proposal.digest)
            self._last = last
            self._require_alive(proposal.header)  # reading and recording took time
            r, vs = await asyncio.to_thread(self._signer.sign, proposal.digest)  # a token, or a service, takes a moment
            return Attestation(seat, r, vs)

    def _check_statement(self, proposal: Proposal) -> int:
        """Check what the statement says of itself; return this attestor's place in the set that must sign it."""
        header, rules, now = proposal.header, self._rules, self._clock.now()
        if header.body != body_hash(proposal.body):
            _refuse("digest", f"header.body 0x{header.body.hex()} is not the body's 0x{body_hash(proposal.body).hex()}")
        expected = statement_digest(header, self._deployment_id)
        if proposal.digest != expected:
            _refuse("digest", f"0x{proposal.digest.hex()} proposed, 0x{expected.hex()} by the header")
        if header.produced_at > now + rules.clock_skew:
            _refuse("clock", f"producedAt {header.produced_at} is beyond {now:.0f} + {rules.clock_skew} s")
        self._require_alive(header)
        if not 0 < header.valid_until - header.produced_at <= rules.max_lifetime:
            _refuse("lifetime", f"{header.valid_until - header.produced_at} s, 1 to {rules.max_lifetime} s are allowed")
        cut_epoch = proposal.cut.cut_time // rules.epoch_seconds
        if not header.epoch == cut_epoch == proposal.cut.epoch or header.epoch == 0:
            _refuse("epoch", f"header {header.epoch}, cut {proposal.cut.epoch}, by the cut's time {cut_epoch}")
        if header.produced_at < proposal.cut.cut_time:
            _refuse("clock", f"producedAt {header.produced_at} is before the cut at {proposal.cut.cut_time}")
        self.sets.learn(proposal.state.rotations)
        group = self.sets.at(header.epoch)
        if header.set_id != group.set_id:
            _refuse("set", f"setId {header.set_id} proposed, {group.set_id} is in force")
        if now > group.not_after:
            _refuse("set", f"the set ended at {group.not_after}, it is {now:.0f}")
        if (seat := self.sets.seat(self.member, header.epoch)) is None:
            _refuse("member", f"0x{self.member.hex()} is not in set {group.set_id}, which epoch {header.epoch} demands")
        return seat

    def _require_alive(self, header: Header) -> None:
        now = self._clock.now()
        if now >= header.valid_until:
            _refuse("expired", f"validUntil {header.valid_until} is not after {now:.0f}")

    def _check_log(self, proposal: Proposal) -> Certificate | None:
        """Check `previous` and `floor` against the log; return the log's new head."""
        header, last, previous = proposal.header, self._last, proposal.previous
        if previous is not None and (last is None or previous.header.epoch > last.header.epoch):
            self._verify_previous(previous)
            last = previous
        head = bytes(32) if last is None else last.digest
        if previous is not None and previous.digest != head:
            _refuse("previous", f"0x{previous.digest.hex()} comes with the proposal, the log ends with 0x{head.hex()}")
        if proposal.body.previous != head:
            _refuse("previous", f"0x{proposal.body.previous.hex()} proposed, the log ends with 0x{head.hex()}")
        standing = 0 if last is None else last.header.floor
        # Statements below the floor are void: it rises for a reorganisation that the Cut names, and for nothing else.
        floor = header.epoch if proposal.cut.reorgs else standing
        if header.floor != floor:
            why = "with" if proposal.cut.reorgs else "without"
            _refuse("floor", f"{header.floor} proposed, {floor} expected {why} a reorganisation in the Cut")
        if last is not None and header.epoch <= last.header.epoch:
            _refuse("epoch", f"{header.epoch} is not above {last.header.epoch}, which is certified")
        return last

    def _verify_previous(self, previous: Certificate) -> None:
        try:
            self.sets.verify(previous)
        except RefusedError as error:
            raise RefusedError("previous", f"the previous statement is not certified: {error.reason}") from None

    def _check_start(self, proposal: Proposal) -> None:
        delay, cut_time = self._rules.start_delay, proposal.cut.cut_time
        if delay and cut_time <= self._started + delay:
            _refuse("start", f"the cut at {cut_time} is within {delay} s of the start at {self._started:.0f}")
        if proposal.header.epoch <= self._chain_highest:
            _refuse("chain-highest", f"epoch {proposal.header.epoch} is not above {self._chain_highest} on chain")


class Quorum(NamedTuple):
    """What came of asking: ``attestations`` ascending by index, empty without a quorum; refusals by attestor."""

    attestations: tuple[Attestation, ...]
    refusals: tuple[Refusal, ...]  # in the order of those asked
    signed: int = 0  # how many valid signatures there were, a quorum or not
    rules: tuple[str, ...] = ()  # of the refusals, for metrics
    signers: frozenset[bytes] = frozenset()  # members that signed, a quorum or not
    refused: frozenset[bytes] = frozenset()  # members that gave a reason of their own
    claims: Mapping[bytes, tuple[Grant, ...]] = {}  # grants that members say are missing


async def collect_quorum(
    proposal: Proposal,
    attestors: Sequence[Attesting],
    group: AttestorSet,
    *,
    timeout: float,
    grace: float = GRACE,
) -> Quorum:
    """Ask every member of a set at once and keep the signatures that verify.

    A wrong, late or extra answer costs its sender its place and nothing else. Once the threshold is reached, the
    others have ``grace`` seconds left, so that an epoch names who disagrees without waiting for who is gone.

    Args:
        proposal: what to sign.
        attestors: whom to ask; who is not in the set (yet, or any more) is not. Each member may answer once.
        group: the set that the proposal's epoch demands.
        timeout: seconds after which no answer counts.
        grace: seconds, see above.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    asking = [a for a in attestors if a.member in group.members]
    asked = {asyncio.create_task(a.attest(proposal)): place for place, a in enumerate(asking)}
    valid: dict[int, Attestation] = {}
    refused: dict[int, tuple[Refusal, str]] = {}
    answered: dict[bytes, tuple[Grant, ...]] = {}
    pending = set(asked)
    try:
        while pending and (left := deadline - loop.time()) > 0:
            done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                position = asked[task]
                try:
                    attestation = _verified(task.result(), asking[position], proposal.digest, group)
                    if attestation.index in valid:
                        _refuse("index", f"member {attestation.index} answered twice")
                    valid[attestation.index] = attestation
                except CrossmarginError as error:
                    refused[position] = _refusal(asking[position].name, error)
                    if isinstance(error, RefusedError):
                        claims = error.claims if isinstance(error, DissentError) else ()
                        answered[asking[position].member] = claims
                except (Exception, asyncio.CancelledError) as error:
                    # A defect of one attestor is that attestor's failure; its text may hold anything, so only its kind.
                    refused[position] = Refusal(asking[position].name, f"failed: {type(error).__name__}"), "failed"
            if len(valid) >= group.threshold:
                deadline = min(deadline, loop.time() + grace)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    for task in pending:
        refused[asked[task]] = Refusal(asking[asked[task]].name, "late: no answer in time"), "late"
    signed, signers = len(valid), frozenset(group.members[index] for index in valid)
    if signed < group.threshold:
        valid = {}
    return Quorum(
        tuple(valid[index] for index in sorted(valid)),
        tuple(refused[position][0] for position in sorted(refused)),
        signed,
        tuple(refused[position][1] for position in sorted(refused)),
        signers,
        frozenset(answered) - signers,
        {member: claims for member, claims in answered.items() if claims and member not in signers},
    )


def _refusal(name: str, error: CrossmarginError) -> tuple[Refusal, str]:
    """Return what is kept of a refusal, and its rule."""
    if isinstance(error, DissentError) and error.signature:
        signed = "0x" + error.digest.hex(), "0x" + error.signature.hex()
        return Refusal(name, error.text, *signed), error.rule
    return Refusal(name, str(error)), error.rule if isinstance(error, RefusedError) else str(error).partition(":")[0]


def _verified(given: Attestation, sender: Attesting, digest: bytes, group: AttestorSet) -> Attestation:
    index = group.members.index(sender.member)
    if given.index != index:
        _refuse("index", f"{sender.name} is member {index} and signed as {given.index}")
    try:
        signer = recover(digest, given.r, given.vs)
    except ProofError as error:
        raise RefusedError("signature", str(error)) from None
    if signer != group.members[index]:
        member = group.members[index].hex()
        _refuse("signature", f"recovers to 0x{signer.hex()}, member {given.index} is 0x{member}")
    return given


def _check_leaves(proposal: Proposal, own: Sequence[LeafValues]) -> None:
    """Compare every leaf, and name all that differ: who disagrees honestly says in what.

    Raises:
        RefusedError: rule ``leaves``, with at most ``NAMED`` differences and how many more there are.
    """
    theirs = _by_key(proposal.leaves)
    mine = _by_key(own)
    found = [f"missing {key}" for key in sorted(mine.keys() - theirs.keys())]
    found += [f"unexpected {key}" for key in sorted(theirs.keys() - mine.keys())]
    for key, given in theirs.items():
        if given.epoch != proposal.header.epoch:
            found.append(f"{key}: epoch {given.epoch} in the leaf, {proposal.header.epoch} in the header")
        if key in mine:
            found += [f"{key}: {name} {a} proposed, {b} found" for name, a, b in _differences(given, mine[key])]
    if found:
        more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
        _refuse("leaves", "; ".join(found[:NAMED]) + more)


def _by_key(leaves: Sequence[LeafValues]) -> dict[tuple[str, str], LeafValues]:
    keyed = {(leaf.account, leaf.destination): leaf for leaf in leaves}
    if len(keyed) != len(leaves):
        _refuse("leaves", f"{len(leaves)} leaves for {len(keyed)} pairs of account and destination")
    return keyed


def _differences(given: LeafValues, own: LeafValues) -> Iterator[tuple[str, int, int]]:
    """Give the fields that differ too much, with both values.

    Nothing in the account's favour may exceed what we found by more than the quantum; the rest is equal.

    Equity, and all of a monitored account, only inform: nobody lends on them, and on Solana a wallet that pays a fee
    between two parties' looks must not stop the epoch. They may differ by ``INFORMATIONAL_SLACK``.
    """
    monitored = bool(own.flags & Flag.MONITORED)
    for name in ("assets_initial", "assets_maintenance", "budget"):
        proposed, found = getattr(given, name), getattr(own, name)
        if proposed > found + _quantum(found) + (_slack(found) if monitored and name != "budget" else 0):
            yield name, proposed, found
    for name in ("requirement_initial", "requirement_maintenance"):
        proposed, found = getattr(given, name), getattr(own, name)
        if proposed < found - _quantum(found):
            yield name, proposed, found
    # Equity is a difference of sums: its error scales with them, not with itself.
    gross = abs(own.equity) + own.assets_maintenance + own.requirement_maintenance
    if given.equity > own.equity + _quantum(gross) + _slack(gross):
        yield "equity", given.equity, own.equity
    for name in ("as_of", "valid_until", "flags"):
        if getattr(given, name) != getattr(own, name):
            yield name, getattr(given, name), getattr(own, name)


def _slack(amount: int) -> int:
    least, relative = INFORMATIONAL_SLACK
    return least + abs(amount) // relative


def _quantum(amount: int) -> int:
    return 1 + abs(amount) // RELATIVE_QUANTUM


def _check_roots(proposal: Proposal, recomputed: Recomputed) -> None:
    """Build both trees over the *proposal's* leaves, with the verifier's code, not the producer's."""
    body = proposal.body
    if body.leaf_count != len(proposal.leaves):
        _refuse("root", f"leafCount {body.leaf_count}, {len(proposal.leaves)} leaves proposed")
    try:
        leaves = [to_leaf(values) for values in proposal.leaves]
        hashes = [leaves_of.hash_leaf(leaf) for leaf in leaves]
        root = merkle.root(hashes)
        entries = [merkle.accounts_entry(x.account, x.destination, h) for x, h in zip(leaves, hashes, strict=True)]
        accounts_root = merkle.accounts_root(sorted(entries))
    except (ProofError, ValueError) as error:
        raise RefusedError("leaves", str(error)) from None
    if root != proposal.header.root:
        _refuse("root", f"0x{proposal.header.root.hex()} proposed, 0x{root.hex()} over the proposed leaves")
    if accounts_root != body.accounts_root:
        _refuse("accounts-root", f"0x{body.accounts_root.hex()} proposed, 0x{accounts_root.hex()} over the leaves")
    identical = set(proposal.leaves) == set(recomputed.leaves)
    if identical and recomputed.accounts_root != accounts_root:
        # Same leaves, two implementations, two roots: one of them is broken, and it may be ours.
        _refuse("accounts-root", f"0x{accounts_root.hex()} verified, 0x{recomputed.accounts_root.hex()} computed")


def _check_digests(body: StatementBody, recomputed: Recomputed) -> None:
    for rule, proposed, found in (
        ("cut", body.cut_digest, recomputed.cut_digest),
        ("prices", body.price_digest, recomputed.price_digest),
        ("policy", body.policy_digest, recomputed.policy_digest),
        ("risk", body.risk_digest, recomputed.risk_digest),
        ("state", body.state_digest, recomputed.state_digest),
    ):
        if proposed != found:
            _refuse(rule, f"0x{proposed.hex()} proposed, 0x{found.hex()} found")


def _refuse(rule: str, reason: str) -> NoReturn:
    raise RefusedError(rule, reason)
