// SPDX-License-Identifier: MIT
pragma solidity >=0.8.4;

/// @title Collateral of margin accounts: tokens and NFTs that leave after a delay, or at once with a quorum's permit
/// @notice Amounts are base units of the token; times are Unix seconds. Signatures are EIP-2098 (r, vs) of members of
///         the attestor set that the signed epoch demands, with their indices packed eight bits each, the first one
///         lowest, strictly increasing.
interface ICollateralVault {
    struct Request {
        bytes32 account;
        address owner;
        address token;
        uint256 amount;
        uint256 claimableAt;
    }

    struct NftPosition {
        bytes32 account;
        address owner;
        uint256 claimableAt; // 0 while nobody has requested it
    }

    /// @notice What is signed as WithdrawalPermit, but for chain and vault, which are the vault's own.
    struct Permit {
        bytes32 account;
        address token;
        uint256 amount;
        address to;
        bytes32 nonce;
        uint64 epoch;
        uint64 expiry;
    }

    event Deposited(bytes32 indexed account, address indexed owner, address indexed token, uint256 amount);
    event WithdrawalRequested(
        uint256 indexed id,
        bytes32 indexed account,
        address indexed owner,
        address token,
        uint256 amount,
        uint256 claimableAt
    );
    event WithdrawalCancelled(
        uint256 indexed id, bytes32 indexed account, address indexed owner, address token, uint256 amount
    );
    event WithdrawalClaimed(
        uint256 indexed id,
        bytes32 indexed account,
        address indexed owner,
        address token,
        uint256 amount,
        address to
    );
    event Withdrawn(
        bytes32 indexed account,
        address indexed owner,
        address indexed token,
        uint256 amount,
        address to,
        bytes32 nonce,
        uint64 epoch
    );
    event Held(bytes32 indexed account, uint64 until, uint64 epoch);
    event LimitSet(address indexed token, uint256 limit, bool nfts);
    event NftDeposited(bytes32 indexed account, address indexed owner, address indexed token, uint256 id);
    event NftWithdrawalRequested(
        bytes32 indexed account, address indexed owner, address indexed token, uint256 id, uint256 claimableAt
    );
    event NftWithdrawalCancelled(bytes32 indexed account, address indexed owner, address indexed token, uint256 id);
    event NftWithdrawalClaimed(
        bytes32 indexed account, address indexed owner, address indexed token, uint256 id, address to
    );

    /// @return credited what arrived, which is less than `amount` for tokens that keep a fee
    function deposit(bytes32 account, address token, uint256 amount) external returns (uint256 credited);

    /// @notice Ask to withdraw from the caller's own deposit; the amount is pending from now on.
    function request(bytes32 account, address token, uint256 amount) external returns (uint256 id);

    function cancel(uint256 id) external;

    /// @notice Pay a request out once `delay` seconds have passed since it was made and no hold stands.
    function claim(uint256 id, address to) external;

    /// @notice Pay out at once what a quorum permits, from what the caller deposited for the account.
    /// @param requestId an open request of the caller for the same account and token, cancelled first; 0 = none
    function withdraw(
        Permit calldata permit,
        uint256 requestId,
        uint256 indices,
        bytes32[2][] calldata signatures
    ) external;

    /// @notice Keep everything of an account in until `until`, as a quorum signed; at most 7 days from now. Anyone may
    ///         bring it. A newer epoch is needed each time, and never shortens what stands.
    function hold(
        bytes32 account,
        uint64 until,
        uint64 epoch,
        uint256 indices,
        bytes32[2][] calldata signatures
    ) external;

    /// @notice Move the caller's NFT into the vault; the caller must have approved it.
    function depositNft(bytes32 account, address token, uint256 id) external;

    function requestNft(address token, uint256 id) external;
    function cancelNft(address token, uint256 id) external;

    /// @notice Give a requested NFT out once its delay has passed and no hold stands.
    function claimNft(address token, uint256 id, address to) external;

    /// @notice Let at most `limit_` of a token lie here: base units, pieces of an ERC-721. Only the registry's governance.
    function setLimit(address token, uint256 limit_) external;

    /// @return total includes pending
    function position(bytes32 account, address token) external view returns (uint256 total, uint256 pending);

    /// @return what `owner` has in the vault for `account`, pending included
    function deposited(bytes32 account, address owner, address token) external view returns (uint256);

    /// @return the part of `deposited` that is under a withdrawal request
    function pendingOf(bytes32 account, address owner, address token) external view returns (uint256);

    /// @return an open request, all zero when unknown, claimed or cancelled
    function requests(uint256 id) external view returns (Request memory);

    /// @return for which account an NFT lies here and whose it is, all zero when it does not lie here
    function nft(address token, uint256 id) external view returns (NftPosition memory);

    /// @return until when an account is held, and the epoch of its newest hold
    function holds(bytes32 account) external view returns (uint64 until, uint64 epoch);

    /// @return 0 when the token is not accepted
    function limit(address token) external view returns (uint256);

    /// @return what of a token lies here for all accounts
    function totalDeposited(address token) external view returns (uint256);

    function nonceUsed(bytes32 nonce) external view returns (bool);
    function lastRequestId() external view returns (uint256);
    function delay() external view returns (uint256);

    /// @notice Who can seize what lies here: the registry of this deployment on this chain.
    function registry() external view returns (address);

    function deploymentId() external view returns (bytes32);
    function destination() external view returns (bytes32);
    function chainId() external view returns (uint256);
    function DOMAIN_SEPARATOR() external view returns (bytes32);
}
