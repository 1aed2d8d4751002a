"""Pyth price updates: the accumulator message `PNAU`, its Wormhole VAA and the Merkle paths of its prices.

An update is valid when guardians of the configured set signed the VAA, the VAA comes from the configured emitter, and
each price message lies in the tree whose root the VAA carries. Layouts: pyth-network/pyth-crosschain,
`target_chains/ethereum/contracts/contracts/pyth/PythAccumulator.sol`, and wormhole-foundation/wormhole,
`ethereum/contracts/Messages.sol`. All integers are big-endian.

The parse consumes every byte. Of an update without trailing header (none is served with one) every byte is under a
check, save the minor version, which the format leaves free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proofs.document import Node
from proofs.errors import FieldError, PriceError, ProofError, SignatureError
from proofs.fields import require_bytes, require_uint
from proofs.hashing import keccak256
from proofs.signing import recover_address

PRICE_MESSAGE_LENGTH = 85

_MAGIC = b"PNAU"
_MAJOR_VERSION = 1
_MERKLE_UPDATE = 0
_VAA_VERSION = 1
_ROOT_MAGIC = b"AUWV"
_PRICE_MESSAGE = 0
_HASH_LENGTH = 20


@dataclass(frozen=True, slots=True)
class GuardianSet:
    """The signers an update must carry a quorum of.

    Args:
        index: The set's number, named in every VAA (u32).
        addresses: 20 bytes each; a signature's index points into it.
        quorum: Signatures needed; ⌊2n/3⌋+1 when None, as Wormhole demands. More than half is enough for other networks.

    Raises:
        FieldError: Naming the field.
    """

    index: int
    addresses: tuple[bytes, ...]
    quorum: int | None = None

    def __post_init__(self) -> None:
        require_uint("guardian_set.index", self.index, 32)
        n = len(self.addresses)
        if not 1 <= n <= 255:
            raise FieldError("guardian_set.addresses", f"{n} given, 1 to 255 expected")
        for i, address in enumerate(self.addresses):
            require_bytes(f"guardian_set.addresses[{i}]", address, 20)
            if not any(address):
                raise FieldError(f"guardian_set.addresses[{i}]", "the zero address")
        if len(set(self.addresses)) != n:
            raise FieldError("guardian_set.addresses", "an address is listed twice")
        if self.quorum is not None:
            require_uint("guardian_set.quorum", self.quorum, 8)
            if not n // 2 < self.quorum <= n:
                raise FieldError("guardian_set.quorum", f"{self.quorum} of {n} given, {n // 2 + 1} to {n} expected")

    @property
    def needed(self) -> int:
        """The number of signatures an update must carry."""
        return self.quorum if self.quorum is not None else len(self.addresses) * 2 // 3 + 1


@dataclass(frozen=True, slots=True)
class GuardianSignature:
    """One guardian's signature: position in the set, 32-byte r and s, recovery id 0 or 1."""

    index: int
    r: bytes
    s: bytes
    v: int


@dataclass(frozen=True, slots=True)
class Vaa:
    """A parsed Wormhole message. `raw` is all of it; `body` is the part that guardians sign (double keccak)."""

    raw: bytes
    guardian_set_index: int
    signatures: tuple[GuardianSignature, ...]
    body: bytes
    timestamp: int
    nonce: int
    emitter_chain: int
    emitter_address: bytes
    sequence: int
    consistency: int
    slot: int
    ring_size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Update:
    """A parsed, unverified accumulator update: a VAA and (message, path) pairs under its root."""

    minor_version: int
    trailing_header: bytes
    vaa: Vaa
    messages: tuple[tuple[bytes, tuple[bytes, ...]], ...]


@dataclass(frozen=True, slots=True)
class PriceMessage:
    """One price: value = price · 10^expo USD, conf likewise; times in Unix seconds; `feed_id` 32 bytes."""

    feed_id: bytes
    price: int
    conf: int
    expo: int
    publish_time: int
    prev_publish_time: int
    ema_price: int
    ema_conf: int


@dataclass(frozen=True, slots=True)
class PriceFileResult:
    """The verdict on one update of a price file: its verified prices, or the `problem` found (then none)."""

    name: str
    prices: tuple[PriceMessage, ...]
    problem: str | None

    @property
    def ok(self) -> bool:
        """Whether every check of the update passed."""
        return self.problem is None


def parse_update(raw: bytes) -> Update:
    """Read the bytes of one accumulator update, all of them, checking its shape and nothing else.

    Raises:
        PriceError: Naming the field where the bytes stop making sense.
    """
    reader = _Reader(raw)
    reader.expect("magic", _MAGIC)
    reader.expect("major_version", bytes([_MAJOR_VERSION]))
    minor_version = reader.uint("minor_version", 1)
    trailing_header = reader.take("trailing_header", reader.uint("trailing_header length", 1))
    reader.expect("update_type", bytes([_MERKLE_UPDATE]))
    vaa = parse_vaa(reader.take("vaa", reader.uint("vaa length", 2)))
    count = reader.uint("update count", 1)
    if not count:
        raise PriceError("update count", "no price message")
    messages = []
    for i in range(count):
        message = reader.take(f"updates[{i}].message", reader.uint(f"updates[{i}].message length", 2))
        depth = reader.uint(f"updates[{i}].proof length", 1)
        path = tuple(reader.take(f"updates[{i}].proof[{level}]", _HASH_LENGTH) for level in range(depth))
        messages.append((message, path))
    reader.expect_end()
    return Update(minor_version, trailing_header, vaa, tuple(messages))


def parse_vaa(raw: bytes) -> Vaa:
    """Read a VAA that carries an accumulator root, all of it, checking its shape and nothing else.

    Raises:
        PriceError: Naming the field.
    """
    reader = _Reader(raw)
    reader.expect("vaa.version", bytes([_VAA_VERSION]))
    guardian_set_index = reader.uint("vaa.guardian_set_index", 4)
    signatures = []
    for i in range(reader.uint("vaa signature count", 1)):
        here = f"vaa.signatures[{i}]"
        index = reader.uint(f"{here}.index", 1)
        r, s = reader.take(f"{here}.r", 32), reader.take(f"{here}.s", 32)
        v = reader.uint(f"{here}.v", 1)
        if v > 1:
            raise PriceError(f"{here}.v", f"{v} given, 0 or 1 expected")
        signatures.append(GuardianSignature(index, r, s, v))
    body = reader.rest()
    timestamp = reader.uint("vaa.timestamp", 4)
    nonce = reader.uint("vaa.nonce", 4)
    emitter_chain = reader.uint("vaa.emitter_chain", 2)
    emitter_address = reader.take("vaa.emitter_address", 32)
    sequence = reader.uint("vaa.sequence", 8)
    consistency = reader.uint("vaa.consistency", 1)
    reader.expect("vaa.payload.magic", _ROOT_MAGIC)
    reader.expect("vaa.payload.type", bytes([_MERKLE_UPDATE]))
    slot = reader.uint("vaa.payload.slot", 8)
    ring_size = reader.uint("vaa.payload.ring_size", 4)
    root = reader.take("vaa.payload.root", _HASH_LENGTH)
    reader.expect_end("vaa.payload")
    return Vaa(
        raw=raw,
        guardian_set_index=guardian_set_index,
        signatures=tuple(signatures),
        body=body,
        timestamp=timestamp,
        nonce=nonce,
        emitter_chain=emitter_chain,
        emitter_address=emitter_address,
        sequence=sequence,
        consistency=consistency,
        slot=slot,
        ring_size=ring_size,
        root=root,
    )


def parse_price(message: bytes, field: str = "message") -> PriceMessage:
    """Read one 85-byte price message.

    Raises:
        PriceError: Naming `field`: another message type or length.
    """
    reader = _Reader(message)
    kind = reader.uint(f"{field}.type", 1)
    if kind != _PRICE_MESSAGE:
        raise PriceError(f"{field}.type", f"{kind} given, {_PRICE_MESSAGE} (price) expected")
    if len(message) != PRICE_MESSAGE_LENGTH:
        raise PriceError(field, f"{len(message)} bytes given, {PRICE_MESSAGE_LENGTH} expected")
    return PriceMessage(
        feed_id=reader.take(field, 32),
        price=reader.sint(field, 8),
        conf=reader.uint(field, 8),
        expo=reader.sint(field, 4),
        publish_time=reader.sint(field, 8),
        prev_publish_time=reader.sint(field, 8),
        ema_price=reader.sint(field, 8),
        ema_conf=reader.uint(field, 8),
    )


def verify_vaa(vaa: Vaa, guardian_set: GuardianSet, emitter_chain: int, emitter_address: bytes) -> None:
    """Check a VAA's guardian set, emitter, quorum and every signature it carries.

    Raises:
        PriceError: Naming the field.
    """
    if vaa.guardian_set_index != guardian_set.index:
        raise PriceError("vaa.guardian_set_index", f"{vaa.guardian_set_index} given, {guardian_set.index} expected")
    if vaa.emitter_chain != emitter_chain:
        raise PriceError("vaa.emitter_chain", f"{vaa.emitter_chain} given, {emitter_chain} expected")
    if vaa.emitter_address != emitter_address:
        raise PriceError(
            "vaa.emitter_address", f"0x{vaa.emitter_address.hex()} given, 0x{emitter_address.hex()} expected"
        )
    if len(vaa.signatures) < guardian_set.needed:
        raise PriceError("vaa.signatures", f"{len(vaa.signatures)} given, the quorum is {guardian_set.needed}")
    signed = keccak256(keccak256(vaa.body))
    last = -1
    for i, signature in enumerate(vaa.signatures):
        here = f"vaa.signatures[{i}]"
        if signature.index >= len(guardian_set.addresses):
            raise PriceError(f"{here}.index", f"{signature.index} is not in the set of {len(guardian_set.addresses)}")
        if signature.index <= last:
            raise PriceError(f"{here}.index", f"{signature.index} follows {last}: strictly increasing expected")
        last = signature.index
        expected = guardian_set.addresses[signature.index]
        try:
            signer = recover_address(signed, signature.r, signature.s, signature.v)
        except SignatureError as error:
            raise PriceError(here, error.reason) from error
        if signer != expected:
            raise PriceError(here, f"recovers to 0x{signer.hex()}, guardian {signature.index} is 0x{expected.hex()}")


def verify_update(
    raw: bytes,
    guardian_set: GuardianSet,
    emitter_chain: int,
    emitter_address: bytes,
    *,
    verified: set[bytes] | None = None,
) -> tuple[PriceMessage, ...]:
    """Check one accumulator update from its bytes and return its prices, in its order.

    Args:
        raw: The update's bytes.
        guardian_set: Who must have signed.
        emitter_chain: Wormhole's number of the emitting chain (26 for Pythnet).
        emitter_address: 32 bytes.
        verified: A memory of VAAs found valid, so that the updates of one second cost one check of signatures. An entry
            binds the whole VAA, signatures included, to guardian set and emitter; the caller bounds its size.

    Raises:
        PriceError: Naming the field at fault.
    """
    update = parse_update(raw)
    memory_key = _memory_key(update.vaa, guardian_set, emitter_chain, emitter_address)
    if verified is None or memory_key not in verified:
        verify_vaa(update.vaa, guardian_set, emitter_chain, emitter_address)
        if verified is not None:
            verified.add(memory_key)
    prices = []
    for i, (message, path) in enumerate(update.messages):
        price = parse_price(message, f"updates[{i}].message")
        node = keccak256(b"\x00" + message)[:_HASH_LENGTH]
        for sibling in path:
            node = keccak256(b"\x01" + min(node, sibling) + max(node, sibling))[:_HASH_LENGTH]
        if node != update.vaa.root:
            raise PriceError(
                f"updates[{i}].proof", f"leads to 0x{node.hex()}, the signed root is 0x{update.vaa.root.hex()}"
            )
        prices.append(price)
    return tuple(prices)


def verify_price_file(document: object) -> list[PriceFileResult]:
    """Check every update of a price file: signatures, quorum, Merkle paths and, where given, the expected values.

    The document is the parsed JSON object `{emitter_chain, emitter_address, guardian_set: {index, addresses, quorum?},
    updates: [{name, update_hex, guardian_set_index?, expected?: [{feed_id, price, conf, expo, publish_time}]}]}`; of an
    expected entry only the keys given are compared.

    Raises:
        FieldError: The file cannot be used; names the field. A failing update is a result, not an error.
    """
    file = Node(document)
    guardian_set, emitter_chain, emitter_address = _decode_signers(file)
    # The whole file is read before anything is checked: a broken entry at its end is a broken file.
    entries = [_decode_entry(node) for node in file.member("updates").items()]
    if not entries:
        raise FieldError("updates", "the file holds no update")
    return [_price_file_result(entry, guardian_set, emitter_chain, emitter_address) for entry in entries]


@dataclass(frozen=True, slots=True)
class _PriceFileEntry:
    name: str
    raw: bytes
    guardian_set_index: int | None
    expected: tuple[Mapping[str, int | bytes], ...]


def _decode_signers(file: Node) -> tuple[GuardianSet, int, bytes]:
    given = file.member("guardian_set")
    quorum = given.optional("quorum")
    guardian_set = GuardianSet(
        index=given.member("index").integer(),
        addresses=tuple(address.bare_hex_bytes(20) for address in given.member("addresses").items()),
        quorum=None if quorum is None else quorum.integer(),
    )
    emitter_chain = require_uint("emitter_chain", file.member("emitter_chain").integer(), 16)
    return guardian_set, emitter_chain, file.member("emitter_address").bare_hex_bytes(32)


def _decode_entry(node: Node) -> _PriceFileEntry:
    index, expected = node.optional("guardian_set_index"), node.optional("expected")
    return _PriceFileEntry(
        name=node.member("name").text(),
        raw=node.member("update_hex").bare_hex_bytes(),
        guardian_set_index=None if index is None else index.integer(),
        expected=() if expected is None else tuple(_decode_expected(item) for item in expected.items()),
    )


def _decode_expected(node: Node) -> dict[str, int | bytes]:
    wanted: dict[str, int | bytes] = {"feed_id": node.member("feed_id").bare_hex_bytes(32)}
    for key in ("price", "conf", "expo", "publish_time"):
        value = node.optional(key)
        if value is not None:
            # Hermes writes 64-bit amounts as text, recorded files as integers.
            wanted[key] = value.decimal() if isinstance(value.value, str) else value.integer()
    return wanted


def _price_file_result(
    entry: _PriceFileEntry, guardian_set: GuardianSet, emitter_chain: int, emitter_address: bytes
) -> PriceFileResult:
    try:
        if entry.guardian_set_index not in (None, guardian_set.index):
            raise PriceError(
                "guardian_set_index", f"{entry.guardian_set_index}, the file gives set {guardian_set.index}"
            )
        prices = verify_update(entry.raw, guardian_set, emitter_chain, emitter_address)
        for i, wanted in enumerate(entry.expected):
            _verify_expected(f"expected[{i}]", wanted, prices)
    except ProofError as error:
        return PriceFileResult(entry.name, (), str(error))
    return PriceFileResult(entry.name, prices, None)


def _verify_expected(here: str, wanted: Mapping[str, int | bytes], prices: Sequence[PriceMessage]) -> None:
    price = next((price for price in prices if price.feed_id == wanted["feed_id"]), None)
    if price is None:
        raise PriceError(f"{here}.feed_id", "the update holds no price of this feed")
    for key, value in wanted.items():
        found = getattr(price, key)
        if found != value:
            raise PriceError(f"{here}.{key}", f"{value!r} expected, the update says {found!r}")


def _memory_key(vaa: Vaa, guardian_set: GuardianSet, emitter_chain: int, emitter_address: bytes) -> bytes:
    return keccak256(
        guardian_set.index.to_bytes(4, "big")
        + bytes([guardian_set.needed, len(guardian_set.addresses)])
        + b"".join(guardian_set.addresses)
        + emitter_chain.to_bytes(2, "big")
        + emitter_address
        + vaa.raw
    )


class _Reader:
    """Reads big-endian fields in order; every shortage names the field that is missing bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, field: str, length: int) -> bytes:
        taken = self._data[self._at : self._at + length]
        if len(taken) != length:
            raise PriceError(field, f"the bytes end: {length} needed, {len(taken)} left")
        self._at += length
        return taken

    def uint(self, field: str, length: int) -> int:
        return int.from_bytes(self.take(field, length), "big")

    def sint(self, field: str, length: int) -> int:
        return int.from_bytes(self.take(field, length), "big", signed=True)

    def expect(self, field: str, expected: bytes) -> None:
        found = self.take(field, len(expected))
        if found != expected:
            raise PriceError(field, f"0x{found.hex()} given, 0x{expected.hex()} expected")

    def rest(self) -> bytes:
        return self._data[self._at :]

    def expect_end(self, field: str = "end") -> None:
        if self.rest():
            raise PriceError(field, f"{len(self.rest())} bytes left over")
