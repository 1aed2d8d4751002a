# pragma version ==0.4.3
# pragma nonreentrancy off
"""
@title MarginRegistry
@license MIT
@notice Stores the Merkle roots of attested margin statements on one chain, answers whether a leaf is attested, and
        keeps what listed consumers draw against the budgets of accounts.
@dev A statement is one EIP-712 digest without a chain in it: the same signatures are verified natively on every
     destination. Signatures are 64 bytes (EIP-2098), the signers' indices are packed eight bits each into one word,
     the freshness data shares one storage slot and roots sit in a ring, so that a post in the steady state writes two
     slots and creates none.

     Attestor sets are code, not storage: set N, the first one too, is the N-th contract that this one created, whose
     address follows from N alone, so that fetching all its members costs one access to a cold account (2,600 gas).
     One path serves every set; members in this contract's own code would save that access for the first set only,
     which outside devnets lasts 90 days. Meta names the newest set, and every set's activation epoch lies beside its
     members: while a rotation waits for its activation a post fetches both sets, afterwards one, and nothing is
     written when a set becomes active, since the epoch alone decides.

     `verify` reads one slot, the root's. So what would make a leaf of an epoch void without its knowing is wiped: a
     floor that rises empties every slot of the ring but those of epochs from it on. That is dear, and rare: floors
     rise after reorganisations only.

     This contract calls nothing but the code of the sets and holds no value.
"""

# The fields of the signed statement. Every number is bounded far below its 64 or 32 bits by the rules of `post`, so
# that checking the width of each word besides would only cost gas.
struct Header:
    epoch: uint256
    root: bytes32
    floor: uint256
    setId: uint256
    producedAt: uint256
    validUntil: uint256
    body: bytes32

# The words of an attested leaf. They are hashed as they came: a word wider than its type is part of no tree.
struct Leaf:
    account: bytes32
    destination: bytes32
    epoch: uint256
    equity: int256
    assetsInitial: uint256
    requirementInitial: uint256
    assetsMaintenance: uint256
    requirementMaintenance: uint256
    budget: uint256
    asOf: uint256
    validUntil: uint256
    flags: uint256

struct Latest:
    epoch: uint64
    root: bytes32
    floor: uint64
    producedAt: uint64
    validUntil: uint64
    postedAt: uint64

struct AttestorSet:
    setId: uint32
    members: DynArray[address, MAX_MEMBERS]
    threshold: uint32
    activationEpoch: uint64
    notAfter: uint64

struct Margin:
    epoch: uint64
    asOf: uint64
    validUntil: uint64  # the earlier of the leaf's and its header's
    flags: uint32
    equity: int256
    assetsInitial: uint256
    requirementInitial: uint256
    assetsMaintenance: uint256
    requirementMaintenance: uint256
    budget: uint256
    used: uint256
    usable: uint256
    fresh: bool

# What is kept of an account: 128-bit amounts two to a slot, so that a draw reads two slots here and writes one.
struct Entry:
    drawing: uint256  # budget | used
    times: uint256  # epoch 64 | asOf 64 | validUntil 64 | flags 32
    initial: uint256  # assets | requirement
    maintenance: uint256  # assets | requirement
    equity: int256

event Posted:
    epoch: indexed(uint64)
    root: bytes32
    body: bytes32

event Rotated:
    setId: indexed(uint32)
    members: DynArray[address, MAX_MEMBERS]
    threshold: uint32
    activationEpoch: uint64
    notAfter: uint64
    recovered: bool  # by governance, without signatures of the set before

event RecoveryScheduled:
    setId: indexed(uint32)
    digest: bytes32
    executableFrom: uint256

event RecoveryCancelled:
    digest: bytes32

event Listed:
    consumer: indexed(address)
    usableFrom: uint256

event Delisted:
    consumer: indexed(address)

event Paused:
    until: uint256

event Unpaused:
    pass

event Applied:
    account: indexed(bytes32)
    epoch: indexed(uint64)
    budget: uint256
    flags: uint32

event Drawn:
    account: indexed(bytes32)
    consumer: indexed(address)
    amount: uint256
    used: uint256

event Repaid:
    account: indexed(bytes32)
    consumer: indexed(address)
    amount: uint256
    used: uint256

event Forgiven:
    account: indexed(bytes32)
    consumer: indexed(address)
    amount: uint256
    used: uint256

RING: constant(uint256) = 64
MAX_MEMBERS: constant(uint256) = 32
MAX_DEPTH: constant(uint256) = 32
GENESIS_SET: constant(uint256) = 1
ANY_SET: constant(uint256) = 0
DEVNET: constant(uint256) = 3
EPOCHS_AHEAD: constant(uint256) = 2
MAX_SET_LIFETIME: constant(uint256) = 90 * 86400
MAX_ACTIVATION_DELAY: constant(uint256) = 90 * 86400
MIN_TIMELOCK: constant(uint256) = 86400
MAX_TIMELOCK: constant(uint256) = 30 * 86400
MAX_PAUSE: constant(uint256) = 3 * 86400

# Half the order of secp256k1, rounded down (SEC 2 §2.4.1, EIP-2): a larger s is the mirror image of a valid signature.
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
S_MASK: constant(uint256) = 2**255 - 1

# One slot: epoch | floor | producedAt | validUntil | postedAt, 34 bits each, then the newest set's id, 16 bits, above a
# 64-bit history whose bit i says that epoch (last - i) was posted. `post` bounds epoch and times by its clock and
# `__init__` bounds the allowances, so no field can pass 34 bits before the year 2500; 65,535 sets last longer.
FIELD: constant(uint256) = 2**34 - 1
EPOCH_AT: constant(uint256) = 216
FLOOR_AT: constant(uint256) = 182
PRODUCED_AT: constant(uint256) = 148
VALID_AT: constant(uint256) = 114
POSTED_AT: constant(uint256) = 80
SET_AT: constant(uint256) = 64
SET_FIELD: constant(uint256) = 2**16 - 1
HISTORY: constant(uint256) = 2**64 - 1
ALLOWANCE_LIMIT: constant(uint256) = 2**26  # two years

# A set's code is a program of ten bytes that returns the words behind it: its terms (threshold | number of members |
# activation epoch | notAfter), then its members. Called, it costs less than EXTCODESIZE and EXTCODECOPY do, and needs no
# padding to a length known here.
SET_BYTES: constant(uint256) = 32 * (1 + MAX_MEMBERS)
THRESHOLD_AT: constant(uint256) = 136
COUNT_AT: constant(uint256) = 128
ACTIVATION_AT: constant(uint256) = 64
BYTE: constant(uint256) = 2**8 - 1
TIME: constant(uint256) = 2**64 - 1
# After PUSH2 length: DUP1, PUSH1 10, PUSH0, CODECOPY, PUSH0, RETURN.
RETURN_REST: constant(Bytes[7]) = x"80600a5f395ff3"

ENTRY_EPOCH_AT: constant(uint256) = 160
AS_OF_AT: constant(uint256) = 96
UNTIL_AT: constant(uint256) = 32
FLAGS: constant(uint256) = 2**32 - 1
AMOUNT: constant(uint256) = 2**128 - 1
STALE: constant(uint256) = 1
PARTIAL: constant(uint256) = 2
LIQUIDATABLE: constant(uint256) = 8
MONITORED: constant(uint256) = 32

UNKNOWN: constant(uint256) = 0
HEALTHY: constant(uint256) = 1
UNHEALTHY: constant(uint256) = 2
TO_LIQUIDATE: constant(uint256) = 3

DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,string version,bytes32 salt)")
STATEMENT_TYPEHASH: constant(bytes32) = keccak256(
    "MarginStatement(uint64 epoch,bytes32 root,uint64 floor,uint32 setId,uint64 producedAt,uint64 validUntil,bytes32 body)"
)
ROTATE_TYPEHASH: constant(bytes32) = keccak256(
    "RotateSet(uint32 setId,address[] members,uint32 threshold,uint64 activationEpoch,uint64 notAfter)"
)

networkClass: public(immutable(uint256))
epochSeconds: public(immutable(uint256))
clockSkew: public(immutable(uint256))
maxLifetime: public(immutable(uint256))
governance: public(immutable(address))
guardian: public(immutable(address))
timelock: public(immutable(uint256))
deploymentId: public(immutable(bytes32))
destination: public(immutable(bytes32))
chainId: public(immutable(uint256))
DOMAIN_SEPARATOR: public(immutable(bytes32))
SHORT_RLP: immutable(uint256)  # the 22 bytes before a nonce below 128: see _compute_address

_meta: uint256
_roots: bytes32[RING]
_entries: HashMap[bytes32, Entry]
usedBy: public(HashMap[bytes32, HashMap[address, uint256]])  # account -> consumer, USD with 8 decimals
listedFrom: public(HashMap[address, uint256])  # Unix seconds from which a consumer may draw, 0 = not listed
delistedAt: public(HashMap[address, uint256])  # Unix seconds of the newest delisting, 0 = never
_pause: uint256  # begin << 128 | end of the newest pause, Unix seconds
recoveryDigest: public(bytes32)  # of the set that governance scheduled, 0 = none
recoveryFrom: public(uint256)  # Unix seconds from which it may be executed


@deploy
def __init__(
    network_class: uint256,
    members: DynArray[address, MAX_MEMBERS],
    threshold: uint256,
    not_after: uint256,
    salt: bytes32,
    epoch_seconds: uint256,
    clock_skew: uint256,
    max_lifetime: uint256,
    governance_: address,
    guardian_: address,
    timelock_: uint256,
):
    """
    @param network_class 1 mainnet, 2 testnet, 3 devnet
    @param members addresses of the first attestors; their order fixes the signer indices
    @param threshold signatures a post needs, at least floor((n + f) / 2) + 1 with f = floor((n - 1) / 3)
    @param not_after Unix seconds after which the first set can no longer post
    @param salt 32 random bytes that make the deployment unique
    @param epoch_seconds length of an epoch in seconds
    @param clock_skew seconds a statement may be ahead of this chain's clock
    @param max_lifetime longest life of a statement in seconds
    @param governance_ lists consumers and recovers the set, both after the timelock
    @param guardian_ may pause draws; zero: nobody can
    @param timelock_ seconds, at least a day outside devnets, at most 30 days
    """
    assert network_class >= 1 and network_class <= DEVNET, "networkClass"
    assert not_after > block.timestamp, "notAfter passed"
    assert not_after <= TIME, "notAfter too far"
    assert network_class == DEVNET or not_after <= block.timestamp + MAX_SET_LIFETIME, "notAfter too far"
    assert epoch_seconds > 0 and epoch_seconds < ALLOWANCE_LIMIT, "epochSeconds"
    assert clock_skew < ALLOWANCE_LIMIT, "clockSkew"
    assert max_lifetime > 0 and max_lifetime < ALLOWANCE_LIMIT, "maxLifetime"
    assert governance_ != empty(address), "zero governance"
    assert timelock_ <= MAX_TIMELOCK and (timelock_ >= MIN_TIMELOCK or network_class == DEVNET), "timelock"

    networkClass = network_class
    SHORT_RLP = convert(0xd694, uint256) << 240 | convert(self, uint256) << 80
    epochSeconds = epoch_seconds
    clockSkew = clock_skew
    maxLifetime = max_lifetime
    governance = governance_
    guardian = guardian_
    timelock = timelock_
    chainId = chain.id
    destination = keccak256(concat("eip155:", uint2str(chain.id)))

    assert threshold <= MAX_MEMBERS, "threshold above members"
    first: AttestorSet = AttestorSet(
        setId=convert(GENESIS_SET, uint32),
        members=members,
        threshold=convert(threshold, uint32),
        activationEpoch=0,
        notAfter=convert(not_after, uint64),
    )
    self._create_set(first, network_class, False)
    members_hash: bytes32 = empty(bytes32)
    for member: address in members:
        members_hash = keccak256(concat(members_hash, convert(member, bytes32)))
    deploymentId = keccak256(abi_encode(network_class, members_hash, threshold, not_after, salt))
    DOMAIN_SEPARATOR = keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("crossmargin"), keccak256("1"), deploymentId))
    self._meta = GENESIS_SET << SET_AT


# Statements


@external
def post(header: Header, indices: uint256, signatures: DynArray[bytes32[2], MAX_MEMBERS]):
    """
    @notice Store the root of a statement that a quorum of the set of its epoch signed. Anyone may call.
    @param header the statement's header
    @param indices positions of the signers in the member list, 8 bits each, the first signer in the lowest byte,
           strictly increasing; bytes above the last signer are zero
    @param signatures (r, vs) of EIP-2098, in the order of `indices`
    """
    meta: uint256 = self._meta
    last: uint256 = meta >> EPOCH_AT
    assert chain.id == chainId, "chain id changed"
    assert header.root != empty(bytes32), "zero root"
    assert header.epoch > last, "epoch not above the last"
    assert header.epoch <= unsafe_add(unsafe_div(block.timestamp, epochSeconds), EPOCHS_AHEAD), "epoch in the future"
    # A floor that stays is below the last epoch.
    if header.floor != (meta >> FLOOR_AT) & FIELD:
        assert header.floor > (meta >> FLOOR_AT) & FIELD, "floor below the stored floor"
        assert header.floor <= header.epoch, "floor above epoch"
        self._wipe_below(header.floor, meta)
    assert header.producedAt <= unsafe_add(block.timestamp, clockSkew), "producedAt in the future"
    assert header.validUntil > block.timestamp, "expired"
    assert unsafe_sub(header.validUntil, header.producedAt) <= maxLifetime, "lifetime"

    # What follows is `_verify_quorum` once more: as a call it would copy the signatures, 500 gas in every post.
    set_id: uint256 = (meta >> SET_AT) & SET_FIELD
    code: Bytes[SET_BYTES] = raw_call(self._compute_address(set_id), b"", max_outsize=SET_BYTES, is_static_call=True)
    terms: uint256 = convert(extract32(code, 0), uint256)
    if header.epoch < (terms >> ACTIVATION_AT) & TIME:
        # As in `verifyQuorum`; that an epoch of a later set was posted cannot be here, since epochs increase.
        reached: uint256 = self._find_set(set_id, block.timestamp // epochSeconds - EPOCHS_AHEAD)
        set_id = self._find_set(set_id, header.epoch)
        assert set_id >= reached, "set superseded"
        code = raw_call(self._compute_address(set_id), b"", max_outsize=SET_BYTES, is_static_call=True)
        terms = convert(extract32(code, 0), uint256)
    assert header.setId == set_id, "setId"
    assert block.timestamp <= terms & TIME, "set expired"
    assert len(signatures) >= terms >> THRESHOLD_AT, "too few signatures"
    # Indices increase, so that the last one bounds them all; an index without a signature would lie above it.
    assert indices >> (8 * (len(signatures) - 1)) < (terms >> COUNT_AT) & BYTE, "index out of range"

    message: bytes32 = keccak256(concat(0x1901, DOMAIN_SEPARATOR, keccak256(abi_encode(STATEMENT_TYPEHASH, header))))
    rest: uint256 = indices
    place: uint256 = 0  # of the last signer in the set's code: its index + 1
    for signature: bytes32[2] in signatures:
        index: uint256 = rest & BYTE
        assert index >= place, "indices not increasing"
        vs: uint256 = convert(signature[1], uint256)
        s: uint256 = vs & S_MASK
        assert s <= HALF_ORDER, "high s"
        place = unsafe_add(index, 1)
        # A failed recovery gives the zero address, which is never a member.
        signer: address = ecrecover(message, unsafe_add(vs >> 255, 27), convert(signature[0], uint256), s)
        assert convert(signer, bytes32) == extract32(code, unsafe_mul(32, place)), "wrong signer"
        rest >>= 8

    history: uint256 = 1
    gap: uint256 = unsafe_sub(header.epoch, last)
    if gap < RING:
        history |= (meta << gap) & HISTORY
    self._meta = (
        header.epoch << EPOCH_AT
        | header.floor << FLOOR_AT
        | header.producedAt << PRODUCED_AT
        | header.validUntil << VALID_AT
        | block.timestamp << POSTED_AT
        | meta & (SET_FIELD << SET_AT)
        | history
    )
    self._roots[header.epoch % RING] = header.root
    log Posted(
        epoch=convert(header.epoch, uint64),
        root=header.root,
        body=header.body,
    )


@external
@view
def verify(leaf: Leaf, proof: DynArray[bytes32, MAX_DEPTH]) -> bool:
    """
    @notice Whether a leaf is attested for this chain and usable now.
    @dev Reads the root's slot only. An epoch below the floor has none any more; a leaf whose epoch left the ring but
         whose slot no later epoch took holds as long as it is valid. Attestors give every leaf its header's
         validUntil and epoch: the leaf's own are what counts here, and the epoch is hashed with the rest, so that no
         root of another epoch in the same slot proves it.
    @param leaf the account's values on this destination, USD with 8 decimals
    @param proof sibling hashes from the leaf up to the root (OpenZeppelin's sorted pairs)
    @return False when the leaf is for another destination, below the floor, expired, or not under the root that is
            stored at its epoch's place
    """
    # One refusal to a line: `or` costs a second jump.
    if block.timestamp >= leaf.validUntil:
        return False
    if leaf.destination != destination:
        return False
    if chain.id != chainId:
        return False
    # What follows is `_compute_root` once more: as a call it would copy leaf and proof, 500 gas.
    node: bytes32 = keccak256(keccak256(abi_encode(leaf)))
    for sibling: bytes32 in proof:
        if convert(node, uint256) < convert(sibling, uint256):
            node = keccak256(abi_encode(node, sibling))
        else:
            node = keccak256(abi_encode(sibling, node))
    return node == self._roots[leaf.epoch % RING]


@external
@view
def verifyQuorum(
    message: bytes32, epoch: uint64, indices: uint256, signatures: DynArray[bytes32[2], MAX_MEMBERS]
) -> bool:
    """
    @notice Check that a quorum of the set of `epoch` signed a digest. Reverts where it did not.
    @param message an EIP-712 digest that the caller computed, with `DOMAIN_SEPARATOR` and `epoch` in it
    @param indices as in `post`
    @param signatures as in `post`
    @return True
    """
    at: uint256 = convert(epoch, uint256)
    meta: uint256 = self._meta
    assert at >= (meta >> FLOOR_AT) & FIELD, "epoch below the floor"
    assert at <= block.timestamp // epochSeconds + EPOCHS_AHEAD, "epoch in the future"
    # Whoever takes the keys of a set after it has handed over could still sign for an epoch from before. So a set's
    # signatures count until an epoch of the next one is posted here, and at most two epochs past the activation, for
    # what is under way then.
    newest: uint256 = (meta >> SET_AT) & SET_FIELD
    reached: uint256 = max(meta >> EPOCH_AT, block.timestamp // epochSeconds - EPOCHS_AHEAD)
    assert self._find_set(newest, at) >= self._find_set(newest, reached), "set superseded"
    self._verify_quorum(message, at, ANY_SET, indices, signatures)
    return True


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


# Attestor sets


@external
def rotate(to: AttestorSet, indices: uint256, signatures: DynArray[bytes32[2], MAX_MEMBERS]):
    """
    @notice Add the next set of attestors, signed by a quorum of the newest one. Anyone may call. A recovery that
            governance has scheduled is dropped: the attestors are there.
    @param to the set that signs from `activationEpoch` on; its id is one above the newest
    @param indices as in `post`
    @param signatures as in `post`
    """
    newest: uint256 = (self._meta >> SET_AT) & SET_FIELD
    assert convert(to.setId, uint256) == newest + 1, "setId"
    self._verify_quorum(self._rotation_digest(to), max_value(uint256), newest, indices, signatures)
    self._add_set(to, False)
    if self.recoveryDigest != empty(bytes32):
        self._cancel_recovery()


@external
def scheduleRecovery(to: AttestorSet):
    """
    @notice Announce the next set without the signatures of the newest one. Only governance; replaces an earlier one.
    """
    assert msg.sender == governance, "not governance"
    self._encode_set(to, networkClass)
    scheduled: bytes32 = self._rotation_digest(to)
    executable_from: uint256 = block.timestamp + timelock
    self.recoveryDigest = scheduled
    self.recoveryFrom = executable_from
    log RecoveryScheduled(setId=to.setId, digest=scheduled, executableFrom=executable_from)


@external
def executeRecovery(to: AttestorSet):
    """
    @notice Add the set that governance announced, once the timelock has passed. Anyone may call.
    """
    assert self.recoveryDigest == self._rotation_digest(to), "not the scheduled recovery"
    assert block.timestamp >= self.recoveryFrom, "timelock"
    self.recoveryDigest = empty(bytes32)
    self._add_set(to, True)


@external
def cancelRecovery():
    """
    @notice Drop the recovery that was announced. Only governance.
    """
    assert msg.sender == governance, "not governance"
    assert self.recoveryDigest != empty(bytes32), "no recovery"
    self._cancel_recovery()


@external
@view
def newestSetId() -> uint32:
    """
    @return the id of the newest set, active already or not; the first set is 1
    """
    return convert((self._meta >> SET_AT) & SET_FIELD, uint32)


@external
@view
def setAt(epoch: uint64) -> AttestorSet:
    """
    @return the set that must sign a statement of this epoch
    """
    newest: uint256 = (self._meta >> SET_AT) & SET_FIELD
    return self._decode_set(self._find_set(newest, convert(epoch, uint256)))


@external
@view
def setOf(setId: uint32) -> AttestorSet:
    """
    @return the set of this id, active already or not
    """
    wanted: uint256 = convert(setId, uint256)
    assert wanted >= GENESIS_SET and wanted <= (self._meta >> SET_AT) & SET_FIELD, "setId"
    return self._decode_set(wanted)


@external
@view
def rotationDigest(to: AttestorSet) -> bytes32:
    """
    @return the EIP-712 digest that the newest set signs for the next one
    """
    return self._rotation_digest(to)


# Accounts


@external
def applyLeaf(leaf: Leaf, proof: DynArray[bytes32, MAX_DEPTH]):
    """
    @notice Store a leaf of the newest epoch as what is known of its account. Anyone may call; what is stored already
            stays. While paused no budget rises: a leaf with a higher one is stored with the one that is there.
    @param leaf as in `verify`
    @param proof as in `verify`
    """
    meta: uint256 = self._meta
    epoch: uint256 = leaf.epoch
    # A header's floor is never above its epoch, so that the newest epoch needs no comparison with the floor.
    assert chain.id == chainId, "chain id changed"
    assert leaf.destination == destination, "destination"
    assert epoch == meta >> EPOCH_AT, "not the newest epoch"
    valid_until: uint256 = min(leaf.validUntil, (meta >> VALID_AT) & FIELD)
    assert block.timestamp < valid_until, "expired"
    assert self._compute_root(leaf, proof) == self._roots[epoch % RING], "not attested"
    if epoch == self._entries[leaf.account].times >> ENTRY_EPOCH_AT:
        return

    assert leaf.budget <= AMOUNT, "budget above 128 bits"
    assert leaf.assetsInitial <= AMOUNT and leaf.requirementInitial <= AMOUNT, "initial above 128 bits"
    assert leaf.assetsMaintenance <= AMOUNT and leaf.requirementMaintenance <= AMOUNT, "maintenance above 128 bits"
    assert leaf.equity >= -(2**127) and leaf.equity < 2**127, "equity above 128 bits"
    assert leaf.asOf <= TIME and leaf.flags <= FLAGS, "asOf or flags"
    drawing: uint256 = self._entries[leaf.account].drawing
    budget: uint256 = leaf.budget
    if budget > drawing >> 128:
        if self._is_paused():
            budget = drawing >> 128

    self._entries[leaf.account] = Entry(
        drawing=budget << 128 | drawing & AMOUNT,
        times=epoch << ENTRY_EPOCH_AT | leaf.asOf << AS_OF_AT | valid_until << UNTIL_AT | leaf.flags,
        initial=leaf.assetsInitial << 128 | leaf.requirementInitial,
        maintenance=leaf.assetsMaintenance << 128 | leaf.requirementMaintenance,
        equity=leaf.equity,
    )
    log Applied(
        account=leaf.account, epoch=convert(epoch, uint64), budget=budget, flags=convert(leaf.flags, uint32)
    )


@external
def draw(account: bytes32, amount: uint256):
    """
    @notice Use a part of an account's budget, before lending it. Only listed consumers. A newer root voids every older
            budget at once: apply the account's leaf first, in the same transaction.
    @param amount USD with 8 decimals
    """
    listed_from: uint256 = self.listedFrom[msg.sender]
    assert listed_from != 0 and block.timestamp >= listed_from, "not listed"
    assert not self._is_paused(), "paused"
    assert amount > 0, "zero amount"
    times: uint256 = self._entries[account].times
    assert chain.id == chainId, "chain id changed"
    assert times >> ENTRY_EPOCH_AT == self._meta >> EPOCH_AT, "not the newest epoch"
    assert block.timestamp < (times >> UNTIL_AT) & TIME, "expired"
    assert times & (STALE | MONITORED) == 0, "flagged"
    drawing: uint256 = self._entries[account].drawing
    budget: uint256 = drawing >> 128
    used_now: uint256 = drawing & AMOUNT
    assert amount <= budget and used_now <= unsafe_sub(budget, amount), "over budget"

    self._entries[account].drawing = unsafe_add(drawing, amount)
    self.usedBy[account][msg.sender] += amount
    log Drawn(account=account, consumer=msg.sender, amount=amount, used=unsafe_add(used_now, amount))


@external
def repay(account: bytes32, amount: uint256):
    """
    @notice Give back what the caller drew, in whole or in part. Nothing ever prevents it.
    @param amount USD with 8 decimals
    """
    drawn: uint256 = self.usedBy[account][msg.sender]
    assert drawn > 0 and amount <= drawn, "more than drawn"
    # `used` is the sum of all `usedBy` of the account, hence at least this one.
    drawing: uint256 = unsafe_sub(self._entries[account].drawing, amount)
    self._entries[account].drawing = drawing
    self.usedBy[account][msg.sender] = unsafe_sub(drawn, amount)
    log Repaid(account=account, consumer=msg.sender, amount=amount, used=drawing & AMOUNT)


@external
def forgive(account: bytes32, consumer: address):
    """
    @notice Write off what a consumer drew for an account. Only governance, a timelock after it delisted the consumer:
            one that cannot repay any more would leave its draws with the account for good.
    """
    assert msg.sender == governance, "not governance"
    assert self.listedFrom[consumer] == 0, "still listed"
    assert block.timestamp >= self.delistedAt[consumer] + timelock, "timelock"
    drawn: uint256 = self.usedBy[account][consumer]
    assert drawn > 0, "nothing drawn"
    drawing: uint256 = unsafe_sub(self._entries[account].drawing, drawn)  # as in `repay`
    self._entries[account].drawing = drawing
    self.usedBy[account][consumer] = 0
    log Forgiven(account=account, consumer=consumer, amount=drawn, used=drawing & AMOUNT)


@external
@view
def used(account: bytes32) -> uint256:
    """
    @return what consumers here have drawn for the account and not repaid, USD with 8 decimals
    """
    return self._entries[account].drawing & AMOUNT


@external
@view
def marginOf(account: bytes32) -> Margin:
    """
    @notice What is known of an account. It informs: only `draw` authorises.
    @return the values last applied; `fresh` when they are of the newest epoch and not expired; `usable` what could be
            drawn now, 0 unless fresh, while paused, and for what is flagged stale or monitored
    """
    entry: Entry = self._entries[account]
    epoch: uint256 = entry.times >> ENTRY_EPOCH_AT
    valid_until: uint256 = (entry.times >> UNTIL_AT) & TIME
    flags: uint256 = entry.times & FLAGS
    budget: uint256 = entry.drawing >> 128
    used_now: uint256 = entry.drawing & AMOUNT
    fresh: bool = epoch == self._meta >> EPOCH_AT and block.timestamp < valid_until and chain.id == chainId
    usable: uint256 = 0
    if fresh and flags & (STALE | MONITORED) == 0 and budget > used_now and not self._is_paused():
        usable = unsafe_sub(budget, used_now)
    return Margin(
        epoch=convert(epoch, uint64),
        asOf=convert((entry.times >> AS_OF_AT) & TIME, uint64),
        validUntil=convert(valid_until, uint64),
        flags=convert(flags, uint32),
        equity=entry.equity,
        assetsInitial=entry.initial >> 128,
        requirementInitial=entry.initial & AMOUNT,
        assetsMaintenance=entry.maintenance >> 128,
        requirementMaintenance=entry.maintenance & AMOUNT,
        budget=budget,
        used=used_now,
        usable=usable,
        fresh=fresh,
    )


@external
@view
def status(account: bytes32) -> uint256:
    """
    @return 0 unknown (never applied, not of the newest epoch, expired, flagged stale, partial or monitored), 1 healthy,
            2 unhealthy, 3 liquidatable
    """
    times: uint256 = self._entries[account].times
    if chain.id != chainId or block.timestamp >= (times >> UNTIL_AT) & TIME:
        return UNKNOWN
    if times >> ENTRY_EPOCH_AT != self._meta >> EPOCH_AT or times & (STALE | PARTIAL | MONITORED) != 0:
        return UNKNOWN
    if times & LIQUIDATABLE != 0:
        return TO_LIQUIDATE
    maintenance: uint256 = self._entries[account].maintenance
    return HEALTHY if maintenance >> 128 >= maintenance & AMOUNT else UNHEALTHY


# Consumers and pauses


@external
def list(consumer: address):
    """
    @notice Let a contract draw, after the timelock. Only governance.
    """
    assert msg.sender == governance, "not governance"
    assert consumer != empty(address), "zero consumer"
    assert self.listedFrom[consumer] == 0, "already listed"
    usable_from: uint256 = block.timestamp + timelock
    self.listedFrom[consumer] = usable_from
    log Listed(consumer=consumer, usableFrom=usable_from)


@external
def delist(consumer: address):
    """
    @notice Stop a contract from drawing, at once. What it drew can be repaid. Only governance.
    """
    assert msg.sender == governance, "not governance"
    assert self.listedFrom[consumer] != 0, "not listed"
    self.listedFrom[consumer] = 0
    self.delistedAt[consumer] = block.timestamp
    log Delisted(consumer=consumer)


@external
def pause(duration: uint256):
    """
    @notice Refuse draws and higher budgets for a while. Only the guardian; not again before as long a time has passed
            after the end as it lasted, so that no pause is for good.
    @param duration seconds, at most 3 days
    """
    assert msg.sender == guardian, "not guardian"
    assert duration > 0 and duration <= MAX_PAUSE, "duration"
    end: uint256 = self._pause & AMOUNT
    assert block.timestamp >= end + (end - (self._pause >> 128)), "paused too recently"
    until: uint256 = block.timestamp + duration
    self._pause = block.timestamp << 128 | until
    log Paused(until=until)


@external
def unpause():
    """
    @notice End a pause now. Only the guardian or governance.
    """
    assert msg.sender == guardian or msg.sender == governance, "not guardian"
    assert self._is_paused(), "not paused"
    self._pause = (self._pause >> 128) << 128 | block.timestamp
    log Unpaused()


@external
@view
def pausedUntil() -> uint256:
    """
    @return Unix seconds at which the newest pause ends or ended, 0 before the first
    """
    return self._pause & AMOUNT


# Internals


@internal
def _wipe_below(raised: uint256, meta: uint256):
    # Empties every slot but those of the epochs from `raised` on that are in the history. A slot whose epoch was
    # skipped may still hold the root of one that left the history long ago: it goes, too.
    last: uint256 = meta >> EPOCH_AT
    if last == 0:
        return  # nothing was posted
    for age: uint256 in range(RING):
        epoch: uint256 = unsafe_sub(last, age)
        if (meta >> age) & 1 == 0 or epoch < raised:
            self._roots[epoch % RING] = empty(bytes32)


@internal
@view
def _verify_quorum(
    message: bytes32,
    epoch: uint256,
    claimed: uint256,
    indices: uint256,
    signatures: DynArray[bytes32[2], MAX_MEMBERS],
):
    # `claimed` is the set that the signed message names, if it names one. See `post` for the comments.
    assert chain.id == chainId, "chain id changed"
    set_id: uint256 = self._find_set((self._meta >> SET_AT) & SET_FIELD, epoch)
    code: Bytes[SET_BYTES] = self._read_set(set_id)
    terms: uint256 = convert(extract32(code, 0), uint256)
    assert claimed == set_id or claimed == ANY_SET, "setId"
    assert block.timestamp <= terms & TIME, "set expired"
    assert len(signatures) >= terms >> THRESHOLD_AT, "too few signatures"
    assert indices >> (8 * (len(signatures) - 1)) < (terms >> COUNT_AT) & BYTE, "index out of range"

    rest: uint256 = indices
    place: uint256 = 0
    for signature: bytes32[2] in signatures:
        index: uint256 = rest & BYTE
        assert index >= place, "indices not increasing"
        vs: uint256 = convert(signature[1], uint256)
        s: uint256 = vs & S_MASK
        assert s <= HALF_ORDER, "high s"
        place = unsafe_add(index, 1)
        signer: address = ecrecover(message, unsafe_add(vs >> 255, 27), convert(signature[0], uint256), s)
        assert convert(signer, bytes32) == extract32(code, unsafe_mul(32, place)), "wrong signer"
        rest >>= 8


@internal
@view
def _read_set(set_id: uint256) -> Bytes[SET_BYTES]:
    return raw_call(self._compute_address(set_id), b"", max_outsize=SET_BYTES, is_static_call=True)


@internal
@view
def _find_set(newest: uint256, epoch: uint256) -> uint256:
    # Activation epochs increase with the id, and that of the first set is 0.
    for i: uint256 in range(newest, bound=SET_FIELD):
        if (self._read_terms(newest - i) >> ACTIVATION_AT) & TIME <= epoch:
            return newest - i
    raise  # unreachable


@internal
@view
def _read_terms(set_id: uint256) -> uint256:
    # The first word of a set's code: threshold | number of members | activation epoch | notAfter.
    return convert(raw_call(self._compute_address(set_id), b"", max_outsize=32, is_static_call=True), uint256)


@internal
@view
def _compute_address(set_id: uint256) -> address:
    # keccak256(rlp([self, nonce])): a contract's nonce is 1 when it is created and counts what it creates (EIP-161), so
    # it is the id of the set. RLP writes a number below 128 as itself, a larger one with its length before it.
    hashed: bytes32 = empty(bytes32)
    if set_id < 128:
        hashed = keccak256(slice(convert(SHORT_RLP | set_id << 72, bytes32), 0, 23))
    elif set_id < 256:
        hashed = keccak256(concat(0xd794, convert(self, bytes20), 0x81, convert(convert(set_id, uint8), bytes1)))
    else:
        hashed = keccak256(concat(0xd894, convert(self, bytes20), 0x82, convert(convert(set_id, uint16), bytes2)))
    return convert(convert(hashed, uint256) & (2**160 - 1), address)


@internal
def _add_set(to: AttestorSet, recovered: bool):
    # Every rule of the next set but who signed it.
    meta: uint256 = self._meta
    last: uint256 = meta >> EPOCH_AT
    newest: uint256 = (meta >> SET_AT) & SET_FIELD
    clock: uint256 = block.timestamp // epochSeconds
    activation: uint256 = convert(to.activationEpoch, uint256)
    not_after: uint256 = convert(to.notAfter, uint256)
    assert newest < SET_FIELD and convert(to.setId, uint256) == newest + 1, "setId"
    since: uint256 = (self._read_terms(newest) >> ACTIVATION_AT) & TIME
    assert since <= max(last, clock), "newest set not active"
    # The clock may be past it: a chain that stood still, or was told late, takes the rotation all the same.
    assert activation > last and activation > since, "activation in the past"
    assert activation <= clock + MAX_ACTIVATION_DELAY // epochSeconds, "activation too far"
    assert not_after > block.timestamp, "notAfter passed"
    if networkClass != DEVNET:
        assert not_after <= activation * epochSeconds + MAX_SET_LIFETIME, "notAfter too far"
    self._create_set(to, networkClass, recovered)
    self._meta = meta + (1 << SET_AT)


@internal
def _create_set(to: AttestorSet, network_class: uint256, recovered: bool):
    words: Bytes[SET_BYTES] = self._encode_set(to, network_class)
    size: uint256 = len(words)
    created: address = raw_create(
        concat(
            b"\x61", convert(convert(size + 10, uint16), bytes2), RETURN_REST,
            b"\x61", convert(convert(size, uint16), bytes2), RETURN_REST,
            words,
        )
    )
    # Holds by the rules of Ethereum; where a chain has others, nothing may rest on it.
    assert created == self._compute_address(convert(to.setId, uint256)), "address of the set"
    log Rotated(
        setId=to.setId,
        members=to.members,
        threshold=to.threshold,
        activationEpoch=to.activationEpoch,
        notAfter=to.notAfter,
        recovered=recovered,
    )


@internal
@view
def _encode_set(to: AttestorSet, network_class: uint256) -> Bytes[SET_BYTES]:
    # The words of a set's code, once its members and its threshold are found to be a quorum.
    n: uint256 = len(to.members)
    threshold: uint256 = convert(to.threshold, uint256)
    assert n > 0 and (n >= 4 or network_class == DEVNET), "too few members"
    assert threshold <= n, "threshold above members"
    assert threshold >= (n + (n - 1) // 3) // 2 + 1, "threshold below quorum"
    words: uint256[1 + MAX_MEMBERS] = empty(uint256[1 + MAX_MEMBERS])
    words[0] = (
        threshold << THRESHOLD_AT
        | n << COUNT_AT
        | convert(to.activationEpoch, uint256) << ACTIVATION_AT
        | convert(to.notAfter, uint256)
    )
    for i: uint256 in range(n, bound=MAX_MEMBERS):
        member: uint256 = convert(to.members[i], uint256)
        assert member != 0, "zero member"
        for j: uint256 in range(i, bound=MAX_MEMBERS):
            assert member != words[j + 1], "duplicate member"
        words[i + 1] = member
    return slice(abi_encode(words), 0, 32 * (n + 1))


@internal
@view
def _decode_set(set_id: uint256) -> AttestorSet:
    code: Bytes[SET_BYTES] = self._read_set(set_id)
    terms: uint256 = convert(extract32(code, 0), uint256)
    members: DynArray[address, MAX_MEMBERS] = []
    for i: uint256 in range((terms >> COUNT_AT) & BYTE, bound=MAX_MEMBERS):
        members.append(extract32(code, 32 * (i + 1), output_type=address))
    return AttestorSet(
        setId=convert(set_id, uint32),
        members=members,
        threshold=convert(terms >> THRESHOLD_AT, uint32),
        activationEpoch=convert((terms >> ACTIVATION_AT) & TIME, uint64),
        notAfter=convert(terms & TIME, uint64),
    )


@internal
def _cancel_recovery():
    log RecoveryCancelled(digest=self.recoveryDigest)
    self.recoveryDigest = empty(bytes32)


@internal
@view
def _digest(header: Header) -> bytes32:
    return keccak256(concat(0x1901, DOMAIN_SEPARATOR, keccak256(abi_encode(STATEMENT_TYPEHASH, header))))


@internal
@view
def _rotation_digest(to: AttestorSet) -> bytes32:
    # EIP-712 hashes an array by its elements alone: the encoding without its offset and its length.
    members: bytes32 = keccak256(slice(abi_encode(to.members), 64, 32 * len(to.members)))
    hashed: bytes32 = keccak256(
        abi_encode(ROTATE_TYPEHASH, to.setId, members, to.threshold, to.activationEpoch, to.notAfter)
    )
    return keccak256(concat(0x1901, DOMAIN_SEPARATOR, hashed))


@internal
@pure
def _compute_root(leaf: Leaf, proof: DynArray[bytes32, MAX_DEPTH]) -> bytes32:
    # Hashed twice, so that no inner node can be passed off as a leaf.
    node: bytes32 = keccak256(keccak256(abi_encode(leaf)))
    for sibling: bytes32 in proof:
        if convert(node, uint256) < convert(sibling, uint256):
            node = keccak256(abi_encode(node, sibling))
        else:
            node = keccak256(abi_encode(sibling, node))
    return node


@internal
@pure
def _is_stored(meta: uint256, epoch: uint256) -> bool:
    last: uint256 = meta >> EPOCH_AT
    if epoch > last or last - epoch >= RING:
        return False
    return (meta >> (last - epoch)) & 1 == 1


@internal
@view
def _is_paused() -> bool:
    return block.timestamp < self._pause & AMOUNT
