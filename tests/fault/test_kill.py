"""kill -9 at every point of a posting, on a real chain: one effect per (epoch, chain)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from infra.devnet.anvil import Anvil
from tests.chain.evm_deployment import PAYER, deploy, posted_epochs
from tests.unit.attest.statements import EPOCH_SECONDS, make_deployment

pytestmark = pytest.mark.chain
PROGRAM = Path(__file__).with_name("relayer_program.py")
ROOT = PROGRAM.parents[2]
POINTS = (
    "signed, not checkpointed",
    "checkpointed, not sent",
    "sent, not checkpointed",
    "waiting",
    "mined, not final",
)


class Chain(NamedTuple):
    anvil: Anvil
    w3: Any
    registry: Any


@pytest.fixture
def chain() -> Iterator[Chain]:
    with Anvil() as anvil:
        yield Chain(anvil, *deploy(anvil, make_deployment(4)))


def launch(chain: Chain, folder: Path, epoch: int, crash: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), chain.anvil.url, chain.registry.address, str(folder), str(epoch), crash],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_until_killed(chain: Chain, folder: Path, epoch: int, crash: str) -> str:
    with launch(chain, folder, epoch, crash) as process:
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == -signal.SIGKILL, (output, errors)
    return output


def run_to_the_end(chain: Chain, folder: Path, epoch: int) -> str:
    with launch(chain, folder, epoch) as process:
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                chain.anvil.mine()  # finality needs blocks
                time.sleep(0.1)
            output, errors = process.communicate(timeout=1)
        finally:
            process.kill()
        assert process.returncode == 0, (output, errors)
        assert errors == ""  # the engine keeps quiet
    return output


def transactions(lines: str) -> set[str]:
    return {line.split()[2] for line in lines.splitlines()} - {"-"}


def effects(chain: Chain) -> tuple[list[int], int]:
    return posted_epochs(chain.registry), chain.w3.eth.get_transaction_count(
        chain.w3.to_checksum_address(PAYER.address)
    )


@pytest.mark.parametrize("point", POINTS)
def test_one_effect_for_a_crash_at(point: str, chain: Chain, tmp_path: Path) -> None:
    epoch = int(time.time()) // EPOCH_SECONDS
    before = run_until_killed(chain, tmp_path, epoch, point)
    after = run_to_the_end(chain, tmp_path, epoch)
    assert " final " in after
    assert effects(chain) == ([epoch], 1)
    if point != "signed, not checkpointed":
        assert len(transactions(before + after)) == 1  # the checkpointed bytes, and no others, were sent


def test_one_effect_for_one_crash_after_another(chain: Chain, tmp_path: Path) -> None:
    """The chain stands still meanwhile, so that every death finds the posting undecided."""
    chain.anvil.pause()
    epoch = int(time.time()) // EPOCH_SECONDS
    for point in POINTS[1:3]:
        run_until_killed(chain, tmp_path, epoch, point)
    assert effects(chain) == ([], 0)
    chain.anvil.resume()
    run_to_the_end(chain, tmp_path, epoch)
    assert effects(chain) == ([epoch], 1)


def test_one_effect_when_the_workflows_file_is_lost(chain: Chain, tmp_path: Path) -> None:
    """Without a record of what was sent, the registry's epoch and the payer's nonce still hold."""
    epoch = int(time.time()) // EPOCH_SECONDS
    run_until_killed(chain, tmp_path, epoch, "sent, not checkpointed")
    chain.anvil.mine()
    for file in tmp_path.iterdir():
        file.unlink()
    with launch(chain, tmp_path, epoch) as process:
        try:
            time.sleep(4)
        finally:
            process.kill()
    assert effects(chain) == ([epoch], 1)


def test_an_epoch_killed_in_the_air_lands_before_the_next_is_posted(chain: Chain, tmp_path: Path) -> None:
    chain.anvil.pause()
    epoch = int(time.time()) // EPOCH_SECONDS - 1
    run_until_killed(chain, tmp_path, epoch, "sent, not checkpointed")
    chain.anvil.resume()
    run_to_the_end(chain, tmp_path, epoch + 1)
    epochs, nonce = effects(chain)
    assert epochs[-1] == epoch + 1
    assert (len(epochs), nonce) in ((1, 1), (2, 2))  # taken over on the same nonce, or one after the other
