"""The local Solana chain as solana-py's unmodified AsyncClient sees it: over real sockets, on the real SVM."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Confirmed, Finalized, Processed
from solana.rpc.core import RPCException, TransactionExpiredBlockheightExceededError
from solana.rpc.models import MemcmpOpts, TokenAccountOpts, TxOpts
from solana.rpc.websocket_api import SolanaWsClient
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.litesvm import LiteSVM
from solders.message import Message, MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction
from solders.transaction_status import TransactionConfirmationStatus

from infra.devnet.svm import SvmServer, SvmServerError
from infra.devnet.svm.chain import HISTORY, ChainError, Settings, SvmChain
from infra.devnet.svm_deploy import SolanaUser

pytestmark = pytest.mark.chain

SOL = 10**9
DEPTH = 12
MEMO = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")


@pytest.fixture
def server() -> Iterator[SvmServer]:
    """A chain whose slots move only when told to."""
    with SvmServer(slot_ms=0, finalized_depth=DEPTH) as running:
        yield running


@pytest.fixture
async def client(server: SvmServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url) as one:
        yield one


@pytest.fixture
async def payer(server: SvmServer, client: AsyncClient) -> Keypair:
    """A key whose 10 SOL are final."""
    key = Keypair()
    await client.request_airdrop(key.pubkey(), 10 * SOL)
    server.call("x_advance", DEPTH)
    return key


async def latest(client: AsyncClient) -> Hash:
    return (await client.get_latest_blockhash(Processed)).value.blockhash


async def make_transfer(client: AsyncClient, payer: Keypair, to: Pubkey, lamports: int = SOL) -> VersionedTransaction:
    pay = transfer(TransferParams(from_pubkey=payer.pubkey(), to_pubkey=to, lamports=lamports))
    return VersionedTransaction(Message.new_with_blockhash([pay], payer.pubkey(), await latest(client)), [payer])


async def balance(client: AsyncClient, key: Pubkey) -> tuple[int, int, int]:
    """Return the balance at processed, confirmed and finalized."""
    found = [(await client.get_balance(key, level)).value for level in (Processed, Confirmed, Finalized)]
    return found[0], found[1], found[2]


def is_valid(server: SvmServer, blockhash: Hash) -> bool:
    answer: bool = server.call("isBlockhashValid", str(blockhash), {"commitment": "processed"})["value"]
    return answer


OPTIONS = TxOpts(preflight_commitment=Processed)


async def test_commitments_follow_one_transaction(server: SvmServer, client: AsyncClient, payer: Keypair) -> None:
    to = Pubkey.new_unique()
    signature = (await client.send_transaction(await make_transfer(client, payer, to), OPTIONS)).value

    async def status() -> TransactionConfirmationStatus:
        found = (await client.get_signature_statuses([signature])).value[0]
        assert found is not None
        assert found.err is None
        level = found.confirmation_status
        assert level is not None
        return level

    assert (await balance(client, to), await status()) == ((SOL, 0, 0), TransactionConfirmationStatus.Processed)
    assert (await client.get_transaction(signature)).value is None
    server.call("x_advance", 1)
    assert (await balance(client, to), await status()) == ((SOL, SOL, 0), TransactionConfirmationStatus.Confirmed)
    server.call("x_advance", DEPTH - 1)
    assert (await balance(client, to), await status()) == ((SOL, SOL, SOL), TransactionConfirmationStatus.Finalized)
    recorded = (await client.get_transaction(signature)).value
    assert recorded is not None
    assert recorded.transaction.meta is not None
    assert recorded.transaction.meta.fee == 5_000


async def test_confirm_transaction_waits_for_real_slots() -> None:
    with SvmServer(slot_ms=40) as running:
        async with SolanaUser(running.url, Keypair()) as user:
            await user.airdrop(10 * SOL)
            to = Pubkey.new_unique()
            pay = transfer(TransferParams(from_pubkey=user.address, to_pubkey=to, lamports=SOL))
            await user.send([pay])
            assert (await user.client.get_balance(to, Confirmed)).value == SOL


async def test_a_blockhash_lives_for_150_blocks(server: SvmServer, client: AsyncClient, payer: Keypair) -> None:
    answer = (await client.get_latest_blockhash(Processed)).value
    height = (await client.get_block_height(Processed)).value
    assert answer.last_valid_block_height == height + 150
    early, late = [await make_transfer(client, payer, Pubkey.new_unique()) for _ in range(2)]
    server.call("x_advance", 150)
    assert is_valid(server, answer.blockhash)
    await client.send_transaction(early, OPTIONS)
    server.call("x_advance", 1)
    assert not is_valid(server, answer.blockhash)
    with pytest.raises(RPCException, match="Blockhash not found"):
        await client.send_transaction(late, OPTIONS)
    # Without preflight a node takes it and it never lands; solana-py finds that out by the height.
    signature = (await client.send_transaction(late, TxOpts(skip_preflight=True))).value
    server.call("x_advance", DEPTH)
    with pytest.raises(TransactionExpiredBlockheightExceededError):
        await client.confirm_transaction(signature, last_valid_block_height=answer.last_valid_block_height)


async def test_a_transaction_lands_once(client: AsyncClient, payer: Keypair) -> None:
    to = Pubkey.new_unique()
    transaction = await make_transfer(client, payer, to)
    await client.send_transaction(transaction, OPTIONS)
    with pytest.raises(RPCException, match="already been processed"):
        await client.send_transaction(transaction, OPTIONS)
    await client.send_transaction(transaction, TxOpts(skip_preflight=True))
    assert (await client.get_balance(to, Processed)).value == SOL


async def test_a_reorg_is_seen_below_finality_only(server: SvmServer, client: AsyncClient, payer: Keypair) -> None:
    to, kept = Pubkey.new_unique(), Pubkey.new_unique()
    await client.send_transaction(await make_transfer(client, payer, kept), OPTIONS)
    server.call("x_advance", 3)
    before = (await client.get_latest_blockhash(Confirmed)).value.blockhash
    transaction = await make_transfer(client, payer, to)
    await client.send_transaction(transaction, OPTIONS)
    signature = transaction.signatures[0]
    server.call("x_advance", 2)
    assert (await balance(client, to))[:2] == (SOL, SOL)
    answer = server.call("x_reorg", 4)
    assert answer["dropped"] == [str(signature)]
    assert await balance(client, to) == (0, 0, 0)
    assert (await balance(client, kept))[:2] == (SOL, SOL)
    assert (await client.get_signature_statuses([signature])).value == [None]
    assert not is_valid(server, before)
    fresh = await make_transfer(client, payer, to)
    await client.send_transaction(fresh, OPTIONS)
    server.call("x_advance", DEPTH)
    assert await balance(client, to) == (SOL, SOL, SOL)
    with pytest.raises(SvmServerError, match="final"):
        server.call("x_reorg", DEPTH + 1)


async def test_blocks_form_a_chain(server: SvmServer, client: AsyncClient) -> None:
    server.call("x_advance", 5, 60)
    tip = (await client.get_slot(Finalized)).value
    server.call("x_advance", DEPTH)
    newest, parent = (await client.get_block(tip)).value, (await client.get_block(tip - 1)).value
    assert newest is not None
    assert parent is not None
    assert (newest.previous_blockhash, newest.parent_slot) == (parent.blockhash, tip - 1)
    assert newest.block_time is not None
    assert (await client.get_block_time(tip)).value == newest.block_time
    genesis = (await client.get_genesis_hash()).value
    assert str(genesis) == server.genesis
    with pytest.raises(RPCException, match="Block not available"):
        await client.get_block(tip + 1_000)


async def test_seconds_given_to_advance_move_the_chains_clock(server: SvmServer, client: AsyncClient) -> None:
    before = (await client.get_block_time((await client.get_slot(Processed)).value)).value
    server.call("x_advance", 1, 1_000)
    after = (await client.get_block_time((await client.get_slot(Processed)).value)).value
    assert before is not None
    assert after is not None
    assert after - before >= 1_000


async def test_a_block_lists_its_transactions(server: SvmServer, client: AsyncClient, payer: Keypair) -> None:
    transaction = await make_transfer(client, payer, Pubkey.new_unique())
    await client.send_transaction(transaction, OPTIONS)
    slot = (await client.get_slot(Processed)).value
    server.call("x_advance", DEPTH)
    block = (await client.get_block(slot)).value
    assert block is not None
    assert block.transactions is not None
    assert len(block.transactions) == 1


async def test_a_packet_holds_1232_bytes(client: AsyncClient, payer: Keypair) -> None:
    def make(size: int, blockhash: Hash) -> VersionedTransaction:
        memo = Instruction(MEMO, b"x" * size, [AccountMeta(payer.pubkey(), True, True)])
        return VersionedTransaction(Message.new_with_blockhash([memo], payer.pubkey(), blockhash), [payer])

    blockhash = await latest(client)
    size = 1_232 - len(bytes(make(1_000, blockhash))) + 1_000
    assert len(bytes(make(size, blockhash))) == 1_232
    await client.send_transaction(make(size, blockhash), OPTIONS)
    with pytest.raises(RPCException, match=r"too large: 1648 bytes \(max: encoded/raw 1644/1232\)"):
        await client.send_transaction(make(size + 4, blockhash), OPTIONS)


def test_min_context_slot_is_honoured(server: SvmServer) -> None:
    final = server.call("x_status")["finalized"]
    body = {"encoding": "base64", "commitment": "finalized", "minContextSlot": final}
    assert server.call("getMultipleAccounts", [str(MEMO)], body)["context"]["slot"] == final
    with pytest.raises(SvmServerError, match=r"context slot .* \(-32016\)"):
        server.call("getMultipleAccounts", [str(MEMO)], {**body, "minContextSlot": final + 1})
    server.call("x_advance", 1)
    server.call("getMultipleAccounts", [str(MEMO)], {**body, "minContextSlot": final + 1})


async def test_a_hundred_accounts_at_most(client: AsyncClient) -> None:
    keys = [Pubkey.new_unique() for _ in range(101)]
    assert (await client.get_multiple_accounts(keys[:100])).value == [None] * 100
    with pytest.raises(RPCException, match="max 100"):
        await client.get_multiple_accounts(keys)


async def test_simulation_replaces_the_blockhash_and_leaves_no_trace(client: AsyncClient, payer: Keypair) -> None:
    to = Pubkey.new_unique()
    pay = transfer(TransferParams(from_pubkey=payer.pubkey(), to_pubkey=to, lamports=SOL))
    message = Message.new_with_blockhash([pay], payer.pubkey(), Hash.default())
    unsigned = VersionedTransaction.populate(message, [Signature.default()])
    stale = (await client.simulate_transaction(unsigned)).value
    assert str(stale.err) == "TransactionErrorFieldless.BlockhashNotFound"
    done = (await client.simulate_transaction(unsigned, replace_recent_blockhash=True, accounts_addresses=[to])).value
    assert done.err is None
    assert done.units_consumed
    assert done.accounts is not None
    assert done.accounts[0] is not None
    assert done.accounts[0].lamports == SOL
    assert (await client.get_balance(to, Processed)).value == 0
    with pytest.raises(RPCException, match="TransactionSignatureVerificationFailure"):
        await client.send_transaction(VersionedTransaction.populate(message, [Signature.default()]), OPTIONS)


async def test_a_failed_instruction_lands_with_its_error(
    server: SvmServer, client: AsyncClient, payer: Keypair
) -> None:
    too_much = await make_transfer(client, payer, Pubkey.new_unique(), 100 * SOL)
    with pytest.raises(RPCException, match="simulation failed"):
        await client.send_transaction(too_much, OPTIONS)
    signature = (await client.send_transaction(too_much, TxOpts(skip_preflight=True))).value
    server.call("x_advance", DEPTH)
    status = (await client.get_signature_statuses([signature])).value[0]
    assert status is not None
    assert status.err is not None
    assert (await client.get_balance(payer.pubkey())).value == 10 * SOL - 5_000


async def test_a_halted_chain_stands_still_and_goes_on(server: SvmServer, client: AsyncClient, payer: Keypair) -> None:
    to = Pubkey.new_unique()
    server.call("x_pause")
    before = server.call("x_status")
    signature = (await client.send_transaction(await make_transfer(client, payer, to), OPTIONS)).value
    assert (await client.get_signature_statuses([signature])).value == [None]
    assert (await client.get_balance(to, Processed)).value == 0
    assert (await client.get_balance(payer.pubkey())).value == 10 * SOL  # reads go on
    assert server.call("x_status") == before
    with pytest.raises(SvmServerError, match="paused"):
        server.call("x_advance", 1)
    server.call("x_resume")
    assert (await client.get_balance(to, Processed)).value == SOL
    assert server.call("x_status")["processed"] == before["processed"] + 1


async def test_a_pause_stops_a_chain_that_runs_by_the_clock() -> None:
    with SvmServer(slot_ms=20) as running:
        at = running.call("x_pause")
        await asyncio.sleep(0.2)
        assert running.call("x_status")["processed"] == at
        running.call("x_resume")
        await asyncio.sleep(0.2)
        assert running.call("x_status")["processed"] > at + 1


async def test_token_accounts_are_found_by_owner(server: SvmServer) -> None:
    async with SolanaUser(server.url, Keypair()) as user:
        await user.client.request_airdrop(user.address, 10 * SOL)
        server.call("x_advance", DEPTH)
        stop = asyncio.create_task(_keep_advancing(server))
        mint = await user.create_mint(6)
        target = await user.mint_to(mint, user.address, 1_234_567)
        wrapped = await user.wrap_sol(SOL)
        stop.cancel()
        owned = await user.client.get_token_accounts_by_owner(user.address, TokenAccountOpts(mint=mint), Confirmed)
        assert [row.pubkey for row in owned.value] == [target]
        amount = (await user.client.get_token_account_balance(target, Confirmed)).value
        assert (amount.amount, amount.decimals, amount.ui_amount_string) == ("1234567", 6, "1.234567")
        assert (await user.client.get_token_account_balance(wrapped, Confirmed)).value.amount == str(SOL)
        assert (await user.client.get_token_supply(mint, Confirmed)).value.amount == "1234567"
        token_program = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
        found = await user.client.get_program_accounts(
            token_program,
            commitment=Confirmed,
            encoding="base64",
            filters=[165, MemcmpOpts(offset=32, bytes=str(user.address))],
        )
        assert {row.pubkey for row in found.value} == {target, wrapped}


async def _keep_advancing(server: SvmServer) -> None:
    while True:
        await asyncio.to_thread(server.call, "x_advance", 1)
        await asyncio.sleep(0.02)


async def test_subscriptions_tell_changes(server: SvmServer, client: AsyncClient, payer: Keypair) -> None:
    to = Pubkey.new_unique()
    transaction = await make_transfer(client, payer, to)
    async with SolanaWsClient(server.ws_url) as socket:
        watched = await socket.account_subscribe(pubkey=to, commitment=Processed, encoding="base64")
        await socket.signature_subscribe(signature=transaction.signatures[0], commitment=Confirmed)
        await client.send_transaction(transaction, OPTIONS)
        changed = await asyncio.wait_for(socket.recv(), 10)
        assert changed.result.value.lamports == SOL
        server.call("x_advance", 1)
        told = await asyncio.wait_for(socket.recv(), 10)
        assert told.result.value.err is None
        await socket.unsubscribe(watched)


async def test_versioned_transactions_need_the_clients_consent(
    server: SvmServer, client: AsyncClient, payer: Keypair
) -> None:
    pay = transfer(TransferParams(from_pubkey=payer.pubkey(), to_pubkey=Pubkey.new_unique(), lamports=SOL))
    message = MessageV0.try_compile(payer.pubkey(), [pay], [], await latest(client))
    signature = (await client.send_transaction(VersionedTransaction(message, [payer]), OPTIONS)).value
    server.call("x_advance", DEPTH)
    with pytest.raises(RPCException, match="not supported by the requesting client"):
        await client.get_transaction(signature)
    assert (await client.get_transaction(signature, max_supported_transaction_version=0)).value is not None


async def test_unknown_methods_and_bad_parameters_have_the_nodes_codes(server: SvmServer) -> None:
    for method, params, words in (
        ("getNothing", [], "Method not found"),
        ("getBalance", ["not base58!"], "Invalid params"),
        ("getBalance", [], "Invalid params"),
        ("getBalance", [str(MEMO), {"commitment": "soon"}], "unknown commitment"),
        ("sendTransaction", ["AAAA", {"encoding": "base64"}], "failed to deserialize"),
        ("sendTransaction", ["!", {"encoding": "base64"}], "invalid base64"),
    ):
        with pytest.raises(SvmServerError, match=words):
            server.call(method, *params)


def test_a_busy_port_names_the_remedy(server: SvmServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(SvmServerError, match=rf"port {port} .* --port"):
        SvmServer(port).start()


def test_the_server_ends_with_its_parent() -> None:
    script = (
        "from infra.devnet.svm import SvmServer; import os; "
        "server = SvmServer(); server.start(); print(server.pid, flush=True); os._exit(1)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while _is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} outlived its parent"
        time.sleep(0.05)


def test_the_server_outlives_the_thread_that_started_it() -> None:
    server = SvmServer(slot_ms=0)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    time.sleep(0.2)
    try:
        assert server.call("getHealth") == "ok"
    finally:
        server.stop()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


# ---- the chain itself, without a server ----


def make_chain() -> SvmChain:
    return SvmChain(Settings(slot_ms=0, finalized_depth=DEPTH), clock=lambda: 1_800_000_000.0)


def test_memory_is_bounded() -> None:
    chain = make_chain()
    for _ in range(40):
        chain.airdrop(Pubkey.new_unique(), SOL)
        chain.advance(100)
    assert len(chain.blocks) <= HISTORY + 1
    assert len(chain.landed) <= HISTORY // 100 + 1
    chain.advance(DEPTH)
    assert chain._versions == {}


def test_a_chain_left_alone_for_hours_catches_up_at_once() -> None:
    now = [1_800_000_000.0]
    chain = SvmChain(Settings(slot_ms=200, finalized_depth=DEPTH), clock=lambda: now[0])
    first = chain.tick()
    now[0] += 6 * 3_600
    assert chain.tick() == first + 6 * 3_600 * 5
    assert len(chain.blocks) <= HISTORY + 1
    newest = chain.blocks[chain.slot_at("processed")]
    assert abs(newest.time - now[0]) <= 1
    assert chain.svm.get_clock().unix_timestamp == newest.time


def test_reorg_restores_every_version() -> None:
    chain = make_chain()
    key = Pubkey.new_unique()
    for amount in (1, 2, 3):
        chain.airdrop(key, amount * SOL)
        chain.advance(1)
    final = chain.slot_at("finalized")
    chain.reorg(2)  # drops the third airdrop; the second was one slot earlier
    account = chain.account(key, chain.slot_at("processed"))
    assert account is not None
    assert account.lamports == 3 * SOL
    assert chain.slot_at("finalized") == final
    with pytest.raises(ChainError):
        chain.reorg(0)


def test_the_svm_underneath_is_the_real_one() -> None:
    assert isinstance(make_chain().svm, LiteSVM)
