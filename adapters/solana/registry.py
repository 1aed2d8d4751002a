"""The registry program: what consumers on this chain have drawn for each account.

Layouts and rules: proofs/programs/registry.c. Every account has a position, with nothing drawn too: it says from which
epoch on a budget can still be drawn. What cannot be read may be any debt; so may what comes with an epoch that no
registry can hold yet, as by its word no budget given so far could be drawn any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from solders.pubkey import Pubkey

from adapters.solana.layouts import Flow, LayoutError, RawAccount, unreadable
from adapters.solana.programs import (
    Margin,
    RegistryState,
    decode_margin,
    decode_registry,
    margin_address,
    registry_address,
)
from adapters.solana.vault import account_id
from aggregator.domain.budgets import Drawn, newest_postable
from aggregator.domain.snapshot import DEBT_UNREADABLE, Finding, Position, Subject


class Registry:
    """What accounts have drawn at one registry.

    Args:
        chain: CAIP-2.
        address: the registry account's.
        epoch_seconds: length of an epoch.
        clock: Unix seconds, at or after the time of every slot that is read.
    """

    name = "registry"
    keyed_by = "account"

    def __init__(self, chain: str, address: str, epoch_seconds: int, clock: Callable[[], float] = time.time) -> None:
        self.chain, self.registry = chain, Pubkey.from_string(address)
        self._epoch_seconds, self._clock = epoch_seconds, clock
        self.asset = f"{chain}/registry:{self.registry}"

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield the registry, whose owner is the program; then the registry and one account per subject, together.

        Return a position, or a finding, for each subject.
        """
        (first,) = yield (str(self.registry),)
        try:
            program, _ = self._open(first)
            keys = [margin_address(program, self.registry, account_id(subject)) for subject in subjects]
            again, *answers = yield (str(self.registry), *map(str, keys))
            same, state = self._open(again)
            if same != program:
                raise LayoutError(str(self.registry), "owner", f"{same} found, {program} a moment before")
            newest = newest_postable(self._clock(), self._epoch_seconds)
            if state.epoch > newest:
                raise LayoutError(
                    str(self.registry), "epoch", f"{state.epoch} found, the newest that can be is {newest}"
                )
        except LayoutError as error:
            return (), tuple(unreadable(DEBT_UNREADABLE, self.asset, subject, str(error)) for subject in subjects)
        drawn = Drawn(posted=state.epoch, set_id=state.newest.set_id)
        positions: list[Position] = []
        findings: list[Finding] = []
        for subject, key, raw in zip(subjects, keys, answers, strict=True):
            try:
                used = 0 if raw is None or _is_untouched(raw) else self._margin(str(key), raw, program, subject).used
            except LayoutError as error:
                findings.append(unreadable(DEBT_UNREADABLE, self.asset, subject, str(error)))
                continue
            positions.append(
                Position(
                    subject.account,
                    self.chain,
                    self.name,
                    self.asset,
                    used,
                    self.asset,
                    used,
                    side="debt",
                    origin=str(self.registry),
                    drawn=drawn,
                )
            )
        return tuple(positions), tuple(findings)

    def _open(self, raw: RawAccount | None) -> tuple[Pubkey, RegistryState]:
        """Return the registry's program and its state. Raises LayoutError."""
        address = str(self.registry)
        if raw is None:
            raise LayoutError(address, "registry", "no such account on this chain")
        program = Pubkey.from_string(raw.owner)
        state = decode_registry(address, raw, program)
        if registry_address(program, state.deployment_id, state.parameters) != self.registry:
            raise LayoutError(address, "address", "not the address of its own deployment and parameters")
        return program, state

    def _margin(self, address: str, raw: RawAccount, program: Pubkey, subject: Subject) -> Margin:
        margin = decode_margin(address, raw, program)
        for field, found, expected in (
            ("registry", margin.registry, str(self.registry)),
            ("account", "0x" + margin.account.hex(), subject.account),
        ):
            if found != expected:
                raise LayoutError(address, field, f"{found} found, {expected} expected")
        return margin


def _is_untouched(raw: RawAccount) -> bool:
    """Say whether there is nothing but lamports that somebody sent."""
    return not raw.data and Pubkey.from_string(raw.owner) == Pubkey.default()
