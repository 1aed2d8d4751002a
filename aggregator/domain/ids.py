"""Names of chains, assets and addresses in their one canonical form.

CAIP-2 names a chain, CAIP-19 an asset on it; addresses are lower-case hex on EVM chains and base58 on Solana. Two
spellings of one thing would be two keys of a table, so whatever a person writes passes through here first. All
functions raise :class:`proofs.errors.FieldError`, whose ``reason`` says what was expected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aggregator.domain.rows import Family
from proofs.errors import FieldError
from proofs.links import decode_base58, decode_evm_address, parse_caip10

_FAMILIES: dict[str, Family] = {"eip155": "evm", "solana": "solana"}
_NULL_ADDRESS: dict[Family, str] = {"evm": "0x" + "00" * 20, "solana": "1" * 32}
_ASSET_NAMESPACES: dict[Family, tuple[str, str]] = {"evm": ("slip44", "erc20"), "solana": ("slip44", "token")}
_ASSET_NAMESPACE = {"native": "slip44", "erc20": "erc20", "erc4626": "erc20", "atoken": "erc20", "spl": "token"}
_SOLANA_COIN = "501"  # SLIP-44


@dataclass(frozen=True, slots=True)
class AssetId:
    """A CAIP-19 asset: ``chain`` (CAIP-2), ``namespace`` slip44, erc20 or token, canonical ``reference``."""

    chain: str
    namespace: str
    reference: str

    def __str__(self) -> str:
        """Return the canonical text."""
        return f"{self.chain}/{self.namespace}:{self.reference}"


def family_of(chain: str) -> Family:
    """Return the family of a CAIP-2 chain id.

    Raises:
        FieldError: neither an EVM chain's nor Solana's id.
    """
    namespace, colon, reference = chain.partition(":")
    if namespace not in _FAMILIES or not colon or ":" in reference:
        raise FieldError(
            "chain",
            f"{_quoted(chain)} is not CAIP-2: eip155:<chain id> or "
            "solana:<first 32 characters of the genesis hash> expected",
        )
    return _FAMILIES[namespace]


def parse_chain_id(text: str) -> str:
    """Return the canonical CAIP-2 id of an EVM chain or of Solana.

    Raises:
        FieldError: not such an id.
    """
    return parse_caip10(f"{text}:{_NULL_ADDRESS[family_of(text)]}", "chain").chain


def parse_asset_id(text: str) -> AssetId:
    """Return a CAIP-19 asset: erc20 or slip44 on an EVM chain, token or slip44:501 on Solana.

    Raises:
        FieldError: another form, a malformed chain, contract, mint or coin type.
    """
    chain, slash, asset = text.partition("/")
    namespace, colon, reference = asset.partition(":")
    if not slash or not colon:
        raise FieldError("asset", f"{_quoted(text)} is not CAIP-19: <chain>/<namespace>:<reference> expected")
    chain = parse_chain_id(chain)
    family = family_of(chain)
    if namespace not in _ASSET_NAMESPACES[family]:
        expected = " or ".join(_ASSET_NAMESPACES[family])
        raise FieldError("asset", f"namespace {_quoted(namespace)} is unknown on {chain}: {expected} expected")
    if namespace != "slip44":
        return AssetId(chain, namespace, canonical_address(family, reference))
    if family == "solana" and reference != _SOLANA_COIN:
        raise FieldError("asset", f"the native coin of Solana is slip44:{_SOLANA_COIN}")
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", reference):
        raise FieldError("asset", f"{_quoted(reference)} is not a SLIP-44 coin type in decimal")
    return AssetId(chain, namespace, reference)


def kinds_of(asset: AssetId) -> tuple[str, ...]:
    """Return the kinds of an asset row that fit the id: spl for a token, erc20 and its receipts for a contract."""
    return tuple(kind for kind, namespace in _ASSET_NAMESPACE.items() if namespace == asset.namespace)


def canonical_address(family: Family, text: str) -> str:
    """Return an address in canonical form: lower-case 0x hex of 20 bytes, or base58 of 32 bytes.

    Raises:
        FieldError: malformed, or mixed case with a wrong EIP-55 checksum.
    """
    if family == "evm":
        digits = text[2:]
        one_case = digits in (digits.lower(), digits.upper())  # then there is no checksum in it to verify
        return f"0x{decode_evm_address(text[:2] + digits.lower() if one_case else text).hex()}"
    decode_base58(text, 32)  # has one spelling only
    return text


def canonical_genesis(family: Family, text: str) -> str:
    """Return the hash of a chain's first block: lower-case 0x hex of 32 bytes, or base58 of 32 bytes on Solana.

    Raises:
        FieldError: malformed.
    """
    if family == "solana":
        decode_base58(text, 32)
        return text
    if not re.fullmatch(r"0x[0-9a-fA-F]{64}", text):
        raise FieldError("genesis", f"{_quoted(text)} is not a block hash: 0x and 64 hex digits expected")
    return text.lower()


def canonical_pyth_id(text: str) -> str:
    """Return a Pyth feed id: 64 lower-case hex digits without 0x.

    Raises:
        FieldError: malformed.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise FieldError("id", f"{_quoted(text)} is not a Pyth feed id: 64 hex digits without 0x expected")
    return text.lower()


def canonical_feed_address(text: str) -> str:
    """Return a Chainlink feed's ``<CAIP-2 chain>:<aggregator address>`` in canonical form; EVM chains only.

    Raises:
        FieldError: malformed, or on Solana, where no such feed is read.
    """
    chain, _, address = text.rpartition(":")
    if ":" not in chain:
        raise FieldError("id", f"{_quoted(text)} is not CAIP-10: <chain>:<aggregator address> expected")
    chain = parse_chain_id(chain)
    if family_of(chain) != "evm":
        raise FieldError("id", f"{chain} is no EVM chain; Chainlink feeds are read on EVM chains only")
    return f"{chain}:{canonical_address('evm', address)}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
