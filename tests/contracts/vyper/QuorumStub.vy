# pragma version ==0.4.3
"""
@title QuorumStub
@license MIT
@notice What a vault asks of a registry, over two sets of attestors with the same threshold, without clocks and posts.
"""

deploymentId: public(bytes32)
destination: public(bytes32)
governance: public(address)
lowest: uint64
activation: public(uint64)
threshold: uint256
sets: DynArray[address, 8][2]


@deploy
def __init__(deployment_id: bytes32, first: DynArray[address, 8], second: DynArray[address, 8], threshold: uint256):
    self.deploymentId = deployment_id
    self.destination = keccak256(concat("eip155:", uint2str(chain.id)))
    self.governance = msg.sender
    self.activation = max_value(uint64)
    self.threshold = threshold
    self.sets = [first, second]


@external
def set(governance: address, destination: bytes32, lowest: uint64, activation: uint64):
    self.governance = governance
    self.destination = destination
    self.lowest = lowest
    self.activation = activation


@external
@view
def verifyQuorum(digest: bytes32, epoch: uint64, indices: uint256, signatures: DynArray[bytes32[2], 32]) -> bool:
    assert epoch >= self.lowest, "below floor"
    assert len(signatures) >= self.threshold, "too few signatures"
    members: DynArray[address, 8] = self.sets[1 if epoch >= self.activation else 0]
    last: int256 = -1
    for i: uint256 in range(len(signatures), bound=32):
        index: uint256 = (indices >> (8 * i)) & 255
        assert convert(index, int256) > last, "indices"
        last = convert(index, int256)
        vs: uint256 = convert(signatures[i][1], uint256)
        s: uint256 = vs & (2**255 - 1)
        signer: address = ecrecover(digest, 27 + (vs >> 255), convert(signatures[i][0], uint256), s)
        assert signer != empty(address) and signer == members[index], "signer"
    return True
