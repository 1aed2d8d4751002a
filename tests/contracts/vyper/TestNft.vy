# pragma version ==0.4.3
# pragma nonreentrancy off
"""
@title TestNft
@license MIT
@notice An ERC-721 that anyone may mint, burn and misuse: it can keep the piece in a transfer, and deposit
        piece 99, its own, in the vault in the middle of one.
"""

interface Receiver:
    def onERC721Received(operator: address, owner: address, id: uint256, data: Bytes[32]) -> bytes4: nonpayable

interface Vault:
    def depositNft(account: bytes32, token: address, id: uint256): nonpayable

owners: HashMap[uint256, address]
approved: HashMap[address, HashMap[address, bool]]
stuck: public(bool)
callback: public(bool)


@external
@view
def supportsInterface(id: bytes4) -> bool:
    return id == 0x80ac58cd or id == 0x01ffc9a7


@external
def set(stuck: bool, callback: bool):
    self.stuck = stuck
    self.callback = callback


@external
def mint(owner: address, id: uint256):
    assert self.owners[id] == empty(address), "exists"
    self.owners[id] = owner


@external
def burn(id: uint256):
    self.owners[id] = empty(address)


@external
def setApprovalForAll(operator: address, yes: bool):
    self.approved[msg.sender][operator] = yes


@external
@view
def ownerOf(id: uint256) -> address:
    assert self.owners[id] != empty(address), "no such piece"
    return self.owners[id]


@external
@view
def balanceOf(owner: address) -> uint256:
    return 1


@external
def transferFrom(owner: address, to: address, id: uint256):
    self._move(owner, to, id)


@external
def safeTransferFrom(owner: address, to: address, id: uint256):
    if self.callback:
        self.approved[self][msg.sender] = True
        extcall Vault(msg.sender).depositNft(convert(1, bytes32), self, 99)
    self._move(owner, to, id)
    if to.is_contract:
        assert extcall Receiver(to).onERC721Received(msg.sender, owner, id, b"") == 0x150b7a02, "unsafe"


@internal
def _move(owner: address, to: address, id: uint256):
    assert self.owners[id] == owner, "not its owner"
    assert msg.sender == owner or self.approved[owner][msg.sender], "not approved"
    if not self.stuck:
        self.owners[id] = to
