"""A program-derived address as a member, on the local SVM through the reader: only what is finalized counts."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from adapters.members import MEMBER_UNVERIFIED
from adapters.rpc import SolanaEndpoint
from adapters.solana.members import Members
from adapters.solana.native import NativeWallet
from adapters.solana.programs import build_link_accept, build_link_revoke, link_address
from adapters.solana.reader import SolanaReader
from aggregator.domain.certificate import LinkRecord
from aggregator.domain.rows import AssetRow, ChainRow, LatencyLeg
from aggregator.domain.snapshot import Subject
from aggregator.service.seals import seal_of
from infra.devnet.svm import SvmServer
from infra.devnet.svm_deploy import PROGRAMS, SolanaUser, program_id
from proofs.hashing import keccak256

pytestmark = pytest.mark.chain
PUPPET = Path(__file__).parents[1] / "contracts" / "programs" / "puppet.so"
DEPLOYMENT, ACCOUNT = keccak256(b"a deployment"), keccak256(b"an account")
CONTROLLER = "eip155:31337:0x" + "ab" * 20
EXPIRY, DEPTH = 2**40, 12


@pytest.fixture
def svm() -> Iterator[SvmServer]:
    with SvmServer(slot_ms=50, finalized_depth=DEPTH) as server:
        yield server


@pytest.fixture
async def payer(svm: SvmServer) -> AsyncIterator[SolanaUser]:
    async with SolanaUser(svm.url, Keypair()) as user:
        await user.airdrop(10**10)
        yield user


async def test_a_pdas_assets_count_while_its_finalized_record_says_so(svm: SvmServer, payer: SolanaUser) -> None:
    links, puppeteer = program_id("links"), program_id("puppet")
    for program, path in ((links, PROGRAMS / "links.so"), (puppeteer, PUPPET)):
        svm.call("x_addProgram", str(program), base64.b64encode(path.read_bytes()).decode())
    member, bump = Pubkey.find_program_address([b"puppet"], puppeteer)
    await payer.client.request_airdrop(member, 10**9)

    async def puppet_does(call: Instruction) -> None:
        metas = [AccountMeta(m.pubkey, m.is_signer and m.pubkey != member, m.is_writable) for m in call.accounts]
        called = AccountMeta(links, is_signer=False, is_writable=False)
        await payer.send([Instruction(puppeteer, bytes([bump]) + bytes(call.data), [called, *metas])])

    chain = f"solana:{svm.genesis[:32]}"
    row = ChainRow(
        id=chain,
        name="sol",
        family="solana",
        rpc=(SecretStr(svm.url),),
        genesis=svm.genesis,
        block_seconds=0.05,
        max_age=60,
        hold=(LatencyLeg(typical=1),),
        requests_per_second=1_000,
    )
    native = AssetRow(id=f"{chain}/slip44:501", symbol="SOL", kind="native", decimals=9, feed="SOL/USD", policy="x")
    wallet = NativeWallet(chain, {native.id: native})
    reader = SolanaReader(row, SolanaEndpoint(row, row.rpc[0]), [wallet], Members(str(links)))
    without = SolanaReader(row, SolanaEndpoint(row, row.rpc[0]), [wallet])
    record = link_address(links, DEPLOYMENT, member, ACCOUNT)
    signed = LinkRecord(1, f"0x{ACCOUNT.hex()}", CONTROLLER, f"{chain}:{member}", 1, EXPIRY, "0xaa", f"pda:{record}", 0)
    subject = Subject(signed.account, str(member), seal_of(DEPLOYMENT, signed))

    async def read(through: SolanaReader) -> tuple[int, list[str]]:
        reading = await through.read(await through.pin(2**40), [subject])
        return len(reading.positions), [f.code for f in reading.findings]

    svm.call("x_advance", DEPTH)
    assert await read(reader) == (0, [MEMBER_UNVERIFIED])
    controller = keccak256(CONTROLLER.encode())
    await puppet_does(build_link_accept(links, payer.address, member, DEPLOYMENT, ACCOUNT, controller, 1, EXPIRY))
    svm.call("x_advance", DEPTH)
    assert await read(reader) == (1, [])
    assert await read(without) == (0, [MEMBER_UNVERIFIED]), "no links program is configured"
    await puppet_does(build_link_revoke(links, member, record, 2, EXPIRY))
    svm.call("x_advance", DEPTH)
    assert await read(reader) == (0, [MEMBER_UNVERIFIED])
    for one in (reader, without):
        await one.close()
