"""Real chains for the contract tests: one Anvil for each module, brought back to its first state after every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from web3 import Web3

from infra.devnet.anvil import Anvil, connect


@pytest.fixture(scope="module")
def chain() -> Iterator[Anvil]:
    with Anvil(chain_id=31337) as anvil:
        yield anvil


@pytest.fixture(scope="module")
def w3(chain: Anvil) -> Web3:
    return connect(chain.url)


@pytest.fixture
def isolated(chain: Anvil) -> Iterator[None]:
    snapshot = chain.rpc("evm_snapshot")
    yield
    chain.rpc("evm_revert", snapshot)
