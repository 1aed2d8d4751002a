"""Both trees over 1,000,000 leaves, beside the bare calls of the hash function that the registries' tree takes."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from sha3 import keccak_256

from aggregator.core.commitment import build_commitment, build_tree, hash_leaves, proof, update_tree
from aggregator.domain.report import LeafValues

LEAVES, SAMPLED, PROOFS = 1_000_000, 100_000, 20_000
T = TypeVar("T")


def _seconds(work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def _bare(encoded: Sequence[bytes]) -> None:
    pair = bytes(64)
    for words in encoded:
        keccak_256(keccak_256(words).digest()).digest()
    for _ in range(len(encoded) - 1):
        keccak_256(pair).digest()


def _update(tree: Sequence[bytes], changed: Mapping[int, bytes]) -> None:
    update_tree(tree, dict(zip(changed, hash_leaves([*changed.values()]), strict=True)))


def measure_merkle() -> Sequence[Mapping[str, Any]]:
    """Return the time of a full build, of an update and of proofs; medians of three interleaved runs."""
    chosen = random.Random(7)
    encoded = [chosen.randbytes(384) for _ in range(LEAVES)]
    changed = {i: chosen.randbytes(384) for i in chosen.sample(range(LEAVES), LEAVES // 100)}
    build, bare, update = [], [], []
    for _ in range(3):
        seconds, tree = _seconds(lambda: build_tree(hash_leaves(encoded)))
        build.append(seconds)
        bare.append(_seconds(lambda: _bare(encoded))[0])
        update.append(_seconds(partial(_update, tree, changed))[0])
    full, plain, part = map(statistics.median, (build, bare, update))
    leaves = [
        LeafValues(f"0x{i:064x}", "0x" + "11" * 32, 7, 10**12 - i, *5 * (10**12 + i,), 1, 2, 0) for i in range(SAMPLED)
    ]
    whole, made = _seconds(lambda: build_commitment(leaves))
    proving = _seconds(lambda: [proof(made, i) for i in chosen.choices(range(SAMPLED), k=PROOFS)])[0]
    count = f"{LEAVES:,} leaves"
    return [
        _row(f"Merkle: {count}, hashed twice, and their tree, to bare keccak calls", full, "s", plain, 1.5),
        _row(f"Merkle: 1% of {count} changed, to a full build", part, "s", full, 0.05),
        _row(f"Merkle: both trees of {SAMPLED:,} leaves, encoding included", SAMPLED / whole, "leaves/s"),
        _row("Merkle: inclusion proofs", PROOFS / proving, "proofs/s"),
    ]


def _row(
    name: str, value: float, unit: str, reference: float | None = None, target: float | None = None
) -> Mapping[str, Any]:
    ratio = None if reference is None else value / reference
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio, "target": target}
