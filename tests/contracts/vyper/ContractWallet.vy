# pragma version 0.4.3
"""
@title A wallet contract that answers for itself (EIP-1271): whoever owns it now signs for it. For tests.
"""

MAGIC: constant(bytes4) = 0x1626ba7e

owner: public(address)


@deploy
def __init__(owner: address):
    self.owner = owner


@external
def hand_over(owner: address):
    assert msg.sender == self.owner, "owner only"
    self.owner = owner


@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[65]) -> bytes4:
    assert len(signature) == 65, "not a signature"
    r: uint256 = convert(slice(signature, 0, 32), uint256)
    s: uint256 = convert(slice(signature, 32, 32), uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    if ecrecover(digest, v, r, s) == self.owner:
        return MAGIC
    return 0xffffffff
