"""Posting to a ``MarginRegistry`` contract on an EVM chain.

One payer key per destination, one posting in the air at a time: the nonce is always the account's next one, so an
unmined posting is replaced by signing again. Fees are EIP-1559; a replacement pays at least 1.125 times what the
nonce was offered before (nodes ask for 1.1), up to a cap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import rlp
from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_abi.exceptions import DecodingError

from adapters.destinations import destination_id
from aggregator.domain.certificate import Certificate, PostedRoot, PostingStatus, SignedPosting, to_leaf
from aggregator.domain.errors import ConfigError, Garbage, NodeRefused, PostingError, SourceError, UnknownError
from aggregator.domain.report import LeafValues
from aggregator.domain.rows import ChainRow, DestinationRow
from aggregator.domain.snapshot import Finding
from aggregator.ports import Signer
from proofs.hashing import keccak256
from proofs.sets import Rotation, genesis_set
from proofs.statement import Deployment

HEADER_TYPE: Final = "(uint256,bytes32,uint256,uint256,uint256,uint256,bytes32)"
SET_TYPE: Final = "(uint32,address[],uint32,uint64,uint64)"
LEAF_TYPE: Final = "(bytes32,bytes32,uint256,int256,uint256,uint256,uint256,uint256,uint256,uint256,uint256,uint256)"
LATEST_TYPES: Final = ("uint64", "bytes32", "uint64", "uint64", "uint64", "uint64")

MALFORMED: Final = (DecodingError, ValueError, TypeError, OverflowError)  # how a decoder refuses bytes from outside

GWEI: Final = 10**9
GAS_HEADROOM: Final = (5, 4)  # the estimate is exact on the state it saw; a post from another relayer may come between
BUMP: Final = (9, 8)
FUNDED_POSTS: Final = 10  # fewer than this many postings' worth of gas is a finding
TYPICAL_GAS: Final = 90_000
# The dearest posting there is fills its ring slot anew (17,100 more) while a rotation waits for its activation, so that
# two sets are read; a rotation writes a word of code per member. tests/bench/gas.py measures what they take.
CEILING_BASE: Final = 80_000
CEILING_PER_SIGNATURE: Final = 5_000
CEILING_FLOOR: Final = 340_000  # a floor that rises empties up to 64 slots; what that refunds comes after
CEILING_ROTATION: Final = 120_000
CEILING_PER_MEMBER: Final = 10_000

_ALREADY_KNOWN: Final = ("already known", "already imported", "known transaction", "already in the mempool")
_NONCE_USED: Final = ("nonce too low", "nonce is too low", "oldnonce", "nonce has already been used")
_UNDERPRICED: Final = ("underpriced", "fee too low", "max fee per gas less than block base fee", "feecap too low")
_CLOCK_BEHIND: Final = ("producedAt in the future", "epoch in the future")  # passes as soon as its clock does
_NO_FUNDS: Final = ("insufficient funds", "insufficient balance")


class EvmEndpoint(Protocol):
    """JSON-RPC to one node; ``adapters.rpc`` implements it."""

    async def call(self, method: str, params: Sequence[object]) -> Any:
        """Return the ``result``; raise SourceError, and NodeRefused for a JSON-RPC error."""
        ...

    async def close(self) -> None: ...


class Transaction(NamedTuple):
    """An EIP-1559 transaction that carries a posting. Fees are wei per gas."""

    chain_id: int
    nonce: int
    tip: int
    fee_cap: int
    gas: int
    to: bytes
    data: bytes


class EvmRegistryDestination:
    """Implements ``aggregator.ports.Destination`` for one registry contract.

    Args:
        row: the destination; ``address`` is the registry.
        chain: its chain; its ``finality`` says when a posting is final.
        endpoint: a node of that chain.
        payer: pays the gas; never an attestor's key.
        deployment: what the registry must have been deployed with.
        fee_cap: most wei per gas ever offered.
    """

    def __init__(
        self,
        row: DestinationRow,
        chain: ChainRow,
        endpoint: EvmEndpoint,
        payer: Signer,
        deployment: Deployment,
        *,
        fee_cap: int = 500 * GWEI,
    ) -> None:
        if payer.address in ("0x" + member.hex() for member in deployment.members):
            raise ConfigError("destinations", "payer_key", f"{row.payer_key} is an attestor's key", '"payer-evm"')
        if chain.id != row.chain or not chain.id.startswith("eip155:"):
            raise UnknownError("destination.chain", row.chain, "an eip155 chain is needed for an evm-registry")
        self._row, self._chain = row, chain
        self._endpoint, self._payer, self._deployment = endpoint, payer, deployment
        self._fee_cap = fee_cap
        self._chain_id = int(chain.id.partition(":")[2])
        self._registry = bytes.fromhex(row.address.removeprefix("0x"))
        self._offered: Transaction | None = None  # the newest posting seen

    @property
    def row(self) -> DestinationRow:
        """The configured row."""
        return self._row

    async def sign(self, certificate: Certificate) -> SignedPosting:
        """Estimate, price and sign the posting; nothing is sent.

        Raises:
            PostingError: the registry would refuse it, in its own words; retryable where only its clock is behind.
                Or the fee cap is reached; retryable, fees may fall.
            SourceError: the node did not answer well.
        """
        ceiling = CEILING_BASE + CEILING_PER_SIGNATURE * len(certificate.attestations)
        return await self._sign(build_post(certificate), ceiling, certificate.header.floor)

    async def sign_rotation(self, rotation: Rotation) -> SignedPosting:
        """Estimate, price and sign the transaction that adds the next set; nothing is sent.

        Raises:
            PostingError, SourceError: as `sign`.
        """
        ceiling = CEILING_ROTATION + CEILING_PER_MEMBER * len(rotation.to.members)
        return await self._sign(build_rotate(rotation), ceiling + CEILING_PER_SIGNATURE * len(rotation.signatures))

    async def _sign(self, data: bytes, ceiling: int, floor: int = 0) -> SignedPosting:
        nonce = await self._nonce()
        replaced = self._offered if self._offered is not None and self._offered.nonce == nonce else None
        # An estimate runs on top of the pool: with our own posting there, its replacement would look like a repeat.
        # What it replaces may carry another epoch, whose ring slot was in use: so allow for the dearest posting, too.
        if replaced is None:
            gas = await self._estimate(data)
        else:
            gas = max(replaced.gas, ceiling + (CEILING_FLOOR if await self._raises(floor) else 0))
        tip, fee = await self._fees(replaced)
        transaction = Transaction(self._chain_id, nonce, tip, fee, gas, self._registry, data)
        raw = sign_transaction(transaction, self._payer)
        self._offered = transaction
        return SignedPosting(id="0x" + keccak256(raw).hex(), raw="0x" + raw.hex(), nonce=nonce)

    async def _raises(self, floor: int) -> bool:
        """Say whether a statement with this floor would raise the registry's; the one before it may never have come."""
        if floor == 0:
            return False
        latest = await self.read_latest()
        return latest is not None and floor > latest.floor

    async def submit(self, posting: SignedPosting) -> None:
        """Send the signed bytes; a node that has them, or has mined them, is content.

        Raises:
            PostingError: underpriced (retryable: sign again), unfunded, or refused by the node.
            SourceError: the node did not answer well.
        """
        self._remember(posting)
        try:
            sent = await self._endpoint.call("eth_sendRawTransaction", [posting.raw])
        except NodeRefused as error:
            problem = str(error).lower()
            if any(word in problem for word in _ALREADY_KNOWN + _NONCE_USED):
                return  # what became of it, `status` tells
            retryable = any(word in problem for word in _UNDERPRICED)
            raise PostingError(self._row.chain, self._explain(error), retryable=retryable) from None
        if sent != posting.id:
            raise Garbage(self._chain.name, f"sent {posting.id}, the node calls it {sent!r}")

    async def status(self, posting: SignedPosting) -> PostingStatus:
        """Return where the posting stands; ``failed`` too when another transaction took its nonce.

        Raises:
            SourceError: the node did not answer well.
        """
        self._remember(posting)
        # The nonce first: read the other way round, a posting mined in between would look displaced.
        nonce = await self._nonce()
        receipt = await self._endpoint.call("eth_getTransactionReceipt", [posting.id])
        if receipt is None or receipt.get("blockNumber") is None:
            if nonce > posting.nonce:
                return PostingStatus("failed", detail=f"nonce {posting.nonce} went to another transaction")
            return PostingStatus("pending")
        height, gas = self._quantity(receipt, "blockNumber"), self._quantity(receipt, "gasUsed")
        if self._quantity(receipt, "status") == 0:
            reason = await self._revert_reason(posting, height)
            return PostingStatus("failed", height, gas, reason)
        return PostingStatus("final" if height <= await self._final_height() else "confirmed", height, gas)

    async def _final_height(self) -> int:
        """Return the height of the newest final block, -1 if there is none.

        What L1 finalized of a rollup is its node's own ``finalized``: a posting is a message, not an input of a sum.
        """
        rule = self._chain.finality
        if rule.depth is not None:
            return self._number("eth_blockNumber", await self._endpoint.call("eth_blockNumber", [])) - rule.depth
        block = await self._endpoint.call("eth_getBlockByNumber", [rule.tag or "finalized", False])
        return self._quantity(block, "number") if isinstance(block, dict) else -1

    async def read_latest(self) -> PostedRoot | None:
        """Return the newest root at the chain's head, None before the first posting."""
        values = await self._view("latest()", LATEST_TYPES)
        epoch, root, floor, produced_at, valid_until, posted_at = values
        if epoch == 0:
            return None
        return PostedRoot(epoch, root, floor, produced_at, valid_until, posted_at)

    async def read_newest_set(self) -> int:
        """Return the id of the newest set the registry knows at the chain's head, active already or not."""
        (set_id,) = await self._view("newestSetId()", ("uint32",))
        return int(set_id)

    async def read_root(self, epoch: int) -> bytes | None:
        """Return the root stored for ``epoch`` at the chain's head, None when the ring holds none."""
        (root,) = await self._view("rootOf(uint64)", ("bytes32",), abi_encode(["uint64"], [epoch]))
        return root if any(root) else None

    async def verify(self, leaf: LeafValues, proof: Sequence[bytes]) -> bool:
        """Ask the registry whether it accepts the leaf at the chain's head."""
        given = to_leaf(leaf)
        fields = (given.account, given.destination, *leaf[2:])
        arguments = abi_encode([LEAF_TYPE, "bytes32[]"], [fields, list(proof)])
        (accepted,) = await self._view(f"verify({LEAF_TYPE},bytes32[])", ("bool",), arguments)
        return bool(accepted)

    async def check(self) -> tuple[Finding, ...]:
        """Compare the registry with the configuration, and the payer's funds with the price of gas.

        Raises:
            SourceError: the node did not answer well.
        """
        findings: list[Finding] = []

        def expect(code: str, what: str, there: object, here: object) -> None:
            if there != here:
                findings.append(Finding(code, self._row.chain, f"{what}: registry has {there}, configuration {here}"))

        chain_id = self._number("eth_chainId", await self._endpoint.call("eth_chainId", []))
        expect("wrong-chain", "chain id", chain_id, self._chain_id)
        code = await self._endpoint.call("eth_getCode", [self._row.address, "latest"])
        if code in ("0x", "", None):
            return (*findings, Finding("no-registry", self._row.chain, f"no contract at {self._row.address}"))
        try:
            (there,) = await self._view("deploymentId()", ("bytes32",))
            expect("wrong-deployment", "deployment id", _hex(there), _hex(self._deployment.deployment_id()))
            (there,) = await self._view("destination()", ("bytes32",))
            expect("wrong-deployment", "destination id", _hex(there), _hex(destination_id(self._row.chain)))
            genesis = genesis_set(self._deployment)
            asked = abi_encode(["uint32"], [genesis.set_id])
            ((_, members, threshold, _, not_after),) = await self._view("setOf(uint32)", (SET_TYPE,), asked)
            expect("wrong-threshold", "threshold", threshold, genesis.threshold)
            expect("wrong-deployment", "end of the attestor set", not_after, genesis.not_after)
            there = [str(member).lower() for member in members]
            expect("wrong-members", "members", there, [_hex(member) for member in genesis.members])
        except NodeRefused as error:
            findings.append(Finding("wrong-deployment", self._row.chain, f"not our registry: {error.problem}"))
        findings.extend(await self._check_funds())
        return tuple(findings)

    async def close(self) -> None:
        """Close the endpoint."""
        await self._endpoint.close()

    async def _check_funds(self) -> list[Finding]:
        funds = self._number(
            "eth_getBalance", await self._endpoint.call("eth_getBalance", [self._payer.address, "latest"])
        )
        price = self._number("eth_gasPrice", await self._endpoint.call("eth_gasPrice", []))
        posts = funds // max(1, price * TYPICAL_GAS)
        if posts >= FUNDED_POSTS:
            return []
        detail = f"payer {self._payer.address} holds {funds} wei, enough for {posts} postings"
        return [Finding("payer-low", self._row.chain, detail)]

    async def _nonce(self) -> int:
        answer = await self._endpoint.call("eth_getTransactionCount", [self._payer.address, "latest"])
        return self._number("eth_getTransactionCount", answer)

    async def _estimate(self, data: bytes) -> int:
        request = {"from": self._payer.address, "to": self._row.address, "data": "0x" + data.hex()}
        try:
            # "pending" for the clock of the next block: the head's may be behind producedAt by more than the skew.
            answer = await self._endpoint.call("eth_estimateGas", [request, "pending"])
        except NodeRefused as error:
            reason = decode_revert(error.data) or ""
            raise PostingError(self._row.chain, self._explain(error), retryable=reason in _CLOCK_BEHIND) from None
        return self._number("eth_estimateGas", answer) * GAS_HEADROOM[0] // GAS_HEADROOM[1]

    async def _fees(self, replaced: Transaction | None) -> tuple[int, int]:
        """Return (tip, fee cap): today's price, and a bump above the posting that is to be replaced."""
        block = await self._endpoint.call("eth_getBlockByNumber", ["latest", False])
        if not isinstance(block, dict):
            raise Garbage(self._chain.name, "eth_getBlockByNumber answered no block")
        base = self._quantity(block, "baseFeePerGas")
        tip = self._number("eth_maxPriorityFeePerGas", await self._endpoint.call("eth_maxPriorityFeePerGas", []))
        fee = 2 * base + tip  # six full blocks of rising base fee
        if replaced is not None:
            tip, fee = max(tip, _bump(replaced.tip)), max(fee, _bump(replaced.fee_cap))
            if fee > self._fee_cap:
                raise PostingError(
                    self._row.chain, f"replacing needs {fee} wei per gas, the cap is {self._fee_cap}", retryable=True
                )
        if base > self._fee_cap:
            raise PostingError(
                self._row.chain, f"the base fee is {base} wei per gas, the cap is {self._fee_cap}", retryable=True
            )
        fee = min(fee, self._fee_cap)
        return min(tip, fee), fee

    def _remember(self, posting: SignedPosting) -> None:
        """Learn what was offered for a nonce from postings signed before a restart."""
        if self._offered is None or posting.nonce > self._offered.nonce:
            self._offered = decode_transaction(bytes.fromhex(posting.raw[2:]))

    async def _revert_reason(self, posting: SignedPosting, height: int) -> str:
        """Ask why it reverted by running it again on the block before; a state that is gone is no failure."""
        sent = decode_transaction(bytes.fromhex(posting.raw[2:]))
        request = {"from": self._payer.address, "to": self._row.address, "data": "0x" + sent.data.hex()}
        try:
            await self._endpoint.call("eth_call", [request, hex(max(0, height - 1))])
        except NodeRefused as error:
            return self._explain(error)
        except SourceError:
            return "reverted, reason unknown"
        return "reverted; another posting of its block came first, or its gas ran out"

    def _explain(self, error: NodeRefused) -> str:
        reason = decode_revert(error.data)
        if reason is not None:
            return f"the registry refuses: {reason}"
        if any(word in str(error).lower() for word in _NO_FUNDS):
            return f"payer {self._payer.address} has insufficient funds"
        return error.problem

    async def _view(
        self, signature: str, types: Sequence[str], arguments: bytes = b"", to: str | None = None
    ) -> tuple[Any, ...]:
        to = to or self._row.address
        request = {"to": to, "data": "0x" + (_selector(signature) + arguments).hex()}
        answer = await self._endpoint.call("eth_call", [request, "latest"])
        try:
            return tuple(abi_decode(list(types), bytes.fromhex(answer[2:])))
        except MALFORMED:
            name = signature.partition("(")[0]
            raise Garbage(self._chain.name, f"{name}() of {to} answers {str(answer)[:80]!r}") from None

    def _quantity(self, body: dict[str, Any], key: str) -> int:
        return self._number(key, body.get(key))

    def _number(self, what: str, value: object) -> int:
        try:
            if isinstance(value, str) and value.startswith("0x"):
                return int(value, 16)
        except ValueError:
            pass
        raise Garbage(self._chain.name, f"{what} is {str(value)[:80]!r}, a hex quantity is expected")


def build_post(certificate: Certificate) -> bytes:
    """Return the calldata of ``post(header, indices, signatures)``.

    ``indices`` holds one signer index per byte, the first signer in the lowest.
    """
    header = certificate.header
    indices = sum(a.index << (8 * position) for position, a in enumerate(certificate.attestations))
    fields = (
        header.epoch,
        header.root,
        header.floor,
        header.set_id,
        header.produced_at,
        header.valid_until,
        header.body,
    )
    signatures = [[a.r, a.vs] for a in certificate.attestations]
    arguments = abi_encode([HEADER_TYPE, "uint256", "bytes32[2][]"], [fields, indices, signatures])
    return _selector(f"post({HEADER_TYPE},uint256,bytes32[2][])") + arguments


def build_rotate(rotation: Rotation) -> bytes:
    """Return the calldata of ``rotate(to, indices, signatures)``."""
    to = rotation.to
    fields = (to.set_id, list(to.members), to.threshold, to.activation_epoch, to.not_after)
    indices = sum(s.index << (8 * position) for position, s in enumerate(rotation.signatures))
    signatures = [[s.r, s.vs] for s in rotation.signatures]
    arguments = abi_encode([SET_TYPE, "uint256", "bytes32[2][]"], [fields, indices, signatures])
    return _selector(f"rotate({SET_TYPE},uint256,bytes32[2][])") + arguments


def sign_transaction(transaction: Transaction, payer: Signer) -> bytes:
    """Return the raw EIP-1559 transaction (type 2, empty access list, no value) signed by ``payer``."""
    chain_id, nonce, tip, fee, gas, to, data = transaction
    fields: list[object] = [chain_id, nonce, tip, fee, gas, to, 0, data, []]
    r, vs = payer.sign(keccak256(b"\x02" + rlp.encode(fields)))
    word = int.from_bytes(vs, "big")
    signature = [word >> 255, int.from_bytes(r, "big"), word & (2**255 - 1)]
    return b"\x02" + bytes(rlp.encode(fields + signature))


def decode_transaction(raw: bytes) -> Transaction:
    """Read back what `sign_transaction` made.

    Raises:
        ValueError: not an EIP-1559 transaction.
    """
    if raw[:1] != b"\x02":
        raise ValueError("not an EIP-1559 transaction")
    fields = rlp.decode(raw[1:])
    chain_id, nonce, tip, fee, gas = (int.from_bytes(field, "big") for field in fields[:5])
    return Transaction(chain_id, nonce, tip, fee, gas, bytes(fields[5]), bytes(fields[7]))


def decode_revert(data: object) -> str | None:
    """Return the text of ``Error(string)`` revert data (0x hex), None for anything else."""
    if isinstance(data, dict):
        data = data.get("data")
    if not isinstance(data, str) or not data.startswith("0x08c379a0"):
        return None
    try:
        (reason,) = abi_decode(["string"], bytes.fromhex(data[10:]))
    except MALFORMED:  # which only costs us the reason
        return None
    return str(reason)


def _selector(signature: str) -> bytes:
    return keccak256(signature.encode("ascii"))[:4]


def _bump(amount: int) -> int:
    return -(-amount * BUMP[0] // BUMP[1])


def _hex(value: bytes) -> str:
    return "0x" + value.hex()
