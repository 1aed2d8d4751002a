"""A MarginRegistry on a real Anvil, and destinations that post to it."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr
from web3 import Web3

from adapters.destinations.evm import EvmRegistryDestination
from adapters.keys import KeySigner
from adapters.rpc import EvmEndpoint
from aggregator.domain.rows import ChainRow, DestinationRow, FinalityRow, LatencyLeg
from infra.devnet.anvil import Anvil, connect
from infra.devnet.evm_deploy import EvmSpec, deploy_registry
from proofs.statement import Deployment
from tests.unit.attest.statements import CHAIN, EPOCH_SECONDS, LIFETIME

PAYER = KeySigner(b"\x07" * 32)
ETHER = 10**18


def deploy(anvil: Anvil, deployment: Deployment) -> tuple[Web3, Any]:
    """Deploy the registry of ``deployment`` and fund the payer; return a client and the contract."""
    w3 = connect(anvil.url)
    spec = EvmSpec(
        members=tuple("0x" + member.hex() for member in deployment.members),
        threshold=deployment.threshold,
        not_after=deployment.not_after,
        salt=deployment.salt,
        prices={},
        epoch_seconds=EPOCH_SECONDS,
        max_lifetime=LIFETIME,
    )
    registry = deploy_registry(w3, spec)
    anvil.rpc("anvil_setBalance", PAYER.address, hex(ETHER))
    return w3, registry


def make_chain(url: str, depth: int = 0) -> ChainRow:
    """Build the row of a chain with one provider. ``depth`` is its finality depth in blocks."""
    return ChainRow(
        id=CHAIN,
        name="devnet",
        family="evm",
        rpc=(SecretStr(url),),
        genesis="0x00",
        block_seconds=1,
        finality=FinalityRow(depth=depth),
        max_age=60,
        hold=(LatencyLeg(typical=1),),
        requests_per_second=1000,
    )


def make_destination(
    url: str,
    address: str,
    deployment: Deployment,
    *,
    depth: int = 0,
    payer: KeySigner = PAYER,
    kind: type[EvmRegistryDestination] = EvmRegistryDestination,
) -> EvmRegistryDestination:
    """Build a destination over a real endpoint. ``depth`` is the chain's finality depth in blocks."""
    chain = make_chain(url, depth)
    row = DestinationRow(chain=CHAIN, kind="evm-registry", address=address, clock_bound=5, payer_key="payer")
    return kind(row, chain, EvmEndpoint(chain, chain.rpc[0]), payer, deployment)


def posted_epochs(registry: Any) -> list[int]:
    """Return the epochs of every Posted event, in order."""
    return [event["args"]["epoch"] for event in registry.events.Posted().get_logs(from_block=0)]
