"""What a controller signs to ask for a permit: the terms, their words, and who signed them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from coincurve import PrivateKey
from eth_account.messages import _hash_eip191_message, encode_typed_data
from solders.keypair import Keypair

from aggregator.domain.budgets import PermitRecord
from aggregator.service.permits import permit_message
from proofs.errors import FieldError, SignatureError
from proofs.hashing import keccak256
from proofs.permits import PermitTerms, address_word, asset_word, request_digest, request_text, verify_request

DEPLOYMENT = b"\x0d" * 32
EVM, SOLANA = "eip155:31337", "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1"
VAULT, TOKEN, TO = ("0x" + byte * 20 for byte in ("a1", "b2", "c3"))
KEY, WALLET = PrivateKey(b"\x07" * 32), Keypair.from_seed(b"\x08" * 32)
CONTROLLER = f"{EVM}:0x{keccak256(KEY.public_key.format(compressed=False)[1:])[12:].hex()}"
MINT = str(Keypair.from_seed(b"\x09" * 32).pubkey())
TERMS = PermitTerms(
    b"\x01" * 32, EVM, VAULT, f"{EVM}/erc20:{TOKEN}", 10**30, TO, b"\x02" * 32, epoch=5, expiry=1_800_000_000
)
ON_SOLANA = replace(TERMS, chain=SOLANA, vault=MINT, asset=f"{SOLANA}/token:{MINT}", to=MINT)


def evm_signature(digest: bytes) -> bytes:
    signature = KEY.sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


def test_terms_become_the_words_that_a_vault_hashes() -> None:
    permit = TERMS.permit
    assert permit.chain == keccak256(b"eip155:31337")
    assert (permit.vault, permit.asset) == (b"\0" * 12 + b"\xa1" * 20, b"\0" * 12 + b"\xb2" * 20)
    assert ON_SOLANA.permit.asset == bytes(Keypair.from_seed(b"\x09" * 32).pubkey())


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("amount", {"amount": 0}),
        ("amount", {"amount": 2**128}),
        ("vault", {"vault": "0x" + "A1" * 20}),
        ("vault", {"vault": MINT}),
        ("to", {"to": VAULT[:-2]}),
        ("asset", {"asset": f"eip155:1/erc20:{TOKEN}"}),
        ("asset", {"asset": f"{EVM}/slip44:60"}),
        ("asset", {"asset": f"{EVM}/token:{TOKEN}"}),
        ("nonce", {"nonce": b"\x02" * 31}),
        ("epoch", {"epoch": -1}),
        ("expiry", {"expiry": 2**64}),
    ],
)
def test_malformed_terms_name_the_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(FieldError) as refused:
        replace(TERMS, **changes)
    assert refused.value.field == field


def test_two_spellings_of_an_address_are_not_two_permits() -> None:
    checksummed = "0xA1A1A1a1a1A1A1A1A1a1A1A1A1a1a1A1A1A1A1a1"
    with pytest.raises(FieldError, match=r"checksum|canonical"):
        address_word(EVM, checksummed, "vault")
    with pytest.raises(FieldError, match="canonical"):
        asset_word(EVM, f"{EVM}/erc20:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed")


def test_an_evm_controller_signs_typed_data_that_eth_account_hashes_alike() -> None:
    record = PermitRecord(
        *("0x" + "01" * 32, EVM, VAULT, TERMS.asset, TERMS.amount, TO, "0x" + "02" * 32, TERMS.epoch, TERMS.expiry),
        request="",
    )
    message = permit_message(DEPLOYMENT, record, CONTROLLER)
    assert message.typed is not None
    theirs = bytes(_hash_eip191_message(encode_typed_data(full_message=dict(message.typed))))
    assert theirs.hex() == message.digest[2:] == request_digest(TERMS.permit, DEPLOYMENT).hex()
    verify_request(TERMS, CONTROLLER, evm_signature(theirs), DEPLOYMENT)
    assert (message.text, message.signer) == ("", CONTROLLER)


@pytest.mark.parametrize("name", ["account", "amount", "to", "nonce", "epoch", "expiry", "vault", "asset"])
def test_a_request_is_for_exactly_what_was_signed(name: str) -> None:
    other = {"account": b"\x03" * 32, "nonce": b"\x03" * 32, "to": VAULT, "vault": TO, "asset": f"{EVM}/erc20:{TO}"}
    changed = replace(TERMS, **{name: other.get(name, 7)})
    signature = evm_signature(request_digest(TERMS.permit, DEPLOYMENT))
    with pytest.raises(SignatureError) as refused:
        verify_request(changed, CONTROLLER, signature, DEPLOYMENT)
    assert refused.value.field == "request"
    wallet = bytes(WALLET.sign_message(request_text(TERMS, DEPLOYMENT)))
    with pytest.raises(SignatureError):
        verify_request(changed, f"{SOLANA}:{WALLET.pubkey()}", wallet, DEPLOYMENT)


def test_a_solana_controller_signs_a_text_that_names_everything() -> None:
    controller = f"{SOLANA}:{WALLET.pubkey()}"
    text = request_text(ON_SOLANA, DEPLOYMENT)
    assert text.decode() == (
        "crossmargin withdrawal permit\n"
        f"deployment: 0x{'0d' * 32}\naccount: 0x{'01' * 32}\nchain: {SOLANA}\nvault: {MINT}\n"
        f"asset: {SOLANA}/token:{MINT}\namount: {10**30}\nto: {MINT}\nnonce: 0x{'02' * 32}\n"
        "epoch: 5\nexpiry: 1800000000"
    )
    verify_request(ON_SOLANA, controller, bytes(WALLET.sign_message(text)), DEPLOYMENT)
    for wrong in (WALLET.sign_message(text + b"\n"), Keypair.from_seed(b"\x0a" * 32).sign_message(text)):
        with pytest.raises(SignatureError):
            verify_request(ON_SOLANA, controller, bytes(wrong), DEPLOYMENT)
    with pytest.raises(SignatureError):
        verify_request(ON_SOLANA, controller, bytes(WALLET.sign_message(text)), b"\x0e" * 32)


def test_a_permit_is_no_request() -> None:
    from proofs.permits import permit_digest

    with pytest.raises(SignatureError):
        verify_request(TERMS, CONTROLLER, evm_signature(permit_digest(TERMS.permit, DEPLOYMENT)), DEPLOYMENT)
