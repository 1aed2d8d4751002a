"""Gas of what a registry does on an EVM chain, measured on Anvil beside published designs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from web3 import Web3
from web3.contract import Contract

from infra.devnet.anvil import Anvil, connect, deploy_code, transact
from infra.devnet.evm_deploy import EvmSpec, deploy_registry, list_consumer
from tests.contracts.evm_reference import Header, Leaf, NextSet, Quorum, keccak

# Gas by number of signatures, measured on the same Anvil (tools/evm/README.md of the design).
PEERS = {
    "example registry, a fixed set, no floor, no expiry": {1: 37_654, 3: 46_722, 5: 55_742, 7: 64_846, 13: 92_014},
    "libocr OCR3 verifier storing a root": {1: 44_572, 3: 57_364, 5: 70_144, 7: 82_936, 13: 121_288},
    "Chainlink OCR2 transmit": {2: 91_156, 6: 124_948, 11: 167_201},
    "Wormhole parseAndVerifyVM, verify only": {13: 138_819},
    "Pyth updatePriceFeeds, 1 feed": {13: 189_960},
    "EAS attest, no quorum": {0: 252_127},
}
BEST = PEERS["libocr OCR3 verifier storing a root"]  # of those whose set of signers can change
MOST = {3: 54_000, 5: 63_500, 13: 101_000}
INCLUSION, MOST_INCLUSION = 9_855, 10_500  # as published for the example registry, called by a contract, depth 20
# The example registry, compiled and measured the same way as ours. It has no floor and no expiry.
SAME_WAY = {"calldata ready": 10_656, "with the caller's encoding": 12_277}
DEPTH = 20
RING = 64
EPOCH_SECONDS = 2
CONSUMER = Path(__file__).resolve().parents[1] / "contracts" / "vyper" / "MarginConsumer.vy"


def compute_set_size(threshold: int) -> int:
    """Return the largest n whose smallest quorum floor((n + f) / 2) + 1, f = floor((n - 1) / 3), is the threshold."""
    return max(n for n in range(1, 33) if (n + (n - 1) // 3) // 2 + 1 == threshold)


def measure_post_gas(ks: Sequence[int] = (3, 5, 13)) -> list[dict[str, Any]]:
    """Return rows {name, value, unit, reference, ratio, target}: posts by k signatures, then what accounts take.

    Steady state: every slot that is written was written before (one full turn of the ring), and every root is new.
    value: gas used, by the transaction or, for the inclusion check, by the call. reference: the best peer. ratio:
    value / reference.
    """
    return [row for k in ks for row in _measure_posts(k)] + _measure_accounts()


class _Poster:
    """A registry on its own chain, and the set that signs for it."""

    def __init__(self, chain: Anvil, k: int) -> None:
        self.chain, self.k, self.quorum = chain, k, Quorum(compute_set_size(k))
        self.w3 = connect(chain.url)
        self.now = int(self.w3.eth.get_block("latest")["timestamp"])
        self.set_id = 1
        self.epoch = self.first = self.now // EPOCH_SECONDS - 2 * RING
        end = self.now + 10**7
        spec = EvmSpec(tuple(self.quorum.members), k, end, keccak(b"gas"), {}, epoch_seconds=EPOCH_SECONDS)
        self.registry = deploy_registry(self.w3, spec)
        self.deployment_id = self.registry.functions.deploymentId().call()
        for _ in range(RING):
            self.post()

    def post(self, root: bytes | None = None, *, raised: bool = False) -> int:
        """Post the next epoch; return the gas. Roots and bodies are hashes: calldata is priced by its zero bytes.

        raised: with a floor that voids every epoch before, as after a reorganisation.
        """
        self.epoch += 1
        root = root or keccak(b"root %d" % self.epoch)
        body = keccak(b"body %d" % self.epoch)
        self.first = self.epoch if raised else self.first
        header = Header(self.epoch, root, self.now, self.now + 600, floor=self.first, setId=self.set_id, body=body)
        arguments = self.quorum.certify(header, self.deployment_id, range(self.k))
        return int(transact(self.w3, self.registry.functions.post(*arguments))["gasUsed"])

    def rotate(self) -> int:
        """Hand over to as many others, and wait until they are in charge; return the gas."""
        others = Quorum(len(self.quorum.members), seed=2)
        self.epoch = (self.now + 60) // EPOCH_SECONDS
        to = NextSet(self.set_id + 1, tuple(others.members), self.k, self.epoch, self.now + 10**7)
        arguments = self.quorum.certify_rotation(to, self.deployment_id, range(self.k))
        gas = int(transact(self.w3, self.registry.functions.rotate(*arguments))["gasUsed"])
        self.quorum, self.set_id = others, to.setId
        self.chain.rpc("evm_setNextBlockTimestamp", self.epoch * EPOCH_SECONDS)
        return gas


def _measure_posts(k: int) -> list[dict[str, Any]]:
    with Anvil() as chain:
        poster = _Poster(chain, k)
        genesis = poster.post()
        rotation = poster.rotate()
        poster.post()
        rotated = poster.post()
        chain.rpc("evm_setNextBlockTimestamp", poster.epoch * EPOCH_SECONDS)
        raised = poster.post(raised=True)
    names = f"{k} of {len(poster.quorum.members)} signatures"
    return [
        _build_row(f"post, {names}, first set", genesis, BEST[k], MOST[k]),
        _build_row(f"post, {names}, rotated set", rotated, BEST[k], MOST[k]),
        _build_row(f"post, {names}, a floor that empties a full ring", raised),
        _build_row(f"rotate, {names}", rotation),
    ]


def _measure_accounts() -> list[dict[str, Any]]:
    compiled = importlib.import_module("vyper").compile_code(CONSUMER.read_text(), output_formats=["abi", "bytecode"])
    with Anvil() as chain:
        poster = _Poster(chain, 3)
        w3, call = poster.w3, poster.registry.functions
        me = w3.eth.accounts[0]
        contract = deploy_code(w3, compiled["abi"], compiled["bytecode"], poster.registry.address)
        list_consumer(w3, poster.registry, me)
        list_consumer(w3, poster.registry, contract.address)
        figures: dict[str, int] = {}
        inclusion: dict[str, int] = {}
        for turn in ("first", "steady"):  # what is left of the second turn is a steady state
            leaf, proof = _post_deep(poster, turn)
            both = contract.functions.applyAndDraw(leaf.as_tuple(), proof, 10**8)
            figures["applyLeaf and draw, by a contract"] = _spend(w3, both)
            figures["repay, by a contract"] = _spend(w3, contract.functions.repay(leaf.account, 10**7))
            leaf, proof = _post_deep(poster, turn + " again")
            inclusion = _read_costs(poster.registry, contract, leaf, proof)
            figures["applyLeaf, depth 20"] = _spend(w3, call.applyLeaf(leaf.as_tuple(), proof))
            figures["draw"] = _spend(w3, call.draw(leaf.account, 10**8))
            figures["repay"] = _spend(w3, call.repay(leaf.account, 10**7))
    name = "verify, called by a contract, depth 20"
    return [
        _build_row(name, inclusion["calldata ready"], INCLUSION, MOST_INCLUSION),
        *(_build_row(f"{name}, {way}, peer measured the same way", inclusion[way], SAME_WAY[way]) for way in SAME_WAY),
        *(_build_row(name, gas) for name, gas in sorted(figures.items())),
    ]


def _post_deep(poster: _Poster, seed: str) -> tuple[Leaf, list[bytes]]:
    """Post a tree in which an account has a path of `DEPTH` hashes; return its leaf and the path."""
    leaf = Leaf(keccak(b"account"), keccak(b"eip155:31337"), poster.epoch + 1, poster.now + 600, budget=10**12)
    root = leaf.hash()
    path = [keccak(f"{seed} {i}".encode()) for i in range(DEPTH)]
    for sibling in path:
        root = keccak(b"".join(sorted((root, sibling))))
    poster.post(root)
    return leaf, path


def _spend(w3: Web3, function: Any) -> int:
    return int(transact(w3, function)["gasUsed"])


def _read_costs(registry: Contract, contract: Contract, leaf: Leaf, proof: list[bytes]) -> dict[str, int]:
    """Return the gas of one inclusion check by how it is called; the registry's account and slots are cold."""
    arguments = (leaf.as_tuple(), proof)
    calldata = registry.encode_abi("verify", list(arguments))
    return {
        "calldata ready": int(contract.functions.costOfCall(calldata).call()),
        "with the caller's encoding": int(contract.functions.costOfVerify(*arguments).call()),
    }


def _build_row(name: str, gas: int, reference: int | None = None, most: int | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "value": gas,
        "unit": "gas",
        "reference": reference,
        "ratio": None if reference is None else round(gas / reference, 4),
        "target": None if most is None or reference is None else round(most / reference, 4),
    }


if __name__ == "__main__":
    for row in measure_post_gas():
        print(row)
    for peer, figures in PEERS.items():
        print(peer, figures)
