"""Statements, proposals and attestors to test with: small, valid, and easy to break in one place."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from adapters.keys import KeySigner
from aggregator.domain.certificate import Attestation, Certificate, EpochRecord
from aggregator.domain.errors import RefusedError
from aggregator.domain.report import LeafValues
from aggregator.domain.snapshot import Cut
from aggregator.service.attest import Attestor, Proposal, Recomputed, Rules
from proofs import merkle
from proofs.hashing import keccak256
from proofs.leaf import Leaf, hash_leaf
from proofs.quorum import minimal_threshold
from proofs.statement import DEVNET, Deployment, Header, StatementBody, body_hash
from proofs.statement import digest as statement_digest

EPOCH_SECONDS = 2
LIFETIME = 600
CHAIN = "eip155:31337"


class ManualClock:
    """A clock that tests move."""

    def __init__(self, now: float) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


class RealClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class MemoryWatermark:
    """The watermark's rule without its file."""

    def __init__(self) -> None:
        self.signed: dict[int, bytes] = {}

    async def claim(self, epoch: int, digest: bytes) -> None:
        highest = max(self.signed, default=-1)
        if epoch < highest or self.signed.get(epoch, digest) != digest:
            raise RefusedError("watermark", f"epoch {epoch}, highest {highest}")
        self.signed[epoch] = digest

    async def highest(self) -> int | None:
        return max(self.signed, default=None)


def make_signers(count: int) -> list[KeySigner]:
    return [KeySigner(keccak256(b"member %d" % i)) for i in range(count)]


def make_deployment(count: int, *, network_class: int = DEVNET, not_after: int = 2_000_000_000) -> Deployment:
    members = tuple(bytes.fromhex(signer.address[2:]) for signer in make_signers(count))
    return Deployment(network_class, members, minimal_threshold(count), not_after, bytes(range(32)))


def make_rules(deployment: Deployment, *, start_delay: int = 0) -> Rules:
    return Rules(deployment, EPOCH_SECONDS, clock_skew=5, max_lifetime=LIFETIME, start_delay=start_delay)


def make_leaf(epoch: int, account: int = 1, **changes: Any) -> LeafValues:
    leaf = LeafValues(
        account="0x" + account.to_bytes(32, "big").hex(),
        destination="0x" + keccak256(CHAIN.encode()).hex(),
        epoch=epoch,
        equity=5_000 * 10**8,
        assets_initial=4_000 * 10**8,
        requirement_initial=1_000 * 10**8,
        assets_maintenance=4_500 * 10**8,
        requirement_maintenance=900 * 10**8,
        budget=2_000 * 10**8,
        as_of=epoch * EPOCH_SECONDS - 1,
        valid_until=epoch * EPOCH_SECONDS + LIFETIME,
        flags=0,
    )
    return leaf._replace(**changes)


def to_leaf(values: LeafValues) -> Leaf:
    return Leaf(bytes.fromhex(values.account[2:]), bytes.fromhex(values.destination[2:]), *values[2:])


def accounts_root(leaves: tuple[LeafValues, ...]) -> bytes:
    built = [to_leaf(values) for values in leaves]
    return merkle.accounts_root(
        sorted(merkle.accounts_entry(leaf.account, leaf.destination, hash_leaf(leaf)) for leaf in built)
    )


def make_proposal(
    deployment: Deployment,
    epoch: int,
    leaves: tuple[LeafValues, ...] | None = None,
    *,
    previous: Certificate | None = None,
    header: dict[str, Any] | None = None,
    body: dict[str, Any] | None = None,
    **changes: Any,
) -> Proposal:
    """Build a consistent proposal; ``header`` and ``body`` override fields before hashing, ``changes`` after."""
    leaves = (make_leaf(epoch), make_leaf(epoch, 2)) if leaves is None else leaves
    statement_body = StatementBody(
        cut_digest=b"\x01" * 32,
        price_digest=b"\x02" * 32,
        policy_digest=b"\x03" * 32,
        risk_digest=b"\x04" * 32,
        state_digest=b"\x05" * 32,
        accounts_root=accounts_root(leaves),
        leaf_count=len(leaves),
        previous=previous.digest if previous else bytes(32),
    )
    statement_body = replace(statement_body, **(body or {}))
    cut_time = epoch * EPOCH_SECONDS
    fields: dict[str, Any] = {
        "epoch": epoch,
        "root": merkle.root([hash_leaf(to_leaf(values)) for values in leaves]),
        "floor": 0,
        "set_id": 1,
        "produced_at": cut_time,
        "valid_until": cut_time + LIFETIME,
        "body": body_hash(statement_body),
    }
    statement_header = Header(**(fields | (header or {})))
    proposal = Proposal(
        header=statement_header,
        body=statement_body,
        digest=statement_digest(statement_header, deployment.deployment_id()),
        cut=Cut(epoch, cut_time, ()),
        leaves=leaves,
        previous=previous,
    )
    return replace(proposal, **changes)


def recompute_as(leaves: tuple[LeafValues, ...] | None = None, **digests: bytes) -> Any:
    """Return a recomputation that agrees with every proposal, or finds ``leaves`` and ``digests`` instead."""

    async def recompute(proposal: Proposal) -> Recomputed:
        own = proposal.leaves if leaves is None else leaves
        found = Recomputed(
            own,
            proposal.body.cut_digest,
            proposal.body.price_digest,
            proposal.body.policy_digest,
            proposal.body.risk_digest,
            proposal.body.state_digest,
            accounts_root(own),
        )
        return found._replace(**digests)

    return recompute


def make_attestor(
    deployment: Deployment, index: int, clock: Any, *, recompute: Any = None, start_delay: int = 0, **options: Any
) -> Attestor:
    options.setdefault("signer", make_signers(index + 1)[index])
    options.setdefault("watermark", MemoryWatermark())
    return Attestor(
        f"attestor-{index}",
        index,
        recompute=recompute or recompute_as(),
        rules=make_rules(deployment, start_delay=start_delay),
        clock=clock,
        **options,
    )


def certify(deployment: Deployment, proposal: Proposal, signers: list[KeySigner] | None = None) -> Certificate:
    signers = make_signers(len(deployment.members)) if signers is None else signers
    attestations = tuple(
        Attestation(index, *signer.sign(proposal.digest))
        for index, signer in enumerate(signers[: deployment.threshold])
    )
    return Certificate(proposal.header, proposal.body, proposal.digest, attestations)


def make_record(
    deployment: Deployment, epoch: int, leaves: tuple[LeafValues, ...] | None = None, **options: Any
) -> EpochRecord:
    proposal = make_proposal(deployment, epoch, leaves, **options)
    certificate = certify(deployment, proposal)
    return EpochRecord(
        header=proposal.header,
        body=proposal.body,
        digest=proposal.digest,
        cut_time=proposal.cut.cut_time,
        attestations=certificate.attestations,
        refusals=(),
        chains=(),
        findings=(),
        margins=(),
        leaves=proposal.leaves,
    )
