"""Worlds, snapshots and quotes for tests: plain builders with defaults, and hypothesis strategies over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from aggregator.core.tables import World
from aggregator.domain.policy import (
    AssetPolicyRow,
    JumpRow,
    LevelRow,
    OffsetGroupRow,
    PolicyRow,
    SviRow,
    TierRow,
    UnderlyingRow,
)
from aggregator.domain.price import Quote
from aggregator.domain.rows import AssetRow, ChainRow, DestinationRow, LatencyLeg, SourceRow
from aggregator.domain.snapshot import (
    Account,
    Block,
    ChainView,
    Contract,
    ContractKind,
    Finding,
    Position,
    Snapshot,
)

EVM, SOLANA = "eip155:31337", "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1"
ETH, USDC, STETH = f"{EVM}/slip44:60", f"{EVM}/erc20:0x{'c0' * 20}", f"{EVM}/erc20:0x{'5e' * 20}"
SOL, SUSDC = f"{SOLANA}/slip44:501", f"{SOLANA}/token:EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGkZwyTDt1v"
DECIMALS = {ETH: 18, STETH: 18, USDC: 6, SOL: 9, SUSDC: 6}
FEEDS = {ETH: "ETH/USD", STETH: "ETH/USD", USDC: "USDC/USD", SOL: "SOL/USD", SUSDC: "USDC/USD"}
PRICES = {"ETH/USD": 2_000.0, "USDC/USD": 1.0, "SOL/USD": 150.0}
SOURCES = ("alpha", "beta", "gamma")
CUT_TIME = 1_760_000_000
DAY = 86_400


def account_id(number: int) -> str:
    """Return the id of test account ``number``; ids ascend with the number."""
    return f"0x{number:064x}"


def asset_policy(
    volatility: float = 0.8,
    jumps: Sequence[tuple[float, float]] = ((6, 0.92), (0.5, 0.75)),
    *,
    impact: float = 1.0,
    haircuts: tuple[float, float] = (0.05, 0.02),
    weights: tuple[float, float] = (1.1, 1.05),
    daily_volume: float = 1e8,
) -> AssetPolicyRow:
    """Return risk parameters; ``haircuts`` and ``weights`` are (initial, maintenance)."""
    return AssetPolicyRow(
        volatility=volatility,
        jumps=tuple(JumpRow(rate=rate, recovery=recovery) for rate, recovery in jumps),
        daily_volume=daily_volume,
        impact=impact,
        liquidation_seconds=600,
        initial=LevelRow(confidence=0.999, haircut=haircuts[0], liability_weight=weights[0]),
        maintenance=LevelRow(confidence=0.99, haircut=haircuts[1], liability_weight=weights[1]),
    )


RISKY, STABLE, WRAPPED = asset_policy(), asset_policy(0.02, ((0.2, 0.9),)), asset_policy(0.9, haircuts=(0.6, 0.5))
FLAT = asset_policy(0.0, (), impact=0.0, haircuts=(0.0, 0.0), weights=(1.0, 1.0))
"""No risk at all: every haircut 0, every weight 1."""


def surface(volatility: float) -> tuple[SviRow, ...]:
    """Return a smile around a flat volatility, at three tenors, free of calendar arbitrage."""
    rows = []
    for days in (7, 30, 180):
        variance = volatility**2 * days / 365
        rows.append(SviRow(tenor=days * DAY, a=0.8 * variance, b=0.4 * variance, rho=-0.2, m=0.0, sigma=0.5))
    return tuple(rows)


TIERS = (TierRow(up_to=1e5, initial=0.05, maintenance=0.03), TierRow(up_to=1e6, initial=0.1, maintenance=0.06))
UNDERLYINGS = {
    "ETH/USD": UnderlyingRow(range=0.18, group="majors", rate=0.04, surface=surface(0.65), tiers=TIERS),
    "SOL/USD": UnderlyingRow(range=0.22, group="majors", surface=surface(0.85), size_factor=1e-3, tiers=TIERS),
}
GROUPS = {"majors": OffsetGroupRow(offset=0.4)}
DERIVATIVES = {"underlyings": UNDERLYINGS, "groups": GROUPS, "dollars": ("USDC/USD",)}
"""For :func:`world`: what contracts are margined by."""


def chain_row(chain: str, **changes: object) -> ChainRow:
    """Return a chain on which a Hold lands within 60 s, or 660 s with a chance of 1e-5."""
    values: dict[str, object] = {
        "id": chain,
        "name": chain.split(":", maxsplit=1)[0],
        "family": "evm" if chain.startswith("eip155") else "solana",
        "rpc": ("http://127.0.0.1:1",),
        "genesis": "0x00",
        "block_seconds": 1.0,
        "max_age": 300,
        "hold": (LatencyLeg(typical=60, outage=600, outage_probability=1e-5),),
    }
    return ChainRow.model_validate(values | changes)


def world(
    policies: Mapping[str, AssetPolicyRow] | None = None,
    *,
    bounds: tuple[int, int] = (5, 30),
    sources: Sequence[str] = SOURCES,
    **policy: object,
) -> World:
    """Return a world of two chains, five assets, and two destinations with clock bounds ``bounds``."""
    rows = {"risky": RISKY, "stable": STABLE, "wrapped": WRAPPED} | dict(policies or {})
    names = {ETH: "risky", SOL: "risky", USDC: "stable", SUSDC: "stable", STETH: "wrapped"}
    assets = {
        asset: AssetRow(
            id=asset, symbol=f"T{i}", kind="native", decimals=DECIMALS[asset], feed=FEEDS[asset], policy=names[asset]
        )
        for i, asset in enumerate(names)
    }
    return World(
        chains=(chain_row(EVM), chain_row(SOLANA)),
        assets=assets,
        sources=tuple(SourceRow(name=name, feed=feed, kind="pyth", id="0x00") for feed in PRICES for name in sources),
        destinations=tuple(
            DestinationRow(chain=chain, kind=kind, address="0x00", clock_bound=bound, payer_key="payer")
            for chain, kind, bound in zip((EVM, SOLANA), ("evm-registry", "solana-registry"), bounds, strict=True)
        ),
        policy=PolicyRow.model_validate({"version": "test", "lifetime": 300, "assets": rows} | policy),
    )


def quotes(
    prices: Mapping[str, float] = PRICES,
    *,
    conf: float = 1e-4,
    age: int = 0,
    skew: Sequence[float] = (0.0, 0.0, 0.0),
    sources: Sequence[str] = SOURCES,
) -> list[Quote]:
    """Return one quote per feed and source: the price times (1 + skew), with a relative confidence."""
    return [
        Quote(
            feed,
            source,
            "pyth",
            round(price * (1 + off) * 1e8),
            round(price * conf * 1e8),
            -8,
            CUT_TIME - age,
            round(price * (1 + off) * 1e8),
            round(price * conf * 1e8),
        )
        for feed, price in prices.items()
        for source, off in zip(sources, skew, strict=False)
    ]


def position(account: int, asset: str, amount: float | int, **changes: object) -> Position:
    """Return a vault position of ``amount`` whole units (a float) or base units (an int), out of reach for a day."""
    units = amount if isinstance(amount, int) else round(amount * 10 ** DECIMALS[asset])
    chain = asset.split("/", maxsplit=1)[0]
    seizable = Position(account_id(account), chain, "vault", asset, units, asset, units, "asset", "seizable", DAY)
    return seizable._replace(**changes)  # type: ignore[arg-type]


def debt(account: int, asset: str, amount: float | int, **changes: object) -> Position:
    """Return a debt to a consumer."""
    owed: dict[str, object] = {"venue": "lender", "side": "debt", "control": "none", "removal_delay": 0}
    return position(account, asset, amount, **(owed | changes))


def lent(account: int, asset: str, amount: float | int, **changes: object) -> Position:
    """Return collateral at a lending protocol, in the netting set ``pool`` with :func:`borrowed`."""
    held: dict[str, object] = {"venue": "pool", "netting": "pool", "control": "none", "removal_delay": 0}
    return position(account, asset, amount, **(held | changes))


def borrowed(account: int, asset: str, amount: float | int, **changes: object) -> Position:
    """Return a limited-recourse debt at a lending protocol."""
    return lent(account, asset, amount, **({"side": "debt"} | changes))


def contract(
    account: int,
    kind: ContractKind,
    size: float,
    *,
    underlying: str = "ETH/USD",
    strike: float = 2_000.0,
    days: float = 30,
    entry: float = 2_000.0,
    funding: float = 0.0,
    unit: str = USDC,
    **changes: object,
) -> Position:
    """Return ``size`` whole units (negative = short) of a perp or option at a venue, out of reach for a day.

    Args:
        strike, days: of options, USD and until expiry. entry, funding: of perps, USD and whole units of ``unit``.
    """
    option = kind in ("call", "put")
    expiry = CUT_TIME + round(days * DAY)
    terms = Contract(
        kind,
        underlying,
        round(strike * 1e8) if option else 0,
        expiry if option else 0,
        0 if option else round(entry * 1e8),
        0 if option else round(funding * 10 ** DECIMALS[unit]),
    )
    chain = unit.split("/", maxsplit=1)[0]
    listed = f"{chain}/contract:0x{'e7' * 20}/{kind}-{underlying}" + (f"-{strike:g}-{expiry}" if option else "")
    made = Position(
        account_id(account),
        chain,
        "example",
        listed,
        round(abs(size) * 1e18),
        unit,
        0,
        "asset" if size >= 0 else "debt",
        "seizable",
        DAY,
        origin=f"0x{'e7' * 20}",
        contract=terms,
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def view(chain: str, age: int = 20, **changes: object) -> ChainView:
    """Return a healthy view of a chain whose block is ``age`` seconds old."""
    return replace(ChainView(chain, "ok", "", Block(chain, 100, "0xb0", "0xaf", CUT_TIME - age), age), **changes)  # type: ignore[arg-type]


def older_view(chain: str, behind: int, newest: ChainView | None = None) -> ChainView:
    """Return the view of the block ``behind`` blocks, and as many seconds, below the chain's newest one."""
    head = newest or view(chain)
    assert head.block is not None
    block = Block(chain, head.block.height - behind, f"0x{behind:02x}", "0xaf", head.block.time - behind)
    return replace(head, block=block, age=head.age + behind)


def snapshot(
    positions: Sequence[Position],
    *,
    kinds: Mapping[int, str] | None = None,
    views: Sequence[ChainView] | None = None,
    links: Mapping[int, tuple[str, ...]] | None = None,
    findings: tuple[Finding, ...] = (),
    home: str = EVM,
    carried: Sequence[ChainView] = (),
) -> Snapshot:
    """Return a snapshot of the accounts that appear; ``kinds`` names the monitored ones, and may add accounts."""
    numbers = {int(p.account, 16) for p in positions} | set(kinds or {})
    accounts = tuple(
        Account(
            account_id(n),
            f"{EVM}:0x{n:040x}",
            (kinds or {}).get(n, "risk-bearing"),  # type: ignore[arg-type]
            home,
            links=(links or {}).get(n, ()),
        )
        for n in sorted(numbers)
    )
    seen = tuple(views) if views is not None else (view(EVM), view(SOLANA))
    return Snapshot(7, CUT_TIME, CUT_TIME + 300, accounts, seen, tuple(positions), findings, tuple(carried))


amounts = st.floats(min_value=1e-3, max_value=1e6, allow_nan=False).map(lambda x: float(f"{x:.3g}"))
assets = st.sampled_from(sorted(DECIMALS))


@st.composite
def books(draw: st.DrawFn, accounts: int = 3, most: int = 8) -> list[Position]:
    """Draw positions of every sort for a few accounts."""
    rows: list[Position] = []
    for _ in range(draw(st.integers(1, most))):
        number, asset, amount = draw(st.integers(1, accounts)), draw(assets), draw(amounts)
        make = draw(st.sampled_from((position, position, debt, lent, borrowed)))
        row = make(number, asset, amount)
        if make is position:
            row = row._replace(
                control=draw(st.sampled_from(("seizable", "seizable", "none"))),
                removal_delay=draw(st.sampled_from((0, 300, 3_600, DAY))),
                pending=draw(st.sampled_from((0, row.amount // 3))),
            )
        elif make is debt:
            row = row._replace(venue=draw(st.sampled_from(("lender", "otc"))))
        rows.append(row)
    return rows


sizes = st.floats(0.01, 50).map(lambda x: float(f"{x:.3g}"))


@st.composite
def contracts(draw: st.DrawFn, accounts: int = 3, most: int = 5) -> list[Position]:
    """Draw perps and options of every sort for a few accounts, one position in each instrument."""
    rows: dict[tuple[str, str], Position] = {}
    for _ in range(draw(st.integers(1, most))):
        kind: ContractKind = draw(st.sampled_from(("perp", "inverse", "call", "put")))
        underlying = draw(st.sampled_from(sorted(UNDERLYINGS)))
        price, size = PRICES[underlying], draw(sizes) * draw(st.sampled_from((1, -1)))
        row = contract(
            draw(st.integers(1, accounts)),
            kind,
            size * (1_000 if kind == "inverse" else 1),
            underlying=underlying,
            strike=round(price * draw(st.sampled_from((0.7, 1.0, 1.3))), 2),
            days=draw(st.sampled_from((0.5, 20, 200))),
            entry=round(price * draw(st.sampled_from((0.8, 1.0, 1.1))), 2),
            funding=draw(st.sampled_from((0.0, 12.5, -40.0))),
            unit=(ETH if underlying == "ETH/USD" else SOL)
            if kind == "inverse"
            else draw(st.sampled_from((USDC, SUSDC))),
        )._replace(control=draw(st.sampled_from(("seizable", "seizable", "none"))))
        rows[row.account, row.asset] = row
    return list(rows.values())


@st.composite
def views_of(draw: st.DrawFn) -> list[ChainView]:
    """Draw views: fresh, old, stale and halted."""
    return [
        draw(
            st.sampled_from(
                (view(chain), view(chain, 200), view(chain, 400, status="stale", cause="halted: no new block"))
            )
        )
        for chain in (EVM, SOLANA)
    ]
