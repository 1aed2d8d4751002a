"""Contract wallets on a real Anvil: asked when they are linked and at every reading after (EIP-1271)."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account as Wallet
from eth_account.messages import encode_typed_data
from web3 import Web3
from web3.contract import Contract

from adapters.evm.abi import Flow, decode_uint, word_of_address
from adapters.evm.members import IS_VALID_SIGNATURE
from adapters.evm.reader import Endpoint, EvmReader
from adapters.evm.wallet import BALANCE_OF
from adapters.evm.wallet import Wallet as WalletAdapter
from adapters.members import MEMBER_UNVERIFIED
from adapters.rpc import EvmEndpoint
from aggregator.bootstrap import chain_witness
from aggregator.config import parse_settings
from aggregator.domain.certificate import LinkRecord
from aggregator.domain.errors import InputError, SourceError, Unavailable, Unreachable
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Account, Position, Reading, Subject
from aggregator.service.accounts import AccountBook
from aggregator.service.seals import seal_of
from aggregator.store import SqlStore
from infra.devnet.anvil import Anvil, connect, deploy_code, transact
from infra.devnet.evm_deploy import deploy_multicall3, deploy_token
from proofs.hashing import keccak256
from tests.chain.evm_venues import CHAIN, chain_row, genesis_of, make_reader
from tests.worlds.documents import make_document

pytestmark = pytest.mark.chain
DEPLOYMENT_ID, SALT = b"\x09" * 32, "0x" + "07" * 32
OWNER, HEIR = (Wallet.from_key(keccak256(name)) for name in (b"owner", b"heir"))
CONTROLLER = Wallet.from_key(keccak256(b"controller"))
HELD, OWED = 41, 7


class Borrowings:
    """Reads a token as what addresses owe: a venue with debts of a linked address, in the least code."""

    name, keyed_by = "borrowings", "address"

    def __init__(self, asset: AssetRow) -> None:
        self.asset, self.target = asset.id, asset.id.rpartition(":")[2].removeprefix("0x")

    @property
    def watched(self) -> frozenset[str]:
        return frozenset()

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        answers = yield [(self.target, BALANCE_OF + word_of_address(s.address or "")) for s in subjects]
        owed = [(s, decode_uint(answer) or 0) for s, answer in zip(subjects, answers, strict=True)]
        return tuple(
            Position(s.account, CHAIN, self.name, self.asset, n, self.asset, n, side="debt", address=s.address or "")
            for s, n in owed
            if n
        ), ()


@dataclass
class Scene:
    """A wallet contract that holds one token and owes another."""

    w3: Web3
    wallet: Contract
    held: AssetRow
    owed: AssetRow

    @property
    def address(self) -> str:
        return str(self.wallet.address).lower()

    def adapters(self) -> list[Any]:
        return [
            WalletAdapter(CHAIN, {self.held.id: self.held}, chain_row("http://unused").multicall),
            Borrowings(self.owed),
        ]


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        yield chain


@pytest.fixture(scope="module")
def scene(anvil: Anvil) -> Scene:
    w3 = connect(anvil.url)
    deploy_multicall3(w3)
    source = Path(__file__).parents[1] / "contracts" / "vyper" / "ContractWallet.vy"
    compiled = importlib.import_module("vyper").compile_code(source.read_text(), output_formats=["abi", "bytecode"])
    wallet = deploy_code(w3, compiled["abi"], compiled["bytecode"], w3.eth.accounts[3])
    rows = []
    for symbol, amount in (("USDC", HELD), ("DEBT", OWED)):
        token = deploy_token(w3, symbol, symbol, 6)
        transact(w3, token.functions.mint(wallet.address, amount))
        id = f"{CHAIN}/erc20:{str(token.address).lower()}"
        rows.append(AssetRow(id=id, symbol=symbol, kind="erc20", decimals=6, feed="USDC/USD", policy="x"))
    transact(w3, wallet.functions.hand_over(OWNER.address), w3.eth.accounts[3])
    return Scene(w3, wallet, *rows)


@pytest.fixture(autouse=True)
def isolated(anvil: Anvil, scene: Scene) -> Iterator[None]:
    snapshot = anvil.rpc("evm_snapshot")
    yield
    anvil.rpc("evm_revert", snapshot)


@pytest.fixture
async def reader(anvil: Anvil, scene: Scene) -> AsyncIterator[EvmReader]:
    made = make_reader(anvil, scene.adapters())
    yield made
    await made.close()


class StandingClock:
    def now(self) -> float:
        return 1_800_000_000.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError


@dataclass
class Service:
    """The books, and a witness that asks the chain through its reader."""

    book: AccountBook
    store: SqlStore
    account: Account
    reader: EvmReader

    async def sign(self, member: str, verb: str, key: Any, by: str = "member") -> str:
        message = await self.book.message(self.account.id, member, verb, by)
        signed = key.sign_message(encode_typed_data(full_message=message.typed))
        return "0x" + bytes(signed.signature).hex()

    async def link(self, member: str, accept: str) -> LinkRecord:
        message = await self.book.message(self.account.id, member, "invite", "")
        invite = await self.sign(member, "invite", CONTROLLER)
        return await self.book.add_link(
            self.account.id, self.account.controller, member, message.nonce, message.expiry, invite, accept
        )

    async def read(self, *records: LinkRecord) -> Reading:
        subjects = [Subject(r.account, r.member.rpartition(":")[2], seal_of(DEPLOYMENT_ID, r)) for r in records]
        return await self.reader.read(await self.reader.pin(2**40), subjects)


@pytest.fixture
async def service(tmp_path: Path, reader: EvmReader) -> AsyncIterator[Service]:
    async def witness(chain: str, asked: Sequence[tuple[Subject, int]]) -> list[str | SourceError]:
        assert chain == CHAIN
        found = (await reader.read(await reader.pin(2**40), [subject for subject, _ in asked])).findings
        return [next((f.detail for f in found), "") for _ in asked]

    store = await SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    book = AccountBook(store, StandingClock(), DEPLOYMENT_ID, [CHAIN], [CHAIN], witness)
    controller = f"{CHAIN}:{CONTROLLER.address.lower()}"
    account = await book.open_account(controller, SALT, "risk-bearing", None, "mine")
    yield Service(book, store, account, reader)
    await store.close()


def sides(reading: Reading) -> list[str]:
    return sorted(p.side for p in reading.positions)


async def test_a_contract_backs_an_account_until_its_owner_changes(scene: Scene, service: Service) -> None:
    member = f"{CHAIN}:{scene.address}"
    with pytest.raises(InputError, match="0xffffffff") as caught:
        await service.link(member, "eip1271:" + await service.sign(member, "accept", HEIR))
    assert caught.value.field == "accept_signature"
    with pytest.raises(InputError, match="reverts"):
        await service.link(member, "eip1271:0x1234")
    with pytest.raises(InputError, match="not signed by"):  # the owner's key is not the contract's
        await service.link(member, await service.sign(member, "accept", OWNER))
    record = await service.link(member, "eip1271:" + await service.sign(member, "accept", OWNER))

    reading = await service.read(record)
    assert (sides(reading), reading.findings) == (["asset", "debt"], ())
    transact(scene.w3, scene.wallet.functions.hand_over(HEIR.address), impersonate(scene, OWNER.address))
    after = await service.read(record)
    assert sides(after) == ["debt"], "credit stops, debts stay"
    (finding,) = after.findings
    assert (finding.code, finding.scope) == (MEMBER_UNVERIFIED, record.account)
    assert scene.address in finding.detail
    # The heir, not the former owner, may revoke in the contract's name.
    old = "eip1271:" + await service.sign(member, "revoke", OWNER)
    message = await service.book.message(service.account.id, member, "revoke", "member")
    terms = (service.account.id, service.account.controller, member, message.nonce, message.expiry, "member")
    with pytest.raises(InputError, match="0xffffffff"):
        await service.book.revoke_link(*terms, old)
    await service.book.revoke_link(*terms, "eip1271:" + await service.sign(member, "revoke", HEIR))
    assert (await service.store.account("mine")).ending == (member,)


def impersonate(scene: Scene, address: str) -> Any:
    """Let the chain take transactions of an address whose key the node does not hold."""
    for method, arguments in (("anvil_impersonateAccount", [address]), ("anvil_setBalance", [address, hex(10**18)])):
        scene.w3.provider.make_request(method, arguments)  # type: ignore[arg-type]
    return Web3.to_checksum_address(address)


async def test_a_contract_controls_an_account(scene: Scene, service: Service) -> None:
    controller = f"{CHAIN}:{scene.address}"
    account = await service.book.open_account(controller, SALT, "risk-bearing", None, "its own")
    mine = replace_account(service, account)
    member = f"{CHAIN}:{HEIR.address.lower()}"
    accept = await mine.sign(member, "accept", HEIR)
    terms = await mine.book.message(account.id, member, "invite", "")
    for key, invited in ((HEIR, False), (OWNER, True)):
        invite = "eip1271:" + await mine.sign(member, "invite", key)
        if invited:
            await mine.book.add_link(account.id, controller, member, terms.nonce, terms.expiry, invite, accept)
            break
        with pytest.raises(InputError) as caught:
            await mine.book.add_link(account.id, controller, member, terms.nonce, terms.expiry, invite, accept)
        assert caught.value.field == "invite_signature"
    assert (await service.store.account("its own")).links == (member,)


def replace_account(service: Service, account: Account) -> Service:
    return replace(service, account=account)


MAGIC = "631626ba7e60e01b600052"  # puts the magic value, padded to a word, at 0
STRANGERS: dict[str, tuple[str, str]] = {
    "no code": ("", "no contract"),
    "reverts": ("60006000fd", "reverts"),
    "four bytes": (MAGIC + "60046000f3", "returns 0x1626ba7e, not"),
    "two words": (MAGIC + "60406000f3", "returns 0x1626ba7e"),
    "true": ("600160005260206000f3", "returns 0x" + "00" * 31 + "01"),
    "burns all gas": ("5b600056", "reverts"),
    "four megabytes": ("63004000006000f3", ""),
}


def deploy_raw(scene: Scene, runtime: str) -> str:
    """Deploy runtime code as it is."""
    size = len(runtime) // 2
    return str(deploy_code(scene.w3, [], f"0x60{size:02x}80600b6000396000f3{runtime}").address).lower()


async def test_strangers_that_answer_badly_cost_nobody_but_themselves(scene: Scene, service: Service) -> None:
    """Contracts written to break the reading, in one batch with one that agrees."""
    member = f"{CHAIN}:{scene.address}"
    good = await service.link(member, "eip1271:" + await service.sign(member, "accept", OWNER))
    others = {
        name: good._replace(member=f"{CHAIN}:{deploy_raw(scene, code) if code else '0x' + '77' * 20}")
        for name, (code, _) in STRANGERS.items()
    }
    reading = await service.read(*others.values(), good)
    assert sides(reading) == ["asset", "debt"]
    details = {f.detail.partition(":")[0]: f.detail for f in reading.findings}
    assert len(details) == len(others)
    for name, record in others.items():
        assert STRANGERS[name][1] in details[record.member.rpartition(":")[2]], name


async def test_contracts_that_burn_all_gas_leave_enough_for_others(scene: Scene, service: Service) -> None:
    member = f"{CHAIN}:{scene.address}"
    good = await service.link(member, "eip1271:" + await service.sign(member, "accept", OWNER))
    burner, _ = STRANGERS["burns all gas"]
    burners = [good._replace(member=f"{CHAIN}:{deploy_raw(scene, burner)}") for _ in range(5)]
    reading = await service.read(*burners, good)
    assert sides(reading) == ["asset", "debt"]
    assert len(reading.findings) == len(burners)


class Silent:
    """An endpoint that does not answer when a contract is asked whether it agrees."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def call(self, method: str, params: Sequence[object]) -> Any:
        if IS_VALID_SIGNATURE in str(params):
            raise Unreachable("alpha", "no answer to eth_call")
        return await self._endpoint.call(method, params)

    async def close(self) -> None:
        await self._endpoint.close()


async def test_a_node_that_does_not_answer_for_a_contract_still_reads_the_chain(
    anvil: Anvil, scene: Scene, service: Service
) -> None:
    member = f"{CHAIN}:{scene.address}"
    record = await service.link(member, "eip1271:" + await service.sign(member, "accept", OWNER))
    row = chain_row(anvil.url, genesis=genesis_of(anvil))
    silent = EvmReader(row, Silent(EvmEndpoint(row, row.rpc[0])), scene.adapters(), [])
    reading = await replace(service, reader=silent).read(record)
    await silent.close()
    assert sides(reading) == ["debt"]
    assert ["not answered" in f.detail for f in reading.findings] == [True]


async def test_a_seal_of_another_form_is_not_believed(scene: Scene, service: Service) -> None:
    block = await service.reader.pin(2**40)
    account = service.account.id
    for seal in ("eip1271:00:", "pda:" + "1" * 32 + ":accept:00:00:1:2", "anything"):
        reading = await service.reader.read(block, [Subject(account, scene.address, seal)])
        assert sides(reading) == ["debt"]
        assert [f.code for f in reading.findings] == [MEMBER_UNVERIFIED]
    keyed = await service.reader.read(block, [Subject(account, scene.address)])
    assert sides(keyed) == ["asset", "debt"]


async def test_the_service_asks_the_chain_with_a_reader_of_its_own(
    anvil: Anvil, scene: Scene, service: Service, tmp_path: Path
) -> None:
    document = make_document(tmp_path)
    table = next(c for c in document["chains"] if c["id"] == CHAIN)
    table |= {"rpc": [anvil.url], "genesis": genesis_of(anvil), "finality": {"depth": 0}, "timeout": 5}
    document["venues"] = [{"chain": CHAIN, "kind": "wallet"}]
    member = f"{CHAIN}:{scene.address}"
    record = await service.link(member, "eip1271:" + await service.sign(member, "accept", OWNER))
    good = Subject(record.account, scene.address, seal_of(DEPLOYMENT_ID, record))
    ask = chain_witness(parse_settings(document))
    stranger = "0x" + "77" * 20
    agreed = scene.w3.eth.get_block("latest")["timestamp"]
    yes, no = await ask(CHAIN, [(good, 2**40), (good._replace(address=stranger), 2**40)])
    assert yes == ""
    assert stranger in str(no)
    # Asked as of when its word was taken, it may have changed its mind since.
    scene.w3.provider.make_request("evm_increaseTime", [60])  # type: ignore[arg-type]
    transact(scene.w3, scene.wallet.functions.hand_over(HEIR.address), impersonate(scene, OWNER.address))
    before, since, unknown = await ask(CHAIN, [(good, agreed), (good, 2**40), (good, 1)])
    assert before == ""
    assert scene.address in str(since)
    assert isinstance(unknown, Unavailable), "the chain had not begun"
    table["rpc"] = ["http://127.0.0.1:9"]
    (dark,) = await chain_witness(parse_settings(document))(CHAIN, [(good, 2**40)])
    assert isinstance(dark, Unreachable)
    assert str(dark).startswith("alpha")
