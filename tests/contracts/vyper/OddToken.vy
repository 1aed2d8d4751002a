# pragma version ==0.4.3
# pragma nonreentrancy off
"""
@title OddToken
@license MIT
@notice A token with the bad habits of real ones: it can keep a fee, return nothing, return false without moving, and
        deposit what it has of itself in the vault in the middle of somebody's transfer.
"""

interface Vault:
    def deposit(account: bytes32, token: address, amount: uint256) -> uint256: nonpayable

balanceOf: public(HashMap[address, uint256])
feePercent: public(uint256)
refuses: public(bool)
callback: public(uint256)  # 0 never, 1 in the next transfer into the vault, 2 in the next one out of it


@external
def set(fee_percent: uint256, refuses: bool, callback: uint256):
    self.feePercent = fee_percent
    self.refuses = refuses
    self.callback = callback


@external
def mint(to: address, amount: uint256):
    self.balanceOf[to] += amount


@external
def approve(spender: address, amount: uint256):
    pass


@external
@raw_return
def transfer(to: address, amount: uint256) -> Bytes[32]:
    if self.callback == 2:
        self._call_back()
    return self._move(msg.sender, to, amount)


@external
@raw_return
def transferFrom(owner: address, to: address, amount: uint256) -> Bytes[32]:
    if self.callback == 1:
        self._call_back()
    return self._move(owner, to, amount)


@internal
def _call_back():
    self.callback = 0
    extcall Vault(msg.sender).deposit(convert(1, bytes32), self, self.balanceOf[self])


@internal
def _move(sender: address, to: address, amount: uint256) -> Bytes[32]:
    if self.refuses:
        return concat(empty(bytes32), b"")
    self.balanceOf[sender] -= amount
    self.balanceOf[to] += amount - amount * self.feePercent // 100
    return b""
