"""Posting to a registry account of our Solana program.

The destination's configured address is the registry account (a program-derived address); the program is the account's
owner, and the address itself proves that it was made from the state's own seeds.

A Solana transaction names a recent blockhash and can land only until a block height. So a posting is signed again only
when a *finalized* block is above that height and the cluster still does not know the signature: before that, two
signed postings could both land (harmless here, since the registry takes an epoch once, but paid for twice).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Confirmed, Finalized
from solana.rpc.models import TxOpts
from solders.account import Account
from solders.compute_budget import set_compute_unit_limit
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.message import Message
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from solders.transaction_status import (
    InstructionErrorCustom,
    TransactionConfirmationStatus,
    TransactionErrorFieldless,
    TransactionErrorInstructionError,
)

from adapters.destinations import destination_id
from adapters.solana.layouts import LayoutError, RawAccount
from adapters.solana.programs import (
    RegistryRefusal,
    RegistryState,
    build_post,
    build_rotate,
    build_stage,
    build_verify,
    decode_registry,
    registry_address,
    staged_address,
)
from aggregator.domain.certificate import Certificate, PostedRoot, PostingStatus, SignedPosting, to_leaf
from aggregator.domain.errors import ConfigError, Garbage, NodeRefused, PostingError, Unavailable, UnknownError
from aggregator.domain.report import LeafValues
from aggregator.domain.rows import ChainRow, DestinationRow
from aggregator.domain.snapshot import Finding
from proofs.quorum import IndexedSignature
from proofs.sets import Rotation, genesis_set, rotation_digest
from proofs.statement import Deployment

T = TypeVar("T")

UNITS_BASE: Final = 20_000  # checks, digest, clock, address: about 5,000 measured
UNITS_PER_SIGNATURE: Final = 27_000  # sol_secp256k1_recover costs 25,000
UNITS_TO_STAGE: Final = 60_000  # 32 members compared with one another, an address searched for, an account made
FEE_PER_SIGNATURE: Final = 5_000  # lamports
FUNDED_POSTS: Final = 1_000
PACKET_SIZE: Final = 1_232
_FIRST: Final = 1  # place of the registry's first instruction, after the compute budget's
_CLOCK_BEHIND: Final = (RegistryRefusal.EPOCH_AHEAD, RegistryRefusal.PRODUCED_AHEAD)  # passes as soon as its clock does


class SolanaEndpoint(Protocol):
    """solana-py's client to one node; ``adapters.rpc`` implements it."""

    async def ask(self, what: str, request: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run ``request``; raise SourceError, and NodeRefused for a JSON-RPC error."""
        ...

    async def close(self) -> None: ...


class SolanaPayer(Protocol):
    """An Ed25519 key that pays; ``adapters.keys`` implements it."""

    @property
    def keypair(self) -> Keypair: ...


class SolanaRegistryDestination:
    """Implements ``aggregator.ports.Destination`` for one registry account.

    Args:
        row: the destination; ``address`` is the registry account.
        chain: its chain.
        endpoint: a node of that chain.
        payer: pays the fees.
        deployment: what the registry must have been initialised with.
    """

    def __init__(
        self,
        row: DestinationRow,
        chain: ChainRow,
        endpoint: SolanaEndpoint,
        payer: SolanaPayer,
        deployment: Deployment,
    ) -> None:
        if chain.id != row.chain or not chain.id.startswith("solana:"):
            raise UnknownError("destination.chain", row.chain, "a solana chain is needed for a solana-registry")
        try:
            self._registry = Pubkey.from_string(row.address)
        except ValueError:
            raise ConfigError(
                "configuration", "destinations.address", f"{row.address!r} is no base58 address of 32 bytes"
            ) from None
        self._row, self._chain, self._endpoint = row, chain, endpoint
        self._payer, self._deployment = payer.keypair, deployment
        self._program: Pubkey | None = None

    @property
    def row(self) -> DestinationRow:
        """The configured row."""
        return self._row

    async def sign(self, certificate: Certificate) -> SignedPosting:
        """Build and sign the posting on a confirmed blockhash; nothing is sent.

        ``expires`` is the last block height at which it can land.

        Raises:
            PostingError: the transaction would not fit a packet.
            SourceError: the node did not answer well.
        """
        signatures = [IndexedSignature(a.index, a.r, a.vs) for a in certificate.attestations]
        post = build_post(await self._find_program(), self._registry, certificate.header, signatures)
        return await self._sign(len(signatures), UNITS_BASE + UNITS_PER_SIGNATURE * len(signatures), post)

    async def sign_rotation(self, rotation: Rotation) -> SignedPosting:
        """Build and sign what brings the registry nearer to the rotation's set; nothing is sent.

        The set is written down (staged) and signed for in one transaction where a packet holds both, up to 13 members
        and 9 signatures. A larger set takes two: this signs the staging until that has landed, and then the rotation.
        So ask again until `read_newest_set` says that the set is known.

        Raises:
            PostingError: the transaction would not fit a packet.
            SourceError: the node did not answer well.
        """
        to, signatures, program = rotation.to, rotation.signatures, await self._find_program()
        payer, deployment_id = self._payer.pubkey(), self._deployment.deployment_id()
        digest = rotation_digest(to, deployment_id)
        stage = build_stage(program, self._registry, payer, deployment_id, to)
        rotate = build_rotate(program, self._registry, digest, signatures)
        units = UNITS_BASE + UNITS_PER_SIGNATURE * len(signatures)
        key = staged_address(program, self._registry, digest)
        answer = await self._endpoint.ask("getAccountInfo", lambda c: c.get_account_info(key, Confirmed))
        if answer.value is not None and answer.value.owner == program:
            return await self._sign(len(signatures), units, rotate)
        both = set_compute_unit_limit(UNITS_TO_STAGE + units), stage, rotate
        if len(bytes(VersionedTransaction(Message(both, payer), [self._payer]))) <= PACKET_SIZE:
            return await self._sign(len(signatures), UNITS_TO_STAGE + units, stage, rotate)
        return await self._sign(0, UNITS_TO_STAGE, stage)

    async def read_newest_set(self) -> int:
        """Return the id of the newest set the registry knows, active or not, at confirmed commitment.

        Raises:
            Garbage: the account is not a registry; the field is named.
            SourceError: the node did not answer well.
        """
        state, _ = await self._read_state()
        return state.newest.set_id

    async def _sign(self, count: int, units: int, *instructions: Instruction) -> SignedPosting:
        """Sign instructions that carry ``count`` signatures and may take ``units``, on a confirmed blockhash."""
        latest = (await self._endpoint.ask("getLatestBlockhash", lambda c: c.get_latest_blockhash(Confirmed))).value
        everything = [set_compute_unit_limit(units), *instructions]
        message = Message.new_with_blockhash(everything, self._payer.pubkey(), latest.blockhash)
        transaction = VersionedTransaction(message, [self._payer])
        raw = bytes(transaction)
        if len(raw) > PACKET_SIZE:
            problem = f"{count} signatures make {len(raw)} bytes, a packet holds {PACKET_SIZE}"
            raise PostingError(self._row.chain, problem)
        return SignedPosting(
            id=str(transaction.signatures[0]), raw="0x" + raw.hex(), expires=latest.last_valid_block_height
        )

    async def submit(self, posting: SignedPosting) -> None:
        """Send the signed bytes; a node that has landed them is content, and so is one whose blockhash has expired.

        What became of an expired one, ``status`` tells; only it may say that signing again is safe.

        Raises:
            PostingError: the registry refuses (its reason is named; retryable where only its clock is behind), or the
                payer cannot pay. Nothing was sent on: the node asks the program first.
            SourceError: the node did not answer well.
        """
        options = TxOpts(preflight_commitment=Confirmed)
        raw = bytes.fromhex(posting.raw.removeprefix("0x"))
        try:
            answer = await self._endpoint.ask("sendTransaction", lambda c: c.send_raw_transaction(raw, options))
        except NodeRefused as error:
            reason = _preflight_error(error)
            if reason in (TransactionErrorFieldless.AlreadyProcessed, TransactionErrorFieldless.BlockhashNotFound):
                return
            problem = self._explain(reason) if reason else error.problem
            raise PostingError(self._row.chain, problem, retryable=_refusal(reason) in _CLOCK_BEHIND) from None
        if str(answer.value) != posting.id:
            raise Garbage(self._chain.name, f"sent {posting.id}, the node calls it {answer.value}")

    async def status(self, posting: SignedPosting) -> PostingStatus:
        """Return where the posting stands; ``expired`` means that it can never land.

        Raises:
            SourceError: the node did not answer well.
        """
        # The height first: read the other way round, a posting landed in between would look expired.
        height = (await self._endpoint.ask("getBlockHeight", lambda c: c.get_block_height(Finalized))).value
        signature = Signature.from_string(posting.id)
        answer = await self._endpoint.ask(
            "getSignatureStatuses", lambda c: c.get_signature_statuses([signature], search_transaction_history=True)
        )
        status = answer.value[0]
        if status is None:
            if posting.expires and height > posting.expires:
                return PostingStatus("expired", detail=f"finalized height {height} is above {posting.expires}")
            return PostingStatus("pending")
        level = status.confirmation_status
        if level == TransactionConfirmationStatus.Processed:
            return PostingStatus("pending", status.slot)
        if status.err is not None:
            return PostingStatus("failed", status.slot, detail=self._explain(status.err))
        cost = await self._cost(signature)
        final = level == TransactionConfirmationStatus.Finalized
        return PostingStatus("final" if final else "confirmed", status.slot, cost)

    async def read_latest(self) -> PostedRoot | None:
        """Return the newest root at confirmed commitment, None before the first posting.

        Raises:
            Garbage: the account is not a registry; the field is named.
            SourceError: the node did not answer well.
        """
        state, _ = await self._read_state()
        if state.root is None:
            return None
        return PostedRoot(state.epoch, state.root, state.floor, state.produced_at, state.valid_until, state.posted_at)

    async def read_root(self, epoch: int) -> bytes | None:
        """Return the root stored for ``epoch`` at confirmed commitment, None when the ring holds none."""
        state, _ = await self._read_state()
        return state.ring.get(epoch)

    async def verify(self, leaf: LeafValues, proof: Sequence[bytes]) -> bool:
        """Ask the registry whether it accepts the leaf, by simulating its ``verify`` instruction."""
        program = await self._find_program()
        instruction = build_verify(program, self._registry, to_leaf(leaf), list(proof))
        value = await self._simulate(instruction)
        if value.err is not None:
            raise Garbage(self._chain.name, f"verify of {self._registry} fails: {self._explain(value.err)}")
        answer = bytes(value.return_data.data) if value.return_data is not None else b""
        if answer == b"":
            # A node may cut trailing zero bytes off return data (agave does)
            return False
        if answer not in (b"\x00", b"\x01"):
            raise Garbage(self._chain.name, f"verify of {self._registry} returns 0x{answer.hex()}")
        return answer == b"\x01"

    async def check(self) -> tuple[Finding, ...]:
        """Compare the registry with the configuration, and the payer's funds with the price of a posting.

        Raises:
            SourceError: the node did not answer well.
        """
        chain, findings = self._row.chain, list[Finding]()

        def expect(code: str, what: str, there: object, here: object) -> None:
            if there != here:
                findings.append(Finding(code, chain, f"{what}: registry has {there}, configuration {here}"))

        chain_genesis = str((await self._endpoint.ask("getGenesisHash", lambda c: c.get_genesis_hash())).value)
        expect("wrong-chain", "genesis", chain_genesis[:32], chain.partition(":")[2])
        try:
            state, program = await self._read_state()
        except (Garbage, Unavailable) as error:
            findings.append(Finding("no-registry", chain, str(error)))
        else:
            deployment = self._deployment
            expect("wrong-deployment", "deployment id", state.deployment_id.hex(), deployment.deployment_id().hex())
            here = destination_id(chain).hex()
            expect("wrong-deployment", "destination id", state.parameters.destination.hex(), here)
            genesis = next((known for known in state.sets if known.set_id == 1), None)
            if genesis is not None:  # once two rotations are past, the deployment id alone still names it
                first = genesis_set(deployment)
                expect("wrong-threshold", "threshold", genesis.threshold, first.threshold)
                expect("wrong-deployment", "end of the first attestor set", genesis.not_after, first.not_after)
                members = ["0x" + member.hex() for member in genesis.members]
                expect("wrong-members", "members", members, ["0x" + member.hex() for member in first.members])
            derived = registry_address(program, state.deployment_id, state.parameters)
            expect("wrong-deployment", "address", str(self._registry), str(derived))
        payer = self._payer.pubkey()
        funds = (await self._endpoint.ask("getBalance", lambda c: c.get_balance(payer, Confirmed))).value
        if funds < FEE_PER_SIGNATURE * FUNDED_POSTS:
            posts = funds // FEE_PER_SIGNATURE
            detail = f"payer {payer} holds {funds} lamports, enough for {posts} postings"
            findings.append(Finding("payer-low", chain, detail))
        return tuple(findings)

    async def close(self) -> None:
        """Close the endpoint."""
        await self._endpoint.close()

    async def _find_program(self) -> Pubkey:
        if self._program is None:
            await self._read_state()
            assert self._program is not None
        return self._program

    async def _read_state(self) -> tuple[RegistryState, Pubkey]:
        """Return the registry's state and its program; the program is learnt once and may not change."""
        registry = self._registry
        answer = await self._endpoint.ask("getAccountInfo", lambda c: c.get_account_info(registry, Confirmed))
        account: Account | None = answer.value
        if account is None:
            raise Unavailable(self._chain.name, f"no account at {registry}; initialise the registry")
        if account.executable:
            raise LayoutError(str(registry), "executable", "it is a program; give the registry account's address")
        program = self._program or account.owner
        raw = RawAccount(account.lamports, str(account.owner), bytes(account.data))
        state = decode_registry(str(registry), raw, program)
        if registry_address(program, state.deployment_id, state.parameters) != registry:
            raise LayoutError(str(registry), "address", "not the address of its own deployment and parameters")
        self._program = program
        return state, program

    async def _simulate(self, instruction: Instruction) -> Any:
        latest = (await self._endpoint.ask("getLatestBlockhash", lambda c: c.get_latest_blockhash(Confirmed))).value
        message = Message.new_with_blockhash([instruction], self._payer.pubkey(), latest.blockhash)
        transaction = VersionedTransaction(message, [self._payer])
        answer = await self._endpoint.ask(
            "simulateTransaction", lambda c: c.simulate_transaction(transaction, commitment=Confirmed)
        )
        return answer.value

    async def _cost(self, signature: Signature) -> int:
        """Return the compute units it took, 0 where the node does not say."""
        answer = await self._endpoint.ask(
            "getTransaction", lambda c: c.get_transaction(signature, commitment=Confirmed)
        )
        meta = answer.value.transaction.meta if answer.value is not None else None
        return (meta.compute_units_consumed or 0) if meta is not None else 0

    def _explain(self, error: object) -> str:
        refusal = _refusal(error)
        if refusal is not None:
            return f"the registry refuses: {refusal.name} ({refusal.value})"
        if isinstance(error, TransactionErrorInstructionError) and isinstance(error.err, InstructionErrorCustom):
            return f"instruction {error.index} ends in custom error {error.err.code}"
        if error in (TransactionErrorFieldless.InsufficientFundsForFee, TransactionErrorFieldless.AccountNotFound):
            return f"payer {self._payer.pubkey()} has insufficient funds"
        return str(error)


def _preflight_error(error: NodeRefused) -> object:
    """Return the transaction error that a preflight ended in, None for any other refusal."""
    return getattr(error.data, "err", None)


def _refusal(error: object) -> RegistryRefusal | None:
    """Return why the registry refused a posting, None for any other error."""
    if not isinstance(error, TransactionErrorInstructionError) or error.index < _FIRST:
        return None
    if not isinstance(error.err, InstructionErrorCustom) or error.err.code not in list(RegistryRefusal):
        return None
    return RegistryRefusal(error.err.code)
