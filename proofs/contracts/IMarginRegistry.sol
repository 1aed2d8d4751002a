// SPDX-License-Identifier: MIT
pragma solidity >=0.8.4;

/// @title Attested cross-chain margins, readable by any contract on this chain
/// @notice USD amounts have 8 decimals, times are Unix seconds.
///
/// A lender is a consumer: governance lists it, and it calls `draw` before it lends and `repay` when it is paid back.
/// A newer root voids every older budget at once, so bring the account's leaf along and, in the same transaction,
/// `applyLeaf` and then `draw`. `marginOf`, `status` and `verify` inform; lending without a draw is outside of what is
/// guaranteed.
///
/// Consumers pin the registry's address. Its deployment id says who attests, not who governs: a stranger can deploy
/// another registry of the same deployment, to which the same statements are posted, with his own governance, which
/// lists whom he likes.
/// What remains: whoever stole a quorum's keys can rotate to a set of his own and so drop a scheduled recovery, again
/// and again, as the attestors can drop one that they did not need. Governance can then delist the consumers and close
/// the vaults for deposits; it cannot take the registry back.
///
/// Refusals are texts (`Error(string)`) and stable:
/// - post: "zero root", "epoch not above the last", "epoch in the future", "floor below the stored floor",
///   "floor above epoch", "producedAt in the future", "expired", "lifetime"
/// - post, rotate, verifyQuorum: "chain id changed", "setId", "set expired", "too few signatures",
///   "index out of range" (also an index without a signature), "indices not increasing", "high s", "wrong signer"
/// - post, verifyQuorum: "set superseded" (an epoch of the next set is posted, or its activation lies two epochs back)
/// - verifyQuorum: "epoch below the floor", "epoch in the future"
/// - constructor: "networkClass", "epochSeconds", "clockSkew", "maxLifetime", "zero governance", "timelock"
/// - constructor, rotate, scheduleRecovery: "too few members", "zero member", "duplicate member",
///   "threshold above members", "threshold below quorum"; the first two also "notAfter passed", "notAfter too far"
/// - rotate, executeRecovery: "setId", "newest set not active", "activation in the past" (not above the last epoch
///   posted and the newest set's activation; the clock may be past it), "activation too far", "notAfter passed",
///   "notAfter too far"
/// - recovery: "not governance", "not the scheduled recovery", "timelock", "no recovery"
/// - applyLeaf: "chain id changed", "destination", "not the newest epoch", "expired", "not attested",
///   "budget above 128 bits", "initial above 128 bits", "maintenance above 128 bits", "equity above 128 bits",
///   "asOf or flags"
/// - draw: "not listed", "paused", "zero amount", "chain id changed", "not the newest epoch", "expired", "flagged",
///   "over budget"
/// - repay: "more than drawn"
/// - forgive: "not governance", "still listed", "timelock", "nothing drawn"
/// - list, delist: "not governance", "zero consumer", "already listed", "not listed"
/// - pause, unpause: "not guardian", "duration", "paused too recently", "not paused"
/// Malformed calldata reverts without a text.
interface IMarginRegistry {
    /// @dev The signed statement; numbers outside of uint64 (setId: uint32) are refused.
    struct Header {
        uint256 epoch;
        bytes32 root;
        uint256 floor;
        uint256 setId;
        uint256 producedAt;
        uint256 validUntil;
        bytes32 body;
    }

    /// @param flags bit 0 stale, 1 partial, 2 halted chain, 3 liquidatable, 4 isolated, 5 monitored
    struct Leaf {
        bytes32 account;
        bytes32 destination;
        uint256 epoch;
        int256 equity;
        uint256 assetsInitial;
        uint256 requirementInitial;
        uint256 assetsMaintenance;
        uint256 requirementMaintenance;
        uint256 budget;
        uint256 asOf;
        uint256 validUntil;
        uint256 flags;
    }

    struct Latest {
        uint64 epoch;
        bytes32 root;
        uint64 floor;
        uint64 producedAt;
        uint64 validUntil;
        uint64 postedAt;
    }

    struct AttestorSet {
        uint32 setId;
        address[] members;
        uint32 threshold;
        uint64 activationEpoch;
        uint64 notAfter;
    }

    /// @param validUntil the earlier of the leaf's and its header's
    /// @param usable what could be drawn now: 0 unless `fresh`, while paused, and for what is stale or monitored
    /// @param fresh of the newest epoch posted here and not expired
    struct Margin {
        uint64 epoch;
        uint64 asOf;
        uint64 validUntil;
        uint32 flags;
        int256 equity;
        uint256 assetsInitial;
        uint256 requirementInitial;
        uint256 assetsMaintenance;
        uint256 requirementMaintenance;
        uint256 budget;
        uint256 used;
        uint256 usable;
        bool fresh;
    }

    event Posted(uint64 indexed epoch, bytes32 root, bytes32 body);

    /// @param recovered by governance, without signatures of the set before
    event Rotated(
        uint32 indexed setId,
        address[] members,
        uint32 threshold,
        uint64 activationEpoch,
        uint64 notAfter,
        bool recovered
    );
    event RecoveryScheduled(uint32 indexed setId, bytes32 digest, uint256 executableFrom);
    event RecoveryCancelled(bytes32 digest);
    event Listed(address indexed consumer, uint256 usableFrom);
    event Delisted(address indexed consumer);
    event Paused(uint256 until);
    event Unpaused();
    event Applied(bytes32 indexed account, uint64 indexed epoch, uint256 budget, uint32 flags);

    /// @param used all that consumers here have drawn for the account, after this
    event Drawn(bytes32 indexed account, address indexed consumer, uint256 amount, uint256 used);
    event Repaid(bytes32 indexed account, address indexed consumer, uint256 amount, uint256 used);

    /// @param amount what the consumer had drawn and will not repay
    event Forgiven(bytes32 indexed account, address indexed consumer, uint256 amount, uint256 used);

    // Statements

    /// @notice Store the root of a statement that a quorum of the set of its epoch signed. Anyone may call.
    /// @param indices the signers' positions, 8 bits each, first signer lowest, strictly increasing
    /// @param signatures (r, vs) of EIP-2098 with low s, at most 32, in the order of `indices`
    function post(Header calldata header, uint256 indices, bytes32[2][] calldata signatures) external;

    /// @notice Whether `leaf` is attested for this chain and usable now: before its own `validUntil`, which is that of
    /// its statement, of an epoch not below the floor whose place in the ring no later epoch took.
    /// @param proof sibling hashes, at most 32 (OpenZeppelin StandardMerkleTree)
    function verify(Leaf calldata leaf, bytes32[] calldata proof) external view returns (bool);

    /// @notice Reverts unless a quorum of the set of `epoch` signed `message`, an EIP-712 digest that the caller made
    /// with `DOMAIN_SEPARATOR` and that binds `epoch`.
    function verifyQuorum(bytes32 message, uint64 epoch, uint256 indices, bytes32[2][] calldata signatures)
        external
        view
        returns (bool);

    function latest() external view returns (Latest memory);

    /// @return the root stored for exactly `epoch`, zero when never posted or out of the ring of 64 epochs
    function rootOf(uint64 epoch) external view returns (bytes32);

    /// @return the EIP-712 digest that attestors sign
    function digest(Header calldata header) external view returns (bytes32);

    // Attestor sets

    /// @notice Add the next set, signed by a quorum of the newest one. Anyone may call. Drops a scheduled recovery.
    /// An activation that the clock has passed already is fine: the new set then signs at once.
    function rotate(AttestorSet calldata to, uint256 indices, bytes32[2][] calldata signatures) external;

    /// @notice By governance: announce the next set without signatures.
    function scheduleRecovery(AttestorSet calldata to) external;

    /// @notice Add the announced set after the timelock. Anyone may call.
    function executeRecovery(AttestorSet calldata to) external;
    function cancelRecovery() external;
    function recoveryDigest() external view returns (bytes32);
    function recoveryFrom() external view returns (uint256);

    /// @return the id of the newest set, active already or not; the first set is 1
    function newestSetId() external view returns (uint32);

    /// @return the set that must sign a statement of `epoch`
    function setAt(uint64 epoch) external view returns (AttestorSet memory);
    function setOf(uint32 setId) external view returns (AttestorSet memory);

    /// @return the EIP-712 digest that the newest set signs for `to`
    function rotationDigest(AttestorSet calldata to) external view returns (bytes32);

    // Accounts

    /// @notice Store a leaf of the newest epoch. Anyone may call; a leaf that is stored already changes nothing. While
    /// paused a higher budget than the stored one is stored as that one, until the next epoch's leaf.
    function applyLeaf(Leaf calldata leaf, bytes32[] calldata proof) external;

    /// @notice By a listed consumer, before it lends: use `amount` of the account's budget.
    function draw(bytes32 account, uint256 amount) external;

    /// @notice By whoever drew: give back up to what it drew. Always possible.
    function repay(bytes32 account, uint256 amount) external;

    /// @notice By governance, a timelock after it delisted `consumer`: write off all that it drew for the account. Of a
    /// consumer that cannot repay any more it would stay the account's debt for ever.
    function forgive(bytes32 account, address consumer) external;
    function used(bytes32 account) external view returns (uint256);
    function usedBy(bytes32 account, address consumer) external view returns (uint256);
    function marginOf(bytes32 account) external view returns (Margin memory);

    /// @return 0 unknown (never applied, not of the newest epoch, expired, stale, partial or monitored), 1 healthy,
    /// 2 unhealthy, 3 liquidatable
    function status(bytes32 account) external view returns (uint256);

    // Consumers and pauses

    /// @notice By governance: let `consumer` draw after the timelock.
    function list(address consumer) external;

    /// @notice By governance: no more draws, at once. Repaying stays possible.
    function delist(address consumer) external;

    /// @return Unix seconds from which `consumer` may draw, 0 when it is not listed
    function listedFrom(address consumer) external view returns (uint256);

    /// @return Unix seconds at which `consumer` was last delisted, 0 when it never was
    function delistedAt(address consumer) external view returns (uint256);

    /// @notice By the guardian: no draws and no higher budgets for at most 3 days, and not again before as long a time
    /// has passed after the end. Posting, verifying, repaying, rotating and delisting go on.
    function pause(uint256 duration) external;
    function unpause() external;
    function pausedUntil() external view returns (uint256);

    // Deployment

    function deploymentId() external view returns (bytes32);
    function destination() external view returns (bytes32);
    function chainId() external view returns (uint256);
    function networkClass() external view returns (uint256);
    function epochSeconds() external view returns (uint256);
    function clockSkew() external view returns (uint256);
    function maxLifetime() external view returns (uint256);
    function governance() external view returns (address);
    function guardian() external view returns (address);
    function timelock() external view returns (uint256);
    function DOMAIN_SEPARATOR() external view returns (bytes32);
}
