"""Contract wallets as members: each reading asks them again whether they agree (EIP-1271).

``isValidSignature(bytes32 hash, bytes signature)`` must return its own selector, 0x1626ba7e, as one ABI word. A wallet
whose owners or modules changed since may answer otherwise, so what it said when it was linked does not do.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from adapters.evm.abi import WORD, Answer, Call, selector
from aggregator.domain.snapshot import Subject

IS_VALID_SIGNATURE = selector("isValidSignature(bytes32,bytes)")
MAGIC = bytes.fromhex(IS_VALID_SIGNATURE).ljust(WORD, b"\0")


def members_flow(subjects: Sequence[Subject]) -> Generator[Sequence[Call], Sequence[Answer], dict[Subject, str]]:
    """Yield one call per sealed subject; return those that do not agree, and what they say instead.

    A seal of another form is not believed.
    """
    sealed = [s for s in subjects if s.seal]
    calls = {subject: call for subject in sealed if (call := _call(subject)) is not None}
    answers = yield list(calls.values())
    given = dict(zip(calls, answers, strict=True))
    failed: dict[Subject, str] = {}
    for subject in sealed:
        if subject not in calls:
            failed[subject] = "its consent is in no form that this chain can confirm"
        elif (answer := given[subject]) is None:
            failed[subject] = "isValidSignature reverts or is not answered, or no contract is there"
        # A contract whose fallback returns more, or fewer, bytes than the one word did not mean to agree.
        elif answer != MAGIC:
            failed[subject] = f"isValidSignature returns 0x{answer[:WORD].hex()}, not 0x{IS_VALID_SIGNATURE}"
    return failed


def _call(subject: Subject) -> Call | None:
    kind, _, rest = subject.seal.partition(":")
    digest, _, signature = rest.partition(":")
    if kind != "eip1271" or subject.address is None or len(digest) != 2 * WORD:
        return None
    size = len(signature) // 2
    padded = signature + "0" * (-len(signature) % (2 * WORD))
    data = f"{IS_VALID_SIGNATURE}{digest}{2 * WORD:064x}{size:064x}{padded}"
    return subject.address.removeprefix("0x").lower(), data
