"""The producer's encoding and trees, byte for byte those of the independent verifier."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.commitment import (
    accounts_path,
    build_commitment,
    digest_text,
    encode_leaf,
    proof,
    update_commitment,
)
from aggregator.domain.errors import InputError
from aggregator.domain.report import LeafValues
from proofs import leaf as verifier_leaf
from proofs import merkle

amounts = st.integers(0, 2**128 - 1)
times = st.integers(0, 2**64 - 1)
ids = st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex())
some_leaves = st.lists(
    st.builds(
        LeafValues,
        account=ids,
        destination=ids,
        epoch=times,
        equity=st.integers(-(2**127), 2**127 - 1),
        assets_initial=amounts,
        requirement_initial=amounts,
        assets_maintenance=amounts,
        requirement_maintenance=amounts,
        budget=amounts,
        as_of=times,
        valid_until=times,
        flags=st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda leaf: leaf[:2],
)


def theirs(leaf: LeafValues) -> verifier_leaf.Leaf:
    return verifier_leaf.Leaf(bytes.fromhex(leaf.account[2:]), bytes.fromhex(leaf.destination[2:]), *leaf[2:])


@given(some_leaves)
def test_producer_and_verifier_agree(leaves: list[LeafValues]) -> None:
    made = build_commitment(leaves)
    assert made.leaf_count == len(leaves)
    for leaf in leaves:
        assert encode_leaf(leaf) == verifier_leaf.abi_encode(theirs(leaf))
    assert list(made.hashes) == [verifier_leaf.hash_leaf(theirs(leaf)) for leaf in leaves]
    ranked = [made.hashes[i] for i in sorted(range(len(leaves)), key=made.places.__getitem__)]
    assert made.root == merkle.root(ranked)
    entries = sorted(
        merkle.accounts_entry(theirs(leaf).account, theirs(leaf).destination, digest)
        for leaf, digest in zip(leaves, made.hashes, strict=True)
    )
    assert made.accounts_root == merkle.accounts_root(entries)
    for i, leaf in enumerate(leaves):
        assert proof(made, i) == merkle.proof(ranked, made.places[i])
        merkle.verify_proof(made.hashes[i], proof(made, i), made.root)
        entry, place = entries[made.places[i]], made.places[i]
        assert entry[32:64] == theirs(leaf).destination
        assert accounts_path(made, i) == merkle.accounts_proof(entries, place)
        merkle.verify_accounts_inclusion(entry, place, len(entries), accounts_path(made, i), made.accounts_root)


LEAF = LeafValues("0x" + "01" * 32, "0x" + "02" * 32, 7, -5, 4, 3, 2, 1, 0, 100, 200, 32)


@given(some_leaves, st.randoms(use_true_random=False))
def test_the_roots_do_not_depend_on_order(leaves: list[LeafValues], random: object) -> None:
    first = build_commitment(leaves)
    shuffled = list(leaves)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    second = build_commitment(shuffled)
    assert (second.root, second.accounts_root) == (first.root, first.accounts_root)


@given(some_leaves, st.data())
def test_an_update_is_what_building_anew_gives(leaves: list[LeafValues], data: st.DataObject) -> None:
    changed = data.draw(st.dictionaries(st.integers(0, len(leaves) - 1), st.integers(0, 2**128 - 1)))
    after = [leaf._replace(budget=changed.get(i, leaf.budget)) for i, leaf in enumerate(leaves)]
    assert update_commitment(build_commitment(leaves), {i: after[i] for i in changed}) == build_commitment(after)


def test_what_is_not_committed_to_is_not_updated_nor_proven() -> None:
    made = build_commitment([LEAF])
    for i in (-1, 1):
        with pytest.raises(IndexError, match="0 to 0"):
            update_commitment(made, {i: LEAF})
        with pytest.raises(IndexError, match="0 to 0"):
            proof(made, i)


def test_nothing_and_twice_are_refused() -> None:
    with pytest.raises(InputError, match="leaves"):
        build_commitment([])
    with pytest.raises(InputError, match="two for account"):
        build_commitment([LEAF, LEAF._replace(budget=9)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("account", "0x01"),
        ("account", "01" * 33),
        ("destination", "0x" + "zz" * 32),
        ("epoch", 2**64),
        ("equity", -(2**127) - 1),
        ("assets_initial", -1),
        ("budget", 2**128),
        ("flags", 2**32),
        ("as_of", 1.5),
    ],
)
def test_a_field_that_does_not_fit_is_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"leaf.{field}"):
        build_commitment([LEAF._replace(**{field: value})])


def test_canonical_text_is_one_text() -> None:
    text, digest = digest_text({"b": [1, None, True], "a": {"z": "é", "y": -(10**30)}, "c": (1, 2)})
    assert text == '{"a":{"y":-1000000000000000000000000000000,"z":"é"},"b":[1,null,true],"c":[1,2]}'
    assert digest == digest_text({"c": [1, 2], "a": {"y": -(10**30), "z": "é"}, "b": (1, None, True)})[1]
    # keccak256 of the empty object's text, computed with eth_hash
    assert digest_text({})[1].hex() == "b48d38f93eaa084033fc5970bf96e559c33c4cdc07d889ab00b4d63f9590739d"


@pytest.mark.parametrize("value", [{"x": 1.0}, [float("nan")], {"x": [Decimal(1)]}, {1: 2}, b"raw", {"s": {1, 2}}])
def test_what_has_no_canonical_text_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        digest_text(value)
