"""Four attestors, a coordinator and an account with something in a vault, for tests of permits and holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coincurve import PrivateKey

from adapters.grants import SqliteGrants
from adapters.keys import KeySigner
from adapters.permit_book import SqlitePermitBook
from adapters.watermark import SqliteWatermark
from aggregator.core.pipeline import compute_report
from aggregator.core.whatif import Epoch
from aggregator.domain.budgets import PermitRecord
from aggregator.domain.certificate import Attestation
from aggregator.domain.snapshot import Account, ChainView, Position
from aggregator.service.permits import Ground, HoldRules, Newest, PermitRules, hold_until
from proofs.hashing import keccak256
from proofs.permits import PermitTerms, request_digest
from proofs.sets import AttestorSet
from tests.strategies import CUT_TIME, EVM, SOLANA, USDC, account_id, position, quotes, snapshot, world

DEPLOYMENT = b"\x0d" * 32
VAULT, TO = "0x" + "a1" * 20, "0x" + "c3" * 20
BOUNDS = {EVM: 5, SOLANA: 30}
EPOCH = 7  # what tests.strategies.snapshot says
KEY = PrivateKey(b"\x07" * 32)
CONTROLLER = f"{EVM}:0x{keccak256(KEY.public_key.format(compressed=False)[1:])[12:].hex()}"
FUNDS = position(1, USDC, 1_000.0, origin=VAULT)
DOLLAR = 10**6
NOW = CUT_TIME + 10
EPOCH_SECONDS = CUT_TIME // EPOCH  # CUT_TIME and NOW are in that epoch
UNTIL = hold_until(EPOCH, EPOCH_SECONDS)
SLACK = {EVM: 125, SOLANA: 150}
"""How long permits count after their expiry: clock bound and ``max_age``."""
SIGNERS = [KeySigner(bytes([i]) * 32) for i in range(1, 5)]
GROUP = AttestorSet(1, tuple(bytes.fromhex(s.address[2:]) for s in SIGNERS), 3, 0, CUT_TIME + 10**6)


class Clock:
    def __init__(self) -> None:
        self.time = float(NOW)

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


def newest_of(
    *rows: Position,
    permits: Sequence[PermitRecord] = (),
    controller: str = CONTROLLER,
    findings: Any = (),
    kinds: Mapping[int, str] | None = None,
    views: Sequence[ChainView] | None = None,
) -> Newest:
    """Return an epoch in which account 1 is the controller's."""
    seen = snapshot(sorted(rows), findings=findings, kinds=kinds, views=views)
    accounts = tuple(replace(a, controller=controller) if a.id == account_id(1) else a for a in seen.accounts)
    seen, said = replace(seen, accounts=accounts), tuple(quotes())
    return Newest(Epoch(seen, said, world(), None, compute_report(seen, said, world())), tuple(permits))


def asked(amount: int = 300 * DOLLAR, *, nonce: int = 1, key: PrivateKey = KEY, **changes: Any) -> PermitRecord:
    """Return a permit that the controller asked for; `changes` are signed too."""
    permit = PermitRecord(account_id(1), EVM, VAULT, USDC, amount, TO, f"0x{nonce:064x}", EPOCH, NOW + 600, "")
    permit = permit._replace(**changes)
    terms = PermitTerms(
        *(bytes.fromhex(permit.account[2:]), permit.chain, permit.vault, permit.asset, permit.amount, permit.to),
        *(bytes.fromhex(permit.nonce[2:]), permit.epoch, permit.expiry),
    )
    signature = key.sign_recoverable(request_digest(terms.permit, DEPLOYMENT), hasher=None)
    return permit._replace(request="0x" + (signature[:64] + bytes([27 + signature[64]])).hex())


@dataclass
class Attesting:
    """One attestor with files of its own; asked as over a wire."""

    folder: Path
    index: int = 0
    clock: Clock = field(default_factory=Clock)
    newest: Newest | None = None
    silent: bool = False
    vault: str = VAULT

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.open()

    def open(self) -> None:
        """Start, on the files as they are."""
        signer = SIGNERS[self.index]
        self.record = SqliteWatermark(self.folder / "record.sqlite")
        self.book = SqlitePermitBook(self.folder / "permits.sqlite")
        self.grants = SqliteGrants(self.folder / "grants.sqlite", max(SLACK.values()))
        ground = Ground(
            DEPLOYMENT,
            signer,
            lambda epoch: GROUP,
            self.record,
            lambda: self.newest,
            self.grants,
            {EVM: {self.vault}},
            BOUNDS,
            SLACK,
            EPOCH_SECONDS,
            self.clock,
        )
        self.ground = ground
        self.permits, self.holds = PermitRules(ground, self.book, lifetime=3600), HoldRules(ground)

    @property
    def name(self) -> str:
        return f"attestor-{self.index}"

    async def ask(self, kind: str, document: Mapping[str, Any]) -> Attestation:
        if self.silent:
            raise TimeoutError
        return await {"permit": self.permits, "hold": self.holds}[kind].sign(document)

    async def close(self) -> None:
        for file in (self.record, self.book, self.grants):
            await file.close()


class Accounts:
    """The part of a store that is needed here."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def account(self, reference: str) -> Account:
        assert reference == self._account.id
        return self._account
