"""Limits on what comes in and headers on what goes out, for every route alike (ASGI middleware)."""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proofs.document import MAX_DEPTH, measure_depth

MAX_BODY = 64 * 1024  # bytes
BODY_SECONDS = 10.0  # for the whole body to arrive
_HEADERS = (
    # Scripts and styles are files of our own; nothing inline, nothing framed, nothing fetched from elsewhere.
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),  # a margin has an age; a cache would hide it
)


class Guard:
    """Refuse bodies that are too large (413), too slow (408) or too deeply nested (400) before anything parses them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = [header for header in _HEADERS if header[0] not in present]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read(receive)
        except TimeoutError:
            await _refuse(send_guarded, 408, f"not complete after {BODY_SECONDS} s", "send it faster")
            return
        if body is None:
            return  # the client is gone
        if len(body) > MAX_BODY:
            await _refuse(send_guarded, 413, f"larger than {MAX_BODY} bytes", f"send at most {MAX_BODY // 1024} KiB")
            return
        if b"\0" in body:  # JSON travels in UTF-8, and parsers that also take UTF-16 would see another text than we do
            await _refuse(send_guarded, 400, "is not JSON in UTF-8: it holds a zero byte", "send UTF-8")
            return
        # Below 0x80, where JSON's own signs are, Latin-1 is what UTF-8 is.
        if measure_depth(body.decode("latin-1")) > MAX_DEPTH:
            await _refuse(send_guarded, 400, f"nested deeper than {MAX_DEPTH} levels", "send the fields of the schema")
            return

        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replay, send_guarded)


async def _read(receive: Receive) -> bytearray | None:
    """Return the body, or so much of it that it is too large; None when the client left."""
    body = bytearray()
    more = True
    while more and len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _refuse(send: Send, status: int, problem: str, remedy: str) -> None:
    content = json.dumps({"error": {"field": "body", "problem": problem, "remedy": remedy}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
