"""The client of the example consumer, a lender of one dollar token: addresses, instructions, state, refusals.

Layouts: proofs/programs/consumer.c. Addresses are `solders.pubkey.Pubkey`; amounts are base units of the token.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey

from adapters.solana.layouts import SYSTEM_PROGRAM, TOKEN_PROGRAM, LayoutError, RawAccount, open_account
from adapters.solana.programs import consumer_address, drawn_address, margin_address

LOAN_SIZE, LOAN_TAG = 80, b"cmLOANR1"
_SYSTEM = AccountMeta(Pubkey.from_string(SYSTEM_PROGRAM), is_signer=False, is_writable=False)
_TOKEN = AccountMeta(Pubkey.from_string(TOKEN_PROGRAM), is_signer=False, is_writable=False)


class ConsumerRefusal(IntEnum):
    """Custom error codes of the example consumer; their meaning is in the table of consumer.c."""

    INSTRUCTION_MALFORMED = 1
    ACCOUNTS_WRONG = 2
    PAYER_NOT_SIGNER = 3
    PROGRAM_WRONG = 4
    ADDRESS_WRONG = 5
    ALREADY_INITIALISED = 6
    SYSVAR_UNREADABLE = 7
    LENDER_WRONG = 8
    REGISTRY_WRONG = 9
    CHAIN_WRONG = 10
    MINT_WRONG = 11
    POOL_WRONG = 12
    LOAN_WRONG = 13
    AMOUNT_ZERO = 20
    AMOUNT_TOO_LARGE = 21


@dataclass(frozen=True, slots=True)
class Lender:
    """One lender of one mint against one registry."""

    program: Pubkey
    registry_program: Pubkey
    registry: Pubkey
    mint: Pubkey

    @property
    def address(self) -> Pubkey:
        """What is listed at the registry; the authority of the pool."""
        return Pubkey.find_program_address([b"lender", bytes(self.registry), bytes(self.mint)], self.program)[0]

    @property
    def pool(self) -> Pubkey:
        """The token account that holds what can be lent."""
        return Pubkey.find_program_address([b"pool", bytes(self.address)], self.program)[0]

    def loan(self, account: bytes) -> Pubkey:
        """Return the address that counts what an account owes here."""
        return Pubkey.find_program_address([b"loan", bytes(self.address), account], self.program)[0]

    def build_init(self, payer: Pubkey, chain: str) -> Instruction:
        """Return the instruction that makes the lender and its pool. `chain` is the CAIP-2 id."""
        metas = [
            AccountMeta(payer, is_signer=True, is_writable=True),
            _writable(self.address),
            _writable(self.pool),
            _readonly(self.registry),
            _readonly(self.mint),
            _TOKEN,
            _SYSTEM,
        ]
        return Instruction(self.program, bytes([0]) + chain.encode("ascii"), metas)

    def build_borrow(self, controller: Pubkey, account: bytes, salt: bytes, to: Pubkey, amount: int) -> Instruction:
        """Return the instruction that lends to the token account `to`; the account's controller signs."""
        registry, program = self.registry, self.registry_program
        metas = [
            AccountMeta(controller, is_signer=True, is_writable=True),
            *self._metas(account, to),
            _readonly(consumer_address(program, registry, self.address)),
            _writable(margin_address(program, registry, account)),
            _writable(drawn_address(program, registry, account, self.address)),
            _TOKEN,
            _SYSTEM,
        ]
        return Instruction(self.program, bytes([1]) + salt + amount.to_bytes(8, "little"), metas)

    def build_repay(self, payer: Pubkey, account: bytes, source: Pubkey, amount: int) -> Instruction:
        """Return the instruction that takes up to `amount` of an account's debt from the payer's token account."""
        registry, program = self.registry, self.registry_program
        metas = [
            AccountMeta(payer, is_signer=True, is_writable=False),
            *self._metas(account, source),
            _writable(margin_address(program, registry, account)),
            _writable(drawn_address(program, registry, account, self.address)),
            _TOKEN,
        ]
        return Instruction(self.program, bytes([2]) + account + amount.to_bytes(8, "little"), metas)

    def decode_debt(self, account: bytes, raw: RawAccount | None) -> int:
        """Return what an account owes by its loan's account. Raises LayoutError."""
        if raw is None:
            return 0
        address = str(self.loan(account))
        fields = open_account(address, raw, str(self.program), LOAN_SIZE)
        if (fields.data[:8], fields.key(8), fields.bytes32(40)) != (LOAN_TAG, str(self.address), account):
            raise LayoutError(address, "loan", "it is another account's, or no loan")
        return fields.u64(72)

    def _metas(self, account: bytes, tokens: Pubkey) -> list[AccountMeta]:
        return [
            _readonly(self.address),
            _writable(self.loan(account)),
            _writable(self.pool),
            _writable(tokens),
            _readonly(self.mint),
            _readonly(self.registry),
            _readonly(self.registry_program),
        ]


def _writable(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, is_signer=False, is_writable=True)


def _readonly(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, is_signer=False, is_writable=False)
