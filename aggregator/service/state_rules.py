"""What one attestor demands of a proposed state: its own log's beginning, signed entries, ends that are due, the levels
that the statement before left, no grant less than its own record holds, and none that nobody can have signed.

What a certified statement holds already was a quorum's business; of what came after, the attestor believes nothing it
has not checked. Which entries came after, it knows by position if it attested that statement itself, and by their time
if not: no statement may leave out an entry older than its cut.

One thing cannot be checked alike by all: the word of an address without a key. A contract may answer one party this way
and the next that way, or change its mind in the next block, and an entry that is refused stays in the log for ever. So
chains are asked to know a coordinator that lies, and never to refuse (docs/adr/0010-links-end.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import structlog

from aggregator.core.explain import explain
from aggregator.core.tables import World
from aggregator.domain.budgets import CLAIMS, NO_LEVELS, all_uncovered
from aggregator.domain.certificate import LinkRecord, State
from aggregator.domain.errors import CrossmarginError, DissentError, InputError, RefusedError
from aggregator.domain.links import endable, shares_of, with_links
from aggregator.domain.snapshot import Account, Subject
from aggregator.ports import GrantBook
from aggregator.service.accounts import Witness
from aggregator.service.attest import Proposal
from aggregator.service.bundle import to_signed_link
from aggregator.service.claims import Bounds
from aggregator.service.committed import left_levels, verify_levels
from aggregator.service.seals import questions
from aggregator.service.workbench import Computed
from proofs.errors import ProofError
from proofs.hashing import keccak256
from proofs.links import SharesTerms, Side, account_id, verify_link, verify_revoke, verify_shares

log = structlog.get_logger("attestor")

End = tuple[str, str, int]
"""Account, member and nonce of the revoke."""
LOG_SLACK = 5
"""Seconds before the cut from which on an entry may be missing in a proposal: its time is taken before it is committed,
and the disk, or another writer, may hold a commit up until after the proposer has read the log."""
ASKING_SECONDS = 10.0
"""How long one round of asking chains about fresh entries may take; who has not answered is asked again."""
LONGEST_LIFE = 86_400
"""Seconds; more than any deployment lets its statements live."""


@dataclass(frozen=True, slots=True)
class _Attested:
    """What was attested, and what it allows once it is certified."""

    digest: bytes = b""
    accounts: frozenset[str] = frozenset()
    entries: int = 0
    ends: frozenset[End] = frozenset()


class _Question(NamedTuple):
    """What a chain is asked: whether one side of an entry agreed."""

    entry: LinkRecord
    side: Side
    subject: Subject


class StateRules:
    """Check proposed states for one attestor.

    Args:
        deployment_id: 32 bytes, which links are signed for.
        cooldown: seconds between a revoke and the end of its link.
        witness: asks chains about addresses without a key; without one, nobody hears of a coordinator that lies.
        grants: its own record of budgets it signed; without one (tests alone), a proposer is believed.
        longest: seconds after a proposal was made by which every statement before it has ended.
        destinations: 0x ids, where budgets are given; None for any (tests alone).
    """

    def __init__(
        self,
        deployment_id: bytes,
        cooldown: int,
        witness: Witness | None = None,
        grants: GrantBook | None = None,
        longest: int = LONGEST_LIFE,
        destinations: frozenset[str] | None = None,
    ) -> None:
        self.deployment_id, self._cooldown, self._witness = deployment_id, cooldown, witness
        self._grants, self._longest, self._destinations = grants, longest, destinations
        self._verified: set[LinkRecord | tuple[str, bytes]] = set()
        self._asked: set[LinkRecord] = set()
        self._asking: asyncio.Task[None] | None = None
        self._certified = _Attested()
        self._pending = _Attested()

    def attested(self, digest: bytes, state: State, computed: Computed, world: World) -> None:
        """Remember what one's own recomputation of a statement that may become certified allows."""
        accounts = frozenset(a.id for a in state.accounts)
        self._pending = _Attested(digest, accounts, len(state.links), self._ends(state, computed, world))

    def certified(self, digest: bytes) -> None:
        """The statement is certified: what it allows is the ground for what follows."""
        if self._pending.digest == digest:
            self._certified = self._pending

    def _ends(self, state: State, computed: Computed, world: World) -> frozenset[End]:
        ending = {a.id for a in state.accounts if a.ending}
        report, snapshot = computed.report, computed.snapshot
        margins = [explain(report, i, world) for i, a in enumerate(report.accounts) if a.id in ending]
        due = endable(margins, snapshot.chains, state, snapshot.cut_time, self._cooldown, slack=True)
        return frozenset((e.account, e.member, e.nonce) for e in due)

    async def verify(self, proposal: Proposal, own: State) -> None:
        """Accept a prefix of one's own log that leaves out nothing older than the cut, every signature checked.

        What rests on a chain's word is asked about beside it, and nothing waits for the answer.

        Raises:
            RefusedError: rule ``state``; names what is wrong.
        """
        theirs, cut = proposal.state, proposal.cut
        if theirs.links != own.links[: len(theirs.links)]:
            raise RefusedError("state", "the proposed links are not the beginning of the links log")
        late = own.links[len(theirs.links) :]
        missed = next((link for link in late if link.recorded_at < cut.cut_time - LOG_SLACK), None)
        if missed is not None:
            raise RefusedError("state", f"link {missed.position} is older than the cut and not in the proposal")
        self._verify_accounts(theirs, own)
        self._verify_levels(proposal)
        await self._verify_grants(proposal)
        first = self._first_fresh(proposal)
        allowed = self._certified.ends if self._certified.digest == proposal.body.previous else None
        revokes: dict[tuple[str, str], LinkRecord] = {}
        for place, entry in enumerate(theirs.links):
            pair = entry.account, entry.member
            if entry.kind == "end":
                self._verify_end(entry, revokes.pop(pair, None), allowed if place >= first else None)
                continue
            self._verify_signatures(entry, own.salts[entry.account])
            if entry.kind == "shares":
                continue
            if entry.kind == "revoke":
                revokes[pair] = entry
            else:
                revokes.pop(pair, None)
        self._begin_asking(theirs.links[first:])

    def _verify_accounts(self, theirs: State, own: State) -> None:
        known = {a.id: a for a in own.accounts}
        for account, derived in zip(theirs.accounts, with_links(theirs.accounts, theirs.links), strict=True):
            mine = known.get(account.id)
            if mine is None or (mine.controller, mine.kind, mine.home) != (
                account.controller,
                account.kind,
                account.home,
            ):
                raise RefusedError("state", f"account {account.id}: {account} proposed, {mine} on record")
            if derived != account:
                raise RefusedError("state", f"account {account.id}: its links are not those of the log")
            self._verify_id(account, own.salts[account.id])
        missing = self._certified.accounts - {a.id for a in theirs.accounts}
        if missing:
            raise RefusedError("state", f"account {min(missing)} was certified before and is not in the proposal")

    @staticmethod
    def _verify_levels(proposal: Proposal) -> None:
        """Refuse levels other than those that the statement before left.

        Raises:
            RefusedError: rule ``levels``.
        """
        text = proposal.previous_state
        if proposal.previous is None:
            if text or proposal.state.levels != NO_LEVELS:
                raise RefusedError("levels", "proposed, and no statement was certified that could have left any")
            return
        digest = proposal.previous.body.state_digest
        found = keccak256(text.encode())
        if found != digest:
            reason = f"the previous state given is 0x{found.hex()}, the previous statement's is 0x{digest.hex()}"
            raise RefusedError("levels", reason)
        if not verify_levels(proposal.state.levels, text):
            left = left_levels(text) or "none"
            raise RefusedError("levels", f"those proposed are not the ones that the previous statement left ({left})")

    async def _verify_grants(self, proposal: Proposal) -> None:
        """Refuse grants that fall short of one's own record, or that cannot be: what is left out could be spent twice.

        Made-up grants that might have been are charged to their accounts, and lower their budgets alone.

        Raises:
            RefusedError: rule ``grants``; names the first one that nobody can have signed.
            DissentError: rule ``grants``; names the account, the destination and the budget that is missing first, and
                claims all that are, up to ``CLAIMS``: they may be of a statement that the proposer never heard of.
        """
        if self._grants is None:
            return
        theirs = proposal.state
        shared = shares_of(theirs.links)
        own = await self._grants.outstanding(proposal.cut.cut_time, shared, proposal.cut.epoch)
        bounds = Bounds(
            shared,
            # One that was dropped from the configuration is known for as long as something may be drawn there.
            None if self._destinations is None else self._destinations | {grant.destination for grant in own},
            proposal.cut.epoch,
            after=proposal.cut.cut_time - self._grants.slack,
            until=proposal.header.produced_at + self._longest,
        )
        unreal = next((grant for grant in theirs.grants if not bounds.admits(grant)), None)
        if unreal is not None:
            what = f"{unreal.budget} of epoch {unreal.epoch} until {unreal.valid_until}"
            raise RefusedError(
                "grants", f"{unreal.account} at {unreal.destination}: {what} listed, which nobody can have signed"
            )
        claims = tuple(islice(all_uncovered(own, theirs.grants), CLAIMS))
        if claims:
            short = claims[0]
            listed = [g for g in theirs.grants if (g.account, g.destination) == (short.account, short.destination)]
            most = max((g.budget for g in listed), default=0)
            reason = (
                f"{short.account} at {short.destination}: {most} listed, {short.budget} of epoch {short.epoch} signed"
            )
            raise DissentError("grants", reason, claims=claims)

    def _first_fresh(self, proposal: Proposal) -> int:
        """Return the index of the first entry that is not known to be in the last certified statement."""
        if self._certified.digest == proposal.body.previous:
            return self._certified.entries
        cut, previous = proposal.cut, proposal.previous
        if previous is None or not cut.epoch:
            return 0
        certified_cut = previous.header.epoch * (cut.cut_time // cut.epoch) - LOG_SLACK
        links = proposal.state.links
        return next((i for i, entry in enumerate(links) if entry.recorded_at >= certified_cut), len(links))

    def _verify_id(self, account: Account, salt: bytes) -> None:
        key = (account.id, salt)
        if key in self._verified:
            return
        if "0x" + account_id(account.controller, salt).hex() != account.id:
            raise RefusedError("state", f"account {account.id} is not its controller's with its salt")
        self._verified.add(key)

    def _verify_signatures(self, entry: LinkRecord, salt: bytes) -> None:
        if entry in self._verified:
            return
        try:
            signed = to_signed_link(entry, salt)
            terms, at, invite, accept = signed.terms, signed.accepted_at, signed.invite, signed.accept
            if isinstance(terms, SharesTerms):
                if invite is None or accept is not None or entry.member:
                    raise RefusedError("state", f"link {entry.position}: not the signature of shares")
                verify_shares(self.deployment_id, terms, invite, at, salt=salt, ask_chain=True)
            elif entry.kind == "link" and invite is not None and accept is not None:
                verify_link(self.deployment_id, terms, invite, accept, at, salt=salt, ask_chain=True)
            elif entry.kind == "revoke" and invite is not None and accept is None:
                verify_revoke(self.deployment_id, terms, "controller", invite, at, salt=salt, ask_chain=True)
            elif entry.kind == "revoke" and accept is not None and invite is None:
                verify_revoke(self.deployment_id, terms, "member", accept, at, salt=salt, ask_chain=True)
            else:
                raise RefusedError("state", f"link {entry.position}: not the signatures of a {entry.kind}")
        except (ProofError, InputError) as error:
            raise RefusedError("state", f"link {entry.position}: {error}") from None
        self._verified.add(entry)

    def _begin_asking(self, fresh: Sequence[LinkRecord]) -> None:
        """Ask the chains, one round at a time, about fresh entries that rest on their word.

        Only about what is fresh: the log keeps what was agreed, and a contract may change its mind.
        """
        self._asked.intersection_update(fresh)
        if self._witness is None or (self._asking is not None and not self._asking.done()):
            return
        by_chain: dict[str, list[_Question]] = {}
        for entry in fresh:
            if entry.kind != "end" and entry not in self._asked:
                for side, chain, subject in questions(self.deployment_id, entry):
                    by_chain.setdefault(chain, []).append(_Question(entry, side, subject))
        if by_chain:
            self._asking = asyncio.create_task(self._ask(self._witness, by_chain))

    async def asked(self) -> None:
        """Wait until the round of asking that is under way has ended, if one is."""
        if self._asking is not None:
            await asyncio.wait({self._asking})

    async def _ask(self, witness: Witness, by_chain: Mapping[str, Sequence[_Question]]) -> None:
        rounds = (self._ask_chain(witness, chain, about) for chain, about in by_chain.items())
        try:
            async with asyncio.timeout(ASKING_SECONDS):
                await asyncio.gather(*rounds)
        except TimeoutError:
            log.warning("not confirmed", cause=f"no answer about links within {ASKING_SECONDS:g} s")

    async def _ask_chain(self, witness: Witness, chain: str, about: Sequence[_Question]) -> None:
        """Ask one chain about entries as it was when they were recorded; say what it does not confirm."""
        try:
            answers = await witness(chain, [(q.subject, q.entry.recorded_at) for q in about])
        except CrossmarginError as error:
            log.warning("not confirmed", chain=chain, cause=str(error))
            return
        for (entry, side, _), answer in zip(about, answers, strict=True):
            if isinstance(answer, CrossmarginError):  # pruned, or dark: it cannot tell
                log.warning("not confirmed", link=entry.position, side=side, cause=str(answer))
                continue
            self._asked.add(entry)
            if answer:
                log.error("denied by its chain", link=entry.position, side=side, member=entry.member, cause=answer)

    def _verify_end(self, entry: LinkRecord, revoke: LinkRecord | None, allowed: frozenset[End] | None) -> None:
        """Accept an end of the standing revoke that one's own recomputation of the last statement allows.

        Args:
            allowed: None for an attestor that was not there (restarted, or outvoted) and for what is certified: then
                the cool-down decides. Any quorum has members in common with the one before, and those were there.
        """
        if revoke is None or revoke.nonce != entry.nonce or entry.invite_signature or entry.accept_signature:
            raise RefusedError("state", f"link {entry.position}: ends no revoke of {entry.member} that stands")
        passed = entry.recorded_at - revoke.recorded_at
        if passed < self._cooldown:
            reason = f"ends {passed} s after the revoke, the cool-down is {self._cooldown} s"
            raise RefusedError("state", f"link {entry.position}: {reason}")
        if allowed is not None and (entry.account, entry.member, entry.nonce) not in allowed:
            reason = f"{entry.member} could not be let go by the last certified statement"
            raise RefusedError("state", f"link {entry.position}: {reason}")
