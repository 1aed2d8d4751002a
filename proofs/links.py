"""Accounts, CAIP-10 addresses and the two-sided links between them.

A link says that one address (the member) backs an account. The account's controller invites, the member accepts; each
signs the same terms, on EVM chains as EIP-712 in the deployment's domain, on Solana as text with Ed25519. The account
id commits to its controller, so that only that controller can invite. Either side alone may revoke.

The controller alone says how an account's margin is shared out among destinations (`SharesTerms`).

Two kinds of address have no key: a contract answers for itself (EIP-1271), and a program-derived address signs inside
a transaction, which leaves a record on its chain. Their word is a :class:`ChainConsent`, which only the chain can
confirm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proofs.ed25519 import verify_ed25519
from proofs.errors import FieldError, LinkError, SignatureError
from proofs.fields import require_bytes, require_uint, uint_word
from proofs.hashing import keccak256
from proofs.signing import recover_rsv
from proofs.statement import typed_digest

Verb = Literal["invite", "accept", "revoke"]
Side = Literal["controller", "member"]

_TERMS = "(bytes32 account,string controller,string member,uint64 nonce,uint64 expiry)"
_TYPEHASH: dict[Verb, bytes] = {
    "invite": keccak256(f"LinkInvite{_TERMS}".encode()),
    "accept": keccak256(f"LinkAccept{_TERMS}".encode()),
    "revoke": keccak256(f"LinkRevoke{_TERMS}".encode()),
}
_SHARES_TYPEHASH = keccak256(
    b"BudgetShares(bytes32 account,string controller,string shares,uint64 nonce,uint64 expiry)"
)
MAX_SHARES = 16
"""Destinations among which an account may be shared out."""
_WHOLE = 10_000
"""Parts of a whole, of which shares are."""
CONTRACT_SIGNATURE_LIMIT = 4096
"""Bytes an EIP-1271 contract may be asked to accept."""
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SOLANA_REFERENCE_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Caip10:
    """One address on one chain: `namespace` eip155 (20 bytes) or solana (32 bytes)."""

    namespace: str
    reference: str
    address: bytes

    @property
    def chain(self) -> str:
        """The CAIP-2 chain id."""
        return f"{self.namespace}:{self.reference}"

    def __str__(self) -> str:
        """Return the canonical text: EVM addresses in lower case, Solana addresses in base58."""
        address = f"0x{self.address.hex()}" if self.namespace == "eip155" else encode_base58(self.address)
        return f"{self.chain}:{address}"


def parse_caip10(text: str, field: str = "address") -> Caip10:
    """Read a CAIP-10 address of an EVM chain or of Solana; a mixed-case EVM address must carry its EIP-55 checksum.

    Raises:
        FieldError: Naming `field` and what is wrong.
    """
    parts = text.split(":")
    if len(parts) != 3:
        raise FieldError(field, f"{_quoted(text)} is not CAIP-10: <namespace>:<reference>:<address> expected")
    namespace, reference, address = parts
    if namespace == "eip155":
        # CAIP-2 allows 32 characters; a leading zero would give one chain two names.
        if not (reference.isascii() and reference.isdigit() and reference[0] != "0" and len(reference) <= 32):
            raise FieldError(field, f"{_quoted(reference)} is not an EVM chain id in decimal")
        return Caip10(namespace, reference, decode_evm_address(address, field))
    if namespace == "solana":
        if len(reference) != _SOLANA_REFERENCE_LENGTH or any(c not in _BASE58 for c in reference):
            raise FieldError(
                field, f"{_quoted(reference)} is not the first {_SOLANA_REFERENCE_LENGTH} characters of a genesis hash"
            )
        return Caip10(namespace, reference, decode_base58(address, 32, field))
    raise FieldError(field, f"unknown namespace {_quoted(namespace)}: eip155 or solana expected")


def decode_evm_address(text: str, field: str = "address") -> bytes:
    """Return the 20 bytes of an EVM address in lower case or with a correct EIP-55 checksum.

    Raises:
        FieldError: Naming `field`: not 20 bytes of hex, or a wrong checksum.
    """
    digits = text[2:]
    if text[:2] != "0x" or len(digits) != 40 or any(c not in "0123456789abcdefABCDEF" for c in digits):
        raise FieldError(field, f"{_quoted(text)} is not an EVM address: 0x and 40 hex digits expected")
    lower = digits.lower()
    if digits != lower and digits != _checksummed(lower):
        raise FieldError(
            field, f"{text} has a wrong EIP-55 checksum: check for a typing error, or give it in lower case"
        )
    return bytes.fromhex(lower)


def decode_base58(text: str, length: int, field: str = "address") -> bytes:
    """Return the `length` bytes of a base58 text (Bitcoin's alphabet, no checksum, as Solana uses it).

    Raises:
        FieldError: Naming `field`: a character outside the alphabet, or another length.
    """
    # 58^1.36… per byte: a text this much too long cannot be right, and need not be multiplied out.
    if not text or len(text) > 2 * length:
        raise FieldError(field, f"{_quoted(text)} is not base58 of {length} bytes")
    number = 0
    for character in text:
        digit = _BASE58.find(character)
        if digit < 0:
            raise FieldError(field, f"{_quoted(text)} is not base58: {character!r} is outside the alphabet")
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    decoded = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    if len(decoded) != length:
        raise FieldError(field, f"{_quoted(text)} is base58 of {len(decoded)} bytes, {length} expected")
    return decoded


def encode_base58(data: bytes) -> str:
    """Return the base58 text of `data`; leading zero bytes become leading ones."""
    number = int.from_bytes(data, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def account_id(controller: str, salt: bytes) -> bytes:
    """Return keccak256("crossmargin/account/1" ‖ canonical controller CAIP-10 ‖ salt), the 32-byte account id.

    Raises:
        FieldError: Naming `controller` or `salt`.
    """
    canonical = str(parse_caip10(controller, "controller"))
    return keccak256(b"crossmargin/account/1" + canonical.encode() + require_bytes("salt", salt, 32))


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What both sides of a link sign.

    Args:
        account: The 32-byte account id.
        controller: The account's controller, canonical CAIP-10.
        member: The address that is to back the account, canonical CAIP-10.
        nonce: Distinguishes links of the same pair (u64).
        expiry: Unix seconds; both signatures must be accepted before it (u64).

    Raises:
        FieldError: Naming the field out of range or not canonical.
    """

    account: bytes
    controller: str
    member: str
    nonce: int
    expiry: int

    def __post_init__(self) -> None:
        require_bytes("account", self.account, 32)
        for field, text in (("controller", self.controller), ("member", self.member)):
            canonical = str(parse_caip10(text, field))
            # Two spellings would be two digests, and two members in the links log.
            if canonical != text:
                raise FieldError(field, f"{text} is not canonical: write {canonical}")
        require_uint("nonce", self.nonce, 64)
        require_uint("expiry", self.expiry, 64)


def parse_shares(text: str) -> tuple[tuple[str, int], ...]:
    """Read shares, "eip155:1=7000,solana:…=3000": destinations (CAIP-2) ascending, each with its parts of 10,000.

    Raises:
        FieldError: Naming `shares`: malformed, not ascending, none or more than 16, or above 10,000 together.
    """
    entries = text.split(",")
    if len(entries) > MAX_SHARES:
        raise FieldError("shares", f"{len(entries)} destinations, at most {MAX_SHARES} are taken")
    found: list[tuple[str, int]] = []
    for entry in entries:
        chain, _, parts = entry.partition("=")
        # Any address of the chain shows that its name is canonical.
        place = f"{chain}:0x{'0' * 40}" if chain.startswith("eip155:") else f"{chain}:{'1' * 32}"
        parse_caip10(place, "shares")
        if not (parts.isascii() and parts.isdigit() and len(parts) <= len(str(_WHOLE))) or parts[0] == "0":
            raise FieldError("shares", f"{_quoted(entry)} is not <chain>=<parts> with 1 to {_WHOLE} parts")
        if found and chain <= found[-1][0]:
            raise FieldError("shares", f"{chain} after {found[-1][0]}: destinations must ascend, each once")
        found.append((chain, int(parts)))
    if sum(parts for _, parts in found) > _WHOLE:
        raise FieldError("shares", f"{sum(parts for _, parts in found)} parts together, {_WHOLE} are a whole")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class SharesTerms:
    """What the controller signs about how an account is shared out among destinations.

    Args:
        account: The 32-byte account id.
        controller: The account's controller, canonical CAIP-10.
        shares: The text that `parse_shares` reads; what is left of 10,000 parts may be drawn nowhere.
        nonce: Rises with each entry of the account (u64).
        expiry: Unix seconds; the signature must be accepted before it (u64).

    Raises:
        FieldError: Naming the field out of range or not canonical.
    """

    account: bytes
    controller: str
    shares: str
    nonce: int
    expiry: int

    def __post_init__(self) -> None:
        require_bytes("account", self.account, 32)
        canonical = str(parse_caip10(self.controller, "controller"))
        if canonical != self.controller:
            raise FieldError("controller", f"{self.controller} is not canonical: write {canonical}")
        parse_shares(self.shares)
        require_uint("nonce", self.nonce, 64)
        require_uint("expiry", self.expiry, 64)


@dataclass(frozen=True, slots=True)
class ChainConsent:
    """Consent of an address without a key, which its chain confirms and no bundle proves.

    Args:
        kind: `eip1271`, or `pda` for a program-derived address.
        data: What the contract is asked to accept (at most 4096 bytes), or the 32-byte address of the record that the
            links program keeps.

    Raises:
        FieldError: Naming `signature`: too long, or not an address.
    """

    kind: Literal["eip1271", "pda"]
    data: bytes

    def __post_init__(self) -> None:
        if self.kind == "pda":
            require_bytes("signature", self.data, 32)
        elif len(self.data) > CONTRACT_SIGNATURE_LIMIT:
            raise FieldError(
                "signature", f"{len(self.data)} bytes for a contract, at most {CONTRACT_SIGNATURE_LIMIT} are taken"
            )

    def __str__(self) -> str:
        """Return the text by which people and logs write it: eip1271:0x… or pda:<base58>."""
        return f"pda:{encode_base58(self.data)}" if self.kind == "pda" else f"eip1271:0x{self.data.hex()}"


Consent = bytes | ChainConsent
"""A key's signature (65 bytes r‖s‖v on EVM chains, 64 bytes Ed25519 on Solana), or the word of an address without."""


def parse_chain_consent(text: str, field: str = "signature") -> ChainConsent | None:
    """Read eip1271:0x… or pda:<base58>; return None where the text begins with neither.

    Raises:
        FieldError: Naming `field`: malformed or too long.
    """
    kind, _, rest = text.partition(":")
    if kind == "pda":
        return ChainConsent("pda", decode_base58(rest, 32, field))
    if kind != "eip1271":
        return None
    digits = rest[2:]
    if rest[:2] != "0x" or len(digits) % 2 or any(c not in "0123456789abcdefABCDEF" for c in digits):
        raise FieldError(field, f"{_quoted(text)} is not eip1271:0x and hex digits in pairs")
    if len(digits) > 2 * CONTRACT_SIGNATURE_LIMIT:
        raise FieldError(field, f"longer than {CONTRACT_SIGNATURE_LIMIT} bytes")
    return ChainConsent("eip1271", bytes.fromhex(digits))


def link_digest(deployment_id: bytes, verb: Verb, terms: LinkTerms) -> bytes:
    """Return the EIP-712 digest of LinkInvite, LinkAccept or LinkRevoke that an EVM side signs."""
    return typed_digest(
        deployment_id,
        keccak256(
            _TYPEHASH[verb]
            + terms.account
            + keccak256(terms.controller.encode())
            + keccak256(terms.member.encode())
            + uint_word(terms.nonce)
            + uint_word(terms.expiry)
        ),
    )


def link_text(deployment_id: bytes, verb: Verb, terms: LinkTerms) -> bytes:
    """Return the UTF-8 text that a Solana side signs; it ends without a newline."""
    return "\n".join(
        (
            f"crossmargin link {verb}",
            f"deployment: 0x{require_bytes('deploymentId', deployment_id, 32).hex()}",
            f"account: 0x{terms.account.hex()}",
            f"controller: {terms.controller}",
            f"member: {terms.member}",
            f"nonce: {terms.nonce}",
            f"expiry: {terms.expiry}",
        )
    ).encode()


def shares_digest(deployment_id: bytes, terms: SharesTerms) -> bytes:
    """Return the EIP-712 digest of BudgetShares that a controller on an EVM chain signs."""
    return typed_digest(
        deployment_id,
        keccak256(
            _SHARES_TYPEHASH
            + terms.account
            + keccak256(terms.controller.encode())
            + keccak256(terms.shares.encode())
            + uint_word(terms.nonce)
            + uint_word(terms.expiry)
        ),
    )


def shares_text(deployment_id: bytes, terms: SharesTerms) -> bytes:
    """Return the UTF-8 text that a controller on Solana signs; it ends without a newline."""
    return "\n".join(
        (
            "crossmargin budget shares",
            f"deployment: 0x{require_bytes('deploymentId', deployment_id, 32).hex()}",
            f"account: 0x{terms.account.hex()}",
            f"controller: {terms.controller}",
            f"shares: {terms.shares}",
            f"nonce: {terms.nonce}",
            f"expiry: {terms.expiry}",
        )
    ).encode()


def verify_shares(
    deployment_id: bytes,
    terms: SharesTerms,
    consent: Consent,
    now: int,
    *,
    salt: bytes | None = None,
    ask_chain: bool = False,
) -> None:
    """Check that the controller signed how its account is shared out; the other arguments are those of `verify_link`.

    Raises:
        LinkError: Naming `signature`, `expiry` or `account`. A program-derived address can sign no shares.
    """
    _verify_terms(terms, now, salt)
    if isinstance(consent, ChainConsent) and consent.kind == "pda":
        raise LinkError("signature", "the links program keeps no record of shares; use a controller with a key")
    messages = shares_digest(deployment_id, terms), shares_text(deployment_id, terms)
    _verify_signer("signature", terms.controller, consent, ask_chain, *messages)


def verify_link(
    deployment_id: bytes,
    terms: LinkTerms,
    invite: Consent,
    accept: Consent,
    now: int,
    *,
    salt: bytes | None = None,
    ask_chain: bool = False,
) -> None:
    """Check that controller and member both signed the terms, and that they are accepted before their expiry.

    Args:
        deployment_id: 32 bytes.
        terms: What was signed.
        invite: The controller's consent.
        accept: The member's consent.
        now: Unix seconds at which the link is accepted. A link once accepted outlives its expiry.
        salt: The account's salt, if at hand: proves that `controller` is the account's. A caller who leaves it out
            must know the account's controller otherwise, else anyone could invite in the account's name.
        ask_chain: The caller asks the chain about each `ChainConsent`; without that promise they are refused.

    Raises:
        LinkError: Naming `invite`, `accept`, `expiry` or `account`.
    """
    _verify_terms(terms, now, salt)
    _verify_side(deployment_id, "invite", "invite", terms, terms.controller, invite, ask_chain)
    _verify_side(deployment_id, "accept", "accept", terms, terms.member, accept, ask_chain)


def verify_revoke(
    deployment_id: bytes,
    terms: LinkTerms,
    by: Side,
    consent: Consent,
    now: int,
    *,
    salt: bytes | None = None,
    ask_chain: bool = False,
) -> None:
    """Check that one side of a link signed its end; the other arguments are those of `verify_link`.

    Raises:
        LinkError: Naming `signature`, `expiry` or `account`.
    """
    _verify_terms(terms, now, salt)
    signer = terms.controller if by == "controller" else terms.member
    _verify_side(deployment_id, "revoke", "signature", terms, signer, consent, ask_chain)


def _verify_terms(terms: LinkTerms | SharesTerms, now: int, salt: bytes | None) -> None:
    if now >= terms.expiry:
        raise LinkError(
            "expiry", f"must be accepted before {terms.expiry}, it is {now}: sign again with a later expiry"
        )
    if salt is not None and account_id(terms.controller, salt) != terms.account:
        raise LinkError("account", f"0x{terms.account.hex()} is not the account of {terms.controller} with this salt")


def _verify_side(
    deployment_id: bytes, verb: Verb, field: str, terms: LinkTerms, who: str, consent: Consent, ask_chain: bool
) -> None:
    messages = link_digest(deployment_id, verb, terms), link_text(deployment_id, verb, terms)
    _verify_signer(field, who, consent, ask_chain, *messages)


def _verify_signer(field: str, who: str, consent: Consent, ask_chain: bool, digest: bytes, text: bytes) -> None:
    """Check one side's consent to what is `digest` for an EVM address and `text` for one on Solana."""
    signer = parse_caip10(who)
    if isinstance(consent, ChainConsent):
        _verify_form(field, signer, consent)
        if not ask_chain:
            raise LinkError(field, f"rests on the state of {signer.chain}, which was not asked")
        return
    try:
        if signer.namespace == "eip155":
            recovered = recover_rsv(digest, consent)
            if recovered != signer.address:
                raise SignatureError("signature", f"recovers to 0x{recovered.hex()}")
        else:
            verify_ed25519(signer.address, text, consent)
    except SignatureError as error:
        raise LinkError(field, f"not signed by {signer} over these terms ({error})") from error


def _verify_form(field: str, signer: Caip10, consent: ChainConsent) -> None:
    """Refuse a contract's word for a Solana address, and a record on Solana for an EVM address."""
    expected = "eip155" if consent.kind == "eip1271" else "solana"
    if signer.namespace != expected:
        raise LinkError(field, f"{consent.kind} is for addresses of {expected}, the signer is {signer}")


def _checksummed(lower: str) -> str:
    """Return the EIP-55 form of 40 lower-case hex digits: upper case where the hash's nibble is 8 or more."""
    nibbles = keccak256(lower.encode()).hex()
    return "".join(c.upper() if int(nibble, 16) >= 8 else c for c, nibble in zip(lower, nibbles, strict=False))


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
