# pragma version ==0.4.3
# pragma nonreentrancy off
"""
@title CollateralVault
@license MIT
@notice Holds ERC-20 tokens for margin accounts. What is deposited leaves only through a request of its depositor that
        has waited `delay` seconds, so that the margin of an account cannot vanish faster than it is seen.
@dev Credits the balance that arrived, not the amount that was asked for, so tokens that keep a fee are booked right.
     Amounts are nominal: what a rebasing token gains later belongs to nobody here, and a token that can lose balance
     must not be accepted as collateral. There is no owner, no upgrade and no other way out.
"""
from ethereum.ercs import IERC20

struct Position:
    total: uint256  # base units, pending included
    pending: uint256  # base units under a withdrawal request

struct Request:
    account: bytes32
    owner: address
    token: address
    amount: uint256
    claimableAt: uint256

event Deposited:
    account: indexed(bytes32)
    owner: indexed(address)
    token: indexed(address)
    amount: uint256

event WithdrawalRequested:
    id: indexed(uint256)
    account: indexed(bytes32)
    owner: indexed(address)
    token: address
    amount: uint256
    claimableAt: uint256

event WithdrawalCancelled:
    id: indexed(uint256)
    account: indexed(bytes32)
    owner: indexed(address)
    token: address
    amount: uint256

event WithdrawalClaimed:
    id: indexed(uint256)
    account: indexed(bytes32)
    owner: indexed(address)
    token: address
    amount: uint256
    to: address

# A year bounds the delay: a larger one would lock deposits for good.
MAX_DELAY: constant(uint256) = 365 * 86400

delay: public(immutable(uint256))
deploymentId: public(immutable(bytes32))

lastRequestId: public(uint256)
_positions: HashMap[bytes32, HashMap[address, Position]]  # account -> token
_stakes: HashMap[bytes32, HashMap[address, HashMap[address, Position]]]  # account -> owner -> token
_requests: HashMap[uint256, Request]


@deploy
def __init__(delay_: uint256, deployment_id: bytes32):
    """
    @param delay_ seconds between a withdrawal request and its claim, at most a year
    @param deployment_id the deployment whose registries count what lies here
    """
    assert delay_ <= MAX_DELAY, "delay"
    delay = delay_
    deploymentId = deployment_id


@external
@nonreentrant
def deposit(account: bytes32, token: address, amount: uint256) -> uint256:
    """
    @notice Move `amount` of `token` from the caller into the vault, for `account`. The caller stays its depositor.
    @return the base units credited: what arrived
    """
    assert account != empty(bytes32), "zero account"
    assert amount > 0, "zero amount"
    before: uint256 = staticcall IERC20(token).balanceOf(self)
    assert extcall IERC20(token).transferFrom(msg.sender, self, amount, default_return_value=True), "transfer"
    credited: uint256 = staticcall IERC20(token).balanceOf(self) - before
    assert credited > 0, "nothing arrived"

    self._positions[account][token].total += credited
    self._stakes[account][msg.sender][token].total += credited
    log Deposited(account=account, owner=msg.sender, token=token, amount=credited)
    return credited


@external
@nonreentrant
def request(account: bytes32, token: address, amount: uint256) -> uint256:
    """
    @notice Ask to withdraw `amount` of what the caller deposited for `account`. It counts as pending at once.
    @return the id to claim or cancel with
    """
    assert amount > 0, "zero amount"
    stake: Position = self._stakes[account][msg.sender][token]
    assert amount <= stake.total - stake.pending, "amount above the caller's free deposit"

    self._stakes[account][msg.sender][token].pending = stake.pending + amount
    self._positions[account][token].pending += amount
    id: uint256 = self.lastRequestId + 1
    self.lastRequestId = id
    claimable_at: uint256 = block.timestamp + delay
    self._requests[id] = Request(
        account=account, owner=msg.sender, token=token, amount=amount, claimableAt=claimable_at
    )
    log WithdrawalRequested(
        id=id, account=account, owner=msg.sender, token=token, amount=amount, claimableAt=claimable_at
    )
    return id


@external
@nonreentrant
def cancel(id: uint256):
    """
    @notice Take a request back; the amount is free collateral again. Only its depositor may.
    """
    entry: Request = self._take(id)
    log WithdrawalCancelled(id=id, account=entry.account, owner=entry.owner, token=entry.token, amount=entry.amount)


@external
@nonreentrant
def claim(id: uint256, to: address):
    """
    @notice Pay a request out to `to` once its delay has passed. Only its depositor may.
    """
    assert to != empty(address) and to != self, "recipient"
    entry: Request = self._take(id)
    assert block.timestamp >= entry.claimableAt, "too early"

    self._stakes[entry.account][entry.owner][entry.token].total -= entry.amount
    self._positions[entry.account][entry.token].total -= entry.amount
    log WithdrawalClaimed(
        id=id, account=entry.account, owner=entry.owner, token=entry.token, amount=entry.amount, to=to
    )
    assert extcall IERC20(entry.token).transfer(to, entry.amount, default_return_value=True), "transfer"


@external
@view
def position(account: bytes32, token: address) -> (uint256, uint256):
    """
    @return (total, pending) of an account in base units; total includes pending
    """
    entry: Position = self._positions[account][token]
    return entry.total, entry.pending


@external
@view
def deposited(account: bytes32, owner: address, token: address) -> uint256:
    """
    @return base units that `owner` has in the vault for `account`, pending ones included
    """
    return self._stakes[account][owner][token].total


@external
@view
def pendingOf(account: bytes32, owner: address, token: address) -> uint256:
    """
    @return the part of `deposited` that is under a withdrawal request, in base units
    """
    return self._stakes[account][owner][token].pending


@external
@view
def requests(id: uint256) -> Request:
    """
    @return an open request; all zero when unknown, claimed or cancelled
    """
    return self._requests[id]


@internal
def _take(id: uint256) -> Request:
    entry: Request = self._requests[id]
    assert entry.owner != empty(address), "unknown request"
    assert entry.owner == msg.sender, "not the depositor"
    self._requests[id] = empty(Request)
    self._stakes[entry.account][entry.owner][entry.token].pending -= entry.amount
    self._positions[entry.account][entry.token].pending -= entry.amount
    return entry
