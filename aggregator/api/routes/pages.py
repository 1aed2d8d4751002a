"""The pages: what the API says, for people. Rendered here, refreshed by the browser every two seconds."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from aggregator.api.context import ApiService, Service
from aggregator.api.routes.accounts import Reference, find_margin
from aggregator.api.routes.world import build_prices
from aggregator.api.views import (
    AccountView,
    HealthBand,
    MarginView,
    build_account,
    build_chain_state,
    build_deployment,
    build_epoch,
    build_line,
    build_link,
    build_margin,
    build_posting,
)
from aggregator.api.web import render
from aggregator.domain.certificate import EpochRecord
from aggregator.domain.errors import UnknownError

router = APIRouter(include_in_schema=False)

_SHOWN = 100  # accounts on the first page
_EPOCHS = 8
_HEALTH_SCALE = 2.0  # right end of a health bar, unless the health is above


@dataclass(frozen=True)
class Gauge:
    """Where an interval lies on a bar 100 wide."""

    low: float
    mid: float
    high: float
    mark: float  # the value that must not be undercut


@router.get("/")
async def show_overview(service: Service) -> HTMLResponse:
    """Show accounts, chains, prices, epochs and postings."""
    record = await service.newest(certified=True)
    observed = await service.newest(certified=False)
    # Of an epoch that an attestor proposed only leaves are known: the margins shown are older then, and say so.
    shown = record if record is None or record.margins else await service.store.epoch(margins=True)
    accounts = await service.store.accounts()
    halts = await service.standing_halts()
    voided = await service.store.epoch(record.header.floor) if record is not None and record.header.floor else None
    latest = await service.store.latest_postings()
    moving = {posting.destination: posting for posting in reversed(await service.store.postings(limit=50))}
    return render(
        "overview.html",
        now=service.clock.now(),
        deployment=build_deployment(service),
        record=build_epoch(service, record, ()) if record else None,
        voided=build_epoch(service, voided, ()) if voided else None,
        findings=build_epoch(service, observed, ()).findings if observed else [],
        rows=await _build_rows(service, shown, record.header.epoch if record else -1),
        total=len(accounts),
        chains=[build_chain_state(service, row, observed, halts) for row in service.chains],
        prices=await build_prices(service),
        epochs=[build_line(service, summary) for summary in await service.store.epochs(limit=_EPOCHS)],
        postings=[
            (
                service.chain_name(row.chain),
                row.chain,
                build_posting(latest[row.chain]) if row.chain in latest else None,
                build_posting(moving[row.chain]) if row.chain in moving else None,
            )
            for row in service.destinations
        ],
    )


@router.get("/accounts/{ref}")
async def show_account(service: Service, ref: Reference) -> HTMLResponse:
    """Show one account with every number explained."""
    account = await service.store.account(ref)
    view: MarginView | None
    try:
        record, margin, newest = await find_margin(service, account, None)
        view = build_margin(service, account, margin, record, newest)
    except UnknownError:
        view = None  # just opened: no epoch holds it yet
    return render(
        "account.html",
        now=service.clock.now(),
        deployment=build_deployment(service),
        account=build_account(account),
        home=service.chain_name(account.home),
        margin=view,
        health=_build_health(view.health) if view else None,
        excess=_build_excess(view) if view else None,
        links=[build_link(link) for link in await service.store.links(account.id)],
        destinations={d.id: d for d in build_deployment(service).destinations},
    )


@router.get("/docs")
async def show_docs() -> HTMLResponse:
    """Show the API's reference, drawn from its OpenAPI description."""
    return render("docs.html")


async def _build_rows(
    service: ApiService, record: EpochRecord | None, newest: int
) -> list[tuple[AccountView, MarginView | None, Gauge | None]]:
    margins = {margin.account: margin for margin in record.margins} if record else {}
    rows: list[tuple[AccountView, MarginView | None, Gauge | None]] = []
    accounts = sorted(
        await service.store.accounts(), key=lambda account: (not account.label, account.label, account.id)
    )
    for account in accounts[:_SHOWN]:
        margin = margins.get(account.id)
        if record is None or margin is None:
            rows.append((build_account(account), None, None))
        else:
            view = build_margin(service, account, margin, record, newest)
            rows.append((view.account, view, _build_health(view.health)))
    return rows


def _build_health(health: HealthBand) -> Gauge | None:
    if health.low is None:
        return None
    mid = health.low if health.mid is None else health.mid
    highest = _HEALTH_SCALE if health.high is None else health.high
    end = max(_HEALTH_SCALE, min(highest, 2 * _HEALTH_SCALE))
    return _build_gauge(health.low, mid, highest, 1.0, 0.0, end)


def _build_excess(view: MarginView) -> Gauge:
    low, mid, high = (
        int(usd.exact)
        for usd in (view.maintenance_excess.low, view.maintenance_excess.mid, view.maintenance_excess.high)
    )
    margin = max(abs(low), abs(high), 1) * 0.15
    return _build_gauge(low, mid, high, 0.0, min(low, 0) - margin, max(high, 0) + margin)


def _build_gauge(low: float, mid: float, high: float, mark: float, start: float, end: float) -> Gauge:
    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - start) / (end - start))), 2)

    return Gauge(place(low), place(mid), place(high), place(mark))
