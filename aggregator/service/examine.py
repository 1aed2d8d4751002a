"""How one attestor recomputes a proposal: with its own eyes, its own price check and its own copy of the links log."""

from __future__ import annotations

import asyncio

from aggregator.domain.certificate import LinkRecord, State
from aggregator.domain.errors import InputError, RefusedError
from aggregator.domain.snapshot import Account
from aggregator.ports import PriceSource, Store
from aggregator.service.attest import Proposal, Recomputed
from aggregator.service.bundle import to_signed_link
from aggregator.service.collect import Observer
from aggregator.service.workbench import Workbench
from proofs.errors import ProofError
from proofs.links import account_id, verify_link


class Examiner:
    """Recompute proposals for one attestor.

    Args:
        deployment_id: 32 bytes, which links are signed for.
        workbench: the same policy as everybody's.
        observer: its own readers and memory.
        source: verifies raw price updates; None where no signed price is configured.
        store: where its copy of the links log comes from, and where it remembers what it read.
    """

    def __init__(
        self, deployment_id: bytes, workbench: Workbench, observer: Observer, source: PriceSource | None, store: Store
    ) -> None:
        self._deployment_id, self._workbench, self._observer = deployment_id, workbench, observer
        self._source, self._store = source, store
        self._verified: set[LinkRecord | tuple[str, bytes]] = set()
        self._certified_accounts: frozenset[str] = frozenset()
        self._pending: tuple[bytes, frozenset[str]] = (b"", frozenset())

    async def recompute(self, proposal: Proposal) -> Recomputed:
        """Check what the proposer chose, read the chains at its Cut, and compute what follows.

        Raises:
            RefusedError: the Cut or the state breaks a rule.
            SourceError: the price updates do not verify or are not the first after the cut.
        """
        self._settle(proposal.body.previous)
        state, cut = proposal.state, proposal.cut
        self._check_state(state, await self._store.state(), cut.cut_time)
        seen = await self._observer.collect_at(cut, state.accounts)
        published = (
            self._source.decode(proposal.updates, cut.cut_time) if self._source is not None and proposal.updates else ()
        )
        quotes = (*published, *seen.quotes)
        mine = await asyncio.to_thread(
            self._workbench.compute, seen, quotes, proposal.updates, state, self._observer.last
        )
        self._observer.attested(proposal.digest, seen)
        self._pending = proposal.digest, frozenset(a.id for a in state.accounts)
        # After a restart a chain that is down must still be known at the block the others remember.
        await self._store.save_readings(self._observer.name, self._observer.last.values())
        return Recomputed(
            mine.leaves,
            mine.digests["cut"],
            mine.digests["prices"],
            mine.digests["policy"],
            mine.digests["risk"],
            mine.digests["state"],
            mine.commitment.accounts_root,
        )

    def _settle(self, previous: bytes) -> None:
        """What was attested last and is certified by now becomes the ground for what follows."""
        self._observer.certified(previous)
        if self._pending[0] == previous:
            self._certified_accounts = self._pending[1]

    def _check_state(self, theirs: State, own: State, cut_time: int) -> None:
        """Accept a prefix of one's own log that leaves out nothing older than the cut, every signature checked."""
        if theirs.links != own.links[: len(theirs.links)]:
            raise RefusedError("state", "the proposed links are not the beginning of the links log")
        late = own.links[len(theirs.links) :]
        if any(link.recorded_at < cut_time for link in late):
            raise RefusedError("state", f"link {late[0].position} is older than the cut and not in the proposal")
        known = {a.id: a for a in own.accounts}
        backing: dict[str, list[str]] = {}
        for link in theirs.links:
            backing.setdefault(link.account, []).append(link.member)
        for account in theirs.accounts:
            mine = known.get(account.id)
            if mine is None or (mine.controller, mine.kind, mine.home) != (
                account.controller,
                account.kind,
                account.home,
            ):
                raise RefusedError("state", f"account {account.id}: {account} proposed, {mine} on record")
            if tuple(sorted(backing.get(account.id, ()))) != account.links:
                raise RefusedError("state", f"account {account.id}: its links are not those of the log")
            self._verify_account(account, own.salts[account.id])
        missing = self._certified_accounts - {a.id for a in theirs.accounts}
        if missing:
            raise RefusedError("state", f"account {min(missing)} was certified before and is not in the proposal")
        for link in theirs.links:
            self._verify_link(link, own.salts[link.account])

    def _verify_account(self, account: Account, salt: bytes) -> None:
        key = (account.id, salt)
        if key in self._verified:
            return
        if "0x" + account_id(account.controller, salt).hex() != account.id:
            raise RefusedError("state", f"account {account.id} is not its controller's with its salt")
        self._verified.add(key)

    def _verify_link(self, link: LinkRecord, salt: bytes) -> None:
        if link in self._verified:
            return
        try:
            signed = to_signed_link(link, salt)
            verify_link(self._deployment_id, signed.terms, signed.invite, signed.accept, signed.accepted_at, salt=salt)
        except (ProofError, InputError) as error:
            raise RefusedError("state", f"link {link.position}: {error}") from None
        self._verified.add(link)
