# pragma version ==0.4.3
# pragma nonreentrancy on
"""
@title ExampleVenue
@license MIT
@notice Perps at the price of a feed and European options at a maker's quotes, with the venue as the other side of
        every trade, and IMarginVenue for whoever counts positions as margin. An example: it shows what there is to
        answer, has no liquidations, and pays gains out of what it was funded with.
@dev Prices are USD with 8 decimals, sizes 1e-18 whole units (of the underlying; for inverse perps US dollars). Dollars
     are paid in the settlement token at one to one. Every rounding is against the account.
"""
from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed

struct Round:
    id: uint80
    answer: int256
    startedAt: uint256
    updatedAt: uint256
    answeredIn: uint80

interface PriceFeed:
    def latestRoundData() -> Round: view
    def getRoundData(roundId: uint80) -> Round: view

interface AccountIds:
    def accountId(controller: address, salt: bytes32) -> bytes32: view

struct Instrument:
    kind: uint8
    state: uint8
    underlying: bytes32
    settlement: address
    strike: uint256
    expiry: uint64
    payout: uint256

struct Position:
    instrument: uint256
    size: int256
    entry: uint256
    funding: int256

struct Balance:
    token: address
    amount: uint256
    pending: uint256
    owed: uint256

struct Market:
    feed: address
    bid: uint256  # options: what one unit is bought at, 0 = not now
    ask: uint256
    rate: int256  # perps: funding that longs pay shorts, 1e-18 of the notional per second
    mark: uint256  # the price that funding accrues at, as of `touched`
    index: int256  # funding of a long, 1e-18 base units of settlement per 1e18 of size
    touched: uint256

struct Holding:
    size: int256
    entry: uint256
    index: int256  # of its market when its funding was last paid

struct Request:
    account: bytes32
    token: address
    amount: uint256
    claimableAt: uint256

event PositionChanged:
    account: indexed(bytes32)
    instrument: indexed(uint256)
    size: int256
    entry: uint256

event BalanceChanged:
    account: indexed(bytes32)
    token: indexed(address)
    amount: uint256
    pending: uint256
    owed: uint256

event InstrumentListed:
    instrument: indexed(uint256)
    kind: uint8
    underlying: bytes32
    settlement: address
    strike: uint256
    expiry: uint64

event InstrumentSettled:
    instrument: indexed(uint256)
    payout: uint256

event FundingChanged:
    instrument: indexed(uint256)

event Paused:
    paused: bool

event Opened:
    account: indexed(bytes32)
    controller: indexed(address)

PERP: constant(uint8) = 1
INVERSE: constant(uint8) = 2
CALL: constant(uint8) = 3
PUT: constant(uint8) = 4
LIVE: constant(uint8) = 1
EXPIRED: constant(uint8) = 2
SETTLED: constant(uint8) = 3

VERSION: constant(uint256) = 1
MAX_POSITIONS: constant(uint256) = 16
MAX_TOKENS: constant(uint256) = 4
MAX_SIZE: constant(uint256) = 10**30
MAX_STRIKE: constant(uint256) = 10**20
MAX_RATE: constant(int256) = 10**12  # about 9 % a day
MAX_DECIMALS: constant(uint256) = 18
MAX_AGE: constant(uint256) = 3600  # seconds after which an answer of a feed is nothing to trade on
MAX_DELAY: constant(uint256) = 365 * 86400
MARGIN: constant(int256) = 10  # a tenth of the notional must be here to open risk or take collateral away
UNIT: constant(int256) = 10**18
USD: constant(int256) = 10**8
ERC165: constant(bytes4) = 0x01ffc9a7
MARGIN_VENUE: constant(bytes4) = 0xf722a6cb  # of IMarginVenue: the exclusive or of its selectors

owner: public(immutable(address))
accountIds: public(immutable(address))  # who knows the id of a controller's account
removalDelay: public(immutable(uint256))

paused: public(bool)
tokens: public(DynArray[address, MAX_TOKENS])
controllerOf: public(HashMap[bytes32, address])
instrumentCount: public(uint256)  # ids are 1 to this
lastRequestId: public(uint256)
_unit: HashMap[address, uint256]
_instruments: HashMap[uint256, Instrument]
_markets: HashMap[uint256, Market]
_held: HashMap[bytes32, DynArray[uint256, MAX_POSITIONS]]
_holdings: HashMap[bytes32, HashMap[uint256, Holding]]
_cash: HashMap[bytes32, HashMap[address, int256]]
_pending: HashMap[bytes32, HashMap[address, uint256]]
_requests: HashMap[uint256, Request]


@deploy
def __init__(account_ids: address, removal_delay: uint256, tokens_: DynArray[address, MAX_TOKENS]):
    """
    @param account_ids a contract with `accountId(controller, salt)`
    @param removal_delay seconds between a withdrawal request and its claim, at most a year
    @param tokens_ what may be deposited and settled in
    """
    assert removal_delay <= MAX_DELAY, "delay"
    owner = msg.sender
    accountIds = account_ids
    removalDelay = removal_delay
    for token: address in tokens_:
        decimals: uint256 = convert(staticcall IERC20Detailed(token).decimals(), uint256)
        assert decimals <= MAX_DECIMALS, "decimals"
        assert self._unit[token] == 0, "token twice"
        self._unit[token] = 10 ** decimals
        self.tokens.append(token)


# What its maker does


@external
def list(
    kind: uint8, underlying: bytes32, settlement: address, strike: uint256, expiry: uint64, feed: address
) -> uint256:
    """
    @notice List an instrument; its terms never change.
    @return its id
    """
    assert msg.sender == owner, "not the owner"
    assert self._unit[settlement] != 0, "settlement"
    assert underlying != empty(bytes32), "underlying"
    if kind == CALL or kind == PUT:
        assert strike > 0 and strike <= MAX_STRIKE, "strike"
        assert convert(expiry, uint256) > block.timestamp, "expiry"
    else:
        assert kind == PERP or kind == INVERSE, "kind"
        assert strike == 0 and expiry == 0, "a perp has no strike and no expiry"
    id: uint256 = self.instrumentCount + 1
    self.instrumentCount = id
    self._instruments[id] = Instrument(
        kind=kind, state=LIVE, underlying=underlying, settlement=settlement, strike=strike, expiry=expiry, payout=0
    )
    self._markets[id] = Market(feed=feed, bid=0, ask=0, rate=0, mark=0, index=0, touched=block.timestamp)
    self._touch(id)
    log InstrumentListed(
        instrument=id, kind=kind, underlying=underlying, settlement=settlement, strike=strike, expiry=expiry
    )
    return id


@external
def quote(id: uint256, bid: uint256, ask: uint256):
    """
    @notice Say what one unit of an option is bought and sold at from now on; 0 = not at all.
    """
    assert msg.sender == owner, "not the owner"
    assert self._instruments[id].strike > 0, "no option"
    assert bid <= MAX_STRIKE and ask <= MAX_STRIKE and (ask == 0 or bid <= ask), "quote"
    self._markets[id].bid = bid
    self._markets[id].ask = ask


@external
def setFundingRate(id: uint256, rate: int256):
    """
    @notice Let longs of a perp pay shorts `rate` (1e-18 of the notional per second) from now on; negative: get.
    """
    assert msg.sender == owner, "not the owner"
    assert self._instruments[id].kind in [PERP, INVERSE], "no perp"
    assert abs(rate) <= MAX_RATE, "rate"
    self._touch(id)
    self._markets[id].rate = rate
    log FundingChanged(instrument=id)


@external
def setPaused(paused: bool):
    """
    @notice Stop trading and withdrawals, or let them go on.
    """
    assert msg.sender == owner, "not the owner"
    self.paused = paused
    log Paused(paused=paused)


# What accounts do


@external
def open(account: bytes32, salt: bytes32):
    """
    @notice Record the caller as controller of `account`, which is the hash of the caller's address on this chain.
    """
    assert account == staticcall AccountIds(accountIds).accountId(msg.sender, salt), "not the controller"
    self.controllerOf[account] = msg.sender
    log Opened(account=account, controller=msg.sender)


@external
def deposit(account: bytes32, token: address, amount: uint256) -> uint256:
    """
    @notice Move `amount` of `token` from the caller to `account`, for good: only its controller can withdraw it.
    @return the base units credited: what arrived
    """
    assert account != empty(bytes32), "zero account"
    assert self._unit[token] != 0, "token"
    before: uint256 = staticcall IERC20(token).balanceOf(self)
    assert extcall IERC20(token).transferFrom(msg.sender, self, amount, default_return_value=True), "transfer"
    credited: uint256 = staticcall IERC20(token).balanceOf(self) - before
    assert credited > 0, "nothing arrived"
    self._pay(account, token, convert(credited, int256))
    return credited


@external
def request(account: bytes32, token: address, amount: uint256) -> uint256:
    """
    @notice Ask to withdraw `amount` that no position needs. It counts as pending at once.
    @return the id to claim or cancel with
    """
    assert self.controllerOf[account] == msg.sender, "not the controller"
    assert amount > 0, "zero amount"
    self._pending[account][token] += amount
    self._verify_margin(account)
    id: uint256 = self.lastRequestId + 1
    self.lastRequestId = id
    self._requests[id] = Request(
        account=account, token=token, amount=amount, claimableAt=block.timestamp + removalDelay
    )
    self._log_balance(account, token)
    return id


@external
def cancel(id: uint256):
    """
    @notice Take a request back.
    """
    entry: Request = self._take(id)
    self._log_balance(entry.account, entry.token)


@external
def claim(id: uint256, to: address):
    """
    @notice Pay a request out to `to` once its delay has passed, unless positions need it by now.
    """
    assert not self.paused, "paused"
    entry: Request = self._take(id)
    assert block.timestamp >= entry.claimableAt, "too early"
    self._pay(entry.account, entry.token, -convert(entry.amount, int256))
    self._verify_margin(entry.account)
    assert extcall IERC20(entry.token).transfer(to, entry.amount, default_return_value=True), "transfer"


@external
def trade(account: bytes32, id: uint256, change: int256, limit: uint256):
    """
    @notice Buy (`change` above 0) or sell `change` of an instrument, perps at the feed's price, options at the quote.
    @param limit the highest price to buy at, or the lowest to sell at
    """
    assert not self.paused, "paused"
    assert self.controllerOf[account] == msg.sender, "not the controller"
    assert change != 0 and convert(abs(change), uint256) <= MAX_SIZE, "size"
    assert self._instruments[id].kind != 0, "unknown instrument"
    assert self._state(id) == LIVE, "expired"
    is_option: bool = self._instruments[id].strike > 0
    price: uint256 = 0
    if is_option:
        price = self._markets[id].ask if change > 0 else self._markets[id].bid
        assert price > 0, "no quote"
    else:
        price = self._price(self._markets[id].feed)
        self._touch(id)
    assert price <= limit if change > 0 else price >= limit, "limit"

    token: address = self._instruments[id].settlement
    old: Holding = self._holdings[account][id]
    if old.size == 0:
        assert len(self._held[account]) < MAX_POSITIONS, "too many positions"
        self._held[account].append(id)
    size: int256 = old.size + change
    assert convert(abs(size), uint256) <= MAX_SIZE, "size"
    paid: int256 = 0
    entry: uint256 = 0
    if is_option:
        paid = self._floor(-change * convert(price * self._unit[token], int256), UNIT * USD)
    else:
        paid = self._funding(id, old)
        if old.size == 0 or (old.size > 0) == (change > 0):
            entry = self._average(id, old, change, price)
        else:
            closed: int256 = -change if abs(change) < abs(old.size) else old.size
            paid += self._gain(id, closed, old.entry, price)
            entry = old.entry if abs(change) < abs(old.size) else price
    if size == 0:
        entry = 0
        self._drop(account, id)
    self._holdings[account][id] = Holding(size=size, entry=entry, index=self._markets[id].index)
    log PositionChanged(account=account, instrument=id, size=size, entry=entry)
    self._pay(account, token, paid)
    if abs(size) > abs(old.size) or (size != 0 and (size > 0) != (old.size > 0)):
        self._verify_margin(account)


@external
def settle(id: uint256, round: uint80):
    """
    @notice Fix what an expired option pays, at the feed's first answer not before its expiry. Anyone may.
    @param round that answer's round; the one before it must be earlier than the expiry
    """
    assert self._state(id) == EXPIRED, "not to be settled"
    expiry: uint256 = convert(self._instruments[id].expiry, uint256)
    feed: PriceFeed = PriceFeed(self._markets[id].feed)
    first: Round = staticcall feed.getRoundData(round)
    assert first.updatedAt >= expiry and first.answer > 0, "answered before the expiry"
    before: Round = staticcall feed.getRoundData(round - 1)
    assert before.updatedAt < expiry, "not the first answer"
    entry: Instrument = self._instruments[id]
    payout: uint256 = self._intrinsic(entry, convert(first.answer, uint256)) * self._unit[entry.settlement] // 10**8
    self._instruments[id].state = SETTLED
    self._instruments[id].payout = payout
    log InstrumentSettled(instrument=id, payout=payout)


@external
def collect(account: bytes32, id: uint256):
    """
    @notice Turn a position in a settled option into what it pays. Anyone may.
    """
    assert self._state(id) == SETTLED, "not settled"
    size: int256 = self._holdings[account][id].size
    assert size != 0, "no position"
    paid: int256 = self._floor(size * convert(self._instruments[id].payout, int256), UNIT)
    self._drop(account, id)
    self._holdings[account][id] = empty(Holding)
    log PositionChanged(account=account, instrument=id, size=0, entry=0)
    self._pay(account, self._instruments[id].settlement, paid)


# What it answers, by IMarginVenue


@external
@view
def marginVenueVersion() -> uint256:
    return VERSION


@external
@view
def maxPositions() -> uint256:
    return MAX_POSITIONS


@external
@view
def supportsInterface(interfaceId: bytes4) -> bool:
    return interfaceId == ERC165 or interfaceId == MARGIN_VENUE


@external
@view
def instrument(id: uint256) -> Instrument:
    found: Instrument = self._instruments[id]
    assert found.kind != 0, "unknown instrument"
    found.state = self._state(id)
    return found


@external
@view
def positionsOf(account: bytes32, from_: uint256, count: uint256) -> (uint256, DynArray[Position, MAX_POSITIONS]):
    """
    @return how many positions there are, and up to `count` of them from the one numbered `from_` on
    """
    page: DynArray[Position, MAX_POSITIONS] = []
    i: uint256 = 0
    for id: uint256 in self._held[account]:
        if i >= from_ and len(page) < count:
            holding: Holding = self._holdings[account][id]
            page.append(
                Position(instrument=id, size=holding.size, entry=holding.entry, funding=self._funding(id, holding))
            )
        i += 1
    return i, page


@external
@view
def balancesOf(account: bytes32) -> DynArray[Balance, MAX_TOKENS]:
    found: DynArray[Balance, MAX_TOKENS] = []
    for token: address in self.tokens:
        entry: Balance = self._balance(account, token)
        if entry.amount > 0 or entry.owed > 0:
            found.append(entry)
    return found


@external
@view
def markets(id: uint256) -> Market:
    """
    @return feed, quotes and funding of an instrument
    """
    return self._markets[id]


@external
@view
def requests(id: uint256) -> Request:
    """
    @return an open request; all zero when unknown, claimed or cancelled
    """
    return self._requests[id]


# Arithmetic


@internal
@pure
def _floor(x: int256, y: int256) -> int256:
    # Division rounds toward zero here; what an account gets is rounded down, what it loses up.
    quotient: int256 = x // y
    return quotient - 1 if x % y != 0 and (x < 0) != (y < 0) else quotient


@internal
@pure
def _intrinsic(of: Instrument, price: uint256) -> uint256:
    if of.kind == CALL:
        return price - min(price, of.strike)
    return of.strike - min(price, of.strike)


@internal
@view
def _state(id: uint256) -> uint8:
    found: Instrument = self._instruments[id]
    if found.state == LIVE and found.expiry > 0 and block.timestamp >= convert(found.expiry, uint256):
        return EXPIRED
    return found.state


@internal
@view
def _price(feed: address) -> uint256:
    newest: Round = staticcall PriceFeed(feed).latestRoundData()
    assert newest.answer > 0 and newest.updatedAt + MAX_AGE >= block.timestamp, "no price"
    return convert(newest.answer, uint256)


@internal
@view
def _index(id: uint256) -> int256:
    # A long of 1e18 owes rate * notional each second. The notional is in base units of settlement times 1e18.
    market: Market = self._markets[id]
    unit: int256 = convert(self._unit[self._instruments[id].settlement], int256)
    elapsed: int256 = convert(block.timestamp - market.touched, int256)
    mark: int256 = convert(market.mark, int256)
    if self._instruments[id].kind == INVERSE:
        return market.index - market.rate * unit * USD * elapsed // mark
    return market.index - market.rate * unit * mark * elapsed // USD


@internal
@view
def _funding(id: uint256, of: Holding) -> int256:
    # Reads only what is stored, so that a feed that fails makes nobody's position unreadable.
    if of.size == 0 or self._instruments[id].strike > 0:
        return 0
    return self._floor(of.size * (self._index(id) - of.index), UNIT * UNIT)


@internal
def _touch(id: uint256):
    """
    @dev Accrue funding up to now, and let it go on at the present price.
    """
    if self._instruments[id].strike > 0:
        return
    price: uint256 = self._price(self._markets[id].feed)
    if self._markets[id].mark > 0:
        self._markets[id].index = self._index(id)
    self._markets[id].mark = price
    self._markets[id].touched = block.timestamp


@internal
@view
def _gain(id: uint256, size: int256, entry: uint256, price: uint256) -> int256:
    # Base units of settlement that `size` has gained, opened at `entry` and now at `price`.
    unit: int256 = convert(self._unit[self._instruments[id].settlement], int256)
    start: int256 = convert(entry, int256)
    now: int256 = convert(price, int256)
    if self._instruments[id].kind == INVERSE:
        return self._floor(size * unit * USD * (now - start), UNIT * start * now)
    return self._floor(size * unit * (now - start), UNIT * USD)


@internal
@view
def _average(id: uint256, old: Holding, change: int256, price: uint256) -> uint256:
    # Weighted by size; for inverse perps harmonic. Up for longs and down for shorts, which is against both.
    if old.size == 0:
        return price
    before: uint256 = convert(abs(old.size), uint256)
    added: uint256 = convert(abs(change), uint256)
    above: uint256 = before * old.entry + added * price
    below: uint256 = before + added
    if self._instruments[id].kind == INVERSE:
        above = (before + added) * old.entry * price
        below = before * price + added * old.entry
    return (above + below - 1) // below if change > 0 else above // below


@internal
@view
def _verify_margin(account: bytes32):
    # A rule of the venue's own: gains and losses, and a tenth of the notional of perps and short options.
    for token: address in self.tokens:
        unit: int256 = convert(self._unit[token], int256)
        free: int256 = self._cash[account][token] - convert(self._pending[account][token], int256)
        for id: uint256 in self._held[account]:
            of: Instrument = self._instruments[id]
            if of.settlement != token:
                continue
            holding: Holding = self._holdings[account][id]
            if of.strike > 0 and holding.size > 0:
                continue
            if of.state == SETTLED:
                free += self._floor(holding.size * convert(of.payout, int256), UNIT)
                continue
            price: uint256 = self._price(self._markets[id].feed)
            notional: int256 = abs(holding.size) * unit * convert(price, int256) // (UNIT * USD)
            if of.kind == INVERSE:
                notional = abs(holding.size) * unit * USD // (UNIT * convert(price, int256))
            if of.strike > 0:
                free += self._floor(holding.size * unit * convert(self._intrinsic(of, price), int256), UNIT * USD)
            else:
                free += self._gain(id, holding.size, holding.entry, price) + self._funding(id, holding)
            free -= notional // MARGIN + 1
        assert free >= 0, "margin"


# Bookkeeping


@internal
@view
def _balance(account: bytes32, token: address) -> Balance:
    cash: int256 = self._cash[account][token]
    if cash < 0:
        return Balance(token=token, amount=0, pending=0, owed=convert(-cash, uint256))
    amount: uint256 = convert(cash, uint256)
    return Balance(token=token, amount=amount, pending=min(self._pending[account][token], amount), owed=0)


@internal
def _log_balance(account: bytes32, token: address):
    entry: Balance = self._balance(account, token)
    log BalanceChanged(
        account=account, token=token, amount=entry.amount, pending=entry.pending, owed=entry.owed
    )


@internal
def _pay(account: bytes32, token: address, amount: int256):
    self._cash[account][token] += amount
    self._log_balance(account, token)


@internal
def _drop(account: bytes32, id: uint256):
    kept: DynArray[uint256, MAX_POSITIONS] = []
    for other: uint256 in self._held[account]:
        if other != id:
            kept.append(other)
    self._held[account] = kept


@internal
def _take(id: uint256) -> Request:
    entry: Request = self._requests[id]
    assert entry.account != empty(bytes32), "unknown request"
    assert self.controllerOf[entry.account] == msg.sender, "not the controller"
    self._requests[id] = empty(Request)
    self._pending[entry.account][entry.token] -= entry.amount
    return entry
