"""Program-derived addresses as members: each reading looks for the record of their consent.

The links program keeps it (proofs/programs/links.c).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from solders.pubkey import Pubkey

from adapters.solana.layouts import Answers, Batch, LayoutError, RawAccount
from adapters.solana.programs import decode_link, link_address
from aggregator.domain.snapshot import Subject

NOWHERE = "no links program is configured on this chain (venue kind links)"
UNKNOWN_FORM = "its consent is in no form that this chain can confirm"


class Members:
    """Check seals against the records of one links program.

    Args:
        program: base58, or None where there is none: then no sealed member is believed.
    """

    def __init__(self, program: str | None) -> None:
        self._program = None if program is None else Pubkey.from_string(program)

    def flow(self, subjects: Sequence[Subject]) -> Generator[Batch, Answers, dict[Subject, str]]:
        """Yield one record per sealed subject; return those that do not agree, and what their chain says instead."""
        sealed = [s for s in subjects if s.seal]
        if self._program is None or not sealed:
            return dict.fromkeys(sealed, NOWHERE)
        failed: dict[Subject, str] = {}
        asked: dict[Subject, _Wanted] = {}
        for subject in sealed:
            try:
                wanted = _Wanted(subject)
            except ValueError:
                failed[subject] = UNKNOWN_FORM
                continue
            # Asked for only where it belongs: any other account may be one of ten megabytes.
            if (place := wanted.place(self._program)) == wanted.record:
                asked[subject] = wanted
            else:
                failed[subject] = f"address: the member's record for this account is {place}, not {wanted.record}"
        if not asked:
            return failed
        answers = yield tuple(wanted.record for wanted in asked.values())
        for (subject, wanted), raw in zip(asked.items(), answers, strict=True):
            try:
                wanted.verify(raw, self._program)
            except LayoutError as error:
                failed[subject] = error.problem
        return failed


class _Wanted:
    """The record that one seal promises.

    Raises:
        ValueError: the seal has another form.
    """

    def __init__(self, subject: Subject) -> None:
        kind, self.record, verb, deployment, controller, nonce, expiry = subject.seal.split(":")
        if kind != "pda" or verb not in ("accept", "revoke") or subject.address is None:
            raise ValueError(subject.seal)
        self.revokes, self.terms = verb == "revoke", (int(nonce), int(expiry))
        self.deployment_id, self.controller = bytes.fromhex(deployment), bytes.fromhex(controller)
        self.member, self.account = subject.address, bytes.fromhex(subject.account.removeprefix("0x"))
        self.key = Pubkey.from_string(self.member)
        Pubkey.from_string(self.record)  # a node refuses a whole batch for one malformed key

    def place(self, program: Pubkey) -> str:
        """Return the address at which the links program keeps the record."""
        return str(link_address(program, self.deployment_id, self.key, self.account))

    def verify(self, raw: RawAccount | None, program: Pubkey) -> None:
        """Raise LayoutError unless the record is there and says what was agreed."""
        if raw is None:
            raise LayoutError(self.record, "record", "no such account on this chain")
        held = decode_link(self.record, raw, program)
        found: dict[str, object] = {
            "deployment": held.deployment_id,
            "member": held.member,
            "account": held.account,
            "controller": held.controller,
            "revoke": held.revoked,
        }
        expected: list[object] = [self.deployment_id, self.member, self.account, self.controller]
        expected.append(self.terms if self.revokes else None)
        if not self.revokes:
            found["terms"] = held.nonce, held.expiry
            expected.append(self.terms)
        for (field, value), want in zip(found.items(), expected, strict=True):
            if value != want:
                raise LayoutError(self.record, field, f"{_text(value)} on record, {_text(want)} expected")


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return f"0x{value.hex()}"
    if isinstance(value, tuple):
        return f"nonce {value[0]} until {value[1]}"
    return "none" if value is None else str(value)
