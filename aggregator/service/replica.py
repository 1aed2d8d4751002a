"""An attestor's own copy of accounts, links log and rotations: grown by what proposals bring, once that is certified.

Nothing is appended because somebody said so. What a proposal brings beyond the copy is checked like everything else in
it, held until the statement it came with is certified, and only then written: a proposer that shows one log here and
another there divides nobody for good. An entry that is written is never replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, NoReturn, Protocol

from aggregator.domain.certificate import Certificate, EpochRecord, LinkRecord, State, to_leaf
from aggregator.domain.errors import ConflictError, RefusedError
from aggregator.domain.links import verify_append, with_links
from aggregator.domain.snapshot import Block, ChainView
from aggregator.ports import Clock, Store
from aggregator.service.attest import Proposal
from aggregator.service.committed import Committed, left_levels
from aggregator.service.workbench import Computed
from proofs import merkle
from proofs.errors import ProofError
from proofs.hashing import keccak256
from proofs.leaf import hash_leaf
from proofs.statement import StatementBody


class Ledger(Protocol):
    """Where an attestor takes the accounts and the links log from that it compares a proposed state with."""

    async def extended(self, proposal: Proposal) -> State:
        """Return one's own state, with what ``proposal`` may add to it.

        Raises:
            RefusedError: rule ``state``: the proposal contradicts the log, or adds what may not follow.
        """
        ...

    def attested(self, proposal: Proposal, mine: Computed) -> None:
        """Hold a proposal whose state was found to be right, and what was computed from it."""
        ...

    async def certified(self, certificate: Certificate) -> None:
        """Keep what was held, if it came with this statement."""
        ...


class SharedLedger:
    """The coordinator's own store, for an attestor in the same process."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def extended(self, proposal: Proposal) -> State:
        """Return what the store holds; nothing is added."""
        return await self._store.state()

    def attested(self, proposal: Proposal, mine: Computed) -> None:
        """Hold nothing: the store has it."""

    async def certified(self, certificate: Certificate) -> None:
        """Keep nothing: the store has it."""


class Adopting(Store, Protocol):
    """A store that a replica can write."""

    async def adopt(self, state: State) -> None:
        """Append, in one transaction, what ``state`` has beyond what is stored."""
        ...


class _Held(NamedTuple):
    """What came with the newest statement that was found to be right."""

    digest: bytes
    state: State
    record: EpochRecord | None


NOTHING_HELD = _Held(b"", State((), (), {}), None)


class Replica:
    """An attestor's own copy, in its own store.

    Args:
        skew: seconds by which the recorder's clock may be ahead.
        epoch_seconds: Δ.
    """

    def __init__(self, store: Adopting, clock: Clock, *, skew: int, epoch_seconds: int) -> None:
        self._store, self._clock, self._skew, self._epoch_seconds = store, clock, skew, epoch_seconds
        self._held, self._committed = NOTHING_HELD, Committed()

    async def extended(self, proposal: Proposal) -> State:
        """Return the copy with what a proposal adds; only whoever records may add."""
        own, theirs = await self._store.state(), proposal.state
        for mine, given in zip(own.links, theirs.links, strict=False):
            if mine != given:
                _refuse(f"link {mine.position}: {_text(given)} proposed, {_text(mine)} on record")
        known = {account.id for account in own.accounts}
        opened = [replace(a, label="", links=(), ending=()) for a in theirs.accounts if a.id not in known]
        tail = theirs.links[len(own.links) :]
        if (opened or tail) and not proposal.extends and not self._is_certified(proposal):
            what = f"account {opened[0].id}" if opened else f"link {tail[0].position}"
            _refuse(f"{what} is not on record, and only the coordinator records")
        if not opened and not tail:
            return own
        salts = {**own.salts, **{a.id: _salt(theirs.salts, a.id) for a in opened}}
        self._check_tail(own.links, tail, salts)
        accounts = sorted((*own.accounts, *opened), key=lambda a: a.id)
        links = (*own.links, *tail)
        return replace(own, accounts=with_links(accounts, links), links=links, salts=salts)

    def _is_certified(self, proposal: Proposal) -> bool:
        """Say whether the proposed log is the one that the statement before commits to, which a quorum has checked."""
        text, previous = proposal.previous_state, proposal.previous
        if previous is None or keccak256(text.encode()) != previous.body.state_digest:
            return False
        own, before = (json.loads(t) for t in (self._committed.text(proposal.state, None)[0], text))
        return all(own[part] == before[part] for part in ("accounts", "links"))

    def _check_tail(self, log: tuple[LinkRecord, ...], tail: Iterable[LinkRecord], salts: Mapping[str, bytes]) -> None:
        """Check that entries may follow the log: positions, times, and what the log's own rules say."""
        by_member: dict[str, list[LinkRecord]] = {}
        for entry in log:
            by_member.setdefault(entry.member, []).append(entry)
        position, time = (log[-1].position, log[-1].recorded_at) if log else (0, 0)
        latest = self._clock.now() + self._skew
        for entry in tail:
            position += 1
            if entry.position != position:
                _refuse(f"link {entry.position} proposed, {position} expected")
            if not time <= entry.recorded_at <= latest:
                _refuse(f"link {position}: recorded at {entry.recorded_at}, {time} to {latest:.0f} expected")
            if entry.account not in salts:
                _refuse(f"link {position}: account {entry.account} is not known")
            history = by_member.setdefault(entry.member, [])
            try:
                verify_append(history, entry)
            except ConflictError as error:
                raise RefusedError("state", f"link {position}: {error}") from None
            history.append(entry)
            time = entry.recorded_at

    def attested(self, proposal: Proposal, mine: Computed) -> None:
        """Hold what may become certified, if it is what the statement commits to."""
        if mine.digests["state"] != proposal.body.state_digest:
            return
        record = replace(
            to_record(_uncertified(proposal), proposal.cut.cut_time),
            chains=mine.snapshot.chains,
            findings=mine.report.findings,
            leaves=proposal.leaves or mine.leaves,
            preimages=_matching(mine.preimages, proposal.body),
        )
        self._held = _Held(proposal.digest, proposal.state, record)

    async def certified(self, certificate: Certificate) -> None:
        """Write what was held for this statement, and the certificate."""
        number, held = certificate.header.epoch, self._held
        record = to_record(certificate, number * self._epoch_seconds)
        if held.record is not None and held.digest == certificate.digest:
            await self._store.adopt(held.state)
            record = replace(held.record, attestations=certificate.attestations)
            self._held = NOTHING_HELD
        if await self._store.certificate(number) is None:
            await self._store.save_epoch(record)


def to_record(certificate: Certificate, cut_time: int) -> EpochRecord:
    """Return what is known of an epoch from its certificate alone: no margins, no leaves, no texts."""
    return EpochRecord(
        certificate.header,
        certificate.body,
        certificate.digest,
        cut_time,
        certificate.attestations,
        refusals=(),
        chains=(),
        findings=(),
        margins=(),
        leaves=(),
    )


def verify_record(record: EpochRecord, certificate: Certificate) -> EpochRecord:
    """Return a peer's record of a certified epoch as far as the certificate proves it: leaves, texts, chains.

    Raises:
        RefusedError: rule ``record``: it is another epoch's, or its leaves or texts are not those certified.
    """
    body = certificate.body
    if record.digest != certificate.digest:
        raise RefusedError("record", f"0x{record.digest.hex()} given, 0x{certificate.digest.hex()} expected")
    if _matching(record.preimages, body) != record.preimages:
        raise RefusedError("record", "a text is not the one that the statement commits to")
    try:
        hashes = [(leaf.account, leaf.destination, hash_leaf(leaf)) for leaf in map(to_leaf, record.leaves)]
        root = merkle.root([h for _, _, h in hashes]) if hashes else bytes(32)
        accounts_root = merkle.accounts_root(sorted(merkle.accounts_entry(*entry) for entry in hashes))
    except (ProofError, ValueError) as error:
        raise RefusedError("record", str(error)) from None
    if (root, accounts_root) != (certificate.header.root, body.accounts_root):
        raise RefusedError("record", f"0x{root.hex()} over its leaves, 0x{certificate.header.root.hex()} is certified")
    return replace(record, attestations=certificate.attestations, chains=_chains(record.preimages.get("cut", "")))


def _uncertified(proposal: Proposal) -> Certificate:
    return Certificate(proposal.header, proposal.body, proposal.digest, ())


def _matching(texts: Mapping[str, str], body: StatementBody) -> dict[str, str]:
    """Return the texts that a statement commits to; that of the levels by way of the state's."""
    digests = {
        "cut": body.cut_digest,
        "prices": body.price_digest,
        "policy": body.policy_digest,
        "risk": body.risk_digest,
        "state": body.state_digest,
    }
    found = {name: text for name, text in texts.items() if keccak256(text.encode()) == digests.get(name)}
    levels, state = texts.get("levels"), found.get("state")
    if levels is not None and state is not None and left_levels(state) == "0x" + keccak256(levels.encode()).hex():
        found["levels"] = levels
    return found


def _chains(cut: str) -> tuple[ChainView, ...]:
    """Return the chains as a Cut's text has them; it is certified, so it is well formed."""
    return tuple(
        ChainView(c["chain"], c["status"], c["cause"], Block(**c["block"]) if c["block"] else None, c["age"])
        for c in (json.loads(cut)["chains"] if cut else ())
    )


def _salt(salts: Mapping[str, bytes], account: str) -> bytes:
    if account not in salts:
        _refuse(f"account {account} comes without its salt")
    return salts[account]


def _text(entry: LinkRecord) -> str:
    return f"{entry.kind} of {entry.member} to {entry.account[:10]}… with nonce {entry.nonce}"


def _refuse(reason: str) -> NoReturn:
    raise RefusedError("state", reason)
