// SPDX-License-Identifier: MIT
pragma solidity >=0.8.4;

/// @title Token collateral of margin accounts, withdrawn after a delay
/// @notice Amounts are base units of the token.
interface ICollateralVault {
    struct Request {
        bytes32 account;
        address owner;
        address token;
        uint256 amount;
        uint256 claimableAt;
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

    /// @return credited what arrived, which is less than `amount` for tokens that keep a fee
    function deposit(bytes32 account, address token, uint256 amount) external returns (uint256 credited);

    /// @notice Ask to withdraw from the caller's own deposit; the amount is pending from now on.
    function request(bytes32 account, address token, uint256 amount) external returns (uint256 id);

    function cancel(uint256 id) external;

    /// @notice Pay a request out once `delay` seconds have passed since it was made.
    function claim(uint256 id, address to) external;

    /// @return total includes pending
    function position(bytes32 account, address token) external view returns (uint256 total, uint256 pending);

    /// @return what `owner` has in the vault for `account`, pending included
    function deposited(bytes32 account, address owner, address token) external view returns (uint256);

    /// @return the part of `deposited` that is under a withdrawal request
    function pendingOf(bytes32 account, address owner, address token) external view returns (uint256);

    /// @return an open request, all zero when unknown, claimed or cancelled
    function requests(uint256 id) external view returns (Request memory);

    function lastRequestId() external view returns (uint256);
    function delay() external view returns (uint256);
    function deploymentId() external view returns (bytes32);
}
