"""Epochs, their statements, and their postings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from aggregator.api.context import ApiService, Service
from aggregator.api.errors import RESPONSES
from aggregator.api.routes.accounts import EPOCH_MAX
from aggregator.api.views import (
    EpochPage,
    EpochView,
    PostingView,
    StatementView,
    build_epoch,
    build_line,
    build_posting,
    build_statement,
)
from aggregator.domain.certificate import EpochRecord
from aggregator.domain.errors import UnknownError

router = APIRouter(tags=["epochs"], responses=RESPONSES)

EpochPath = Annotated[
    str, Path(pattern="^(latest|[0-9]{1,19})$", description="Number, or `latest` for the newest certified one")
]


@router.get("/epochs")
async def list_epochs(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[int | None, Query(ge=0, le=EPOCH_MAX, description="Epoch below which to go on")] = None,
) -> EpochPage:
    """List epochs, newest first, certified or not, with what voided those before them."""
    found = await service.store.epochs(limit + 1, before)
    page = found[:limit]
    lines = []
    for summary in page:
        raised = await service.store.epoch(summary.epoch, certified=False) if summary.raised_floor else None
        lines.append(build_line(service, summary, raised.reorgs if raised else ()))
    return EpochPage(epochs=lines, next=page[-1].epoch if len(found) > limit else None)


@router.get("/epochs/{number}")
async def get_epoch(service: Service, number: EpochPath) -> EpochView:
    """Return one epoch: header, body, signers, refusals, chains and findings."""
    record = await find_epoch(service, number)
    return build_epoch(service, record, await service.store.postings(record.header.epoch))


@router.get("/epochs/{number}/statement")
async def get_statement(service: Service, number: EpochPath) -> StatementView:
    """Return what was signed as EIP-712 typed data, with its signatures."""
    return build_statement(service, await find_epoch(service, number))


@router.get("/postings")
async def list_postings(
    service: Service,
    epoch: Annotated[int | None, Query(ge=0, le=EPOCH_MAX)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 100,
) -> list[PostingView]:
    """List certificates on their way to destinations, newest epoch first."""
    return [build_posting(posting) for posting in await service.store.postings(epoch, limit)]


async def find_epoch(service: ApiService, number: str) -> EpochRecord:
    """Return the epoch, ``latest`` being the newest certified one.

    Raises:
        UnknownError: names ``epoch``.
    """
    if number == "latest":
        record = await service.newest(certified=True)
    else:
        record = await service.store.epoch(min(int(number), EPOCH_MAX), certified=False)
    if record is None:
        raise UnknownError("epoch", number, "GET /v1/epochs lists them")
    return record
