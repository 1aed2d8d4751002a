# pragma version ==0.4.3
# pragma nonreentrancy off
"""
@title MarginRegistry
@license MIT
@notice Stores the Merkle roots of attested margin statements on one chain and answers whether a leaf is attested.
@dev A statement is one EIP-712 digest without a chain in it: the same signatures are verified natively on every
     destination. Signers live in the code (immutable), signatures are 64 bytes (EIP-2098), the signers' indices are
     packed eight bits each into one word, the freshness data shares one storage slot and roots sit in a ring, so that
     a post in the steady state writes two slots and creates none. This contract makes no call and holds no value.
"""

struct Header:
    epoch: uint64
    root: bytes32
    floor: uint64
    setId: uint32
    producedAt: uint64
    validUntil: uint64
    body: bytes32

struct Leaf:
    account: bytes32
    destination: bytes32
    epoch: uint64
    equity: int256
    assetsInitial: uint256
    requirementInitial: uint256
    assetsMaintenance: uint256
    requirementMaintenance: uint256
    budget: uint256
    asOf: uint64
    validUntil: uint64
    flags: uint32

struct Latest:
    epoch: uint64
    root: bytes32
    floor: uint64
    producedAt: uint64
    validUntil: uint64
    postedAt: uint64

event Posted:
    epoch: indexed(uint64)
    root: bytes32
    body: bytes32
    floor: uint64
    validUntil: uint64
    signers: uint256  # bit i is set when member i signed

RING: constant(uint256) = 64
MAX_MEMBERS: constant(uint256) = 32
MAX_DEPTH: constant(uint256) = 32
GENESIS_SET: constant(uint32) = 1
DEVNET: constant(uint256) = 3
MAX_SET_LIFETIME: constant(uint256) = 90 * 86400
EPOCHS_AHEAD: constant(uint256) = 2

# Half the order of secp256k1, rounded down (SEC 2 §2.4.1, EIP-2): a larger s is the mirror image of a valid signature.
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
S_MASK: constant(uint256) = 2**255 - 1

# One slot: epoch | floor | producedAt | validUntil | postedAt, 38 bits each, above a 64-bit history whose bit i says
# that epoch (last - i) was posted. `post` bounds epoch and times by its clock and `__init__` bounds the allowances,
# so no field can pass 38 bits before the year 10,000.
FIELD: constant(uint256) = 2**38 - 1
EPOCH_AT: constant(uint256) = 216
FLOOR_AT: constant(uint256) = 178
PRODUCED_AT: constant(uint256) = 140
VALID_AT: constant(uint256) = 102
POSTED_AT: constant(uint256) = 64
HISTORY: constant(uint256) = 2**64 - 1
ALLOWANCE_LIMIT: constant(uint256) = 2**32

DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,string version,bytes32 salt)")
STATEMENT_TYPEHASH: constant(bytes32) = keccak256(
    "MarginStatement(uint64 epoch,bytes32 root,uint64 floor,uint32 setId,uint64 producedAt,uint64 validUntil,bytes32 body)"
)

networkClass: public(immutable(uint256))
threshold: public(immutable(uint256))
notAfter: public(immutable(uint256))
epochSeconds: public(immutable(uint256))
clockSkew: public(immutable(uint256))
maxLifetime: public(immutable(uint256))
deploymentId: public(immutable(bytes32))
destination: public(immutable(bytes32))
chainId: public(immutable(uint256))
DOMAIN_SEPARATOR: public(immutable(bytes32))
MEMBERS: immutable(DynArray[address, MAX_MEMBERS])

_meta: uint256
_roots: bytes32[RING]


@deploy
def __init__(
    network_class: uint256,
    members: DynArray[address, MAX_MEMBERS],
    threshold_: uint256,
    not_after: uint256,
    salt: bytes32,
    epoch_seconds: uint256,
    clock_skew: uint256,
    max_lifetime: uint256,
):
    """
    @param network_class 1 mainnet, 2 testnet, 3 devnet
    @param members addresses of the attestors; their order fixes the signer indices
    @param threshold_ signatures a post needs, at least floor((n + f) / 2) + 1 with f = floor((n - 1) / 3)
    @param not_after Unix seconds after which this set can no longer post
    @param salt 32 random bytes that make the deployment unique
    @param epoch_seconds length of an epoch in seconds
    @param clock_skew seconds a statement may be ahead of this chain's clock
    @param max_lifetime longest life of a statement in seconds
    """
    n: uint256 = len(members)
    assert network_class >= 1 and network_class <= DEVNET, "networkClass"
    assert n > 0 and (n >= 4 or network_class == DEVNET), "too few members"
    assert threshold_ <= n, "threshold above members"
    assert threshold_ >= (n + (n - 1) // 3) // 2 + 1, "threshold below quorum"
    assert not_after > block.timestamp, "notAfter passed"
    assert network_class == DEVNET or not_after <= block.timestamp + MAX_SET_LIFETIME, "notAfter too far"
    assert epoch_seconds > 0 and epoch_seconds < ALLOWANCE_LIMIT, "epochSeconds"
    assert clock_skew < ALLOWANCE_LIMIT, "clockSkew"
    assert max_lifetime > 0 and max_lifetime < ALLOWANCE_LIMIT, "maxLifetime"

    members_hash: bytes32 = empty(bytes32)
    for i: uint256 in range(n, bound=MAX_MEMBERS):
        assert members[i] != empty(address), "zero member"
        for j: uint256 in range(i, bound=MAX_MEMBERS):
            assert members[i] != members[j], "duplicate member"
        members_hash = keccak256(concat(members_hash, convert(members[i], bytes32)))

    networkClass = network_class
    threshold = threshold_
    notAfter = not_after
    epochSeconds = epoch_seconds
    clockSkew = clock_skew
    maxLifetime = max_lifetime
    MEMBERS = members
    chainId = chain.id
    destination = keccak256(concat("eip155:", uint2str(chain.id)))
    deploymentId = keccak256(abi_encode(network_class, members_hash, threshold_, not_after, salt))
    DOMAIN_SEPARATOR = keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("crossmargin"), keccak256("1"), deploymentId))


@external
def post(header: Header, indices: uint256, signatures: DynArray[bytes32[2], MAX_MEMBERS]):
    """
    @notice Store the root of a statement that a quorum of the set signed. Anyone may call.
    @param header the statement's header
    @param indices positions of the signers in the member list, 8 bits each, the first signer in the lowest byte,
           strictly increasing; bytes above the last signer are zero
    @param signatures (r, vs) of EIP-2098, in the order of `indices`
    """
    meta: uint256 = self._meta
    last: uint256 = meta >> EPOCH_AT
    epoch: uint256 = convert(header.epoch, uint256)
    new_floor: uint256 = convert(header.floor, uint256)
    produced_at: uint256 = convert(header.producedAt, uint256)
    valid_until: uint256 = convert(header.validUntil, uint256)

    assert chain.id == chainId, "chain id changed"
    assert block.timestamp <= notAfter, "set expired"
    assert header.setId == GENESIS_SET, "setId"
    assert header.root != empty(bytes32), "zero root"
    assert epoch > last, "epoch not above the last"
    assert epoch <= unsafe_add(unsafe_div(block.timestamp, epochSeconds), EPOCHS_AHEAD), "epoch in the future"
    assert new_floor >= (meta >> FLOOR_AT) & FIELD, "floor below the stored floor"
    assert new_floor <= epoch, "floor above epoch"
    assert produced_at <= unsafe_add(block.timestamp, clockSkew), "producedAt in the future"
    assert valid_until > block.timestamp, "expired"
    assert valid_until > produced_at and unsafe_sub(valid_until, produced_at) <= maxLifetime, "lifetime"

    message: bytes32 = self._digest(header)
    assert len(signatures) >= threshold, "too few signatures"
    rest: uint256 = indices
    next_index: uint256 = 0
    signers: uint256 = 0
    for signature: bytes32[2] in signatures:
        index: uint256 = rest & 255
        assert index >= next_index, "indices not increasing"
        assert index < len(MEMBERS), "index out of range"
        vs: uint256 = convert(signature[1], uint256)
        s: uint256 = vs & S_MASK
        assert s <= HALF_ORDER, "high s"
        # A failed recovery gives the zero address, which is never a member.
        signer: address = ecrecover(message, unsafe_add(vs >> 255, 27), convert(signature[0], uint256), s)
        assert signer == MEMBERS[index], "wrong signer"
        signers |= 1 << index
        next_index = unsafe_add(index, 1)
        rest >>= 8
    assert rest == 0, "indices without signatures"

    history: uint256 = 1
    gap: uint256 = unsafe_sub(epoch, last)
    if gap < RING:
        history |= (meta << gap) & HISTORY
    self._meta = (
        epoch << EPOCH_AT
        | new_floor << FLOOR_AT
        | produced_at << PRODUCED_AT
        | valid_until << VALID_AT
        | block.timestamp << POSTED_AT
        | history
    )
    self._roots[epoch % RING] = header.root
    log Posted(
        epoch=header.epoch,
        root=header.root,
        body=header.body,
        floor=header.floor,
        validUntil=header.validUntil,
        signers=signers,
    )


@external
@view
def verify(leaf: Leaf, proof: DynArray[bytes32, MAX_DEPTH]) -> bool:
    """
    @notice Whether a leaf is attested for this chain and usable now.
    @param leaf the account's values on this destination, USD with 8 decimals
    @param proof sibling hashes from the leaf up to the root (OpenZeppelin's sorted pairs)
    @return False when the leaf is for another destination, below the floor, out of the ring, expired or unproven
    """
    if chain.id != chainId or leaf.destination != destination:
        return False
    if block.timestamp >= convert(leaf.validUntil, uint256):
        return False
    meta: uint256 = self._meta
    epoch: uint256 = convert(leaf.epoch, uint256)
    if epoch < (meta >> FLOOR_AT) & FIELD or not self._is_stored(meta, epoch):
        return False
    if epoch == meta >> EPOCH_AT and block.timestamp >= (meta >> VALID_AT) & FIELD:
        return False
    # Hashed twice, so that no inner node can be passed off as a leaf.
    node: bytes32 = keccak256(keccak256(abi_encode(leaf)))
    for sibling: bytes32 in proof:
        if convert(node, uint256) < convert(sibling, uint256):
            node = keccak256(concat(node, sibling))
        else:
            node = keccak256(concat(sibling, node))
    return node == self._roots[epoch % RING]


@external
@view
def latest() -> Latest:
    """
    @return epoch, root, floor, producedAt, validUntil, postedAt of the newest statement; all zero before the first
    """
    meta: uint256 = self._meta
    epoch: uint256 = meta >> EPOCH_AT
    return Latest(
        epoch=convert(epoch, uint64),
        root=self._roots[epoch % RING],
        floor=convert((meta >> FLOOR_AT) & FIELD, uint64),
        producedAt=convert((meta >> PRODUCED_AT) & FIELD, uint64),
        validUntil=convert((meta >> VALID_AT) & FIELD, uint64),
        postedAt=convert((meta >> POSTED_AT) & FIELD, uint64),
    )


@external
@view
def rootOf(epoch: uint64) -> bytes32:
    """
    @return the root stored for exactly this epoch, zero when it was never posted or has left the ring. The floor is
            not applied: `verify` decides what is usable.
    """
    wanted: uint256 = convert(epoch, uint256)
    if not self._is_stored(self._meta, wanted):
        return empty(bytes32)
    return self._roots[wanted % RING]


@external
@view
def digest(header: Header) -> bytes32:
    """
    @return the EIP-712 digest that attestors sign for this header
    """
    return self._digest(header)


@external
@view
def members(index: uint256) -> address:
    """
    @param index position in the set, below `memberCount`
    """
    return MEMBERS[index]


@external
@view
def memberCount() -> uint256:
    return len(MEMBERS)


@external
@view
def setId() -> uint32:
    return GENESIS_SET


@internal
@view
def _digest(header: Header) -> bytes32:
    return keccak256(concat(0x1901, DOMAIN_SEPARATOR, keccak256(abi_encode(STATEMENT_TYPEHASH, header))))


@internal
@pure
def _is_stored(meta: uint256, epoch: uint256) -> bool:
    last: uint256 = meta >> EPOCH_AT
    if epoch > last or last - epoch >= RING:
        return False
    return (meta >> (last - epoch)) & 1 == 1
