"""Pyth through a Hermes v2 endpoint: raw updates are fetched, verified here, and carried on as evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import orjson
import tenacity

from aggregator.domain.errors import Garbage, Unavailable, Unreachable
from aggregator.domain.price import Quote
from aggregator.domain.rows import PythRow, SourceRow
from proofs.errors import ProofError
from proofs.pyth import GuardianSet, verify_update

BODY_LIMIT = 1 << 20
TIMEOUT = 3.0
ATTEMPTS = 4
REMEMBERED = 256


class PythSource:
    """Implements :class:`aggregator.ports.PriceSource`."""

    name = "pyth"

    def __init__(self, row: PythRow, sources: Sequence[SourceRow]) -> None:
        self._rows = {s.id.removeprefix("0x").lower(): s for s in sources if s.kind == "pyth"}
        self._guardians = GuardianSet(row.guardian_set_index, tuple(bytes.fromhex(g[2:]) for g in row.guardians))
        self._emitter = (row.emitter_chain, bytes.fromhex(row.emitter_address))
        self._verified: set[bytes] = set()
        headers = {"Authorization": f"Bearer {row.api_key.get_secret_value()}"} if row.api_key else {}
        self._client = httpx.AsyncClient(base_url=row.url, headers=headers, timeout=TIMEOUT)

    async def fetch(self, cut_time: int) -> tuple[bytes, ...]:
        """Return the raw first updates with ``publish_time >= cut_time``.

        Raises:
            Unreachable, Unavailable, Garbage: nothing usable was answered.
        """
        async for attempt in tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=0.5),
            retry=tenacity.retry_if_exception(lambda e: bool(getattr(e, "retryable", False))),
            reraise=True,
        ):
            with attempt:
                return await self._fetch_once(cut_time)
        raise AssertionError("unreachable: tenacity re-raises")

    async def _fetch_once(self, cut_time: int) -> tuple[bytes, ...]:
        try:
            async with self._client.stream(
                "GET",
                f"/v2/updates/price/{cut_time}",
                params={"ids[]": list(self._rows), "encoding": "hex", "parsed": "false"},
            ) as response:
                body = b""
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > BODY_LIMIT:
                        raise Garbage(self.name, f"the answer is larger than {BODY_LIMIT} bytes")
                status = response.status_code
        except httpx.TimeoutException:
            raise Unreachable(self.name, f"no answer within {TIMEOUT:g} s") from None
        except httpx.HTTPError as error:
            raise Unreachable(self.name, f"cannot be reached ({type(error).__name__})") from None
        if status == 404:
            raise Unavailable(self.name, f"no update at or after {cut_time} yet")
        if status != 200:
            raise (Unreachable if status == 429 or status >= 500 else Garbage)(self.name, f"HTTP status {status}")
        return self._decode_body(body)

    def _decode_body(self, body: bytes) -> tuple[bytes, ...]:
        try:
            document: Any = orjson.loads(body)
            updates = document["binary"]["data"]
            if document["binary"]["encoding"] != "hex" or not isinstance(updates, list) or not updates:
                raise ValueError("encoding")
            return tuple(bytes.fromhex(u.removeprefix("0x")) for u in updates)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Garbage(self.name, "the answer has no binary.data in hex") from None

    def decode(self, updates: Sequence[bytes], cut_time: int) -> tuple[Quote, ...]:
        """Verify raw updates and return the quotes of configured feeds.

        The price of an epoch is the first one published at or after its cut: with signatures alone, whoever proposes
        could choose among all that were ever published.

        Raises:
            Garbage: a signature, a path or a layout is wrong (the field is named), or a price is not the first.
        """
        if len(self._verified) > REMEMBERED:
            self._verified.clear()
        quotes: list[Quote] = []
        for raw in updates:
            try:
                prices = verify_update(raw, self._guardians, *self._emitter, verified=self._verified)
            except ProofError as error:
                raise Garbage(self.name, f"an update does not verify: {error}") from None
            for p in prices:
                row = self._rows.get(p.feed_id.hex())
                if row is not None:
                    if not p.prev_publish_time < cut_time <= p.publish_time:
                        times = f"published at {p.publish_time} after {p.prev_publish_time}"
                        raise Garbage(self.name, f"{row.feed}: {times}, not the first at or after {cut_time}")
                    quotes.append(
                        Quote(
                            row.feed, row.name, "pyth", p.price, p.conf, p.expo, p.publish_time, p.ema_price, p.ema_conf
                        )
                    )
        return tuple(quotes)

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._client.aclose()
