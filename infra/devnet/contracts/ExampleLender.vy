# pragma version ==0.4.3
# pragma nonreentrancy on
"""
@title ExampleLender
@license MIT
@notice Lends one dollar token against the attested margin of cross-chain accounts. An example of a consumer: it shows
        what has to be checked, and charges no interest.
@dev The token is taken at one US dollar. A leaf is proven in every borrow, so the lender keeps no copy of a margin.
"""
from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed

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

interface MarginRegistry:
    def verify(leaf: Leaf, proof: DynArray[bytes32, 32]) -> bool: view

event Opened:
    account: indexed(bytes32)
    controller: indexed(address)

event Borrowed:
    account: indexed(bytes32)
    amount: uint256
    debt: uint256

event Repaid:
    account: indexed(bytes32)
    payer: indexed(address)
    amount: uint256
    debt: uint256

USD: constant(uint256) = 10**8
MAX_DECIMALS: constant(uint256) = 36

registry: public(immutable(address))
token: public(immutable(address))
tokenUnit: public(immutable(uint256))
controllerOf: public(HashMap[bytes32, address])
debtOf: public(HashMap[bytes32, uint256])  # base units of `token`
totalDebt: public(uint256)


@deploy
def __init__(registry_: address, token_: address):
    registry = registry_
    token = token_
    decimals: uint256 = convert(staticcall IERC20Detailed(token_).decimals(), uint256)
    assert decimals <= MAX_DECIMALS, "decimals"
    tokenUnit = 10 ** decimals


@external
def open(account: bytes32, salt: bytes32):
    """
    @notice Record the caller as controller of `account`. The account id is the hash of its controller's address on
            this chain, so nobody can open the account of another.
    """
    assert account == self._account_id(msg.sender, salt), "not the controller of this account"
    self.controllerOf[account] = msg.sender
    log Opened(account=account, controller=msg.sender)


@external
def borrow(leaf: Leaf, proof: DynArray[bytes32, 32], amount: uint256):
    """
    @notice Lend `amount` base units to the controller of the leaf's account, up to the leaf's budget.
    """
    assert amount > 0, "zero amount"
    assert self.controllerOf[leaf.account] == msg.sender, "not the controller of this account"
    assert staticcall MarginRegistry(registry).verify(leaf, proof), "leaf not attested or no longer valid"
    debt: uint256 = self.debtOf[leaf.account] + amount
    assert self._to_usd(debt) <= leaf.budget, "above the budget"

    self.debtOf[leaf.account] = debt
    self.totalDebt += amount
    log Borrowed(account=leaf.account, amount=amount, debt=debt)
    assert extcall IERC20(token).transfer(msg.sender, amount, default_return_value=True), "transfer"


@external
def repay(account: bytes32, amount: uint256) -> uint256:
    """
    @notice Pay back up to `amount` base units of an account's debt. Anyone may; only the debt is taken.
    @return the base units taken
    """
    paid: uint256 = min(amount, self.debtOf[account])
    assert paid > 0, "nothing to repay"
    debt: uint256 = self.debtOf[account] - paid
    self.debtOf[account] = debt
    self.totalDebt -= paid
    log Repaid(account=account, payer=msg.sender, amount=paid, debt=debt)
    assert extcall IERC20(token).transferFrom(msg.sender, self, paid, default_return_value=True), "transfer"
    return paid


@external
@view
def accountId(controller: address, salt: bytes32) -> bytes32:
    """
    @return the id of the account that `controller` of this chain holds under `salt`
    """
    return self._account_id(controller, salt)


@internal
@view
def _account_id(controller: address, salt: bytes32) -> bytes32:
    return keccak256(
        concat(
            b"crossmargin/account/1",
            b"eip155:",
            convert(uint2str(chain.id), Bytes[78]),
            b":0x",
            self._hex(convert(controller, uint256)),
            salt,
        )
    )


@internal
@pure
def _hex(number: uint256) -> Bytes[40]:
    # The 40 lower-case hex digits of an address: 32 in the first word, 8 at the end of the second.
    words: uint256[2] = [0, 0]
    for i: uint256 in range(40):
        digit: uint256 = (number >> (4 * (39 - i))) & 15
        letter: uint256 = digit + 48 if digit < 10 else digit + 87
        words[i // 32] = (words[i // 32] << 8) | letter
    return concat(convert(words[0], bytes32), slice(convert(words[1], bytes32), 24, 8))


@internal
@view
def _to_usd(amount: uint256) -> uint256:
    # Debt is rounded up.
    return (amount * USD + tokenUnit - 1) // tokenUnit
