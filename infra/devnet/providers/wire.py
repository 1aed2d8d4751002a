"""As much of HTTP/1.1 and of websockets (RFC 6455) as a proxy on the loopback interface needs."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

CHUNK = 1 << 16  # bytes read at once
HEAD_LIMIT = 1 << 16  # bytes


class Request(NamedTuple):
    """One request: its head as it came, with the empty line at its end, and its body."""

    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        """The request line, for example ``POST / HTTP/1.1``."""
        return self.head.partition(b"\r\n")[0].decode("latin-1")

    @property
    def is_upgrade(self) -> bool:
        """Whether it asks for a websocket."""
        return find_header(self.head, "upgrade").lower() == "websocket"


def find_header(head: bytes, name: str) -> str:
    """Return the value of a header, "" where it is absent."""
    wanted = name.lower().encode()
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == wanted:
            return value.strip().decode("latin-1")
    return ""


def drop_header(head: bytes, name: str) -> bytes:
    """Return a head without one of its headers."""
    wanted = name.lower().encode()
    return b"\r\n".join(line for line in head.split(b"\r\n") if line.partition(b":")[0].strip().lower() != wanted)


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Read one request; its body must have a content-length.

    Raises:
        asyncio.IncompleteReadError: the client closed the connection.
        asyncio.LimitOverrunError, ValueError: this is no HTTP request.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    return Request(head, await reader.readexactly(int(find_header(head, "content-length") or 0)))


def build_response(status: str, body: bytes, *headers: str) -> bytes:
    """Return a JSON response; ``status`` is for example ``200 OK``."""
    lines = [f"HTTP/1.1 {status}", *headers, "content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one frame that a server sent, which is never masked; return all its bytes, and its payload."""
    head = await reader.readexactly(2)
    size = head[1] & 0x7F
    if size >= 126:
        extended = await reader.readexactly(2 if size == 126 else 8)
        head, size = head + extended, int.from_bytes(extended, "big")
    payload = await reader.readexactly(size)
    return head + payload, payload
