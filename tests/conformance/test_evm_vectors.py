"""The EVM adapters over recorded returns, without a network, and Multicall3's packing beside eth-abi's."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from eth_abi import decode, encode
from eth_abi.exceptions import DecodingError
from hypothesis import given
from hypothesis import strategies as st
from web3 import Web3

import adapters.evm
import adapters.evm.registry as evm_registry
import adapters.solana
import adapters.solana.registry as solana_registry
from adapters.evm.aave_v3 import AaveV3
from adapters.evm.abi import Call, decode_address, decode_address_list, decode_uint, pack_multicall, unpack_multicall
from adapters.evm.chainlink import quotes_flow
from adapters.evm.erc4626 import convert
from adapters.evm.lender import Lender
from adapters.evm.margin_venue import MarginVenue
from adapters.evm.vault import Vault
from adapters.evm.wallet import Wallet
from aggregator.domain.errors import Garbage
from aggregator.domain.rows import AssetRow, SourceRow
from aggregator.domain.snapshot import DEBT_UNREADABLE, Subject

VECTORS = Path(__file__).parent / "vectors" / "evm"
ALL: dict[str, Any] = {
    path.stem: json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json")) if path.stem != "metadata"
}
FLOWS = [name for name, one in ALL.items() if "adapter" in one]
BALANCES = [name for name, one in ALL.items() if one.get("kind") == "evm.ERC20.balanceOf"]
TRIED = [name for name in ALL if name.startswith("multicall2_tryAggregate")]
AGGREGATED = [name for name in ALL if name.startswith("multicall_aggregate")]
ADAPTERS: dict[str, Any] = {kind.__name__: kind for kind in (Wallet, Vault, Lender, AaveV3, MarginVenue)}
CHAINS = {"ethereum": 1, "arbitrum-one": 42161, "bsc": 56}
ACCOUNT = "0x" + "ab" * 32
MULTICALL = "0xca11bde05977b3631167028862be2a173976ca11"


def drive(flow: Any, answers: Mapping[Call, bytes | None]) -> Any:
    """Answer every call from ``answers``; a call that was not recorded is an error."""
    try:
        calls = next(flow)
        while True:
            calls = flow.send([answers[call] for call in calls])
    except StopIteration as stop:
        return stop.value


def recorded(name: str) -> dict[Call, bytes | None]:
    """Return the answers of an own recording; an empty return counts as none, as the reader has it."""
    answers: dict[Call, bytes | None] = {}
    for key, returned in ALL[name]["answers"].items():
        target, _, data = key.partition(":")
        answers[target, data] = bytes.fromhex(returned[2:]) or None if returned is not None else None
    return answers


def public(name: str) -> tuple[Call, bytes]:
    """Return the call and the return of a public recording."""
    one = ALL[name]
    return (one["address"][2:], one["call_data"][2:]), bytes.fromhex(one["data"][2:])


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def make_asset(chain: str, address: str, decimals: int = 18, **more: Any) -> AssetRow:
    fields = {"symbol": "X", "kind": "erc20", "decimals": decimals, "feed": "X/USD", "policy": "x", **more}
    return AssetRow(id=f"{chain}/erc20:{address}", **fields)


def test_the_vectors_are_the_recorded_ones() -> None:
    files = json.loads((VECTORS / "metadata.json").read_text())["files"]
    assert set(files) == {f"{name}.json" for name in ALL}
    for name, one in files.items():
        assert hashlib.sha256((VECTORS / name).read_bytes()).hexdigest() == one["sha256"], name
        assert one["source"]


def find_adapters(package: Any) -> set[type]:
    """Return the adapter classes of a package: what has a name, a key and a flow, protocols apart."""
    found = set()
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            is_adapter = all(hasattr(kind, part) for part in ("name", "keyed_by", "flow"))
            if is_adapter and kind.__module__ == module.name and not getattr(kind, "_is_protocol", False):
                found.add(kind)
    return found


def test_every_evm_adapter_has_a_vector() -> None:
    found = find_adapters(adapters.evm) - {evm_registry.Registry}
    assert {kind.__name__ for kind in found} == {ALL[name]["adapter"] for name in FLOWS}
    assert {ALL[name]["venue"] for name in FLOWS} == {kind.name for kind in found}  # type: ignore[attr-defined]


def test_every_solana_adapter_is_driven_by_vectors() -> None:
    # The reader of our registry is driven over a real one, in tests/contracts/test_solana_registry_reader.py.
    found = find_adapters(adapters.solana) - {solana_registry.Registry}
    driven = (VECTORS.parents[1] / "test_solana_vectors.py").read_text()
    assert found
    for kind in found:
        assert f"{kind.__name__}(" in driven, f"{kind.__name__} is driven by no Solana vector"


def test_a_registry_says_what_was_drawn() -> None:
    one = ALL["anvil_registry"]
    address, epoch_seconds = one["arguments"]
    reader = evm_registry.Registry("eip155:31337", address, epoch_seconds)
    positions, findings = drive(reader.flow([Subject(*s) for s in one["subjects"]]), recorded("anvil_registry"))
    assert not findings
    assert [[p.account, p.amount, p.drawn.posted, p.drawn.set_id] for p in positions] == one["expected"]
    assert [used for _, used, _, _ in one["expected"]] == [75 * 10**8, 0]  # what was borrowed there, and nobody
    assert {(p.side, p.origin) for p in positions} == {("debt", address)}


# Own recordings on Anvil


@pytest.mark.parametrize("name", FLOWS)
def test_an_adapter_reads_what_the_contracts_said(name: str) -> None:
    one = ALL[name]
    assets = {row["id"]: AssetRow(**row) for row in one["assets"]}
    adapter = ADAPTERS[one["adapter"]]("eip155:31337", *_arguments(one, assets))
    positions, findings = drive(adapter.flow([Subject(*s) for s in one["subjects"]]), recorded(name))
    found = json.loads(json.dumps([{key: getattr(p, key) for key in one["expected"][0]} for p in positions]))
    assert sorted(found, key=str) == sorted(one["expected"], key=str)
    assert all(f.code == "venue-health" for f in findings)
    assert {p.account for p in positions} == {one["subjects"][0][0]}
    assert {p.venue for p in positions} == {one["venue"]}
    assert {p.origin for p in positions} == {"" if one["adapter"] == "Wallet" else one["arguments"][0].lower()}


def _arguments(one: dict[str, Any], assets: dict[str, AssetRow]) -> list[Any]:
    # Wallets take what they read before the address of Multicall3, venues after their own addresses.
    return [assets, *one["arguments"]] if one["adapter"] == "Wallet" else [*one["arguments"], assets]


@pytest.mark.parametrize("name", FLOWS)
def test_no_answer_cut_short_or_absent_is_read_as_a_number(name: str) -> None:
    """Drop or cut each recorded answer in turn: what changes is a finding or an error, never a quiet zero."""
    one = ALL[name]
    assets = {row["id"]: AssetRow(**row) for row in one["assets"]}
    subjects = [Subject(*s) for s in one["subjects"]]
    good = recorded(name)

    def read(answers: dict[Call, bytes | None]) -> Any:
        adapter = ADAPTERS[one["adapter"]]("eip155:31337", *_arguments(one, assets))
        return drive(adapter.flow(subjects), answers)

    positions, findings = read(good)
    health = "bf92857c"  # getUserAccountData: told, not valued
    for call, returned in good.items():
        if call[1].startswith(health):
            continue
        for worse in (None, (returned or b"")[:31], b"\x01"):
            try:
                changed, told = read({**good, call: worse})
            except Garbage:
                continue
            assert len(told) > len(findings), call
            assert set(changed) <= set(positions), call


def test_an_unreadable_debt_names_its_account() -> None:
    """Debts to consumers are recourse: a missing one is told apart from a missing holding, which merely counts 0."""
    one, good = ALL["anvil_lender"], recorded("anvil_lender")
    assets = {row["id"]: AssetRow(**row) for row in one["assets"]}
    lost = next(call for call, returned in good.items() if returned and int.from_bytes(returned, "big") == 75_000_000)
    flow = Lender("eip155:31337", one["arguments"][0], assets).flow([Subject(*s) for s in one["subjects"]])
    positions, (finding,) = drive(flow, {**good, lost: None})
    assert positions == ()
    assert (finding.code, finding.scope) == (DEBT_UNREADABLE, one["subjects"][0][0])


USDC_RESERVE, WETH_RESERVE = "0x" + "c0" * 20, "0x" + "ee" * 20


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("worse", [None, word(7)])
def test_an_aave_position_is_read_whole_or_not_at_all(lost: int, worse: bytes | None) -> None:
    """With one reserve of an address unread neither its supply nor its debt counts; other addresses are unchanged."""
    rows = [make_asset("eip155:1", reserve) for reserve in (USDC_RESERVE, WETH_RESERVE)]
    subjects = [Subject(ACCOUNT, "0x" + "11" * 20), Subject("0x" + "cd" * 32, "0x" + "22" * 20)]
    flow = AaveV3("eip155:1", "0x" + "AA" * 20, "0x" + "dd" * 20, {row.id: row for row in rows}).flow(subjects)
    next(flow)
    flow.send([encode(["address[]"], [[USDC_RESERVE, WETH_RESERVE]])])
    supply, owed = word(100) + bytes(8 * 32), word(0) * 2 + word(50) + bytes(6 * 32)
    answers = [supply, supply, owed, owed, None, None]  # per reserve and subject, then the pool's own health
    answers[2 * lost] = worse
    with pytest.raises(StopIteration) as stopped:
        flow.send(answers)
    positions, (finding,) = stopped.value.value
    assert [(p.account, p.side, p.amount) for p in positions] == [
        (subjects[1].account, "asset", 100),
        (subjects[1].account, "debt", 50),
    ]
    assert (finding.code, finding.scope) == ("unreadable", ACCOUNT)
    assert (USDC_RESERVE, WETH_RESERVE)[lost] in finding.detail


def test_one_address_in_two_aave_markets_has_two_netting_sets() -> None:
    row = make_asset("eip155:1", USDC_RESERVE)
    sets = set()
    for pool in ("0x" + "a1" * 20, "0x" + "a2" * 20):
        flow = AaveV3("eip155:1", pool, "0x" + "dd" * 20, {row.id: row}).flow([Subject(ACCOUNT, "0x" + "11" * 20)])
        next(flow)
        flow.send([encode(["address[]"], [[USDC_RESERVE]])])
        with pytest.raises(StopIteration) as stopped:
            flow.send([word(1) + bytes(8 * 32), None])
        ((position,), _) = stopped.value.value
        assert position.origin == pool
        sets.add(position.netting)
    assert len(sets) == 2


def test_feeds_quote_what_the_contracts_said_and_one_without_code_is_absent() -> None:
    one = ALL["anvil_chainlink"]
    rows = [SourceRow(**row) for row in one["sources"]]
    quotes = drive(quotes_flow(rows), recorded("anvil_chainlink"))
    assert [[q.feed, q.source, q.price, q.expo, q.publish_time] for q in quotes] == one["expected"]
    assert len(rows) == len(quotes) + 1
    assert all(q.conf == q.price // 1000 for q in quotes)


@pytest.mark.parametrize("answer", [0, -1, -(2**255), 2**127, 2**255 - 1])
def test_an_answer_that_is_no_price_is_absent(answer: int) -> None:
    row = SourceRow(name="x", feed="X/USD", kind="chainlink", id="eip155:1:0x" + "12" * 20)
    flow = quotes_flow([row])
    assert len(next(flow)) == 2
    round_data = encode(["uint80", "int256", "uint256", "uint256", "uint80"], [1, answer, 5, 5, 1])
    with pytest.raises(StopIteration) as stopped:
        flow.send([round_data, word(8)])
    assert stopped.value.value == ()


# Public recordings


@pytest.mark.parametrize("name", BALANCES)
def test_recorded_balances_are_read(name: str) -> None:
    one, (call, returned) = ALL[name], public(name)
    chain = f"eip155:{CHAINS[one['network']]}"
    asset = make_asset(chain, one["address"])
    holder = one["expected"].get("account", "0x" + call[1][-40:])
    flow = Wallet(chain, {asset.id: asset}, MULTICALL).flow([Subject(ACCOUNT, Web3.to_checksum_address(holder))])
    lower = {(target, data.lower()): value for (target, data), value in {call: returned}.items()}
    calls = next(flow)
    assert [(target, data.lower()) for target, data in calls] == list(lower)
    with pytest.raises(StopIteration) as stopped:
        flow.send([returned])
    positions, findings = stopped.value.value
    balance = int(one["expected"]["balance"])
    assert [p.amount for p in positions] == ([balance] if balance else [])
    assert not findings


def test_recorded_shares_are_converted_and_capped() -> None:
    one, (call, returned) = ALL["erc4626_07a2d13a_ethereum_1"], public("erc4626_07a2d13a_ethereum_1")
    underlying = make_asset("eip155:1", "0x" + "12" * 20, 6)
    for cap, expected in ((2.0, int(one["expected"]["value"])), (1.01, 1_010_000)):
        row = make_asset("eip155:1", one["address"], 18, kind="erc4626", underlying=underlying.id, rate_cap=cap)
        flow = convert([(row, 10**18), (underlying, 7)], {row.id: row, underlying.id: underlying})
        assert drive(flow, {call: returned}) == [(underlying.id, expected), (underlying.id, 7)]
        flow = convert([(row, 10**18)], {row.id: row, underlying.id: underlying})
        assert drive(flow, {call: None}) == [(underlying.id, None)]


def test_a_recorded_aave_position_has_the_recorded_collateral_ratio() -> None:
    expected = ALL["aave_v3_position_pinned_17645934"]["expected"]
    supply, debt = expected["collateral"], expected["debt"]
    rows = [make_asset("eip155:1", supply["token"].lower()), make_asset("eip155:1", debt["token"].lower(), 8)]
    amounts = [int(Decimal(leg["amount"]) * 10**row.decimals) for leg, row in zip((supply, debt), rows, strict=True)]
    flow = AaveV3("eip155:1", "0x" + "aa" * 20, "0x" + "dd" * 20, {row.id: row for row in rows}).flow(
        [Subject(ACCOUNT, expected["wallet"])]
    )
    assert len(next(flow)) == 1
    assert len(flow.send([encode(["address[]"], [[supply["token"], debt["token"]]])])) == 3
    with pytest.raises(StopIteration) as stopped:
        flow.send([word(amounts[0]) + bytes(8 * 32), word(0) * 2 + word(amounts[1]) + bytes(6 * 32), None])
    (held, owed), findings = stopped.value.value
    assert (held.side, held.amount, owed.side, owed.amount) == ("asset", amounts[0], "debt", amounts[1])
    assert held.netting == owed.netting != ""
    value = Decimal(held.amount) / 10**18 * Decimal(supply["price_usd"])
    debt_value = Decimal(owed.amount) / 10**8 * Decimal(debt["price_usd"])
    assert float(value / debt_value * 100) == pytest.approx(float(expected["collateral_ratio_pct"]), rel=1e-9)
    assert findings == ()


def test_the_recorded_health_of_an_aave_account_is_told_not_derived() -> None:
    one, (call, returned) = ALL["aave_v3_account_ahab_ethereum"], public("aave_v3_account_ahab_ethereum")
    flow = AaveV3("eip155:1", one["address"], "0x" + "dd" * 20, {}).flow([Subject(ACCOUNT, "0x" + call[1][-40:])])
    next(flow)
    assert flow.send([encode(["address[]"], [[]])]) == [call]
    with pytest.raises(StopIteration) as stopped:
        flow.send([returned])
    positions, (finding,) = stopped.value.value
    assert positions == ()
    assert f"{int(one['expected']['health_factor']) / 1e18:.4f}" in finding.detail


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith(("aave_reserveTokens", "erc4626_asset"))])
def test_recorded_addresses_are_decoded(name: str) -> None:
    expected = ALL[name]["expected"]
    fields = ("asset",) if len(expected) == 1 else ("a_token", "stable_debt", "variable_debt")
    assert [decode_address(public(name)[1], i) for i in range(len(fields))] == [expected[f] for f in fields]
    assert decode_address(public(name)[1], len(fields)) is None


# Multicall3


@pytest.mark.parametrize("name", TRIED)
def test_recorded_multicall_results_are_unpacked(name: str) -> None:
    """``tryAggregate`` returns the same type as ``aggregate3``."""
    expected = ALL[name]["expected"]["results"]
    answers = unpack_multicall(ALL[name]["data"], len(expected))
    assert [a and a.hex() for a in answers] == [r["return_data"][2:] if r["success"] else None for r in expected]
    for count in (len(expected) - 1, len(expected) + 1):
        with pytest.raises(ValueError, match="results"):
            unpack_multicall(ALL[name]["data"], count)


@pytest.mark.parametrize("name", AGGREGATED)
def test_recorded_returns_of_another_multicall_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="results"):
        unpack_multicall(ALL[name]["data"], ALL[name]["expected"]["n"])


@pytest.mark.parametrize("name", [*TRIED, *AGGREGATED])
def test_recorded_calls_are_packed_as_eth_abi_packs_them(name: str) -> None:
    calls = [(r["target"], bytes.fromhex(r["call"][2:])) for r in ALL[name]["expected"]["results"]]
    assert pack_multicall([(t[2:], d.hex()) for t, d in calls]) == encode_calls(calls)


def encode_calls(calls: list[tuple[str, bytes]]) -> str:
    selector = Web3.keccak(text="aggregate3((address,bool,bytes)[])")[:4]
    return "0x" + (selector + encode(["(address,bool,bytes)[]"], [[(t, True, d) for t, d in calls]])).hex()


some_bytes = st.binary(max_size=100)
targets = st.sampled_from([b"\x11" * 20, bytes(20), b"\xff" * 20]) | st.binary(min_size=20, max_size=20)


@given(st.lists(st.tuples(targets, some_bytes), max_size=8))
def test_any_calls_are_packed_as_eth_abi_packs_them(calls: list[tuple[bytes, bytes]]) -> None:
    packed = pack_multicall([(target.hex(), data.hex()) for target, data in calls])
    assert packed == encode_calls([(f"0x{target.hex()}", data) for target, data in calls])


returns = st.sampled_from([b"", bytes(32), b"\x00" * 31 + b"\x07"]) | some_bytes
results_lists = st.lists(st.tuples(st.booleans(), returns), max_size=8)


@given(results_lists)
def test_any_encoded_results_are_unpacked(results: list[tuple[bool, bytes]]) -> None:
    encoded = "0x" + encode(["(bool,bytes)[]"], [results]).hex()
    assert unpack_multicall(encoded, len(results)) == [data or None if good else None for good, data in results]


@given(results_lists, st.data())
def test_a_changed_encoding_is_refused_unless_it_encodes_other_results(
    results: list[tuple[bool, bytes]], data: st.DataObject
) -> None:
    """Cut, stretch or overwrite an encoding: it is accepted only if it is again the one encoding of what it says."""
    good = encode(["(bool,bytes)[]"], [results])
    at = data.draw(st.integers(0, len(good)))
    patch = data.draw(st.binary(max_size=40))
    removed = data.draw(st.integers(0, 40))
    changed = good[:at] + patch + good[at + removed :]
    verify_accepts_only_encodings(changed, len(results))


@given(st.binary(max_size=600), st.integers(0, 6))
def test_garbage_is_a_value_error(data: bytes, count: int) -> None:
    verify_accepts_only_encodings(data, count)
    verify_accepts_only_encodings(word(32) + word(count) + data, count)


def verify_accepts_only_encodings(data: bytes, count: int) -> None:
    try:
        answers = unpack_multicall("0x" + data.hex(), count)
    except ValueError:
        try:
            (results,) = decode(["(bool,bytes)[]"], data)
        except (DecodingError, OverflowError):
            return
        assert len(results) != count or encode(["(bool,bytes)[]"], [results]) != data
        return
    (results,) = decode(["(bool,bytes)[]"], data)
    assert encode(["(bool,bytes)[]"], [results]) == data
    assert answers == [given or None if good else None for good, given in results]


@pytest.mark.parametrize("results", [[(True, bytes(32))] * 3, [(True, b"x"), (False, b"xyz"), (True, bytes(32))]])
def test_any_flipped_bit_of_the_layout_is_refused(results: list[tuple[bool, bytes]]) -> None:
    good = encode(["(bool,bytes)[]"], [results])
    changed = []
    for at in range(len(good)):
        worse = bytearray(good)
        worse[at] ^= 1
        verify_accepts_only_encodings(bytes(worse), len(results))
        try:
            unpack_multicall("0x" + worse.hex(), len(results))
        except ValueError:
            continue
        changed.append(at)
    # Only the data itself and the three success flags can say something else.
    assert len(changed) == sum(len(data) for _, data in results) + len(results)


def test_a_vault_that_owes_more_than_it_holds_is_unreadable() -> None:
    asset = make_asset("eip155:1", "0x" + "12" * 20)
    flow = Vault("eip155:1", "0x" + "aa" * 20, {asset.id: asset}).flow([Subject(ACCOUNT, None)])
    next(flow)
    with pytest.raises(StopIteration) as stopped:
        flow.send([word(60), word(5) + word(6)])
    positions, (finding,) = stopped.value.value
    assert positions == ()
    assert (finding.code, finding.scope) == ("unreadable", ACCOUNT)


def test_stable_and_variable_debt_at_aave_are_both_owed() -> None:
    asset = make_asset("eip155:1", "0x" + "12" * 20)
    flow = AaveV3("eip155:1", "0x" + "aa" * 20, "0x" + "dd" * 20, {asset.id: asset}).flow([Subject(ACCOUNT, "0x11")])
    next(flow)
    flow.send([encode(["address[]"], [["0x" + "12" * 20]])])
    with pytest.raises(StopIteration) as stopped:
        flow.send([word(0) + word(30) + word(4) + bytes(6 * 32), None])
    ((debt,), _) = stopped.value.value
    assert (debt.side, debt.amount) == ("debt", 34)


@given(st.none() | st.integers() | st.floats() | st.text() | st.lists(st.text()) | st.binary())
def test_what_is_not_hex_text_is_a_value_error(returned: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack_multicall(returned, 1)


@given(st.none() | st.binary(max_size=300), st.integers(0, 10))
def test_words_are_read_or_absent(answer: bytes | None, index: int) -> None:
    value = decode_uint(answer, index)
    if answer is None or len(answer) < 32 * (index + 1):
        assert value is None
    else:
        assert value == int.from_bytes(answer[32 * index : 32 * index + 32], "big")
        address = decode_address(answer, index)
        assert address == (None if value >> 160 else f"0x{value:040x}")


@given(st.lists(st.binary(min_size=20, max_size=20), max_size=6), st.binary(max_size=40))
def test_address_lists_are_read_whole_or_not_at_all(addresses: list[bytes], more: bytes) -> None:
    listed = tuple("0x" + a.hex() for a in addresses)
    encoded = encode(["address[]"], [listed])
    assert decode_address_list(encoded) == listed
    assert decode_address_list(encoded + more) == (None if more else listed)
    assert decode_address_list(encoded[:-1]) is None
    assert decode_address_list(None) is None
