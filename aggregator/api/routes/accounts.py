"""Accounts, their links, margins, proofs and audit bundles."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.concurrency import run_in_threadpool

from aggregator.api.context import ApiService, Service
from aggregator.api.errors import RESPONSES, WRITE_RESPONSES
from aggregator.api.views import (
    AccountPage,
    AccountView,
    LinkPage,
    LinkView,
    MarginView,
    MessageView,
    ProofView,
    build_account,
    build_link,
    build_margin,
    build_message,
    build_proof,
    destination_id,
)
from aggregator.domain.certificate import EpochRecord
from aggregator.domain.errors import UnknownError
from aggregator.domain.report import AccountMargin
from aggregator.domain.snapshot import Account
from proofs.links import CONTRACT_SIGNATURE_LIMIT

router = APIRouter(tags=["accounts"], responses=RESPONSES)

EPOCH_MAX = 2**63 - 1  # what every database's integer column holds
_CAIP10 = r"^[-a-z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}:[-.%a-zA-Z0-9]{1,128}$"
_CAIP2 = r"^[-a-z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}$"
_SHARES = r"^[-a-z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}=[0-9]{1,5}(,[-a-z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}=[0-9]{1,5})*$"
_SHARES_MAX = 16 * 48
_SHARES_TEXT = "<CAIP-2>=<parts of 10,000>, destinations ascending, separated by commas; at most 16"
_SIGNATURE = r"^(eip1271:0x[0-9a-fA-F]*|pda:[1-9A-HJ-NP-Za-km-z]{32,44}|[0-9a-zA-Z]{64,140})$"
_SIGNATURE_MAX = len("eip1271:0x") + 2 * CONTRACT_SIGNATURE_LIMIT
_SIGNATURE_TEXT = "0x hex of 65 bytes (EVM), base58 (Solana), eip1271:0x… (contract), pda:<record> (program-derived)"

Reference = Annotated[
    str,
    Path(
        description="Id, unambiguous id prefix (0x and 8 digits or more), or label",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,65}$",
        examples=["alice"],
    ),
]
Signature = Annotated[str, StringConstraints(pattern=_SIGNATURE, max_length=_SIGNATURE_MAX)]
EpochQuery = Annotated[int | None, Query(ge=0, le=EPOCH_MAX, description="Certified epoch; default: the newest")]


class OpenAccount(BaseModel):
    """An account to open. Its id follows from controller and salt."""

    model_config = ConfigDict(extra="forbid")

    controller: str = Field(pattern=_CAIP10, description="CAIP-10", examples=["eip155:31337:0x" + "aa" * 20])
    salt: str = Field(pattern="^0x[0-9a-fA-F]{64}$", description="32 bytes", examples=["0x" + "00" * 31 + "01"])
    kind: Literal["risk-bearing", "monitored"] = "risk-bearing"
    home: str | None = Field(
        default=None,
        pattern=_CAIP2,
        description="CAIP-2 of the destination that holds its budget; default: the controller's chain",
        examples=["eip155:31337"],
    )
    label: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9 ._-]{0,63})?$", examples=["alice"])


class Terms(BaseModel):
    """What both sides of a link sign, besides the account."""

    model_config = ConfigDict(extra="forbid")

    controller: str = Field(pattern=_CAIP10, description="CAIP-10, controls the account")
    member: str = Field(pattern=_CAIP10, description="CAIP-10, backs the account")
    nonce: int = Field(ge=0, le=2**64 - 1, description="Above the last one of the pair; a decimal string is taken too")
    expiry: int = Field(ge=0, le=2**64 - 1, description="Unix seconds until which the signatures may be used")


class AddLink(Terms):
    """A link that both sides signed."""

    invite_signature: Signature = Field(description=f"The controller's: {_SIGNATURE_TEXT}")
    accept_signature: Signature = Field(description=f"The member's: {_SIGNATURE_TEXT}")


class RevokeLink(Terms):
    """A link that one side revokes."""

    by: Literal["controller", "member"] = Field(description="Whose signature it is")
    signature: Signature = Field(description=_SIGNATURE_TEXT)


class SetShares(BaseModel):
    """How an account's margin is shared out among destinations."""

    model_config = ConfigDict(extra="forbid")

    controller: str = Field(pattern=_CAIP10, description="CAIP-10, controls the account")
    shares: str = Field(
        pattern=_SHARES, max_length=_SHARES_MAX, description=_SHARES_TEXT, examples=["eip155:31337=10000"]
    )
    nonce: int = Field(
        ge=0, le=2**64 - 1, description="Above that of the account's last shares; a decimal string is taken too"
    )
    expiry: int = Field(ge=0, le=2**64 - 1, description="Unix seconds until which the signature may be used")
    signature: Signature = Field(description=_SIGNATURE_TEXT)


@router.get("/accounts")
async def list_accounts(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str, Query(max_length=66, description="Id after which to go on")] = "",
) -> AccountPage:
    """List the accounts, ascending by id."""
    rest = [account for account in await service.store.accounts() if account.id > after]
    page = rest[:limit]
    return AccountPage(
        accounts=[build_account(account) for account in page], next=page[-1].id if len(rest) > limit else None
    )


@router.post("/accounts", status_code=201, responses=WRITE_RESPONSES)
async def open_account(service: Service, wanted: OpenAccount) -> AccountView:
    """Open an account; it backs nothing until addresses are linked."""
    return build_account(await service.accounts.open_account(**wanted.model_dump()))


@router.get("/accounts/{ref}")
async def get_account(service: Service, ref: Reference) -> AccountView:
    """Find one account."""
    return build_account(await service.store.account(ref))


@router.get("/accounts/{ref}/links")
async def list_links(service: Service, ref: Reference) -> list[LinkView]:
    """List an account's entries of the links log."""
    account = await service.store.account(ref)
    return [build_link(link) for link in await service.store.links(account.id)]


@router.get("/links")
async def list_log(
    service: Service,
    after: Annotated[int, Query(ge=0, le=EPOCH_MAX, description="Position after which to go on")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> LinkPage:
    """List the links log of all accounts, oldest first: it is append-only, so a replica asks for what is new."""
    rest = [link for link in await service.store.links() if link.position > after]
    page = rest[:limit]
    return LinkPage(links=[build_link(link) for link in page], next=page[-1].position if len(rest) > limit else None)


@router.post("/accounts/{ref}/links", status_code=201, responses=WRITE_RESPONSES)
async def add_link(service: Service, ref: Reference, wanted: AddLink) -> LinkView:
    """Record that an address backs the account; both sides' signatures are checked."""
    account = await service.store.account(ref)
    return build_link(await service.accounts.add_link(account.id, **wanted.model_dump()))


@router.post("/accounts/{ref}/links/revoke", status_code=201, responses=WRITE_RESPONSES)
async def revoke_link(service: Service, ref: Reference, wanted: RevokeLink) -> LinkView:
    """Record that one side revokes a link: its assets count 0 at once, its debts until it ends."""
    account = await service.store.account(ref)
    return build_link(await service.accounts.revoke_link(account.id, **wanted.model_dump()))


@router.get("/accounts/{ref}/links/message")
async def get_message(
    service: Service,
    ref: Reference,
    member: Annotated[str, Query(pattern=_CAIP10, description="CAIP-10 of the address that backs the account")],
    verb: Annotated[Literal["invite", "accept", "revoke"], Query(description="invite: the controller; accept: member")],
    by: Annotated[Literal["controller", "member"], Query(description="Who signs a revoke")] = "controller",
    nonce: Annotated[int | None, Query(ge=0, le=2**64 - 1, description="Default: the least unused")] = None,
    expiry: Annotated[int | None, Query(ge=0, le=2**64 - 1, description="Unix seconds; default: in a day")] = None,
) -> MessageView:
    """Return what one side signs to invite, to accept or to revoke."""
    account = await service.store.account(ref)
    return build_message(await service.accounts.message(account.id, member, verb, by, nonce, expiry))


@router.post("/accounts/{ref}/shares", status_code=201, responses=WRITE_RESPONSES)
async def set_shares(service: Service, ref: Reference, shares: SetShares) -> LinkView:
    """Record how an account's controller shares its margin out among destinations, from the next statement on."""
    account = await service.store.account(ref)
    return build_link(await service.accounts.set_shares(account.id, **shares.model_dump()))


@router.get("/accounts/{ref}/shares/message")
async def shares_message(
    service: Service,
    ref: Reference,
    shares: Annotated[str, Query(pattern=_SHARES, max_length=_SHARES_MAX, description=_SHARES_TEXT)],
    nonce: Annotated[int | None, Query(ge=0, le=2**64 - 1, description="Default: the least unused")] = None,
    expiry: Annotated[int | None, Query(ge=0, le=2**64 - 1, description="Unix seconds; default: in a day")] = None,
) -> MessageView:
    """Return what an account's controller signs to share its margin out."""
    account = await service.store.account(ref)
    return build_message(await service.accounts.shares_message(account.id, shares, nonce, expiry))


@router.get("/accounts/{ref}/margin")
async def get_margin(service: Service, ref: Reference, epoch: EpochQuery = None) -> MarginView:
    """Return an account's margin at its home destination, every number explained."""
    account = await service.store.account(ref)
    record, margin, newest = await find_margin(service, account, epoch)
    return build_margin(service, account, margin, record, newest)


@router.get("/accounts/{ref}/margin/proof")
async def get_proof(
    service: Service,
    ref: Reference,
    destination: Annotated[
        str | None, Query(max_length=66, description="CAIP-2, or id as in leaves; default: the account's home")
    ] = None,
    epoch: EpochQuery = None,
) -> ProofView:
    """Return the leaf of a destination with its proof, and how to ask the registry there."""
    account = await service.store.account(ref)
    wanted = account.home if destination is None else destination
    row = next((d for d in service.destinations if wanted in (d.chain, destination_id(d.chain))), None)
    if row is None:
        known = ", ".join(d.chain for d in service.destinations)
        raise UnknownError("destination", wanted, f"destinations: {known}")
    record, margin, newest = await find_margin(service, account, epoch)
    if epoch is None and newest > record.header.epoch:  # learned from others: its leaves are known, its margins not
        newer = await service.newest(certified=True)
        record = newer if newer is not None and newer.leaves else record
    # Hashes every leaf of the epoch: not on the event loop.
    return await run_in_threadpool(build_proof, service, account, row, record, margin, newest)


@router.get("/accounts/{ref}/bundle", response_class=Response, responses={200: {"content": {"application/json": {}}}})
async def get_bundle(service: Service, ref: Reference, epoch: EpochQuery = None) -> Response:
    """Download the audit bundle: one file from which anyone recomputes the account offline."""
    account = await service.store.account(ref)
    found, _, _ = await find_margin(service, account, epoch)
    record = await service.store.epoch(found.header.epoch)
    if record is None:
        raise UnknownError("epoch", str(found.header.epoch), "GET /v1/epochs lists them")
    name = f"crossmargin-{record.header.epoch}-{account.id[2:10]}.json"
    return Response(
        await service.bundle(record, account.id),
        media_type="application/json",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


async def find_margin(
    service: ApiService, account: Account, epoch: int | None
) -> tuple[EpochRecord, AccountMargin, int]:
    """Return the account's margin, its epoch, and the number of the newest certified epoch.

    Raises:
        UnknownError: there is none at that epoch; names ``epoch``.
    """
    found = await service.store.margin(account.id, epoch)
    if found is None:
        if epoch is None:
            raise UnknownError("epoch", "latest", f"no certified epoch holds account {account.id} yet; try again soon")
        raise UnknownError(
            "epoch",
            str(epoch),
            "it is not certified, does not hold the account, or was pruned; GET /v1/epochs lists them",
        )
    record, margin = found
    return record, margin, max(await service.newest_number(), record.header.epoch)
