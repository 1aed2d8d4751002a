"""The committed state as a statement holds it: a small text of digests, and a tree that proves single accounts.

``preimages.state`` is canonical JSON; digests are keccak256 and 0x hex, amounts decimal text:

    accounts   {"count": A, "root": 0x…}  RFC 9162 tree (SHA-256) over one entry of 96 bytes per account, ascending:
               account id ‖ keccak256(document) ‖ keccak256(d₁ ‖ … ‖ dₙ)
               document: canonical JSON {"id", "controller", "kind", "home", "links": [CAIP-10…], "ending": [CAIP-10…],
               "shares": text as signed, "" = all at home}; d₁ … dₙ: digests of the account's entries of the links log,
               all of them in the order of the log
    links      {"count": n, "digest": keccak256(d₁ ‖ … ‖ dₙ)} over the whole log; d is keccak256 of an entry's canonical
               JSON as it stands in a bundle (``proofs.bundle.encode_link``)
    rotations  [{"setId", "members", "threshold", "activationEpoch", "notAfter"}…] (``proofs.bundle.encode_set``)
    permits    [[account, chain, vault, asset, amount, to, nonce, epoch, expiry, request]…] ascending; the next
               statement lists them as long as they count (``PermitRecord``)
    grants     [[account, destination, epoch, budget, valid_until]…] of accounts that are shared out: what budgets of
               earlier statements were charged
    levels     keccak256 of ``domain.budgets.levels_text``: what the statement itself leaves; "" without growth caps
    growth     keccak256 of the text of the levels that it grew from; "" without growth caps
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.core.commitment import digest_text, entries_path, entries_root
from aggregator.domain.budgets import NO_LEVELS, Levels, PermitRecord, levels_text
from aggregator.domain.certificate import LinkRecord, State
from aggregator.domain.snapshot import Account
from aggregator.service.bundle import to_signed_link
from proofs.bundle import encode_link, encode_set
from proofs.hashing import keccak256


@dataclass(frozen=True, slots=True)
class AccountProof:
    """That an account, with all its entries of the links log, is in a committed state."""

    document: str  # canonical JSON
    index: int
    path: tuple[bytes, ...]  # RFC 9162, leaf to root


def account_document(account: Account) -> str:
    """Return the canonical JSON by which an account is committed to."""
    document = {
        "id": account.id,
        "controller": account.controller,
        "kind": account.kind,
        "home": account.home,
        "links": list(account.links),
        "ending": list(account.ending),
        "shares": ",".join(f"{share.destination}={share.parts}" for share in account.shares),
    }
    return digest_text(document)[0]


class Committed:
    """Makes the text of committed states; remembers digests of what did not change since the last one."""

    def __init__(self) -> None:
        self._entries: dict[LinkRecord, bytes] = {}
        self._accounts: dict[str, tuple[Account, bytes, bytes]] = {}  # by id: account, digest of its entries, line

    def text(self, state: State, left: Levels | None) -> tuple[str, bytes]:
        """Return ``preimages.state`` and its keccak256.

        Args:
            left: the levels that the statement leaves; None without growth caps.
        """
        digests = self._digests(state)
        lines = self._lines(state, digests)
        return digest_text(
            {
                "accounts": {"count": len(lines), "root": _hex(entries_root(lines))},
                "links": {"count": len(digests), "digest": _hex(keccak256(b"".join(digests)))},
                "rotations": [encode_set(rotation.to) for rotation in state.rotations],
                "permits": [[*permit[:4], str(permit.amount), *permit[5:]] for permit in state.permits],
                "grants": [[*grant[:3], str(grant.budget), grant.valid_until] for grant in state.grants],
                "levels": "" if left is None else _levels_digest(left),
                "growth": "" if left is None else _levels_digest(state.levels),
            }
        )

    def prove(self, state: State, account: str) -> AccountProof:
        """Return the proof that ``account`` is in ``state``; KeyError if it is not.

        For an epoch gone by: ``state`` with the accounts that its leaves name, and with the links log up to the count
        that its text names (``domain.links.with_links`` gives both their links).
        """
        index = {known.id: i for i, known in enumerate(state.accounts)}[account]
        path = entries_path(self._lines(state, self._digests(state)), index)
        return AccountProof(account_document(state.accounts[index]), index, path)

    def _digests(self, state: State) -> list[bytes]:
        found: list[bytes] = []
        for link in state.links:
            digest = self._entries.get(link)
            if digest is None:
                digest = digest_text(encode_link(to_signed_link(link, state.salts[link.account])))[1]
                self._entries[link] = digest
            found.append(digest)
        return found

    def _lines(self, state: State, digests: Sequence[bytes]) -> list[bytes]:
        """Return the entry of every account, in the order of the state."""
        of: dict[str, list[bytes]] = {}
        for link, digest in zip(state.links, digests, strict=True):
            of.setdefault(link.account, []).append(digest)
        lines = []
        for account in state.accounts:
            log = b"".join(of.get(account.id, ()))
            known = self._accounts.get(account.id)
            if known is None or known[1] != log or known[0] != account:
                document = keccak256(account_document(account).encode())
                known = account, log, bytes.fromhex(account.id[2:]) + document + keccak256(log)
                self._accounts[account.id] = known
            lines.append(known[2])
        return lines


def listed_permits(text: str) -> tuple[PermitRecord, ...]:
    """Return the permits that a statement listed, from its ``preimages.state``; none from ""."""
    rows = json.loads(text).get("permits", []) if text else []
    return tuple(PermitRecord._make((*row[:4], int(row[4]), *row[5:])) for row in rows)


def left_levels(text: str) -> str:
    """Return the digest of the levels that a statement left, from its ``preimages.state``; "" without growth caps."""
    found = json.loads(text).get("levels", "")
    return found if isinstance(found, str) else ""


def verify_levels(proposed: Levels, previous_state: str) -> bool:
    """Say whether levels are those that the statement before left, by its ``preimages.state`` ("" = there is none)."""
    digest = left_levels(previous_state) if previous_state else ""
    return _levels_digest(proposed) == digest if digest else proposed == NO_LEVELS


def _levels_digest(levels: Levels) -> str:
    return _hex(keccak256(levels_text(levels).encode()))


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
