"""Authenticated HTTP between coordinator and attestors: who asks, who answers, to what, and when.

Every request and every answer is signed with the sender's *wire key*, a secp256k1 key of its own that signs nothing
else. A request names its sender, its receiver, a time and a random nonce, and the SHA-256 of its body; an answer is
signed over the request's signature, so that none can stand in for another. The headers are checked before one byte of
the body is read, so that only known peers may send large ones.

What travels is not secret, and is not encrypted here; a URL may be https.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Final, NamedTuple

import aiohttp

from aggregator.domain.errors import Garbage, RefusedError, Unreachable
from aggregator.ports import Clock, Signer
from proofs.errors import ProofError
from proofs.hashing import keccak256
from proofs.signing import recover

SKEW: Final = 30
"""Seconds that a request's time may differ from its receiver's clock; also how long a nonce is remembered."""
NONCES: Final = 10_000
"""Nonces remembered of one sender; one that sends more within the window is refused, never forgotten."""
PROBLEM_LIMIT: Final = 4_096
"""Bytes of an answer that says what was wrong with a request."""
_OK, _BUSY = 200, (429, 503, 504)
_NONCE_LENGTH: Final = 16
_REQUEST, _ANSWER = b"crossmargin/wire/1/request", b"crossmargin/wire/1/answer"
_FROM, _TO, _TIME, _NONCE, _SHA256, _SIGNATURE = (
    f"x-crossmargin-{name}" for name in ("from", "to", "time", "nonce", "sha256", "signature")
)
_ADDRESS = re.compile(r"0x[0-9a-f]{40}")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,14}")


class _Terms(NamedTuple):
    """What a request's signature covers, besides the deployment."""

    sender: bytes  # 20
    receiver: bytes  # 20
    method: str
    path: str
    time: int  # Unix seconds
    nonce: bytes  # 16
    sha256: bytes  # of the body as it travels


def _request_digest(deployment_id: bytes, terms: _Terms) -> bytes:
    method, path = terms.method.encode(), terms.path.encode()
    return keccak256(
        _REQUEST
        + deployment_id
        + terms.sender
        + terms.receiver
        + len(method).to_bytes(2, "big")
        + method
        + len(path).to_bytes(2, "big")
        + path
        + terms.time.to_bytes(8, "big")
        + terms.nonce
        + terms.sha256
    )


def _answer_digest(deployment_id: bytes, terms: _Terms, signature: bytes, status: int, body: bytes) -> bytes:
    parties = terms.receiver + terms.sender  # now the other way round
    return keccak256(_ANSWER + deployment_id + parties + signature + status.to_bytes(2, "big") + sha256(body).digest())


class Ticket:
    """One request whose headers were accepted. Implements ``aggregator.api.attestor_app.Ticket``."""

    def __init__(self, gate: WireGate, terms: _Terms, signature: bytes, name: str) -> None:
        self._gate, self._terms, self._signature = gate, terms, signature
        self.sender = "0x" + terms.sender.hex()
        self.name = name

    def verify_body(self, body: bytes) -> None:
        """Raise RefusedError unless ``body`` is the one that was signed."""
        if sha256(body).digest() != self._terms.sha256:
            raise RefusedError("wire", "the body is not the one that was signed")

    def seal(self, status: int, body: bytes) -> Mapping[str, str]:
        """Return the headers that authenticate an answer to this request."""
        return self._gate.seal(self._terms, self._signature, status, body)


class WireGate:
    """The receiving side: lets known peers in, each request once.

    Args:
        deployment_id: 32 bytes; requests of another deployment recover to strangers.
        signer: the receiver's own wire key.
        peers: who may ask: names by wire address (0x, lower-case).
        clock: Unix seconds. What was signed before the gate was made is refused: nobody remembers its nonce.
    """

    def __init__(self, deployment_id: bytes, signer: Signer, peers: Mapping[str, str], clock: Clock) -> None:
        self._deployment_id, self._signer, self._clock = deployment_id, signer, clock
        self._address = bytes.fromhex(signer.address[2:])
        self._peers = dict(peers)
        self._since = int(clock.now())
        self._nonces: dict[bytes, dict[bytes, int]] = {}  # by sender: times by nonce, in the order of arrival

    def admit(self, method: str, path: str, headers: Mapping[str, str]) -> Ticket:
        """Check a request's headers.

        Raises:
            RefusedError: rule ``wire``; for the log, nobody who is refused here is told why.
        """
        terms, signature = self._read(method, path, headers)
        try:
            signer = recover(_request_digest(self._deployment_id, terms), signature[:32], signature[32:])
        except ProofError:
            signer = b""
        name = self._peers.get("0x" + signer.hex())
        # Whoever is unknown leaves no trace in memory.
        if signer != terms.sender or name is None:
            raise RefusedError("wire", "the sender is not known")
        self._remember(terms)
        return Ticket(self, terms, signature, name)

    def _read(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[_Terms, bytes]:
        sender, receiver, time = (headers.get(name, "") for name in (_FROM, _TO, _TIME))
        if not _ADDRESS.fullmatch(sender) or not _ADDRESS.fullmatch(receiver) or not _DECIMAL.fullmatch(time):
            raise RefusedError("wire", "no request of ours")
        nonce, digest, signature = (
            _unhex(headers.get(name, ""), length)
            for name, length in ((_NONCE, _NONCE_LENGTH), (_SHA256, 32), (_SIGNATURE, 64))
        )
        terms = _Terms(bytes.fromhex(sender[2:]), bytes.fromhex(receiver[2:]), method, path, int(time), nonce, digest)
        if terms.receiver != self._address:
            raise RefusedError("wire", "the request is for somebody else")
        now = self._clock.now()
        if not max(now - SKEW, self._since) <= terms.time <= now + SKEW:
            raise RefusedError("wire", f"signed at {terms.time}, it is {now:.0f}, and the gate opened at {self._since}")
        return terms, signature

    def _remember(self, terms: _Terms) -> None:
        nonces = self._nonces.setdefault(terms.sender, {})
        oldest = self._clock.now() - SKEW
        if len(nonces) >= NONCES:
            for nonce in [nonce for nonce, time in nonces.items() if time < oldest]:
                del nonces[nonce]
        if terms.nonce in nonces:
            raise RefusedError("wire", "the request was made before")
        if len(nonces) >= NONCES:
            raise RefusedError("wire", f"more than {NONCES} requests in {SKEW} s")
        nonces[terms.nonce] = terms.time

    def seal(self, terms: _Terms, signature: bytes, status: int, body: bytes) -> Mapping[str, str]:
        """Return the headers that authenticate an answer; see :meth:`Ticket.seal`."""
        r, vs = self._signer.sign(_answer_digest(self._deployment_id, terms, signature, status, body))
        return {_SIGNATURE: (r + vs).hex()}


class WireClient:
    """The asking side: a way to one peer. Implements ``aggregator.ports.Wire``.

    Args:
        url: where the peer listens, http or https, with or without a path before ours. No message holds it.
        peer: the peer's wire address (0x, lower-case).
        name: what errors call the peer.
    """

    def __init__(
        self,
        deployment_id: bytes,
        signer: Signer,
        url: str,
        peer: str,
        name: str,
        clock: Clock,
        *,
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._deployment_id, self._signer, self._clock, self._draw = deployment_id, signer, clock, draw
        self._url, self._name = url.rstrip("/"), name
        self._sender, self._peer = bytes.fromhex(signer.address[2:]), bytes.fromhex(peer[2:])
        self._session: aiohttp.ClientSession | None = None

    async def call(self, method: str, path: str, body: bytes = b"", *, seconds: float, limit: int) -> bytes:
        """Send ``body`` and return the body of the peer's answer.

        Raises:
            Unreachable: no answer in ``seconds``, or the peer is busy.
            Garbage: an answer that the peer did not sign for this request, or of more than ``limit`` bytes.
            RefusedError: rule ``wire``; the peer's own words on what it could not use.
        """
        # Hashing a large body takes long enough to be noticed elsewhere.
        digest = (await asyncio.to_thread(sha256, body)).digest()
        time = int(self._clock.now())
        terms = _Terms(self._sender, self._peer, method, path, time, self._draw(_NONCE_LENGTH), digest)
        r, vs = await asyncio.to_thread(self._signer.sign, _request_digest(self._deployment_id, terms))
        headers = {
            _FROM: "0x" + terms.sender.hex(),
            _TO: "0x" + terms.receiver.hex(),
            _TIME: str(time),
            _NONCE: terms.nonce.hex(),
            _SHA256: digest.hex(),
            _SIGNATURE: (r + vs).hex(),
            "content-type": "application/octet-stream",
        }
        try:
            async with asyncio.timeout(seconds):
                status, given, signature = await self._exchange(method, path, headers, body, limit)
        except TimeoutError:
            raise Unreachable(self._name, f"no answer to {path} within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: what aiohttp cannot parse
            raise Unreachable(self._name, f"cannot be reached ({type(error).__name__})") from None
        self._verify(terms, r + vs, status, given, signature)
        if status == _OK:
            return given
        said = given.decode("utf-8", "replace")
        said = "".join(c if c.isprintable() else " " for c in said)[:500]
        if status in _BUSY:
            raise Unreachable(self._name, said)
        raise RefusedError("wire", f"{self._name}: {said}")

    async def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, limit: int
    ) -> tuple[int, bytes, str]:
        if self._session is None:
            # Nothing of the environment: no proxy, no .netrc. Bodies are packed already, by ourselves.
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("accept-encoding",),
            )
        async with self._session.request(
            method, self._url + path, data=body or None, headers=headers, allow_redirects=False
        ) as response:
            most = limit if response.status == _OK else PROBLEM_LIMIT
            given = bytearray()
            async for chunk in response.content.iter_any():
                given += chunk
                if len(given) > most:
                    raise Garbage(self._name, f"the answer to {path} is larger than {most} bytes")
            return response.status, bytes(given), response.headers.get(_SIGNATURE, "")

    def _verify(self, terms: _Terms, request: bytes, status: int, body: bytes, signature: str) -> None:
        try:
            signed = _unhex(signature, 64)
            signer = recover(
                _answer_digest(self._deployment_id, terms, request, status, body), signed[:32], signed[32:]
            )
        except (ProofError, RefusedError):
            signer = b""
        if signer != terms.receiver:
            raise Garbage(self._name, f"the answer to {terms.path} (HTTP status {status}) is not signed by it")

    async def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _unhex(text: str, length: int) -> bytes:
    try:
        decoded = bytes.fromhex(text) if len(text) == 2 * length else b""
    except ValueError:
        decoded = b""
    # One text for one value: fromhex takes blanks and capitals too.
    if len(decoded) != length or decoded.hex() != text:
        raise RefusedError("wire", "no request of ours")
    return decoded
