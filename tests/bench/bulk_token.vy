# pragma version ==0.4.3
"""
@title BulkToken
@license MIT
@notice Balances, and Transfer logs for many holders in one transaction. For measurements only.
"""
from ethereum.ercs import IERC20

balanceOf: public(HashMap[address, uint256])
decimals: public(constant(uint8)) = 6


@external
def mint(holders: DynArray[address, 250], amount: uint256):
    """
    @notice Create `amount` base units for each of `holders`.
    """
    for holder: address in holders:
        self.balanceOf[holder] += amount
        log IERC20.Transfer(sender=empty(address), receiver=holder, value=amount)
