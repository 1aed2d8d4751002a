"""A chain of slots over an in-process SVM: commitments, forks, halts and blockhash expiry that are real.

LiteSVM executes transactions but has one state and no time. This module adds what an RPC node shows of a cluster:

- **Slots and blocks.** A block per slot, produced when somebody looks, from the clock; each has a hash, a parent and
  a time. `advance` makes blocks at once, `pause` halts the chain, `resume` lets it go on.
- **Commitments.** A journal holds, for each account touched lately, its versions by slot. `confirmed` and `finalized`
  are the state some slots ago, so that a reorg can be seen at `processed` and never at `finalized`.
- **Reorgs.** `reorg` drops the newest slots, their transactions and account versions, and builds other blocks.
- **Expiry.** A blockhash is usable for 150 blocks (agave `MAX_PROCESSING_AGE`).

Memory is bounded: the journal forgets what finalisation made permanent, blocks and transactions older than
`HISTORY` slots are dropped.

What is unlike a cluster: no votes, leaders or skipped slots (except after long idleness); block height equals slot; a
transaction executes the moment it is sent, on the newest state; the SlotHashes sysvar is not kept up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from solders.account import Account
from solders.hash import Hash
from solders.instruction import CompiledInstruction
from solders.litesvm import LiteSVM
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata, SimulatedTransactionInfo, TransactionMetadata

Commitment = Literal["processed", "confirmed", "finalized"]
BLOCKHASH_AGE = 150
HISTORY = 1_500
NATIVE_MINT = Pubkey.from_string("So11111111111111111111111111111111111111112")
TOKEN_PROGRAM = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")


class Block(NamedTuple):
    """One produced block. `time` is Unix seconds."""

    slot: int
    hash: Hash
    parent_slot: int
    parent_hash: Hash
    time: int


@dataclass(frozen=True, slots=True)
class Landed:
    """One transaction in a block, with what it did. `err` is the JSON form of the error, None on success."""

    slot: int
    time: int
    transaction: VersionedTransaction | None  # None for an airdrop
    keys: tuple[Pubkey, ...]
    err: Any
    fee: int
    logs: tuple[str, ...]
    units: int
    inner: tuple[tuple[tuple[CompiledInstruction, int | None], ...], ...]  # per instruction: (CPI, depth)
    before: tuple[Account | None, ...]  # as keys
    after: tuple[Account | None, ...]


class Rejected(Exception):
    """A transaction that no block will hold. `err` is the JSON form of the SVM's error."""

    def __init__(self, err: Any, logs: Sequence[str] = (), units: int = 0) -> None:
        self.err, self.logs, self.units = err, tuple(logs), units
        super().__init__(str(err))


class ChainError(ValueError):
    """An admin request that makes no sense, e.g. a reorg below the finalized slot."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the chain behaves.

    Args:
        slot_ms: milliseconds per slot; 0 means that only `advance` makes blocks.
        confirmed_depth: slots until a block is confirmed.
        finalized_depth: slots until a block is final (32 on mainnet; 12 x 200 ms here make 2.4 s).
        genesis: genesis hash, random by default.
    """

    slot_ms: int = 200
    confirmed_depth: int = 1
    finalized_depth: int = 12
    genesis: Hash = field(default_factory=Hash.new_unique)

    def __post_init__(self) -> None:
        if self.slot_ms < 0:
            raise ValueError(f"slot_ms: {self.slot_ms} given, 0 or more expected")
        if not 0 <= self.confirmed_depth <= self.finalized_depth <= BLOCKHASH_AGE:
            raise ValueError(
                f"confirmed_depth, finalized_depth: {self.confirmed_depth}, {self.finalized_depth} given, "
                f"0 <= confirmed_depth <= finalized_depth <= {BLOCKHASH_AGE} expected"
            )


class SvmChain:
    """The chain. Not thread-safe: one event loop uses it."""

    def __init__(self, settings: Settings | None = None, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings or Settings()
        self._clock = clock
        # Blockhashes and duplicates are judged here, because LiteSVM knows one blockhash and no forks.
        self.svm = LiteSVM().with_blockhash_check(False).with_transaction_history(0)
        self.genesis = self.settings.genesis
        self.blocks: dict[int, Block] = {}
        self.landed: dict[str, Landed] = {}
        self.paused = False
        self._by_hash: dict[Hash, int] = {}
        self._versions: dict[Pubkey, list[tuple[int, Account | None]]] = {}
        self._waiting: list[VersionedTransaction] = []
        self._fork = 0
        self._offset = 0  # seconds `advance` put the chain ahead of the clock
        self._anchor_slot = 0
        self._anchor_time = clock()
        self._slot = 0
        self._append(Block(0, self.genesis, 0, Hash.default(), int(self._anchor_time)))
        self._set_native_mint()
        # Begin with a final block, so that every commitment has an answer from the start.
        self._produce(self.settings.finalized_depth + 1, self._anchor_time)
        self._anchor_slot = self._slot

    # ---- time ----

    def tick(self) -> int:
        """Produce the blocks that are due; return the newest slot."""
        if self.paused or not self.settings.slot_ms:
            return self._slot
        due = self._anchor_slot + int((self._clock() - self._anchor_time) * 1000 / self.settings.slot_ms)
        missing = due - self._slot
        if missing > HISTORY:  # idle for long: the slots in between are skipped ones
            self._slot += missing - HISTORY
            missing = HISTORY
        if missing > 0:
            self._produce(missing, None)
        return self._slot

    def slot_at(self, commitment: Commitment) -> int:
        """Return the newest slot at `commitment`."""
        depth = {"processed": 0, "confirmed": self.settings.confirmed_depth}.get(
            commitment, self.settings.finalized_depth
        )
        wanted = max(self.tick() - depth, 0)
        while wanted not in self.blocks:  # a skipped slot
            wanted -= 1
        return wanted

    def advance(self, slots: int, seconds: int = 0) -> int:
        """Produce `slots` blocks now, `seconds` being added to the chain's clock. Return the newest slot."""
        if slots < 1 or seconds < 0:
            raise ChainError(f"advance: {slots} slots and {seconds} seconds given, at least 1 and 0 expected")
        if self.paused:
            raise ChainError("advance: the chain is paused; resume it first")
        self.tick()
        self._offset += seconds
        now = self._clock()
        self._produce(min(slots, HISTORY), now)
        self._anchor_slot, self._anchor_time = self._slot, now
        return self._slot

    def pause(self) -> int:
        """Halt: slots, blockhashes and block time stand still, reads go on answering the last state.

        A transaction sent meanwhile is accepted (its signature is returned) and executed by `resume`.
        """
        slot = self.tick()
        self.paused = True
        return slot

    def resume(self) -> int:
        """End a halt: the next block carries the current time; waiting transactions are executed in order."""
        if not self.paused:
            return self.tick()
        self.paused = False
        now = self._clock()
        self._produce(1, now)
        self._anchor_slot, self._anchor_time = self._slot, now
        waiting, self._waiting = self._waiting, []
        for transaction in waiting:
            try:
                self._execute(transaction)
            except Rejected:
                continue  # dropped without a trace, as by a leader
        return self._slot

    def reorg(self, depth: int) -> list[str]:
        """Replace the newest `depth` slots by other blocks; return the signatures that vanished with them."""
        head = self.tick()
        if not 1 <= depth <= self.settings.finalized_depth:
            raise ChainError(
                f"reorg: {depth} slots given, 1 to {self.settings.finalized_depth} expected: deeper ones are final"
            )
        keep = max(head - depth, 0)
        for key in list(self._versions):
            versions = self._versions[key]
            if versions[-1][0] <= keep:
                continue
            while versions[-1][0] > keep:
                versions.pop()
            self._restore(key, versions[-1][1])
        gone = [signature for signature, one in self.landed.items() if one.slot > keep]
        for signature in gone:
            del self.landed[signature]
        times = []
        for slot in range(keep + 1, head + 1):
            if slot in self.blocks:
                block = self.blocks.pop(slot)
                del self._by_hash[block.hash]
                times.append((slot, block.time))
        self._fork += 1
        for slot, block_time in times:
            self._append(self._next_block(slot, block_time))
        return gone

    # ---- state ----

    def account(self, key: Pubkey, slot: int) -> Account | None:
        """Return the account as of `slot`, None when it does not exist there."""
        versions = self._versions.get(key)
        if versions is None:
            found = self.svm.get_account(key)
        else:
            found = next((account for since, account in reversed(versions) if since <= slot), versions[0][1])
        return found if found is not None and found.lamports else None

    def accounts_of(self, program: Pubkey, slot: int) -> Iterator[tuple[Pubkey, Account]]:
        """Yield the accounts `program` owns as of `slot`, ascending by address."""
        keys = {key for key, _ in self.svm.get_program_accounts(program)} | set(self._versions)
        for key in sorted(keys, key=bytes):
            account = self.account(key, slot)
            if account is not None and account.owner == program:
                yield key, account

    def set_account(self, key: Pubkey, account: Account) -> None:
        """Put an account in place as if it had been there from the start: every commitment sees it."""
        self._versions.pop(key, None)
        self.svm.set_account(key, account)

    def add_program(self, key: Pubkey, elf: bytes) -> None:
        """Load a program; the SVM verifies it. Every commitment sees it."""
        self._versions.pop(key, None)
        self.svm.add_program(key, elf)

    # ---- blockhashes ----

    def expiry(self, blockhash: Hash) -> int | None:
        """Return the last block height at which `blockhash` is usable, None when it is unknown here."""
        slot = self._by_hash.get(blockhash)
        return None if slot is None else slot + BLOCKHASH_AGE

    def is_usable(self, blockhash: Hash) -> bool:
        """Say whether a transaction with `blockhash` could land now."""
        last = self.expiry(blockhash)
        return last is not None and self.tick() <= last

    # ---- transactions ----

    def send(self, transaction: VersionedTransaction) -> None:
        """Execute the transaction in the newest slot, or, on a halted chain, keep it for `resume`.

        Raises Rejected when no block can hold it. An instruction that fails lands, with its error.
        """
        self._verify_admissible(transaction)
        if self.paused:
            if transaction not in self._waiting:
                self._waiting.append(transaction)
            return
        self._execute(transaction)

    def simulate(
        self, transaction: VersionedTransaction, *, verify_signatures: bool, any_blockhash: bool
    ) -> SimulatedTransactionInfo:
        """Run the transaction on the newest state without effect. Raises Rejected with the error it ends in."""
        self.tick()
        if verify_signatures and not all(transaction.verify_with_results()):
            raise Rejected("SignatureFailure")
        if not any_blockhash:
            self._verify_admissible(transaction)
        self.svm.with_sigverify(False)  # or an unsigned transaction could not be simulated
        try:
            result = self.svm.simulate_transaction(transaction)
        finally:
            self.svm.with_sigverify(True)
        if isinstance(result, FailedTransactionMetadata):
            raise _rejection(result)
        return result

    def airdrop(self, key: Pubkey, lamports: int) -> str:
        """Give `lamports` to `key`; return a signature that can be asked about like any other."""
        slot = self.tick()
        before = self.svm.get_account(key)
        result = self.svm.airdrop(key, lamports)
        if isinstance(result, FailedTransactionMetadata):
            raise _rejection(result)
        # LiteSVM numbers its airdrops from the faucet's balance: make the signature unique across reorgs.
        signature = str(Signature.new_unique())
        after = self.svm.get_account(key)
        self._record(slot, key, before, after)
        self.landed[signature] = Landed(
            slot, self.blocks[slot].time, None, (key,), None, 0, (), 0, (), (before,), (after,)
        )
        return signature

    # ---- inside ----

    def _verify_admissible(self, transaction: VersionedTransaction) -> None:
        if not self.is_usable(transaction.message.recent_blockhash):
            raise Rejected("BlockhashNotFound")
        if str(transaction.signatures[0]) in self.landed:
            raise Rejected("AlreadyProcessed")

    def _execute(self, transaction: VersionedTransaction) -> None:
        self._verify_admissible(transaction)
        slot, keys = self._slot, self._keys(transaction)
        before = tuple(self.svm.get_account(key) for key in keys)
        result = self.svm.send_transaction(transaction)
        err: Any = None
        meta: TransactionMetadata
        if isinstance(result, FailedTransactionMetadata):
            rejection = _rejection(result)
            err, meta = rejection.err, result.meta()
            if not (isinstance(err, dict) and err.keys() & {"InstructionError", "InsufficientFundsForRent"}):
                raise rejection
        else:
            meta = result
        after = tuple(self.svm.get_account(key) for key in keys)
        for key, old, new in zip(keys, before, after, strict=True):
            if old != new:
                self._record(slot, key, old, new)
        self.landed[str(transaction.signatures[0])] = Landed(
            slot=slot,
            time=self.blocks[slot].time,
            transaction=transaction,
            keys=keys,
            err=err,
            fee=meta.fee(),
            logs=tuple(meta.logs()),
            units=meta.compute_units_consumed(),
            inner=tuple(
                tuple((one.instruction(), one.stack_height()) for one in group) for group in meta.inner_instructions()
            ),
            before=before,
            after=after,
        )

    def _keys(self, transaction: VersionedTransaction) -> tuple[Pubkey, ...]:
        """Return every account of the transaction, those loaded from lookup tables after the static ones."""
        message = transaction.message
        keys = list(message.account_keys)
        if isinstance(message, MessageV0):
            lookups = message.address_table_lookups
            for indexes in ("writable_indexes", "readonly_indexes"):
                for lookup in lookups:
                    table = self.svm.get_account(lookup.account_key)
                    if table is None:
                        continue  # the SVM will refuse it
                    for index in getattr(lookup, indexes):
                        at = 56 + 32 * index  # the table's header is 56 bytes
                        keys.append(Pubkey(table.data[at : at + 32]))
        return tuple(keys)

    def _record(self, slot: int, key: Pubkey, before: Account | None, after: Account | None) -> None:
        versions = self._versions.setdefault(key, [(-1, before)])
        if versions[-1][0] == slot:
            versions[-1] = (slot, after)
        else:
            versions.append((slot, after))

    def _restore(self, key: Pubkey, account: Account | None) -> None:
        self.svm.set_account(key, account or Account(0, b"", Pubkey.default()))

    def _produce(self, count: int, at: float | None) -> None:
        """Append `count` blocks: at time `at`, or each at the time its slot is due."""
        for _ in range(count):
            slot = self._slot + 1
            moment = self._anchor_time + (slot - self._anchor_slot) * self.settings.slot_ms / 1000 if at is None else at
            newest = next(reversed(self.blocks.values()))
            self._append(self._next_block(slot, max(int(moment) + self._offset, newest.time)))
            self._slot = slot
        self.svm.warp_to_slot(self._slot)
        clock = self.svm.get_clock()
        clock.unix_timestamp = self.blocks[self._slot].time
        self.svm.set_clock(clock)
        self._prune()

    def _next_block(self, slot: int, block_time: int) -> Block:
        parent = next(reversed(self.blocks.values()))
        seed = bytes(parent.hash) + slot.to_bytes(8, "little") + self._fork.to_bytes(8, "little")
        return Block(slot, Hash.hash(seed), parent.slot, parent.hash, block_time)

    def _append(self, block: Block) -> None:
        self.blocks[block.slot] = block
        self._by_hash[block.hash] = block.slot

    def _prune(self) -> None:
        final = self._slot - self.settings.finalized_depth
        for key in list(self._versions):
            versions = self._versions[key]
            while len(versions) > 1 and versions[1][0] <= final:
                versions.pop(0)
            if len(versions) == 1:
                del self._versions[key]  # the SVM's own state is final
        oldest = self._slot - HISTORY
        # Insertion order is slot order
        while (first := next(iter(self.blocks))) < oldest:
            del self._by_hash[self.blocks.pop(first).hash]
        for signature in list(self.landed):
            if self.landed[signature].slot >= oldest:
                break
            del self.landed[signature]

    def _set_native_mint(self) -> None:
        """Put wrapped SOL's mint in place: every cluster has it from genesis, LiteSVM does not."""
        data = bytearray(82)
        data[44], data[45] = 9, 1  # decimals, initialised; no authorities, supply 0
        lamports = self.svm.minimum_balance_for_rent_exemption(len(data))
        self.svm.set_account(NATIVE_MINT, Account(lamports, bytes(data), TOKEN_PROGRAM))


def _rejection(result: FailedTransactionMetadata) -> Rejected:
    meta = result.meta()
    return Rejected(json.loads(result.to_json())["err"], meta.logs(), meta.compute_units_consumed())
