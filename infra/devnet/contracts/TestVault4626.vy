# pragma version ==0.4.3
# pragma nonreentrancy on
"""
@title TestVault4626
@license MIT
@notice An ERC-4626 vault over one ERC-20 whose yield is whatever is transferred to it. For devnets and tests only.
@dev One virtual asset unit stands against 10**3 virtual shares, which makes the inflation of the first share by a
     donation unprofitable. Every conversion rounds in favour of the vault.
"""
from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed
from ethereum.ercs import IERC4626

implements: IERC20
implements: IERC20Detailed
implements: IERC4626

OFFSET: constant(uint8) = 3
VIRTUAL_SHARES: constant(uint256) = 10**3

asset: public(immutable(address))
decimals: public(immutable(uint8))
name: public(String[64])
symbol: public(String[32])
totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])


@deploy
def __init__(asset_: address, name_: String[64], symbol_: String[32]):
    asset = asset_
    decimals = staticcall IERC20Detailed(asset_).decimals() + OFFSET
    self.name = name_
    self.symbol = symbol_


@external
def transfer(to: address, amount: uint256) -> bool:
    self._move(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    self._spend(owner, amount)
    self._move(owner, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    self.allowance[msg.sender][spender] = amount
    log IERC20.Approval(owner=msg.sender, spender=spender, value=amount)
    return True


@external
@view
def totalAssets() -> uint256:
    return self._total_assets()


@external
@view
def convertToShares(assets: uint256) -> uint256:
    return self._to_shares(assets, False)


@external
@view
def convertToAssets(shares: uint256) -> uint256:
    return self._to_assets(shares, False)


@external
@view
def maxDeposit(owner: address) -> uint256:
    return max_value(uint256)


@external
@view
def previewDeposit(assets: uint256) -> uint256:
    return self._to_shares(assets, False)


@external
def deposit(assets: uint256, receiver: address = msg.sender) -> uint256:
    shares: uint256 = self._to_shares(assets, False)
    self._enter(assets, shares, receiver)
    return shares


@external
@view
def maxMint(owner: address) -> uint256:
    return max_value(uint256)


@external
@view
def previewMint(shares: uint256) -> uint256:
    return self._to_assets(shares, True)


@external
def mint(shares: uint256, receiver: address = msg.sender) -> uint256:
    assets: uint256 = self._to_assets(shares, True)
    self._enter(assets, shares, receiver)
    return assets


@external
@view
def maxWithdraw(owner: address) -> uint256:
    return self._to_assets(self.balanceOf[owner], False)


@external
@view
def previewWithdraw(assets: uint256) -> uint256:
    return self._to_shares(assets, True)


@external
def withdraw(assets: uint256, receiver: address = msg.sender, owner: address = msg.sender) -> uint256:
    shares: uint256 = self._to_shares(assets, True)
    self._leave(assets, shares, receiver, owner)
    return shares


@external
@view
def maxRedeem(owner: address) -> uint256:
    return self.balanceOf[owner]


@external
@view
def previewRedeem(shares: uint256) -> uint256:
    return self._to_assets(shares, False)


@external
def redeem(shares: uint256, receiver: address = msg.sender, owner: address = msg.sender) -> uint256:
    assets: uint256 = self._to_assets(shares, False)
    self._leave(assets, shares, receiver, owner)
    return assets


@internal
@view
def _total_assets() -> uint256:
    return staticcall IERC20(asset).balanceOf(self)


@internal
@view
def _to_shares(assets: uint256, up: bool) -> uint256:
    return self._ratio(assets, self.totalSupply + VIRTUAL_SHARES, self._total_assets() + 1, up)


@internal
@view
def _to_assets(shares: uint256, up: bool) -> uint256:
    return self._ratio(shares, self._total_assets() + 1, self.totalSupply + VIRTUAL_SHARES, up)


@internal
@pure
def _ratio(amount: uint256, numerator: uint256, denominator: uint256, up: bool) -> uint256:
    product: uint256 = amount * numerator
    quotient: uint256 = product // denominator
    if up and quotient * denominator < product:
        quotient += 1
    return quotient


@internal
def _enter(assets: uint256, shares: uint256, receiver: address):
    assert receiver != empty(address), "zero recipient"
    assert extcall IERC20(asset).transferFrom(msg.sender, self, assets, default_return_value=True), "transfer"
    self.totalSupply += shares
    self.balanceOf[receiver] += shares
    log IERC20.Transfer(sender=empty(address), receiver=receiver, value=shares)
    log IERC4626.Deposit(sender=msg.sender, owner=receiver, assets=assets, shares=shares)


@internal
def _leave(assets: uint256, shares: uint256, receiver: address, owner: address):
    if msg.sender != owner:
        self._spend(owner, shares)
    assert self.balanceOf[owner] >= shares, "balance"
    self.balanceOf[owner] -= shares
    self.totalSupply -= shares
    log IERC20.Transfer(sender=owner, receiver=empty(address), value=shares)
    assert extcall IERC20(asset).transfer(receiver, assets, default_return_value=True), "transfer"
    log IERC4626.Withdraw(sender=msg.sender, receiver=receiver, owner=owner, assets=assets, shares=shares)


@internal
def _spend(owner: address, amount: uint256):
    allowed: uint256 = self.allowance[owner][msg.sender]
    if allowed != max_value(uint256):
        assert allowed >= amount, "allowance"
        self.allowance[owner][msg.sender] = allowed - amount


@internal
def _move(sender: address, to: address, amount: uint256):
    assert to != empty(address), "zero recipient"
    assert self.balanceOf[sender] >= amount, "balance"
    self.balanceOf[sender] -= amount
    self.balanceOf[to] += amount
    log IERC20.Transfer(sender=sender, receiver=to, value=amount)
