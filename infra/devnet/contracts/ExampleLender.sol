// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IMarginRegistry} from "crossmargin/IMarginRegistry.sol";

interface IERC20 {
    function balanceOf(address owner) external view returns (uint256);
    function decimals() external view returns (uint8);
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
}

/// @title ExampleLender
/// @notice Lends one dollar token against the attested margin of cross-chain accounts. An example of a consumer: every
///         dollar it lends is drawn from the account's budget at the registry first, so that nobody else can lend
///         against the same margin: what it has drawn is the debt, rounded up. It charges no interest.
/// @dev The token is taken at one US dollar, and is of the kind that reverts or returns true. The registry's governance
///      must have listed this contract.
contract ExampleLender {
    uint256 private constant USD = 1e8;
    uint256 private constant MAX_DECIMALS = 36;
    bytes16 private constant DIGITS = "0123456789abcdef";

    IMarginRegistry public immutable registry;
    IERC20 public immutable token;
    uint256 public immutable tokenUnit;

    mapping(bytes32 account => address) public controllerOf;
    /// @notice Base units of `token` that an account owes.
    mapping(bytes32 account => uint256) public debtOf;
    uint256 public totalDebt;

    event Opened(bytes32 indexed account, address indexed controller);
    event Borrowed(bytes32 indexed account, uint256 amount, uint256 debt);
    event Repaid(bytes32 indexed account, address indexed payer, uint256 amount, uint256 debt);

    constructor(address registry_, address token_) {
        registry = IMarginRegistry(registry_);
        token = IERC20(token_);
        uint256 decimals = token.decimals();
        require(decimals <= MAX_DECIMALS, "decimals");
        tokenUnit = 10 ** decimals;
    }

    /// @notice Record the caller as controller of `account`. The account id is the hash of its controller's address on
    ///         this chain, so nobody can open the account of another.
    function open(bytes32 account, bytes32 salt) external {
        require(account == accountId(msg.sender, salt), "not the controller of this account");
        controllerOf[account] = msg.sender;
        emit Opened(account, msg.sender);
    }

    /// @notice Record the caller as controller of an account whose home is another EVM chain. A key is the same on all of
    ///         them, a contract at the same address need not be: only who signs the transaction itself may.
    /// @param home EIP-155 id of the chain in the controller's CAIP-10 address
    function openFrom(uint256 home, bytes32 account, bytes32 salt) external {
        require(msg.sender == tx.origin, "not a key of its own");
        require(account == idAt(home, msg.sender, salt), "not the controller of this account");
        controllerOf[account] = msg.sender;
        emit Opened(account, msg.sender);
    }

    /// @notice Lend `amount` base units to the controller of the leaf's account, up to the leaf's budget.
    /// @param leaf the account's leaf at the newest epoch the registry holds; what it says is stored there first
    function borrow(IMarginRegistry.Leaf calldata leaf, bytes32[] calldata proof, uint256 amount) external {
        require(amount > 0, "zero amount");
        require(controllerOf[leaf.account] == msg.sender, "not the controller of this account");
        registry.applyLeaf(leaf, proof);
        uint256 debt = debtOf[leaf.account] + amount;
        uint256 drawn = registry.usedBy(leaf.account, address(this));
        uint256 needed = toUsd(debt);
        debtOf[leaf.account] = debt;
        totalDebt += amount;
        emit Borrowed(leaf.account, amount, debt);
        if (needed > drawn) registry.draw(leaf.account, needed - drawn); // reverts above the budget
        require(token.transfer(msg.sender, amount), "transfer");
    }

    /// @notice Pay back up to `amount` base units of an account's debt. Anyone may; only the debt is taken.
    /// @return paid the base units taken
    function repay(bytes32 account, uint256 amount) external returns (uint256 paid) {
        uint256 debt = debtOf[account];
        paid = amount < debt ? amount : debt;
        require(paid > 0, "nothing to repay");
        debt -= paid;
        uint256 drawn = registry.usedBy(account, address(this)); // nothing, once governance has forgiven it
        uint256 needed = toUsd(debt);
        debtOf[account] = debt;
        totalDebt -= paid;
        emit Repaid(account, msg.sender, paid, debt);
        if (needed < drawn) registry.repay(account, drawn - needed);
        require(token.transferFrom(msg.sender, address(this), paid), "transfer");
    }

    /// @return the id of the account that `controller` of this chain holds under `salt`
    function accountId(address controller, bytes32 salt) public view returns (bytes32) {
        return idAt(block.chainid, controller, salt);
    }

    function idAt(uint256 chain, address controller, bytes32 salt) private pure returns (bytes32) {
        return keccak256(
            abi.encodePacked("crossmargin/account/1", "eip155:", decimal(chain), ":0x", hex40(controller), salt)
        );
    }

    /// @dev A debt is rounded up.
    function toUsd(uint256 amount) private view returns (uint256) {
        return (amount * USD + tokenUnit - 1) / tokenUnit;
    }

    function decimal(uint256 number) private pure returns (bytes memory digits) {
        uint256 length = 1;
        for (uint256 rest = number; rest > 9; rest /= 10) length++;
        digits = new bytes(length);
        for (; length > 0; number /= 10) digits[--length] = bytes1(uint8(48 + number % 10));
    }

    /// @return digits 40 lower-case hex digits
    function hex40(address who) private pure returns (bytes memory digits) {
        digits = new bytes(40);
        uint256 rest = uint160(who);
        for (uint256 i = 40; i > 0; rest >>= 4) digits[--i] = DIGITS[rest & 15];
    }
}
