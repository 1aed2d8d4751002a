"""Every error the project raises on purpose.

::

    CrossmarginError
    ├── InputError               somebody gave us something unusable (names the field and the remedy)
    │   ├── ConfigError          ... in a configuration file (names file, key and an example)
    │   ├── ConflictError        ... well formed, but it contradicts what is stored
    │   └── UnknownError         ... a chain, asset, account or epoch that is not configured or stored
    ├── SourceError              the world did not answer well (scoped to one chain or one price source)
    │   ├── Unreachable          down, slow or refusing; retryable
    │   ├── WrongChain           answers for another chain
    │   ├── Garbage              answers what the protocol does not allow
    │   ├── Contradicted         says something else than it proves; excluded until the process ends
    │   ├── NodeRefused          answers with a JSON-RPC error (a revert, bad parameters)
    │   └── Unavailable          answers well, but does not have it (pruned state, unknown block); retryable
    ├── RefusedError             one of our own rules says no (an attestor, a watermark, a quorum)
    │   └── DissentError         ... an attestor's, with what it gives besides: a signature, grants it knows of
    └── PostingError             a destination did not take a certificate

Each library's errors are mapped to these once, at the edge. ``retryable`` is a property of the error.
"""

from __future__ import annotations

from aggregator.domain.budgets import Grant


class CrossmarginError(Exception):
    """Base of the tree; ``str(error)`` is fit for a user and carries no secret."""

    retryable = False


class InputError(CrossmarginError):
    """Unusable input.

    Args:
        field: the name of the field at fault, as the user wrote it.
        problem: what is wrong with it.
        remedy: what to do instead.
    """

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        self.field, self.problem, self.remedy = field, problem, remedy
        super().__init__(f"{field}: {problem}" + (f"; {remedy}" if remedy else ""))


class ConfigError(InputError):
    """Unusable configuration: names the file, the key and an example that would work."""

    def __init__(self, file: str, key: str, problem: str, example: str = "") -> None:
        self.file, self.key, self.example = file, key, example
        super().__init__(f"{file}: {key}", problem, f"for example {key} = {example}" if example else "")


class UnknownError(InputError):
    """A chain, asset, account or epoch that we do not know."""

    def __init__(self, field: str, value: str, known: str = "") -> None:
        self.value = value
        super().__init__(field, f"{value!r} is not known", known)


class ConflictError(InputError):
    """Well-formed input that contradicts what is stored: a label taken, an address that backs another account."""


class SourceError(CrossmarginError):
    """A chain node or price source did not answer well.

    Args:
        source: the chain or price source concerned (never a URL: it may carry a key).
        problem: what was seen.
    """

    def __init__(self, source: str, problem: str) -> None:
        self.source, self.problem = source, problem
        super().__init__(f"{source}: {problem}")


class Unreachable(SourceError):
    """Down, slow or refusing; worth another try."""

    retryable = True


class WrongChain(SourceError):
    """Answers for another chain than the one configured."""


class Garbage(SourceError):
    """Answers something the protocol does not allow; never read as a value."""


class Contradicted(SourceError):
    """A node that says something else than its own state proof shows. It is not asked again.

    Args:
        height: of the block that both were about. block: its hash.
        about: what was claimed, for example "balance of 0x…".
        value: what the node said. proven: what its proof shows.
    """

    def __init__(self, source: str, height: int, block: str, about: str, value: str, proven: str) -> None:
        self.height, self.block, self.about, self.value, self.proven = height, block, about, value, proven
        super().__init__(source, f"halted: says {about} is {value} at block {height}, its state proof shows {proven}")


class NodeRefused(SourceError):
    """The node answered with a JSON-RPC error.

    Args:
        code: the JSON-RPC error code.
        data: its data as given, for example the 0x return data of a revert.
    """

    def __init__(self, source: str, code: int, problem: str, data: object = None) -> None:
        self.code, self.data = code, data
        super().__init__(source, problem)


class Unavailable(SourceError):
    """Answers well but lacks what was asked (pruned state, a block it does not know); may have it later."""

    retryable = True


class RefusedError(CrossmarginError):
    """One of our own rules refuses.

    Args:
        rule: the rule's short name, stable, used as a metric label.
        reason: what was compared, with both values.
    """

    def __init__(self, rule: str, reason: str) -> None:
        self.rule, self.reason = rule, reason
        super().__init__(f"{rule}: {reason}")


class DissentError(RefusedError):
    """An attestor refuses a proposal, and says more than why.

    Args:
        claims: grants of its own record that the proposal does not list; its word alone (``service.claims``).
        digest: what it was asked to sign; b"" in this process.
        signature: its own over the refusal (``proofs.refusals``), 64 bytes; b"" in this process.
        text: as it was signed; by default rule and reason.
    """

    def __init__(
        self,
        rule: str,
        reason: str,
        *,
        claims: tuple[Grant, ...] = (),
        digest: bytes = b"",
        signature: bytes = b"",
        text: str = "",
    ) -> None:
        super().__init__(rule, reason)
        self.claims, self.digest, self.signature, self.text = claims, digest, signature, text or str(self)


class PostingError(CrossmarginError):
    """A destination did not take a certificate."""

    def __init__(self, destination: str, problem: str, *, retryable: bool = False) -> None:
        self.destination, self.problem = destination, problem
        self.retryable = retryable
        super().__init__(f"{destination}: {problem}")
