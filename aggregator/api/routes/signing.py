"""The page on which the sides of a link sign with their wallets; its script asks the API like anybody else."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from aggregator.api.context import Service
from aggregator.api.routes.accounts import Reference
from aggregator.api.views import build_account
from aggregator.api.web import render

router = APIRouter(include_in_schema=False)


@router.get("/accounts/{ref}/link")
async def show_link(service: Service, ref: Reference) -> HTMLResponse:
    """Show what linking an address to one account, or revoking a link, takes."""
    account = await service.store.account(ref)
    return render("link.html", account=build_account(account), chains=service.chains)
