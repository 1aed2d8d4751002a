"""`python -m infra.devnet.svm --port N [--slot-ms 200]`: serve a local Solana chain on 127.0.0.1 until stopped.

The first line on stdout is JSON: {"url", "ws_url", "genesis"} when ready, {"error"} when it could not start.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import socket
import sys

from solders.hash import Hash

from infra.devnet.svm.chain import Settings, SvmChain
from infra.devnet.svm.server import serve


def main() -> int:
    """Parse arguments, bind, serve."""
    parser = argparse.ArgumentParser(prog="python -m infra.devnet.svm", description=__doc__)
    parser.add_argument("--port", type=int, default=8899, help="0 picks a free port (default 8899)")
    parser.add_argument("--slot-ms", type=int, default=200, help="0: only x_advance makes blocks (default 200)")
    parser.add_argument("--confirmed-depth", type=int, default=1)
    parser.add_argument("--finalized-depth", type=int, default=12)
    parser.add_argument("--genesis", help="base58 genesis hash (default: random)")
    parser.add_argument("--follow-stdin", action="store_true", help="stop when stdin closes: its holder has ended")
    arguments = parser.parse_args()
    genesis = Hash.from_string(arguments.genesis) if arguments.genesis else Hash(os.urandom(32))
    chain = SvmChain(Settings(arguments.slot_ms, arguments.confirmed_depth, arguments.finalized_depth, genesis))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", arguments.port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        remedy = "stop what listens there, or choose another with --port"
        print(json.dumps({"error": f"port {arguments.port} on 127.0.0.1 is in use: {remedy}"}), flush=True)
        return 1
    port = listener.getsockname()[1]

    def announce() -> None:
        ready = {"url": f"http://127.0.0.1:{port}", "ws_url": f"ws://127.0.0.1:{port}", "genesis": str(chain.genesis)}
        print(json.dumps(ready), flush=True)

    asyncio.run(serve(chain, listener, announce, sys.stdin.fileno() if arguments.follow_stdin else None))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
