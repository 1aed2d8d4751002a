"""A MarginRegistry under test: a world that posts statements about a few accounts, signed by a reference quorum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import Web3Exception

from infra.devnet.anvil import Anvil, transact
from infra.devnet.evm_deploy import EvmSpec
from tests.contracts.evm_reference import Header, Leaf, NextSet, Quorum, Tree, keccak, pack_indices

EPOCH_SECONDS, SKEW, LIFETIME = 2, 5, 600
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SIGNERS = (0, 1, 3)
ZERO = "0x" + "00" * 20

quorum, successors = Quorum(4), Quorum(4, seed=2)


def build_spec(now: int, **changes: Any) -> EvmSpec:
    spec = EvmSpec(
        members=tuple(quorum.members),
        threshold=3,
        not_after=now + 86400,
        salt=b"\x5a" * 32,
        prices={},
        epoch_seconds=EPOCH_SECONDS,
        clock_skew=SKEW,
        max_lifetime=LIFETIME,
    )
    return replace(spec, **changes)


class World:
    """Posts statements about one leaf set, signed by the reference quorum."""

    def __init__(self, chain: Anvil, w3: Web3, registry: Contract, now: int) -> None:
        self.chain, self.w3, self.registry, self.now = chain, w3, registry, now
        self.deployment_id = registry.functions.deploymentId().call()
        self.destination = keccak(b"eip155:31337")
        self.epoch = now // EPOCH_SECONDS

    def tree(self, epoch: int, size: int = 5, valid_for: int = 300, **changes: Any) -> tuple[Leaf, Tree]:
        leaves = [
            Leaf(keccak(b"account %d" % i), self.destination, epoch, self.now + valid_for, **changes)
            for i in range(size)
        ]
        return leaves[size // 2], Tree(leaves)

    def header(self, **changes: Any) -> Header:
        header = Header(self.epoch, b"\x11" * 32, producedAt=self.now, validUntil=self.now + 300)
        return replace(header, **changes)

    def post(self, header: Header, signers: Sequence[int] = SIGNERS, by: Quorum = quorum) -> Any:
        return transact(self.w3, self.registry.functions.post(*by.certify(header, self.deployment_id, signers)))

    def refuse(self, arguments: tuple[Any, ...], reason: str) -> None:
        self.refuse_call(self.registry.functions.post(*arguments), reason)

    def refuse_header(self, reason: str, **changes: Any) -> None:
        self.refuse(quorum.certify(self.header(**changes), self.deployment_id, SIGNERS), reason)

    def refuse_signatures(
        self, reason: str, indices: Sequence[int], signatures: Sequence[tuple[bytes, bytes]] | None = None
    ) -> None:
        header = self.header()
        signed = signatures or quorum.sign(quorum.digest(header, self.deployment_id), indices)
        self.refuse((header.as_tuple(), pack_indices(indices), signed), reason)

    def verify(self, leaf: Leaf, proof: list[bytes]) -> bool:
        return bool(self.registry.functions.verify(leaf.as_tuple(), proof).call())

    # Sets

    def next_set(self, set_id: int = 2, **changes: Any) -> NextSet:
        to = NextSet(set_id, tuple(successors.members), 3, self.epoch + 1000, self.now + 90_000)
        return replace(to, **changes)

    def rotate(self, to: NextSet, by: Quorum = quorum) -> Any:
        return transact(self.w3, self.registry.functions.rotate(*by.certify_rotation(to, self.deployment_id, SIGNERS)))

    def refuse_rotation(self, reason: str, to: NextSet, by: Quorum = quorum) -> None:
        arguments = by.certify_rotation(to, self.deployment_id, SIGNERS)
        self.refuse_call(self.registry.functions.rotate(*arguments), reason)

    # Accounts

    def attest(self, *leaves: Leaf, **changes: Any) -> Tree:
        """Post these leaves as the statement of their epoch."""
        tree = Tree(leaves)
        self.post(self.header(epoch=leaves[0].epoch, root=tree.root, **changes))
        return tree

    def leaf(self, name: str = "account", **changes: Any) -> Leaf:
        leaf = Leaf(keccak(name.encode()), self.destination, self.epoch, self.now + 300)
        return replace(leaf, **changes)

    def apply(self, leaf: Leaf, tree: Tree | None = None) -> Any:
        """Store a leaf; without a tree it is posted first, alone."""
        tree = tree or self.attest(leaf)
        return transact(self.w3, self.registry.functions.applyLeaf(leaf.as_tuple(), tree.proof(leaf)))

    def send(self, name: str, *arguments: Any, sender: Any = None) -> Any:
        return transact(self.w3, self.registry.functions[name](*arguments), sender)

    def call(self, name: str, *arguments: Any) -> Any:
        return self.registry.functions[name](*arguments).call()

    def refuse_call(self, function: Any, reason: str, sender: Any = None) -> None:
        with pytest.raises(Web3Exception, match=f"execution reverted: {reason}'"):
            function.call({"from": sender or self.w3.eth.accounts[0]})

    def refused(self, reason: str, name: str, *arguments: Any, sender: Any = None) -> None:
        self.refuse_call(self.registry.functions[name](*arguments), reason, sender)

    def move_to(self, seconds: int) -> None:
        """Mine a block so many seconds after `now`."""
        self.chain.rpc("evm_setNextBlockTimestamp", self.now + seconds)
        self.chain.mine()
