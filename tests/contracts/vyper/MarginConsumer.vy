# pragma version ==0.4.3
"""
@notice A consumer for tests: measures what an inclusion check costs a contract, and applies, draws and repays.
"""
struct Leaf:
    account: bytes32
    destination: bytes32
    epoch: uint256
    equity: int256
    assetsInitial: uint256
    requirementInitial: uint256
    assetsMaintenance: uint256
    requirementMaintenance: uint256
    budget: uint256
    asOf: uint256
    validUntil: uint256
    flags: uint256

interface Registry:
    def verify(leaf: Leaf, proof: DynArray[bytes32, 32]) -> bool: view
    def applyLeaf(leaf: Leaf, proof: DynArray[bytes32, 32]): nonpayable
    def draw(account: bytes32, amount: uint256): nonpayable
    def repay(account: bytes32, amount: uint256): nonpayable

registry: immutable(Registry)


@deploy
def __init__(registry_: address):
    registry = Registry(registry_)


@external
@view
def costOfVerify(leaf: Leaf, proof: DynArray[bytes32, 32]) -> uint256:
    """
    @return the gas of the call, the registry's account and slots not touched before
    """
    before: uint256 = msg.gas
    accepted: bool = staticcall registry.verify(leaf, proof)
    cost: uint256 = before - msg.gas
    assert accepted, "not accepted"
    return cost


@external
@view
def costOfCall(data: Bytes[2048]) -> uint256:
    """
    @return the gas of a call of `verify` whose calldata lie ready, which leaves out the caller's own encoding
    """
    before: uint256 = msg.gas
    answer: Bytes[32] = raw_call(registry.address, data, max_outsize=32, is_static_call=True)
    cost: uint256 = before - msg.gas
    assert convert(answer, bool), "not accepted"
    return cost


@external
def applyAndDraw(leaf: Leaf, proof: DynArray[bytes32, 32], amount: uint256):
    extcall registry.applyLeaf(leaf, proof)
    extcall registry.draw(leaf.account, amount)


@external
def repay(account: bytes32, amount: uint256):
    extcall registry.repay(account, amount)
