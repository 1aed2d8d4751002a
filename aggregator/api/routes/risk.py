"""Risk: what an account's margin would be, what stress does to accounts, and who falls together."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from aggregator.api.context import ApiService, Service
from aggregator.api.errors import RESPONSES, WRITE_RESPONSES
from aggregator.api.risk_views import (
    ReplayView,
    ScenarioView,
    StressView,
    SystemicView,
    WhatIfView,
    build_replay,
    build_scenario,
    build_stress,
    build_systemic,
    build_whatif,
    describe,
)
from aggregator.api.routes.accounts import Reference
from aggregator.domain.errors import UnknownError
from aggregator.domain.snapshot import Contract
from aggregator.domain.stress import Change
from aggregator.ports import RiskDesk

router = APIRouter(tags=["risk"], responses=RESPONSES)

ALL = "all"
_AMOUNT = r"^[0-9]{1,38}$"
_PRICE = r"^[0-9]{1,26}$"
_CAIP19 = r"^[-a-z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}/[-a-z0-9]{3,8}:[-.%/_a-zA-Z0-9]{1,128}$"
_NAME = r"^[-a-z0-9]{1,64}$"
_EXAMPLE = "eip155:31337/slip44:60"


class ContractTerms(BaseModel):
    """The terms of a perp or option that is opened. Prices are 1e-8 USD per whole unit of the underlying."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["perp", "inverse", "call", "put"]
    underlying: str = Field(max_length=64, description="Its feed", examples=["ETH/USD"])
    strike: str = Field(default="0", pattern=_PRICE, description="Options", examples=["300000000000"])
    expiry: int = Field(default=0, ge=0, le=2**40, description="Options, Unix seconds")
    entry: str = Field(default="0", pattern=_PRICE, description="Perps; 0 = at the price as it is")


class WantedChange(BaseModel):
    """One thing that the account might do."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["add", "remove", "transfer", "borrow", "repay", "open", "close"]
    asset: str = Field(
        pattern=_CAIP19,
        description="CAIP-19 of what moves; for open and close `<chain>/contract:<venue>/<number>`",
        examples=[_EXAMPLE],
    )
    amount: str = Field(
        pattern=_AMOUNT, description="Base units of the asset; of a contract, 1e-18 units", examples=["10" + "0" * 18]
    )
    to: str | None = Field(default=None, pattern=_CAIP19, description="transfer: what arrives, same price feed")
    side: Literal["long", "short"] | None = Field(default=None, description="open, close")
    contract: ContractTerms | None = Field(default=None, description="open")
    unit: str | None = Field(default=None, pattern=_CAIP19, description="open: what the contract settles in")


class WhatIfRequest(BaseModel):
    """Changes, made one after the other."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"changes": [{"action": "add", "asset": _EXAMPLE, "amount": "10" + "0" * 18}]}]
        },
    )

    changes: list[WantedChange] = Field(min_length=1, max_length=32)


class StressRequest(BaseModel):
    """Which scenario, of which account."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"scenario": "march-2020", "account": "alice"}]}
    )

    scenario: str = Field(default=ALL, pattern=_NAME, description="A scenario's name, or `all`", examples=["ftx-2022"])
    account: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,65}$",
        description="Id, unambiguous id prefix, or label; default: every account",
        examples=["alice"],
    )


@router.post("/accounts/{ref}/whatif", responses=WRITE_RESPONSES)
async def ask_what_if(service: Service, ref: Reference, wanted: WhatIfRequest) -> WhatIfView:
    """Return an account's margin before and after changes, and whether they may be made. Nothing is changed."""
    account = await service.store.account(ref)
    changes = [_change(change) for change in wanted.changes]
    answer = await _desk(service).what_if(account.id, changes)
    assets, chains = {row.id: row for row in service.assets}, {row.id: row.name for row in service.chains}
    return build_whatif(answer, account.label, [describe(change, assets, chains) for change in changes])


@router.get("/stress")
async def list_scenarios(service: Service) -> list[ScenarioView]:
    """List the scenarios, historical ones first."""
    return [build_scenario(scenario) for scenario in _desk(service).scenarios()]


Limit = Annotated[int, Query(ge=1, le=5_000, description="How many accounts are shown of each list, the worst first")]


@router.post("/stress", responses=WRITE_RESPONSES)
async def run_stress(
    service: Service,
    wanted: StressRequest,
    limit: Limit = 100,
    offset: Annotated[int, Query(ge=0, le=10_000_000, description="How many of the worst are passed over")] = 0,
) -> StressView:
    """Value one account, or all, in one scenario, or in all: the newest certified epoch, with the code that made it.

    Totals are of all accounts; rows are of those whose health is least, scenario by scenario.
    """
    account = None if wanted.account is None else (await service.store.account(wanted.account)).id
    report = await _desk(service).stress(_names(wanted.scenario), account, limit, offset)
    return await run_in_threadpool(build_stress, report)


@router.get("/stress/replay", responses=WRITE_RESPONSES)
async def get_replay(
    service: Service,
    scenario: Annotated[str, Query(pattern=_NAME, description="One with a path", examples=["march-2020"])],
    account: Annotated[
        str, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,65}$", description="As in paths", examples=["alice"])
    ],
) -> ReplayView:
    """Return an account's margin along a scenario's hours."""
    found = await service.store.account(account)
    feeds = sorted({source.feed for source in service.sources})
    return build_replay(await _desk(service).replay(scenario, found.id), found.label, feeds)


@router.get("/risk/systemic", responses=WRITE_RESPONSES)
async def get_systemic(
    service: Service,
    scenario: Annotated[str, Query(pattern=_NAME, description="A scenario's name, or `all`")] = ALL,
    limit: Limit = 100,
) -> SystemicView:
    """Return which accounts fall together, and the rounds of forced sales that follow. Figures are estimates.

    Counts and sums are of all accounts, whatever the lists show.
    """
    desk = _desk(service)
    report = await desk.systemic(_names(scenario))
    return await run_in_threadpool(build_systemic, report, {known.name: known for known in desk.scenarios()}, limit)


def _desk(service: ApiService) -> RiskDesk:
    if service.desk is None:
        raise UnknownError("epoch", "newest", "this service computes no epochs")
    return service.desk


def _names(scenario: str) -> list[str]:
    return [] if scenario == ALL else [scenario]


def _change(wanted: WantedChange) -> Change:
    terms = wanted.contract
    return Change(
        action=wanted.action,
        asset=wanted.asset,
        amount=int(wanted.amount),
        to=wanted.to or "",
        side=wanted.side or "",
        contract=Contract()
        if terms is None
        else Contract(terms.kind, terms.underlying, int(terms.strike), terms.expiry, int(terms.entry)),
        unit=wanted.unit or "",
    )
