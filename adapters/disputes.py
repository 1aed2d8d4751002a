"""Disputes between providers, kept as evidence: a hash-chained, signed log of JSON lines.

Each line is ``{"record", "previous", "signer", "signature"}``: ``previous`` is the SHA-256 of the whole line before it
(zeros before the first), the signature is of ``keccak256("crossmargin/dispute/1" ‖ previous ‖ canonical JSON of
record)`` by the node's own evidence key, EIP-2098. So nobody without that key can add, change, reorder or take out a
line unseen; that lines are missing at the *end* shows only to who has a later copy. What a record says of a provider is
this node's word: its answers are not signed by anybody.

The log is one file and, once that is full, its predecessors ``….1.jsonl`` (the newest) and on; the chain goes through.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from adapters.keys import KeySigner
from aggregator.domain.errors import InputError
from proofs.document import MAX_DEPTH, canonical_json, measure_depth
from proofs.errors import ProofError
from proofs.hashing import keccak256
from proofs.signing import recover

TEXT_LIMIT, LINE_LIMIT = 200, 4096  # characters of one value, bytes of one line
SIZE_LIMIT = 16 << 20  # bytes of one file
FILES = 4  # kept, the current one included
QUIET_SECONDS = 300.0  # after a line, the same dispute is only counted for so long
TOPICS = 16  # lines about one provider in that time, whatever they are about
_DOMAIN = b"crossmargin/dispute/1"
_FIRST = bytes(32)
_TAIL = 16 * LINE_LIMIT  # bytes looked through for the last whole line; what a crash tears is shorter than one


@dataclass(frozen=True, slots=True)
class Dispute:
    """One provider's answer that differs from the others', as kept for evidence. Digests are SHA-256, hex."""

    chain: str  # CAIP-2
    height: int
    block: str  # hash of the pinned block
    about: str  # what is compared first among all that differs, e.g. "position 0x… wallet eip155:1/slip44:60 asset"
    provider: str  # who differs; never a URL: it may carry a key
    others: tuple[str, ...]  # who says what is expected
    agreed: bool  # whether those are enough
    field: str
    value: str
    expected: str
    count: int  # how many things differ
    digests: tuple[tuple[str, str], ...]  # (provider, digest of its whole answer)
    party: str = ""  # who saw it: the coordinator, an attestor
    repeats: int = 0  # how often the same was seen, by any party, and only counted since the line before about it


class DisputeFile:
    """Appends disputes to the log, durable on return. Any number of writers, also in other processes, may share it.

    Args:
        path: the current file; its folder must exist.
        signer: returns the evidence key; asked at the first dispute.
        size_limit: bytes after which a new file begins.
    """

    def __init__(self, path: Path, signer: Callable[[], KeySigner], *, size_limit: int = SIZE_LIMIT) -> None:
        self._path, self._signer, self._size_limit = path, signer, size_limit

    def append(self, dispute: Dispute) -> None:
        """Write one line; what a crash left half-written before it stays, on a line of its own.

        Raises:
            OSError: the file cannot be written.
            InputError: the evidence key cannot be used.
        """
        signer = self._signer()
        record: dict[str, Any] = {"seen_at": int(time.time()), **asdict(dispute)}
        with self._locked():
            last = _last_line(self._path) or _last_line(_rotated(self._path, 1))
            previous = hashlib.sha256(last).digest() if last else _FIRST
            line = _build_line(record, previous, signer)
            if len(line) > LINE_LIMIT:
                short = {name: value[:TEXT_LIMIT] for name, value in record.items() if isinstance(value, str)}
                line = _build_line(record | short | {"digests": [], "others": []}, previous, signer)
            if self._size() + len(line) > self._size_limit:
                self._rotate()
            self._write(line)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def _rotate(self) -> None:
        if not self._path.exists():
            return
        for i in range(FILES - 1, 0, -1):
            older = _rotated(self._path, i)
            newer = _rotated(self._path, i - 1) if i > 1 else self._path
            if newer.exists():
                newer.replace(older)
        _sync_folder(self._path.parent)

    def _write(self, line: bytes) -> None:
        fresh = not self._path.exists()
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            whole = (b"\n" if torn else b"") + line
            if os.write(file, whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the next append sets the rest apart
            os.fsync(file)
        finally:
            os.close(file)
        if fresh:
            _sync_folder(self._path.parent)


class DisputeLog:
    """Keeps what all parties of a process see, a lie once: its first line at once, then one in a while with a count.

    Every party reads every chain, and a liar lies in every epoch: written out each time, its lies would push the first
    evidence out of the files. One dispute is the same as another when chain, provider, subject and field are; blocks
    have one subject, whatever their height. Lines are written by a thread, in order, so that nobody waits for the disk;
    the interpreter does not end before it is done.

    Args:
        file: where lines go.
        failed: told, in the writing thread, of each line that could not be written; the next such dispute tries again.
        clock: returns seconds; runs evenly.
    """

    def __init__(
        self,
        file: DisputeFile,
        failed: Callable[[Dispute, OSError | InputError], None],
        *,
        quiet: float = QUIET_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._failed, self._quiet, self._clock = file, failed, quiet, clock
        self._writer = ThreadPoolExecutor(1, "disputes")
        self._lock = threading.Lock()
        self._told: dict[tuple[str, ...], float] = {}  # when its last line was handed over
        self._repeats = Counter[tuple[str, ...]]()  # since that line

    def note(self, dispute: Dispute) -> None:
        """Hand a dispute over, to be written or counted; returns at once."""
        key = _topic(dispute)
        provider = key[:2]
        with self._lock:
            now = self._clock()
            for old in [k for k, told in self._told.items() if now - told >= 2 * self._quiet]:
                del self._told[old]  # it is over; what was counted goes with the provider's next line
                self._repeats[old[:2]] += self._repeats.pop(old, 0)
            recent = [k for k, told in self._told.items() if now - told < self._quiet]
            if key in recent or sum(k[:2] == provider for k in recent) >= TOPICS:
                self._repeats[key if key in self._told else provider] += 1
                return
            self._told[key] = now
            repeats = self._repeats.pop(key, 0) + self._repeats.pop(provider, 0)
        self._writer.submit(self._write, key, replace(dispute, repeats=repeats))

    def flush(self) -> None:
        """Wait until all that was handed over is written."""
        self._writer.submit(int).result()

    def _write(self, key: tuple[str, ...], dispute: Dispute) -> None:
        try:
            self._file.append(dispute)
        except (OSError, InputError) as error:  # a full disk must not stop the reading
            with self._lock:
                self._told.pop(key, None)
                self._repeats[key] += dispute.repeats
            self._failed(dispute, error)


def _topic(dispute: Dispute) -> tuple[str, ...]:
    about = "block" if dispute.about.startswith("block ") else dispute.about
    return dispute.chain, dispute.provider, about, dispute.field


class Entry(NamedTuple):
    """One line of the log, newest first in lists."""

    record: dict[str, Any]  # the fields of Dispute and ``seen_at``, Unix seconds; empty where the line is torn
    signer: str  # 0x address that the line names
    problem: str  # what is wrong with its signature or its place in the chain, "" for nothing
    torn: bool = False  # half-written by a crash: no line, and no evidence


def read_disputes(path: Path, signer: str | None = None) -> list[Entry]:
    """Read the whole log and check every line; newest first.

    Args:
        path: the current file; its predecessors are found beside it.
        signer: address (0x, lower-case) whose signature is expected, None to take each line's own word for it.

    Raises:
        OSError: a file cannot be read.
    """
    files = [_rotated(path, i) for i in range(FILES - 1, 0, -1)] + [path]
    present = [file for file in files if file.exists()]
    lines = [line for file in present for line in file.read_bytes().split(b"\n") if line]
    # With every file there, older lines may have been rotated away: then nothing is known before the first.
    previous = None if len(present) == FILES else _FIRST
    entries: list[Entry] = []
    for line in lines:
        document = _parse(line)
        if document is None:
            entries.append(Entry({}, "", "half-written by a crash: no evidence", torn=True))
            continue
        entries.append(Entry(document["record"], document["signer"], _fault(document, previous, signer)))
        previous = hashlib.sha256(line).digest()
    return entries[::-1]


def _fault(document: dict[str, Any], previous: bytes | None, signer: str | None) -> str:
    """Return what is wrong with one line, "" for nothing."""
    named, stated = document["signer"], bytes.fromhex(document["previous"])
    signature = bytes.fromhex(document["signature"].removeprefix("0x"))
    try:
        actual = "0x" + recover(_digest(stated, document["record"]), signature[:32], signature[32:]).hex()
    except ProofError as error:
        return f"bad signature: {error}"
    if actual != named:
        return f"the signature is not by {named}: the line was changed, or another key signed it"
    if signer is not None and named != signer:
        return f"signed by {named}, the evidence key here is {signer}"
    if previous is not None and stated != previous:
        return "does not follow the line before it: lines were taken out, added or reordered"
    return ""


def _canonical(record: dict[str, Any]) -> bytes:
    # A lone surrogate in a provider's words has no UTF-8 form; escaped, it is the same JSON.
    return canonical_json(record).encode("utf-8", "backslashreplace")


def _digest(previous: bytes, record: dict[str, Any]) -> bytes:
    return keccak256(_DOMAIN + previous + _canonical(record))


def _build_line(record: dict[str, Any], previous: bytes, signer: KeySigner) -> bytes:
    r, vs = signer.sign(_digest(previous, record))
    rest = {"previous": previous.hex(), "signer": signer.address, "signature": "0x" + (r + vs).hex()}
    return b'{"record":' + _canonical(record) + b"," + canonical_json(rest).encode()[1:] + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a whole line's object, None for anything else."""
    try:
        text = line.decode()
        if measure_depth(text) > MAX_DEPTH:  # parsing it could crash
            return None
        document = json.loads(text)
        good = (
            isinstance(document["record"], dict)
            and isinstance(document["signer"], str)
            and len(bytes.fromhex(document["previous"])) == 32
            and len(bytes.fromhex(document["signature"].removeprefix("0x"))) == 64
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return document if good else None


def _last_line(path: Path) -> bytes | None:
    """Return the last whole line of a file, without its end; None if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
    except FileNotFoundError:
        return None
    return next((line for line in reversed(tail.split(b"\n")) if line and _parse(line) is not None), None)


def _rotated(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}.{index}{path.suffix}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
