"""Record the vectors that no public recording exists for: real returns of our contracts and Aave v3 on Anvil.

``python -m tests.conformance.vectors.evm.record`` writes ``anvil_*.json`` and ``metadata.json`` beside this file. Every
return is a bare ``eth_call`` of its own, and every expected value is asked of the contract through its ABI by web3, so
that neither our packing nor our decoding has a part in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from adapters.evm.abi import Answer, Call
from adapters.evm.chainlink import quotes_flow
from adapters.evm.registry import Registry
from aggregator.domain.snapshot import Subject
from infra.devnet.anvil import Anvil, AnvilRpcError
from infra.devnet.evm_deploy import LISTED, at
from tests.chain.evm_venues import CHAIN, DELAY, PRICES, TRADES, Venues, deploy_venues, instrument

HERE = Path(__file__).parent
STRANGER = Subject("0x" + "77" * 32, "0x" + "9a" * 20)


def answer(venues: Venues, call: Call) -> str | None:
    """Return what one bare call returns now, None when it reverts."""
    try:
        returned: str = venues.anvil.rpc("eth_call", {"to": f"0x{call[0]}", "data": f"0x{call[1]}"}, "latest")
    except AnvilRpcError:
        return None
    return returned


def record(venues: Venues, flow: Generator[Sequence[Call], Sequence[Answer], Any]) -> dict[str, str | None]:
    """Drive a flow against the chain; return its calls, ``target:data``, with what each returned."""
    seen: dict[str, str | None] = {}
    try:
        calls = next(flow)
        while True:
            answers: list[Answer] = []
            for call in calls:
                returned = seen[":".join(call)] = answer(venues, call)
                answers.append(bytes.fromhex(returned[2:]) or None if returned is not None else None)
            calls = flow.send(answers)
    except StopIteration:
        return seen


def position(venues: Venues, name: str, quantity: int, unit: str | None = None, **more: Any) -> dict[str, Any]:
    """Return an expected position; what is not named is as in a wallet."""
    expected = {"asset": venues.asset(name), "quantity": quantity, "unit": venues.asset(unit or name)}
    rest = {"amount": quantity, "side": "asset", "control": "none", "removal_delay": 0, "pending": 0}
    return {**expected, **rest, **more}


def contracts(venues: Venues) -> list[dict[str, Any]]:
    """Return what the user is in at the venue: terms as they were listed, sizes as they were traded."""
    venue, account = venues["venue"], bytes.fromhex(venues.account[2:])
    told = {p[0]: p for p in venue.functions.positionsOf(account, 0, 32).call()[1]}
    near, far = (int(venue.functions.instrument(instrument(name)).call()[5]) for name in ("call-near", "call-far"))
    rows = []
    for name, size in TRADES:
        id = instrument(name)
        kind, _, term = name.partition("-")
        option = [PRICES["ETH"], near if term == "near" else far, 0, 0]
        perp = [0, 0, PRICES["ETH"], int(told[id][3])]
        rows.append(
            {
                "asset": f"{CHAIN}/contract:{venues.names['venue']}/{id}",
                "quantity": abs(size),
                "unit": venues.asset("weth" if kind == "inverse" else "usdc"),
                "amount": 0,
                "side": "asset" if size > 0 else "debt",
                "control": "seizable",
                "removal_delay": DELAY,
                "pending": 0,
                "contract": [kind, "ETH/USD", *(option if term else perp)],
            }
        )
    assert len(told) == len(rows) == len(LISTED)  # one of each kind
    return rows


def expect(venues: Venues) -> dict[str, list[dict[str, Any]]]:
    """Return what each venue holds and is owed, asked through the contracts' own ABI."""
    user, account = venues.user, bytes.fromhex(venues.account[2:])
    vault = venues["collateral_vault"]

    def cap(shares: int) -> int:
        return shares * 105 // 100 // 1000  # from 9 decimals to 6

    def balance(name: str) -> int:
        return int(venues[name].functions.balanceOf(user).call())

    def deposit(name: str) -> tuple[int, int]:
        total, pending = vault.functions.position(account, venues[name].address).call()
        return int(total), int(pending)

    shares, (held, waiting), (receipts, _) = balance("vault4626"), deposit("vault4626"), deposit("aave_atoken_weth")
    in_vault = {"control": "seizable", "removal_delay": DELAY}
    cash = {token.lower(): rest for token, *rest in venues["venue"].functions.balancesOf(account).call()}
    holding = {"contract": ["", "", 0, 0, 0, 0]}
    return {
        "wallet": [
            position(venues, "native", int(venues.w3.eth.get_balance(user))),
            *(position(venues, name, balance(name)) for name in ("usdc", "wbtc", "weth")),
            position(venues, "vault4626", shares, "usdc", amount=cap(shares)),
        ],
        "vault": [
            position(venues, "weth", deposit("weth")[0], pending=deposit("weth")[1], **in_vault),
            position(venues, "vault4626", held, "usdc", amount=cap(held), pending=cap(waiting), **in_vault),
            position(venues, "aave_atoken_weth", receipts, "weth", **in_vault),
        ],
        "lender": [position(venues, "usdc", int(venues["lender"].functions.debtOf(account).call()), side="debt")],
        "aave-v3": [
            position(venues, "aave_atoken_weth", balance("aave_atoken_weth"), "weth"),
            position(venues, "usdc", balance("aave_debt_usdc"), side="debt"),
        ],
        "margin-venue": [
            *(
                position(venues, name, int(amount), pending=int(pending), **in_vault, **holding)
                for name in ("usdc", "weth")
                for amount, pending, _ in [cash[venues.names[name]]]
            ),
            *contracts(venues),
        ],
    }


def main() -> None:
    """Write the vectors."""
    with Anvil() as anvil:
        venues = deploy_venues(anvil, trading=True)
        version = anvil.rpc("web3_clientVersion")
        assets = [row.model_dump(mode="json", exclude_none=True) for row in venues.assets().values()]
        subjects = [Subject(venues.account, None), Subject(venues.account, venues.address), STRANGER]
        arguments = {
            "wallet": [venues.multicall],
            "vault": [venues.names["collateral_vault"]],
            "lender": [venues.names["lender"]],
            "aave-v3": [venues.names["aave_pool"], venues.names["aave_data_provider"]],
            "margin-venue": [venues.names["venue"]],
        }
        for (name, adapter), expected in zip(venues.adapters().items(), expect(venues).values(), strict=True):
            asked = [s for s in subjects if (s.address is None) == (adapter.keyed_by == "account")]
            vector = {
                "adapter": type(adapter).__name__,
                "venue": name,
                "arguments": arguments[name],
                "assets": assets,
                "subjects": asked,
                "answers": record(venues, adapter.flow(asked)),
                "expected": expected,
            }
            _write(f"anvil_{name}", vector)
        registry = at(venues.w3, "MarginRegistry", venues.names["registry"]).functions
        keyed = [s for s in subjects if s.address is None] + [STRANGER._replace(address=None)]
        reader = Registry(CHAIN, venues.names["registry"], registry.epochSeconds().call())
        posted, newest_set = int(registry.latest().call()[0]), int(registry.newestSetId().call())
        _write(
            "anvil_registry",
            {
                "reader": "Registry",
                "arguments": [venues.names["registry"], registry.epochSeconds().call()],
                "subjects": keyed,
                "answers": record(venues, reader.flow(keyed)),
                "expected": [
                    [s.account, int(registry.used(bytes.fromhex(s.account[2:])).call()), posted, newest_set]
                    for s in keyed
                ],
            },
        )
        feeds = venues.feeds()
        broken = feeds[0].model_copy(update={"name": "no-code", "id": feeds[0].id[:-40] + "5e" * 20})
        rows = [*feeds, broken]
        updated = {f.feed: int(venues[f"feed_{f.feed[:-4].lower()}"].functions.latestTimestamp().call()) for f in feeds}
        quotes = [[f.feed, f.name, PRICES[f.feed[:-4]], -8, updated[f.feed]] for f in feeds]
        sources = [row.model_dump(mode="json") for row in rows]
        _write(
            "anvil_chainlink", {"sources": sources, "answers": record(venues, quotes_flow(rows)), "expected": quotes}
        )
    _describe(version)


def _write(name: str, vector: dict[str, Any]) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(vector, indent=1) + "\n")


def _describe(version: str) -> None:
    """Write what each file is, where it comes from, and its hash."""
    files: dict[str, Any] = {}
    for path in sorted(HERE.glob("*.json")):
        if path.stem == "metadata":
            continue
        body = json.loads(path.read_text())
        own = f"{version}, tests/conformance/vectors/evm/record.py; expected values through the contracts' ABI by web3"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files[path.name] = {"source": body.get("source", own), "sha256": digest}
    about = (
        "Recorded EVM calls: public chain data as found in the named repositories' test fixtures, and own recordings."
    )
    (HERE / "metadata.json").write_text(json.dumps({"about": about, "files": files}, indent=1) + "\n")


if __name__ == "__main__":
    main()
