// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IMarginRegistry} from "crossmargin/IMarginRegistry.sol";

/// @notice One attestation, as the Ethereum Attestation Service hands it to a resolver.
struct Attestation {
    bytes32 uid;
    bytes32 schema;
    uint64 time;
    uint64 expirationTime;
    uint64 revocationTime;
    bytes32 refUID;
    address recipient;
    address attester;
    bool revocable;
    bytes data;
}

/// @title MarginResolver
/// @notice Lets the Ethereum Attestation Service take margin statements only: an attestation under its schema is a
///         header that a quorum signed, newer than the one before. What is published there is as good as what the
///         registry of this chain stores; nothing can be drawn on it.
/// @dev The schema is SCHEMA, not revocable. Whoever brings the signatures may attest.
contract MarginResolver {
    string public constant SCHEMA =
        "uint64 epoch,bytes32 root,uint64 floor,uint32 setId,uint64 producedAt,uint64 validUntil,bytes32 body,"
        "uint256 indices,bytes32[2][] signatures";

    address public immutable eas;
    IMarginRegistry public immutable registry;

    struct Latest {
        uint64 epoch;
        bytes32 root;
        uint64 floor;
        uint64 producedAt;
        uint64 validUntil;
        uint64 postedAt;
        bytes32 uid;
    }

    Latest private newest;
    /// @notice The attestation of an epoch, zero when there is none.
    mapping(uint64 epoch => bytes32 uid) public uidOf;
    /// @notice The root attested for an epoch, zero when there is none.
    mapping(uint64 epoch => bytes32 root) public rootOf;

    event Resolved(uint64 indexed epoch, bytes32 indexed uid, bytes32 root);

    constructor(address eas_, address registry_) {
        require(eas_ != address(0), "zero eas");
        eas = eas_;
        registry = IMarginRegistry(registry_);
        require(registry.deploymentId() != bytes32(0), "registry");
    }

    function isPayable() external pure returns (bool) {
        return false;
    }

    function latest() external view returns (Latest memory) {
        return newest;
    }

    /// @notice Called by EAS for each attestation; reverts where the registry would.
    function attest(Attestation calldata attestation) external payable returns (bool) {
        require(msg.sender == eas, "not the attestation service");
        resolve(attestation);
        return true;
    }

    function multiAttest(Attestation[] calldata attestations, uint256[] calldata) external payable returns (bool) {
        require(msg.sender == eas, "not the attestation service");
        for (uint256 i = 0; i < attestations.length; i++) resolve(attestations[i]);
        return true;
    }

    /// @notice A statement is never revoked: it expires, or a newer one has a floor above it.
    function revoke(Attestation calldata) external payable returns (bool) {
        return false;
    }

    function multiRevoke(Attestation[] calldata, uint256[] calldata) external payable returns (bool) {
        return false;
    }

    function resolve(Attestation calldata attestation) private {
        (IMarginRegistry.Header memory header, uint256 indices, bytes32[2][] memory signatures) =
            abi.decode(bytes.concat(attestation.data), (IMarginRegistry.Header, uint256, bytes32[2][]));
        // Refuses numbers outside of their types; what is signed also names the set, so a quorum of another does not fit.
        bytes32 digest = registry.digest(header);
        uint64 epoch = uint64(header.epoch);
        require(!attestation.revocable && attestation.expirationTime == header.validUntil, "not as the header says");
        require(attestation.recipient == address(0) && attestation.refUID == bytes32(0), "recipient or reference");
        require(epoch > newest.epoch, "epoch not above the last");
        require(epoch <= block.timestamp / registry.epochSeconds() + 2, "epoch in the future");
        require(header.floor >= newest.floor && header.floor <= epoch, "floor");
        require(header.root != bytes32(0), "zero root");
        require(header.validUntil > block.timestamp, "expired");
        require(header.producedAt <= block.timestamp + registry.clockSkew(), "producedAt in the future");
        require(
            header.validUntil > header.producedAt && header.validUntil - header.producedAt <= registry.maxLifetime(),
            "lifetime"
        );
        registry.verifyQuorum(digest, epoch, indices, signatures); // reverts
        newest = Latest(
            epoch,
            header.root,
            uint64(header.floor),
            uint64(header.producedAt),
            uint64(header.validUntil),
            uint64(block.timestamp),
            attestation.uid
        );
        uidOf[epoch] = attestation.uid;
        rootOf[epoch] = header.root;
        emit Resolved(epoch, attestation.uid, header.root);
    }
}
