"""The configured world and its state: chains, assets, prices, the deployment."""

from __future__ import annotations

import json

from fastapi import APIRouter

from aggregator.api.context import ApiService, Service
from aggregator.api.views import (
    AssetView,
    ChainStateView,
    DeploymentView,
    PricesView,
    build_asset,
    build_band,
    build_chain_state,
    build_deployment,
)

router = APIRouter(tags=["world"])


@router.get("/chains")
async def list_chains(service: Service) -> list[ChainStateView]:
    """List the configured chains as the newest epoch saw them, certified or not."""
    record = await service.newest(certified=False)
    halts = await service.standing_halts()
    return [build_chain_state(service, row, record, halts) for row in service.chains]


@router.get("/assets")
async def list_assets(service: Service) -> list[AssetView]:
    """List the configured assets, and whether the newest epoch, certified or not, could count them."""
    record = await service.newest(certified=False)
    return [build_asset(service, row, record) for row in service.assets]


@router.get("/prices")
async def get_prices(service: Service) -> PricesView:
    """Return the fused prices of the newest epoch, certified or not."""
    return await build_prices(service)


@router.get("/deployment")
async def get_deployment(service: Service) -> DeploymentView:
    """Return the deployment: its id, attestors and destinations."""
    return build_deployment(service)


async def build_prices(service: ApiService) -> PricesView:
    """Read the bands that the newest epoch's risk text commits to; none where it has no such text."""
    record = await service.newest(certified=False)
    if record is None:
        return PricesView(epoch=None, cut_time=None, stale=True, bands=[])
    bands = json.loads(record.preimages.get("risk", "{}")).get("bands", [])
    return PricesView(
        epoch=record.header.epoch,
        cut_time=record.cut_time,
        stale=service.clock.now() >= record.header.valid_until,
        bands=[build_band(band) for band in bands],
    )
