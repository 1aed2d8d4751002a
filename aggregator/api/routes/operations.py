"""For operators: is it alive, is it ready, its metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from aggregator.api.context import Service
from aggregator.api.views import AliveView, FindingView, ReadyView, build_finding

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def get_health() -> AliveView:
    """Say that the process answers."""
    return AliveView()


@router.get("/readyz", responses={503: {"model": ReadyView, "description": "Not ready, with reasons"}})
async def get_readiness(service: Service, response: Response) -> ReadyView:
    """Say whether the service does its work, and if not, why."""
    reasons = [build_finding(finding) for finding in service.readiness()]
    try:
        await service.store.epochs(limit=1)
    except Exception as error:  # whatever it is, without the store we are not ready
        reasons.append(FindingView(code="store-unusable", scope="store", detail=type(error).__name__))
    if reasons:
        response.status_code = 503
    return ReadyView(ready=not reasons, reasons=reasons)


@router.get("/metrics", include_in_schema=False)
def get_metrics() -> Response:
    """Return the process's metrics in the Prometheus text format."""
    return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})
