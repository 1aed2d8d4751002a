"""The Solana reader on the local SVM: finalized is irreversible, ancestry is told by its ends, changes by nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from adapters.rpc import SolanaEndpoint
from adapters.solana.native import NativeWallet
from adapters.solana.reader import SolanaReader
from aggregator.domain.errors import Garbage, Unavailable
from aggregator.domain.rows import AssetRow, ChainRow, LatencyLeg
from infra.devnet.providers.proxy import FaultProxy
from infra.devnet.svm import SvmServer

pytestmark = pytest.mark.chain
FAR = 2**40  # a cut time after everything
CONFIRMED_DEPTH, FINALIZED_DEPTH = 2, 9


@pytest.fixture(scope="module")
def svm() -> Iterator[SvmServer]:
    with SvmServer(slot_ms=3_600_000, confirmed_depth=CONFIRMED_DEPTH, finalized_depth=FINALIZED_DEPTH) as server:
        yield server  # its slots come by hand


@pytest.fixture
async def reader(svm: SvmServer) -> AsyncIterator[SolanaReader]:
    row = ChainRow(
        id=f"solana:{svm.genesis[:32]}",
        name="sol",
        family="solana",
        rpc=(SecretStr(svm.url),),
        genesis=svm.genesis,
        block_seconds=0.5,
        max_age=60,
        hold=(LatencyLeg(typical=1),),
        requests_per_second=1_000,
    )
    made = SolanaReader(row, SolanaEndpoint(row, row.rpc[0]), [])
    svm.call("x_advance", 20)
    yield made
    await made.close()


async def test_what_is_pinned_is_irreversible_too(svm: SvmServer, reader: SolanaReader) -> None:
    slot = svm.call("getSlot", {"commitment": "finalized"})
    assert reader.finality_lag is None
    block = await reader.pin(FAR)
    assert block.height == slot
    assert await reader.irreversible() == block == await reader.block_at(slot)
    assert reader.finality_lag == (FINALIZED_DEPTH - CONFIRMED_DEPTH) * 0.5
    svm.call("x_advance", 3)
    assert (await reader.irreversible()).height == slot + 3


async def test_ancestry_is_told_by_its_ends(reader: SolanaReader) -> None:
    last = (await reader.irreversible()).height
    one, other = await reader.headers(last - 7, last)
    assert (one, other) == (await reader.block_at(last - 7), await reader.block_at(last))
    assert await reader.headers(last, last) == (other,)
    before, after = await reader.headers(last - 1, last)
    assert after.parent == before.hash
    with pytest.raises(ValueError, match="no range of slots"):
        await reader.headers(last, last - 1)


async def test_a_slot_that_is_not_finalized_is_no_end(reader: SolanaReader) -> None:
    last = (await reader.irreversible()).height
    with pytest.raises(Unavailable, match=f"no finalized block in slot {last + 1}"):
        await reader.headers(last, last + 1)


async def test_a_reorg_of_what_was_only_confirmed_replaces_nothing_that_was_read(
    svm: SvmServer, reader: SolanaReader
) -> None:
    block = await reader.pin(FAR)
    before = await reader.headers(block.height - 5, block.height)
    svm.call("x_reorg", FINALIZED_DEPTH - 1)
    svm.call("x_advance", 20)
    assert await reader.headers(block.height - 5, block.height) == before
    assert (await reader.pin(FAR)).height > block.height


async def test_no_log_tells_what_changed(reader: SolanaReader) -> None:
    last = (await reader.irreversible()).height
    assert await reader.changes(last - 1, last) is None


async def test_the_check_says_by_which_rule_it_reads(reader: SolanaReader) -> None:
    findings = {f.scope: (f.code, f.detail) for f in await reader.check()}
    assert findings["sol finality"] == ("ok", "finalized by its validators")


async def test_the_check_reads_a_wallet_that_is_none_of_a_programs(svm: SvmServer, reader: SolanaReader) -> None:
    sol = AssetRow(
        id=f"{reader.row.id}/slip44:501", symbol="SOL", decimals=9, kind="native", feed="SOL/USD", policy="alt"
    )
    probing = SolanaReader(
        reader.row, SolanaEndpoint(reader.row, reader.row.rpc[0]), [NativeWallet(reader.row.id, {sol.id: sol})]
    )
    try:
        assert [(f.code, f.detail) for f in await probing.check() if f.scope == "sol wallet"] == [("ok", "readable")]
    finally:
        await probing.close()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"jsonrpc":"2.0","id":ID,"result":"GENESIS"}', None),
        ('{"jsonrpc":"2.0","id":2,"result":"GENESIS"}', "answers another request"),
        ('{"jsonrpc":"2.0","id":"1","result":"GENESIS"}', "answers another request"),
        ('{"jsonrpc":"2.0","id":true,"result":"GENESIS"}', "answers another request"),
        ('{"jsonrpc":"2.0","result":"GENESIS"}', "answers another request"),
        (
            '{"jsonrpc":"2.0","id":ID,"result":"GENESIS","error":{"code":1,"message":"no"}}',
            "both a result and an error",
        ),
        ('{"jsonrpc":"2.0","id":ID,"result":"x","result":"GENESIS"}', "cannot be decoded"),
        ('{"jsonrpc":"2.0","id":ID,"result":NaN}', "cannot be decoded"),
        ('{"jsonrpc":"2.0","id":ID,"result":' + "[" * 100_000, "cannot be decoded"),
    ],
)
async def test_only_the_answer_to_the_request_is_taken(
    svm: SvmServer, reader: SolanaReader, body: str, says: str | None
) -> None:
    async with FaultProxy(svm.url) as proxy:
        endpoint = SolanaEndpoint(reader.row, SecretStr(proxy.url))
        proxy.garbage = (
            body.replace("ID", "1").replace("GENESIS", svm.genesis).encode()
        )  # its first request is number 1
        await proxy.turn("garbage")
        try:
            if says is None:
                assert await endpoint.call("getGenesisHash", []) == svm.genesis
            else:
                with pytest.raises(Garbage, match=f"^sol: the answer to getGenesisHash .*{says}"):
                    await endpoint.call("getGenesisHash", [])
        finally:
            await endpoint.close()
