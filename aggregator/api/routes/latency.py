"""How long things take: measured legs, and the laws that statements commit to because of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from aggregator.api.context import Service
from aggregator.api.errors import RESPONSES
from aggregator.domain.latency import LatencyReport, Leg

router = APIRouter(tags=["operations"], responses=RESPONSES)

DAY = 86_400


@router.get("/latency")
async def get_latency(
    service: Service,
    chain: Annotated[str | None, Query(max_length=128, description="Id or name; `*` for legs of no chain")] = None,
    leg: Annotated[Leg | None, Query(description="One leg; default: all")] = None,
    since: Annotated[int, Query(ge=1, le=DAY, description="Seconds looked back")] = DAY,
) -> LatencyReport:
    """Return, per chain and leg, what was measured, what is configured and the law in use; and holds as a whole."""
    return await service.latency(since, chain, leg)
