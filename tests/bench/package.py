"""PyPI's ``multicall`` as its page shows it, run in an environment of its own by ``tests.bench.quorum``.

Arguments: the node's URL, the token. Lines on stdin, JSON: first the addresses, answered with null; then block heights,
each answered with {"seconds", "balances"}. Ends with stdin.
"""

from __future__ import annotations

import json
import sys
import time

from multicall import Call, Multicall  # type: ignore[import-not-found,unused-ignore]
from multicall.multicall import batcher  # type: ignore[import-not-found,unused-ignore]
from web3 import Web3

BATCH = 2_500  # as many as we ask at once: its own 10,000 are more than Anvil takes in one request


def main() -> None:
    """Answer until stdin ends."""
    url, token = sys.argv[1:]
    w3 = Web3(Web3.HTTPProvider(url))
    batcher.step = BATCH
    addresses = json.loads(sys.stdin.readline())
    print("null", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        calls = [Call(token, ["balanceOf(address)(uint256)", address], [(address, None)]) for address in addresses]
        balances = Multicall(calls, block_id=int(line), require_success=False, _w3=w3)()
        print(json.dumps({"seconds": time.perf_counter() - begin, "balances": balances}), flush=True)


if __name__ == "__main__":
    main()
