# pragma version ==0.4.3
# pragma nonreentrancy off
"""
@title CollateralVault
@license MIT
@notice Holds tokens and NFTs for margin accounts. What is deposited leaves only to its depositor: after a request that
        has waited `delay` seconds, unless a quorum of the attestors holds the account; or at once, with a permit of the
        quorum. So the margin of an account cannot vanish faster than it is seen.
@dev Credits the balance that arrived, not the amount that was asked for, so tokens that keep a fee are booked right.
     Amounts are nominal: what a rebasing token gains later belongs to nobody here, and a token that can lose balance
     must not be accepted as collateral. The registry's governance decides which tokens may come in, and how much of
     each; it moves nothing and keeps nothing from leaving. There is no upgrade and no other way out.
     Holds and permits are EIP-712 in the domain of the deployment; they name this chain and this vault, and are signed
     by the set of attestors that their epoch demands, which the registry knows.
     An NFT comes in through `depositNft` alone: there is no receiver function, so a safe transfer to this address fails,
     and one that is not safe is lost.
"""
from ethereum.ercs import IERC20

interface Registry:
    def deploymentId() -> bytes32: view
    def destination() -> bytes32: view
    def governance() -> address: view
    def verifyQuorum(
        digest: bytes32, epoch: uint64, indices: uint256, signatures: DynArray[bytes32[2], MAX_SIGNATURES]
    ) -> bool: view

interface Nft:
    def ownerOf(id: uint256) -> address: view
    def transferFrom(owner: address, to: address, id: uint256): nonpayable
    def safeTransferFrom(owner: address, to: address, id: uint256): nonpayable

struct Asset:
    kind: uint256  # 0 never accepted, FUNGIBLE or NFTS
    limit: uint256  # of all deposits together: base units, or NFTs
    deposited: uint256

struct Position:
    total: uint256  # base units, pending included
    pending: uint256  # base units under a withdrawal request

struct Request:
    account: bytes32
    owner: address
    token: address
    amount: uint256
    claimableAt: uint256

struct NftPosition:
    account: bytes32
    owner: address
    claimableAt: uint256  # 0 while nobody has requested it

struct StandingHold:
    until: uint64  # Unix seconds
    epoch: uint64

struct Permit:
    account: bytes32
    token: address
    amount: uint256  # base units
    to: address
    nonce: bytes32
    epoch: uint64
    expiry: uint64  # Unix seconds

event LimitSet:
    token: indexed(address)
    limit: uint256
    nfts: bool  # the limit counts NFTs, not base units

event Held:
    account: indexed(bytes32)
    until: uint64
    epoch: uint64

event Withdrawn:
    account: indexed(bytes32)
    owner: indexed(address)
    token: indexed(address)
    amount: uint256
    to: address
    nonce: bytes32
    epoch: uint64

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

event NftDeposited:
    account: indexed(bytes32)
    owner: indexed(address)
    token: indexed(address)
    id: uint256

event NftWithdrawalRequested:
    account: indexed(bytes32)
    owner: indexed(address)
    token: indexed(address)
    id: uint256
    claimableAt: uint256

event NftWithdrawalCancelled:
    account: indexed(bytes32)
    owner: indexed(address)
    token: indexed(address)
    id: uint256

event NftWithdrawalClaimed:
    account: indexed(bytes32)
    owner: indexed(address)
    token: indexed(address)
    id: uint256
    to: address

# A year bounds the delay: a larger one would lock deposits for good.
MAX_DELAY: constant(uint256) = 365 * 86400
# What a quorum can keep in at most; it may renew a hold with a newer epoch.
MAX_HOLD: constant(uint256) = 7 * 86400
MAX_SIGNATURES: constant(uint256) = 32
FUNGIBLE: constant(uint256) = 1
NFTS: constant(uint256) = 2
# supportsInterface(0x80ac58cd): is it an ERC-721? (EIP-165, EIP-721). An answer may take 30,000 gas (EIP-165).
ASK_WHETHER_NFT: constant(Bytes[36]) = x"01ffc9a780ac58cd00000000000000000000000000000000000000000000000000000000"
ASK_GAS: constant(uint256) = 30000

DOMAIN_TYPEHASH: constant(bytes32) = keccak256("EIP712Domain(string name,string version,bytes32 salt)")
HOLD_TYPEHASH: constant(bytes32) = keccak256("Hold(bytes32 account,bytes32 chain,bytes32 vault,uint64 until,uint64 epoch)")
PERMIT_TYPEHASH: constant(bytes32) = keccak256(
    "WithdrawalPermit(bytes32 account,bytes32 chain,bytes32 vault,bytes32 asset,uint256 amount,bytes32 to,bytes32 nonce,uint64 epoch,uint64 expiry)"
)

delay: public(immutable(uint256))
registry: public(immutable(address))
deploymentId: public(immutable(bytes32))
destination: public(immutable(bytes32))
chainId: public(immutable(uint256))
DOMAIN_SEPARATOR: public(immutable(bytes32))

lastRequestId: public(uint256)
nonceUsed: public(HashMap[bytes32, bool])
_assets: HashMap[address, Asset]
_holds: HashMap[bytes32, StandingHold]
_nfts: HashMap[address, HashMap[uint256, NftPosition]]  # token -> id
_positions: HashMap[bytes32, HashMap[address, Position]]  # account -> token
_stakes: HashMap[bytes32, HashMap[address, HashMap[address, Position]]]  # account -> owner -> token
_requests: HashMap[uint256, Request]


@deploy
def __init__(delay_: uint256, registry_: address):
    """
    @param delay_ seconds between a withdrawal request and its claim, at most a year
    @param registry_ the MarginRegistry on this chain of the deployment that counts what lies here
    """
    assert delay_ <= MAX_DELAY, "delay"
    delay = delay_
    registry = registry_
    chainId = chain.id
    destination = keccak256(concat("eip155:", uint2str(chain.id)))
    assert staticcall Registry(registry_).destination() == destination, "registry of another chain"
    assert staticcall Registry(registry_).governance() != empty(address), "registry without governance"
    deploymentId = staticcall Registry(registry_).deploymentId()
    assert deploymentId != empty(bytes32), "registry without deployment"
    DOMAIN_SEPARATOR = keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("crossmargin"), keccak256("1"), deploymentId))


@external
@nonreentrant
def setLimit(token: address, limit_: uint256):
    """
    @notice Say how much of a token may lie here in all: base units of an ERC-20, pieces of an ERC-721; 0 = no more
            deposits. What lies here already may always leave. Only the registry's governance may.
    """
    assert msg.sender == staticcall Registry(registry).governance(), "not the governance"
    kind: uint256 = NFTS if self._is_nft(token) else FUNGIBLE
    known: uint256 = self._assets[token].kind
    assert known == 0 or known == kind, "token changed its kind"
    self._assets[token].kind = kind
    self._assets[token].limit = limit_
    log LimitSet(token=token, limit=limit_, nfts=kind == NFTS)


@external
@nonreentrant
def deposit(account: bytes32, token: address, amount: uint256) -> uint256:
    """
    @notice Move `amount` of `token` from the caller into the vault, for `account`. The caller stays its depositor.
    @return the base units credited: what arrived
    """
    assert account != empty(bytes32), "zero account"
    assert amount > 0, "zero amount"
    asset: Asset = self._assets[token]
    assert asset.kind == FUNGIBLE and asset.limit > 0, "token not accepted"
    before: uint256 = staticcall IERC20(token).balanceOf(self)
    assert extcall IERC20(token).transferFrom(msg.sender, self, amount, default_return_value=True), "transfer"
    credited: uint256 = staticcall IERC20(token).balanceOf(self) - before
    assert credited > 0, "nothing arrived"
    assert asset.deposited + credited <= asset.limit, "limit"

    self._assets[token].deposited = asset.deposited + credited
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
    self._cancel(id)


@external
@nonreentrant
def claim(id: uint256, to: address):
    """
    @notice Pay a request out to `to` once its delay has passed and no hold stands. Only its depositor may.
    """
    assert to != empty(address) and to != self, "recipient"
    entry: Request = self._take(id)
    assert block.timestamp >= entry.claimableAt, "too early"
    assert block.timestamp >= convert(self._holds[entry.account].until, uint256), "held"

    self._debit(entry.account, entry.owner, entry.token, entry.amount)
    log WithdrawalClaimed(
        id=id, account=entry.account, owner=entry.owner, token=entry.token, amount=entry.amount, to=to
    )
    assert extcall IERC20(entry.token).transfer(to, entry.amount, default_return_value=True), "transfer"


@external
@nonreentrant
def withdraw(
    permit: Permit, request_id: uint256, indices: uint256, signatures: DynArray[bytes32[2], MAX_SIGNATURES]
):
    """
    @notice Pay out at once what a quorum permits, from what the caller deposited for the account. The nonce is burnt.
    @dev A hold that stands stops it unless the permit's epoch is newer: the quorum knew of the hold then.
    @param permit what was signed, but for chain and vault, which are this one's
    @param request_id an open request of the caller for the same account and token, which is cancelled first so that its
           amount can be paid out; 0 = none
    @param indices the signers' indices, eight bits each, the first one lowest
    @param signatures (r, vs) of each signer, EIP-2098
    """
    assert chain.id == chainId, "another chain"
    assert permit.to != empty(address) and permit.to != self, "recipient"
    assert permit.amount > 0, "zero amount"
    assert block.timestamp <= convert(permit.expiry, uint256), "permit expired"
    assert not self.nonceUsed[permit.nonce], "nonce used"
    standing: StandingHold = self._holds[permit.account]
    assert block.timestamp >= convert(standing.until, uint256) or permit.epoch > standing.epoch, "held"
    digest: bytes32 = self._digest(
        keccak256(
            abi_encode(
                PERMIT_TYPEHASH,
                permit.account,
                destination,
                self,
                permit.token,
                permit.amount,
                permit.to,
                permit.nonce,
                permit.epoch,
                permit.expiry,
            )
        )
    )
    assert staticcall Registry(registry).verifyQuorum(digest, permit.epoch, indices, signatures), "quorum"

    if request_id != 0:
        entry: Request = self._cancel(request_id)
        assert entry.account == permit.account and entry.token == permit.token, "request of another stake"
    stake: Position = self._stakes[permit.account][msg.sender][permit.token]
    assert permit.amount <= stake.total - stake.pending, "amount above the caller's free deposit"
    self.nonceUsed[permit.nonce] = True
    self._debit(permit.account, msg.sender, permit.token, permit.amount)
    log Withdrawn(
        account=permit.account,
        owner=msg.sender,
        token=permit.token,
        amount=permit.amount,
        to=permit.to,
        nonce=permit.nonce,
        epoch=permit.epoch,
    )
    assert extcall IERC20(permit.token).transfer(permit.to, permit.amount, default_return_value=True), "transfer"


@external
@nonreentrant
def hold(
    account: bytes32, until: uint64, epoch: uint64, indices: uint256, signatures: DynArray[bytes32[2], MAX_SIGNATURES]
):
    """
    @notice Keep everything of an account in until `until`, as a quorum signed. Anyone may bring it. Deposits, requests
            and cancellations go on.
    @dev A newer hold can prolong the one that stands and make older permits void; it never shortens it.
    @param until Unix seconds, at most MAX_HOLD from now
    @param epoch above that of every hold of this account before
    """
    assert chain.id == chainId, "another chain"
    assert convert(until, uint256) > block.timestamp, "until passed"
    assert convert(until, uint256) <= block.timestamp + MAX_HOLD, "until too far"
    standing: StandingHold = self._holds[account]
    assert epoch > standing.epoch, "epoch not newer"
    digest: bytes32 = self._digest(keccak256(abi_encode(HOLD_TYPEHASH, account, destination, self, until, epoch)))
    assert staticcall Registry(registry).verifyQuorum(digest, epoch, indices, signatures), "quorum"
    stands: uint64 = max(until, standing.until)
    self._holds[account] = StandingHold(until=stands, epoch=epoch)
    log Held(account=account, until=stands, epoch=epoch)


@external
@nonreentrant
def depositNft(account: bytes32, token: address, id: uint256):
    """
    @notice Move the caller's NFT into the vault, for `account`. The caller stays its depositor.
    """
    assert account != empty(bytes32), "zero account"
    asset: Asset = self._assets[token]
    assert asset.kind == NFTS and asset.limit > 0, "token not accepted"
    assert asset.deposited < asset.limit, "limit"
    assert self._nfts[token][id].owner == empty(address), "deposited already"
    assert staticcall Nft(token).ownerOf(id) == msg.sender, "not the owner"
    self._assets[token].deposited = asset.deposited + 1
    self._nfts[token][id] = NftPosition(account=account, owner=msg.sender, claimableAt=0)
    log NftDeposited(account=account, owner=msg.sender, token=token, id=id)
    extcall Nft(token).transferFrom(msg.sender, self, id)
    assert staticcall Nft(token).ownerOf(id) == self, "nothing arrived"


@external
@nonreentrant
def requestNft(token: address, id: uint256):
    """
    @notice Ask to withdraw an NFT. It counts as pending at once. Only its depositor may.
    """
    entry: NftPosition = self._nft_of_caller(token, id)
    assert entry.claimableAt == 0, "requested already"
    claimable_at: uint256 = block.timestamp + delay
    self._nfts[token][id].claimableAt = claimable_at
    log NftWithdrawalRequested(
        account=entry.account, owner=entry.owner, token=token, id=id, claimableAt=claimable_at
    )


@external
@nonreentrant
def cancelNft(token: address, id: uint256):
    """
    @notice Take the request for an NFT back. Only its depositor may.
    """
    entry: NftPosition = self._nft_of_caller(token, id)
    assert entry.claimableAt != 0, "unknown request"
    self._nfts[token][id].claimableAt = 0
    log NftWithdrawalCancelled(account=entry.account, owner=entry.owner, token=token, id=id)


@external
@nonreentrant
def claimNft(token: address, id: uint256, to: address):
    """
    @notice Give a requested NFT to `to` once its delay has passed and no hold stands. Only its depositor may.
    """
    assert to != empty(address) and to != self, "recipient"
    entry: NftPosition = self._nft_of_caller(token, id)
    assert entry.claimableAt != 0, "unknown request"
    assert block.timestamp >= entry.claimableAt, "too early"
    assert block.timestamp >= convert(self._holds[entry.account].until, uint256), "held"
    self._nfts[token][id] = empty(NftPosition)
    self._assets[token].deposited -= 1
    log NftWithdrawalClaimed(account=entry.account, owner=entry.owner, token=token, id=id, to=to)
    extcall Nft(token).safeTransferFrom(self, to, id)


@external
@view
def limit(token: address) -> uint256:
    """
    @return how much of a token may lie here in all: base units, or pieces of an ERC-721; 0 = it is not accepted
    """
    return self._assets[token].limit


@external
@view
def totalDeposited(token: address) -> uint256:
    """
    @return what of a token lies here for all accounts: base units, or pieces of an ERC-721
    """
    return self._assets[token].deposited


@external
@view
def holds(account: bytes32) -> (uint64, uint64):
    """
    @return (until, epoch) of an account's newest hold; it stands while the time is below `until`
    """
    entry: StandingHold = self._holds[account]
    return entry.until, entry.epoch


@external
@view
def nft(token: address, id: uint256) -> NftPosition:
    """
    @return for which account an NFT lies here, who may withdraw it, and from when; all zero when it does not lie here
    """
    return self._nfts[token][id]


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


@internal
def _cancel(id: uint256) -> Request:
    entry: Request = self._take(id)
    log WithdrawalCancelled(id=id, account=entry.account, owner=entry.owner, token=entry.token, amount=entry.amount)
    return entry


@internal
def _debit(account: bytes32, owner: address, token: address, amount: uint256):
    self._stakes[account][owner][token].total -= amount
    self._positions[account][token].total -= amount
    self._assets[token].deposited -= amount


@internal
@view
def _nft_of_caller(token: address, id: uint256) -> NftPosition:
    entry: NftPosition = self._nfts[token][id]
    assert entry.owner != empty(address), "unknown NFT"
    assert entry.owner == msg.sender, "not the depositor"
    return entry


@internal
@view
def _is_nft(token: address) -> bool:
    """
    Whether a contract says that it is an ERC-721. One that does not answer is none.
    """
    assert token.is_contract, "no contract"
    success: bool = False
    answer: Bytes[32] = b""
    success, answer = raw_call(
        token, ASK_WHETHER_NFT, max_outsize=32, gas=ASK_GAS, is_static_call=True, revert_on_failure=False
    )
    return success and len(answer) == 32 and convert(answer, uint256) == 1


@internal
@view
def _digest(struct_hash: bytes32) -> bytes32:
    return keccak256(concat(b"\x19\x01", DOMAIN_SEPARATOR, struct_hash))
