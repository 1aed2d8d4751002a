"""Statements, deployments and leaves are what eth_account, eth_abi and the EIP say they are."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from eth_abi import encode
from hypothesis import given
from hypothesis import strategies as st
from proofs_world import typed

from proofs import leaf as leaves
from proofs import statement
from proofs.errors import FieldError
from proofs.hashing import keccak256

words = st.binary(min_size=32, max_size=32)
u128, u64, u32 = (st.integers(0, 2**bits - 1) for bits in (128, 64, 32))
headers = st.builds(statement.Header, u64, words, u64, u32, u64, u64, words)
bodies = st.builds(statement.StatementBody, words, words, words, words, words, words, u64, words)
any_leaf = st.builds(
    leaves.Leaf, words, words, u64, st.integers(-(2**127), 2**127 - 1), u128, u128, u128, u128, u128, u64, u64, u32
)


def values_of(record: object) -> tuple[object, ...]:
    return tuple(getattr(record, field.name) for field in fields(record))


@given(headers, words)
def test_the_digest_is_eth_accounts(header: statement.Header, deployment_id: bytes) -> None:
    assert statement.digest(header, deployment_id) == typed(deployment_id, statement.STATEMENT_TYPE, values_of(header))


@given(bodies, words)
def test_the_body_hash_is_the_struct_hash_of_eth_account(body: statement.StatementBody, deployment_id: bytes) -> None:
    assert statement.typed_digest(deployment_id, statement.body_hash(body)) == typed(
        deployment_id, statement.BODY_TYPE, values_of(body)
    )


@given(headers)
def test_a_packed_header_is_100_bytes_and_comes_back(header: statement.Header) -> None:
    packed = statement.pack_header(header)
    assert len(packed) == 100
    assert statement.unpack_header(packed) == header


@given(any_leaf)
def test_a_leaf_encodes_as_eth_abi_does_and_its_packed_form_comes_back(leaf: leaves.Leaf) -> None:
    types = ["bytes32", "bytes32", "uint64", "int256", *["uint256"] * 5, "uint64", "uint64", "uint32"]
    encoded = encode(types, values_of(leaf))
    assert leaves.abi_encode(leaf) == encoded
    assert leaves.hash_leaf(leaf) == keccak256(keccak256(encoded))
    packed = leaves.pack(leaf)
    assert len(packed) == 188
    assert leaves.unpack(packed) == leaf


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("account", b"short", "account"),
        ("destination", "0x00", "destination"),
        ("epoch", 2**64, "epoch"),
        ("equity", 2**127, "equity"),
        ("equity", -(2**127) - 1, "equity"),
        ("assets_initial", -1, "assetsInitial"),
        ("requirement_initial", 2**128, "requirementInitial"),
        ("assets_maintenance", 1.0, "assetsMaintenance"),
        ("requirement_maintenance", None, "requirementMaintenance"),
        ("budget", 2**256, "budget"),
        ("as_of", -1, "asOf"),
        ("valid_until", True, "validUntil"),
        ("flags", 2**32, "flags"),
    ],
)
def test_a_leaf_field_out_of_range_is_named(field: str, value: object, named: str) -> None:
    leaf = leaves.Leaf(bytes(32), bytes(32), *[0] * 10)
    with pytest.raises(FieldError) as refusal:
        replace(leaf, **{field: value})
    assert refusal.value.field == named


@pytest.mark.parametrize("length", [0, 99, 101])
def test_a_header_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(FieldError, match=f"{length} bytes given, 100 expected"):
        statement.unpack_header(bytes(length))


MEMBERS = tuple(bytes([i]) * 20 for i in range(1, 5))


def test_the_deployment_id_is_the_abi_encoding_that_contracts_hash() -> None:
    deployment = statement.Deployment(3, MEMBERS, 3, 1_900_000_000, b"\x07" * 32)
    folded = bytes(32)
    for member in MEMBERS:
        folded = keccak256(encode(["bytes32", "address"], [folded, member]))
    assert deployment.deployment_id() == keccak256(
        encode(["uint256", "bytes32", "uint256", "uint256", "bytes32"], [3, folded, 3, 1_900_000_000, b"\x07" * 32])
    )


@pytest.mark.parametrize(
    ("network_class", "members", "threshold", "field"),
    [
        (0, MEMBERS, 3, "networkClass"),
        (3, (), 1, "members"),
        (1, MEMBERS[:3], 3, "members"),
        (3, (*MEMBERS, MEMBERS[0]), 5, "members[4]"),
        (3, (bytes(20), *MEMBERS), 5, "members[0]"),
        (3, tuple(bytes([i]) * 20 for i in range(1, 34)), 33, "members"),
        (2, MEMBERS, 2, "threshold"),
        (2, MEMBERS, 5, "threshold"),
    ],
)
def test_a_deployment_that_no_registry_accepts_is_refused(
    network_class: int, members: tuple[bytes, ...], threshold: int, field: str
) -> None:
    with pytest.raises(FieldError) as refusal:
        statement.Deployment(network_class, members, threshold, 1_900_000_000, bytes(32))
    assert refusal.value.field == field


def test_a_devnet_may_have_one_attestor() -> None:
    assert len(statement.Deployment(3, MEMBERS[:1], 1, 1, bytes(32)).deployment_id()) == 32
