"""Publishing statements as attestations of the Ethereum Attestation Service (attest.org).

The payload is the header with its signatures, as registries take them. The schema's resolver (``MarginResolver.sol``)
accepts nothing that a quorum did not sign, so whoever trusts the schema need not check signatures. Nothing can be drawn
on an attestation: budgets are the registry's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from eth_abi.abi import encode as abi_encode

from adapters.destinations.evm import HEADER_TYPE, EvmEndpoint, EvmRegistryDestination
from aggregator.domain.certificate import Certificate, PostedRoot, SignedPosting, to_leaf
from aggregator.domain.errors import NodeRefused, PostingError
from aggregator.domain.report import LeafValues
from aggregator.domain.rows import ChainRow, DestinationRow, PublicationRow
from aggregator.domain.snapshot import Finding
from aggregator.ports import Signer
from proofs import merkle
from proofs.errors import ProofError
from proofs.hashing import keccak256
from proofs.leaf import hash_leaf
from proofs.sets import Rotation
from proofs.statement import Deployment

SCHEMA: Final = (
    "uint64 epoch,bytes32 root,uint64 floor,uint32 setId,uint64 producedAt,uint64 validUntil,bytes32 body,"
    "uint256 indices,bytes32[2][] signatures"
)
REQUEST_TYPE: Final = "(bytes32,(address,uint64,bool,bytes32,bytes,uint256))"
NOBODY: Final = "0x" + "00" * 20
# An attestation fills some twelve slots of EAS and its resolver anew; tests/bench/gas.py measures it.
CEILING_BASE: Final = 700_000
CEILING_PER_SIGNATURE: Final = 60_000


def schema_uid(resolver: str) -> bytes:
    """Return EAS's id of the schema: keccak256 of its text, its resolver and whether it is revocable, packed."""
    return keccak256(SCHEMA.encode() + bytes.fromhex(resolver.removeprefix("0x")) + b"\0")


class EasPublication(EvmRegistryDestination):
    """Posts certificates as attestations; implements ``aggregator.ports.Destination``.

    Args:
        row: the service's contract and our schema's resolver.
        chain, endpoint, payer, deployment: as of a registry.
    """

    def __init__(
        self, row: PublicationRow, chain: ChainRow, endpoint: EvmEndpoint, payer: Signer, deployment: Deployment
    ) -> None:
        destination = DestinationRow(
            chain=row.chain, kind="evm-registry", address=row.address, clock_bound=0, payer_key=row.payer_key
        )
        super().__init__(destination, chain, endpoint, payer, deployment)
        # What is posted goes to EAS; what is read, its resolver knows.
        self._resolver = row.resolver
        self._schema = schema_uid(row.resolver)

    async def sign(self, certificate: Certificate) -> SignedPosting:
        """Estimate, price and sign the attestation; errors as of a registry."""
        ceiling = CEILING_BASE + CEILING_PER_SIGNATURE * len(certificate.attestations)
        return await self._sign(build_attestation(certificate, self._schema), ceiling)

    async def sign_rotation(self, rotation: Rotation) -> SignedPosting:
        """Refuse: the resolver takes the sets of the registry.

        Raises:
            PostingError: always.
        """
        raise PostingError(self.row.chain, "an attestation service keeps no attestor sets: rotate its registry")

    async def read_latest(self) -> PostedRoot | None:
        """Return the newest attested statement, None before the first."""
        types = ("uint64", "bytes32", "uint64", "uint64", "uint64", "uint64", "bytes32")
        epoch, root, floor, produced_at, valid_until, posted_at, _ = await self._ask("latest()", types)
        return PostedRoot(epoch, root, floor, produced_at, valid_until, posted_at) if epoch else None

    async def read_root(self, epoch: int) -> bytes | None:
        """Return the root attested for ``epoch``, None when there is none."""
        (root,) = await self._ask("rootOf(uint64)", ("bytes32",), abi_encode(["uint64"], [epoch]))
        return root if any(root) else None

    async def read_newest_set(self) -> int:
        """Return the newest set that the registry behind the resolver knows."""
        (registry,) = await self._ask("registry()", ("address",))
        (set_id,) = await self._view("newestSetId()", ("uint32",), to=str(registry))
        return int(set_id)

    async def verify(self, leaf: LeafValues, proof: Sequence[bytes]) -> bool:
        """Say whether the leaf is under the root that is attested for its epoch."""
        root = await self.read_root(leaf.epoch)
        try:
            merkle.verify_proof(hash_leaf(to_leaf(leaf)), proof, root or bytes(32))
        except ProofError:
            return False
        return root is not None

    async def check(self) -> tuple[Finding, ...]:
        """Compare service, resolver, registry and configuration, and the payer's funds.

        Raises:
            SourceError: the node did not answer well.
        """
        where, findings = f"{self.row.chain}/eas", []
        try:
            (eas,) = await self._ask("eas()", ("address",))
            (registry,) = await self._ask("registry()", ("address",))
            (deployment,) = await self._view("deploymentId()", ("bytes32",), to=str(registry))
            for what, there, here in (
                ("attestation service", str(eas).lower(), self.row.address.lower()),
                ("deployment id", "0x" + deployment.hex(), "0x" + self._deployment.deployment_id().hex()),
            ):
                if there != here:
                    findings.append(
                        Finding("wrong-deployment", where, f"{what}: resolver has {there}, configuration {here}")
                    )
        except NodeRefused as error:
            findings.append(
                Finding("wrong-deployment", where, f"{self._resolver} is not our resolver: {error.problem}")
            )
        return (*findings, *await self._check_funds())

    async def _ask(self, signature: str, types: Sequence[str], arguments: bytes = b"") -> tuple[Any, ...]:
        return await self._view(signature, types, arguments, to=self._resolver)


def build_attestation(certificate: Certificate, schema: bytes) -> bytes:
    """Return the calldata of EAS's ``attest``: the header and its signatures, expiring with the statement."""
    header = certificate.header
    indices = sum(a.index << (8 * position) for position, a in enumerate(certificate.attestations))
    fields = (header.epoch, header.root, header.floor, header.set_id, header.produced_at, header.valid_until)
    payload = abi_encode(
        [HEADER_TYPE, "uint256", "bytes32[2][]"],
        [(*fields, header.body), indices, [[a.r, a.vs] for a in certificate.attestations]],
    )
    request = (schema, (NOBODY, header.valid_until, False, bytes(32), payload, 0))
    return keccak256(f"attest({REQUEST_TYPE})".encode())[:4] + abi_encode([REQUEST_TYPE], [request])
