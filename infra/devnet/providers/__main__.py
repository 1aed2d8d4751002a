"""``python -m infra.devnet.providers --node NAME URL ELSEWHERE``: several providers per node, and a control port.

The first line on stdout is JSON: {"control": url, "providers": {name: [host:port, ...]}}.

Control: GET / returns {name: [mode, ...]}; POST / {"chain": name, "provider": index or null for all, "mode": mode}
returns the same, or 400 {"error": text}. A POST must be application/json, which no page of a stranger's can send.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import AsyncExitStack, suppress

import httpx
import uvloop

from infra.devnet.providers.proxy import MODES, FaultProxy
from infra.devnet.providers.wire import Request, build_response, find_header, read_request

Proxies = dict[str, list[FaultProxy]]


class ControlError(ValueError):
    """A control request that makes no sense; the message says why."""


async def turn(proxies: Proxies, request: Request) -> None:
    """Carry out one control request.

    Raises:
        ControlError: the request names something unknown, or the node does not answer.
    """
    if find_header(request.head, "content-type") != "application/json":
        raise ControlError("content-type: application/json expected")
    wanted = json.loads(request.body)
    chain, provider, mode = wanted.get("chain"), wanted.get("provider"), wanted.get("mode")
    if chain not in proxies:
        raise ControlError(f"chain: {chain!r} is unknown; known: {', '.join(proxies)}")
    if mode not in MODES:
        raise ControlError(f"mode: {mode!r} is unknown; known: {', '.join(MODES)}")
    all_of_them = proxies[chain]
    if provider is not None and provider not in range(len(all_of_them)):
        raise ControlError(f"provider: {provider!r} given, 0 to {len(all_of_them) - 1} expected")
    try:
        for proxy in all_of_them if provider is None else [all_of_them[provider]]:
            await proxy.turn(mode)
    except httpx.HTTPError as error:
        raise ControlError(f"the node of {chain} does not answer: {error}") from None


async def serve(nodes: list[tuple[str, str, str]], count: int) -> None:
    """Run ``count`` providers of each node until cancelled; print where they are."""
    async with AsyncExitStack() as stack:
        proxies = {
            name: [await stack.enter_async_context(FaultProxy(url, elsewhere)) for _ in range(count)]
            for name, url, elsewhere in nodes
        }

        async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                request = await read_request(reader)
                status, answer = "200 OK", dict[str, object]()
                try:
                    if request.line.startswith("POST "):
                        await turn(proxies, request)
                    answer |= {name: [proxy.mode for proxy in each] for name, each in proxies.items()}
                except (ValueError, AttributeError) as error:
                    status, answer = "400 Bad Request", {"error": str(error)}
                writer.write(build_response(status, json.dumps(answer).encode(), "connection: close"))
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(control, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            addresses = {name: [proxy.address for proxy in each] for name, each in proxies.items()}
            print(json.dumps({"control": f"http://127.0.0.1:{port}", "providers": addresses}), flush=True)
            await server.serve_forever()


def main() -> None:
    """Parse arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m infra.devnet.providers", description=__doc__)
    parser.add_argument("--node", nargs=3, action="append", required=True, metavar=("NAME", "URL", "ELSEWHERE"))
    parser.add_argument("--count", type=int, default=3, help="providers per node (default 3)")
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        uvloop.run(serve([tuple(node) for node in arguments.node], arguments.count))


if __name__ == "__main__":
    main()
