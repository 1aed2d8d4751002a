"""Signatures, quorums and Ed25519: what the published vectors and other libraries accept, and nothing else."""

from __future__ import annotations

import pytest
from coincurve import PrivateKey
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_defunct
from hypothesis import given
from hypothesis import strategies as st
from proofs_world import address_of, sign_compact, sign_wallet
from solders.keypair import Keypair

from proofs.ed25519 import verify_ed25519
from proofs.errors import ProofError, QuorumError, SignatureError
from proofs.hashing import keccak256
from proofs.quorum import IndexedSignature, minimal_threshold, verify_quorum
from proofs.signing import ORDER, compact_from_rsv, recover, recover_rsv

DIGEST = keccak256(b"statement")
KEYS = tuple(PrivateKey(keccak256(b"key %d" % i)) for i in range(7))
MEMBERS = tuple(address_of(key) for key in KEYS)

# EIP-2098, "Test Cases"; the key is 0x1234…1234.
EIP_2098 = [
    (
        "Hello World",
        "68a020a209d3d56c46f38cc50a33f704f4a9a10a59377f8dd762ac66910e9b90",
        "7e865ad05c4035ab5792787d4a0297a43617ae897930a6fe4d822b8faea52064",
        27,
        "7e865ad05c4035ab5792787d4a0297a43617ae897930a6fe4d822b8faea52064",
    ),
    (
        "It's a small(er) world",
        "9328da16089fcba9bececa81663203989f2df5fe1faa6291a45381c81bd17f76",
        "139c6d6b623b42da56557e5e734a43dc83345ddfadec52cbe24d0cc64f550793",
        28,
        "939c6d6b623b42da56557e5e734a43dc83345ddfadec52cbe24d0cc64f550793",
    ),
]


@pytest.mark.parametrize(("message", "r", "s", "v", "vs"), EIP_2098)
def test_the_compact_form_is_that_of_the_eip(message: str, r: str, s: str, v: int, vs: str) -> None:
    assert compact_from_rsv(int(r, 16), int(s, 16), v) == (bytes.fromhex(r), bytes.fromhex(vs))
    digest = _hash_eip191_message(encode_defunct(text=message))
    signer = bytes.fromhex(Account.from_key("0x" + "1234567890" * 6 + "1234").address[2:])
    assert recover(digest, bytes.fromhex(r), bytes.fromhex(vs)) == signer
    assert recover_rsv(digest, bytes.fromhex(r) + bytes.fromhex(s) + bytes([v])) == signer


@given(st.binary(min_size=32, max_size=32), st.integers(0, 6))
def test_signatures_recover_their_signer(digest: bytes, i: int) -> None:
    compact = sign_compact(KEYS[i], digest, i)
    assert recover(digest, compact.r, compact.vs) == recover_rsv(digest, sign_wallet(KEYS[i], digest)) == MEMBERS[i]


def test_the_high_s_twin_of_a_signature_is_refused() -> None:
    signature = sign_wallet(KEYS[0], DIGEST)
    r, s, v = signature[:32], int.from_bytes(signature[32:64], "big"), signature[64]
    twin = ORDER - s
    with pytest.raises(SignatureError, match="high s"):
        recover_rsv(DIGEST, r + twin.to_bytes(32, "big") + bytes([55 - v]))
    with pytest.raises(SignatureError, match="high s"):
        compact_from_rsv(int.from_bytes(r, "big"), twin, 55 - v)
    # A high s below 2^255 fits the compact form, so that form needs the check too.
    just_high = (ORDER // 2 + 1).to_bytes(32, "big")
    with pytest.raises(SignatureError, match="high s"):
        recover(DIGEST, r, just_high)


@pytest.mark.parametrize(
    ("r", "s", "v", "field"),
    [(0, 1, 27, "r"), (ORDER, 1, 27, "r"), (1, 0, 27, "s"), (1, 1, 2, "v"), (1, 1, 29, "v")],
)
def test_scalars_out_of_range_are_named(r: int, s: int, v: int, field: str) -> None:
    with pytest.raises(SignatureError) as refusal:
        compact_from_rsv(r, s, v)
    assert refusal.value.field == field
    with pytest.raises(SignatureError) as refusal:
        recover_rsv(DIGEST, r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([v]))
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("n", "threshold"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (7, 5), (10, 7), (13, 9), (19, 13)]
)
def test_thresholds_are_the_protocols(n: int, threshold: int) -> None:
    assert minimal_threshold(n) == threshold


@given(st.integers(1, 32))
def test_two_quorums_share_an_honest_member_and_the_honest_alone_make_one(n: int) -> None:
    f = (n - 1) // 3
    assert 2 * minimal_threshold(n) - n > f
    assert minimal_threshold(n) <= n - f


def signed_by(*indices: int) -> list[IndexedSignature]:
    return [sign_compact(KEYS[i], DIGEST, i) for i in indices]


@given(st.sets(st.integers(0, 6), min_size=5))
def test_any_five_of_seven_are_a_quorum(indices: set[int]) -> None:
    verify_quorum(DIGEST, signed_by(*sorted(indices)), MEMBERS, 5)


@pytest.mark.parametrize(
    ("signatures", "threshold", "field"),
    [
        (signed_by(0, 1, 2, 3), 5, "signatures"),
        (signed_by(0, 1, 1, 2, 3), 5, "signatures[2].index"),
        (signed_by(0, 2, 1, 3, 4), 5, "signatures[2].index"),
        ([*signed_by(0, 1, 2, 3), sign_compact(KEYS[4], DIGEST, 7)], 5, "signatures[4].index"),
        ([*signed_by(0, 1, 2, 3), sign_compact(KEYS[4], DIGEST, 5)], 5, "signatures[4]"),
        ([*signed_by(0, 1, 2, 3, 4), sign_compact(KEYS[5], keccak256(b"other"), 5)], 5, "signatures[5]"),
        ([*signed_by(0, 1, 2, 3), IndexedSignature(4, bytes(32), b"\x01" * 32)], 5, "signatures[4].r"),
        (signed_by(0, 1, 2, 3), 4, "threshold"),
        (signed_by(0, 1, 2, 3, 4, 5, 6), 8, "threshold"),
    ],
)
def test_what_is_no_quorum_is_refused_by_the_field_at_fault(
    signatures: list[IndexedSignature], threshold: int, field: str
) -> None:
    with pytest.raises(QuorumError) as refusal:
        verify_quorum(DIGEST, signatures, MEMBERS, threshold)
    assert refusal.value.field == field


def test_a_signature_packs_into_65_bytes() -> None:
    (signature,) = signed_by(3)
    assert len(signature.pack()) == 65
    assert IndexedSignature.unpack(signature.pack()) == signature


# RFC 8032 §7.1, TEST 1 and TEST 3.
@pytest.mark.parametrize(
    ("key", "message", "signature"),
    [
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
)
def test_ed25519_accepts_the_rfcs_vectors(key: str, message: str, signature: str) -> None:
    verify_ed25519(bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature))


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200), st.integers(0, 1000))
def test_ed25519_accepts_what_solana_signs_and_no_flipped_bit(seed: bytes, message: bytes, at: int) -> None:
    pair = Keypair.from_seed(seed)
    key, signature = bytes(pair.pubkey()), bytes(pair.sign_message(message))
    verify_ed25519(key, message, signature)
    parts = [key, message, signature]
    which = (at % 3) if message else (at % 2) * 2
    part = parts[which]
    bit = at % (8 * len(part))
    parts[which] = (int.from_bytes(part, "big") ^ 1 << bit).to_bytes(len(part), "big")
    with pytest.raises(ProofError):
        verify_ed25519(*parts)


def test_ed25519_refuses_a_malleated_s_and_keys_of_small_order() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    pair = Keypair.from_seed(bytes(32))
    signature = bytes(pair.sign_message(b"x"))
    shifted = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(SignatureError, match="order"):
        verify_ed25519(bytes(pair.pubkey()), b"x", signature[:32] + shifted.to_bytes(32, "little"))
    identity = b"\x01" + bytes(31)
    with pytest.raises(SignatureError, match="small order"):  # it would verify under every message
        verify_ed25519(identity, b"anything", identity + bytes(32))
