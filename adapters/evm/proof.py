"""Native balances checked against state proofs (EIP-1186): what a node says must follow from the block that was agreed.

The block's hash comes from the quorum; the node gives the header that hashes to it, and a proof that leads from the
header's state root to the account. A node that says something else than it can prove has lied about one of the two.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from aggregator.domain.errors import Contradicted, Garbage, NodeRefused, SourceError, Unavailable
from aggregator.domain.snapshot import Block, Subject
from proofs.errors import ProofError
from proofs.hashing import keccak256
from proofs.state_proof import NO_ACCOUNT, NODE_LIMIT, NODES_LIMIT, build_header, verify_account, verify_header

_QUANTITY = re.compile("0x[0-9a-f]{1,64}")


class Endpoint(Protocol):
    """What is needed of ``adapters.rpc.EvmEndpoint``."""

    async def call(self, method: str, params: Sequence[object]) -> Any: ...


class Unprovable(SourceError):
    """The node gives no proof, or no header that hashes to the block: nothing was learnt."""


def choose_address(block: Block, subjects: Iterable[Subject], secret: bytes) -> str | None:
    """Return the address whose balance is to be proven at ``block``: the one with the least keyed hash.

    Args:
        secret: the party's own. A node that could compute the choice would lie about the others only.
    """
    seed = secret + bytes.fromhex(block.hash[2:])
    addresses = {s.address.lower() for s in subjects if s.address is not None}
    return min(addresses, key=lambda a: keccak256(seed + bytes.fromhex(a[2:])), default=None)


async def verify_balance(endpoint: Endpoint, name: str, block: Block, address: str, claimed: int) -> None:
    """Check that ``address`` holds ``claimed`` wei at ``block``.

    Args:
        name: what errors call the node's chain.

    Raises:
        Contradicted: the node's own proof shows another balance.
        Unprovable: the node does not give proofs here, or its header is not what the block's hash is of.
        Garbage: its proof does not lead from the block to the account.
        Unreachable: it does not answer.
    """
    header, proof = await asyncio.gather(_header(endpoint, name, block), _proof(endpoint, name, block, address))
    try:
        account = verify_account(header, bytes.fromhex(address[2:]), proof) or NO_ACCOUNT
    except ProofError as error:
        raise Garbage(name, f"its state proof for {address} at block {block.height} is none: {error}") from None
    if account.balance != claimed:
        raise Contradicted(name, block.height, block.hash, f"balance of {address}", str(claimed), str(account.balance))


async def read_balance(endpoint: Endpoint, name: str, block: Block, address: str) -> int:
    """Return what the node says ``address`` holds at ``block``, in wei.

    Raises:
        Garbage: that is no number.
    """
    answer = await endpoint.call("eth_getBalance", [address, {"blockHash": block.hash}])
    if not isinstance(answer, str) or not _QUANTITY.fullmatch(answer):
        raise Garbage(name, "eth_getBalance is not a number below 2^256")
    return int(answer, 16)


async def _header(endpoint: Endpoint, name: str, block: Block) -> bytes:
    """Return the state root of ``block``."""
    body = await endpoint.call("eth_getBlockByHash", [block.hash, False])
    if not isinstance(body, dict):
        raise Unprovable(name, f"the node has no header of block {block.height}")
    try:
        return verify_header(build_header(body), bytes.fromhex(block.hash[2:])).state_root
    except ProofError as error:
        raise Unprovable(name, f"unprovable here: {error}") from None


async def _proof(endpoint: Endpoint, name: str, block: Block, address: str) -> list[bytes]:
    """Return the nodes that the node offers for ``address``."""
    try:
        answer = await _ask_proof(endpoint, block, address)
    except (NodeRefused, Unavailable) as error:
        raise Unprovable(name, f"the node gives no proof: {error.problem}") from None
    try:
        nodes = answer["accountProof"]
        if not isinstance(nodes, list) or len(nodes) > NODES_LIMIT:
            raise TypeError
        if not all(n[:2] == "0x" and len(n) <= 2 * NODE_LIMIT + 2 for n in nodes):
            raise TypeError
        return [bytes.fromhex(node[2:]) for node in nodes]
    except (KeyError, TypeError, ValueError):
        raise Garbage(name, f"eth_getProof has no accountProof of at most {NODES_LIMIT} nodes") from None


async def _ask_proof(endpoint: Endpoint, block: Block, address: str) -> Any:
    try:
        return await endpoint.call("eth_getProof", [address, [], {"blockHash": block.hash}])
    except NodeRefused:  # some nodes know heights only; what they prove is of this very block or does not verify
        return await endpoint.call("eth_getProof", [address, [], hex(block.height)])
