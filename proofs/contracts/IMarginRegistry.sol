// SPDX-License-Identifier: MIT
pragma solidity >=0.8.4;

/// @title Attested cross-chain margins, readable by any contract on this chain
/// @notice USD amounts have 8 decimals, times are Unix seconds.
interface IMarginRegistry {
    struct Header {
        uint64 epoch;
        bytes32 root;
        uint64 floor;
        uint32 setId;
        uint64 producedAt;
        uint64 validUntil;
        bytes32 body;
    }

    /// @param flags bit 0 stale, 1 partial, 2 halted chain, 3 liquidatable, 4 isolated, 5 monitored
    struct Leaf {
        bytes32 account;
        bytes32 destination;
        uint64 epoch;
        int256 equity;
        uint256 assetsInitial;
        uint256 requirementInitial;
        uint256 assetsMaintenance;
        uint256 requirementMaintenance;
        uint256 budget;
        uint64 asOf;
        uint64 validUntil;
        uint32 flags;
    }

    struct Latest {
        uint64 epoch;
        bytes32 root;
        uint64 floor;
        uint64 producedAt;
        uint64 validUntil;
        uint64 postedAt;
    }

    /// @param signers bit i is set when member i signed
    event Posted(
        uint64 indexed epoch, bytes32 root, bytes32 body, uint64 floor, uint64 validUntil, uint256 signers
    );

    /// @notice Store the root of a statement that a quorum signed. Anyone may call.
    /// @param indices the signers' positions, 8 bits each, first signer lowest, strictly increasing
    /// @param signatures (r, vs) of EIP-2098 with low s, at most 32, in the order of `indices`
    function post(Header calldata header, uint256 indices, bytes32[2][] calldata signatures) external;

    /// @notice Whether `leaf` is attested for this chain and usable now.
    /// @param proof sibling hashes, at most 32 (OpenZeppelin StandardMerkleTree)
    function verify(Leaf calldata leaf, bytes32[] calldata proof) external view returns (bool);

    function latest() external view returns (Latest memory);

    /// @return the root stored for exactly `epoch`, zero when never posted or out of the ring of 64 epochs
    function rootOf(uint64 epoch) external view returns (bytes32);

    /// @return the EIP-712 digest that attestors sign
    function digest(Header calldata header) external view returns (bytes32);

    function deploymentId() external view returns (bytes32);
    function destination() external view returns (bytes32);
    function chainId() external view returns (uint256);
    function networkClass() external view returns (uint256);
    function setId() external view returns (uint32);
    function members(uint256 index) external view returns (address);
    function memberCount() external view returns (uint256);
    function threshold() external view returns (uint256);
    function notAfter() external view returns (uint256);
    function epochSeconds() external view returns (uint256);
    function clockSkew() external view returns (uint256);
    function maxLifetime() external view returns (uint256);
    function DOMAIN_SEPARATOR() external view returns (bytes32);
}
