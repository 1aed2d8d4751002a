"""What an operator approved on this machine: one small file per document, for an attestor to find before it signs.

A file's name has the digest that is approved, its content the terms for people. Removing the file withdraws the
approval. The folder and the files are writable by their owner only; others' are not believed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from aggregator.domain.errors import InputError

_WRITABLE_BY_OTHERS = 0o022


class Approval(NamedTuple):
    """One approval as it is kept."""

    kind: str
    digest: str  # 0x + 64 hex
    approved_at: int  # Unix seconds
    by: str
    document: Mapping[str, Any]


class FileApprovals:
    """The approvals of one attestor. Implements ``aggregator.service.rotation.Approvals``.

    Args:
        folder: made at the first approval.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def approve(self, kind: str, digest: bytes, document: Mapping[str, Any], *, now: int, by: str) -> None:
        """Keep an approval durably; one that is kept already stays as it is.

        Raises:
            InputError: the folder cannot be written.
        """
        path = self._path(kind, digest)
        approval = Approval(kind, "0x" + digest.hex(), now, by, document)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists():
                return
            written = path.with_suffix(".new")
            descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(approval._asdict(), file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            written.rename(path)  # whole or not at all
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise InputError(str(path), f"cannot be written: {error.strerror}", "check the folder's owner") from None

    def withdraw(self, kind: str, digest: bytes) -> bool:
        """Forget an approval; say whether there was one. A signature given meanwhile stays given."""
        path = self._path(kind, digest)
        if not path.exists():
            return False
        path.unlink()
        return True

    def approved(self, kind: str, digest: bytes) -> bool:
        """Say whether exactly this digest is approved, by a file that only its owner can write.

        Raises:
            InputError: names the file that others could have written.
        """
        path = self._path(kind, digest)
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        if found.st_mode & _WRITABLE_BY_OTHERS or self._folder.stat().st_mode & _WRITABLE_BY_OTHERS:
            remedy = f"look at it, then run: chmod go-w {self._folder} {path}"
            raise InputError(str(path), "may have been written by others", remedy)
        return True

    def list(self) -> tuple[Approval, ...]:
        """Return every approval, the oldest first.

        Raises:
            InputError: names a file that cannot be read.
        """
        found = []
        for path in self._folder.glob("*.json"):
            try:
                found.append(Approval(**json.loads(path.read_text("utf-8"))))
            except (OSError, ValueError, TypeError):
                raise InputError(str(path), "is no approval", "remove it") from None
        return tuple(sorted(found, key=lambda approval: approval.approved_at))

    def _path(self, kind: str, digest: bytes) -> Path:
        return self._folder / f"{kind}-{digest.hex()}.json"
