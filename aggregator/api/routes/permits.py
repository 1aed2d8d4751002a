"""Withdrawal permits: asked for by an account's controller, signed by a quorum of the attestors."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from aggregator.api.context import ApiService, Service
from aggregator.api.errors import RESPONSES, WRITE_RESPONSES
from aggregator.api.routes.accounts import EPOCH_MAX, Reference, Signature
from aggregator.domain.budgets import PermitRecord
from aggregator.domain.errors import ConflictError
from aggregator.domain.permits import SignedPermit, pack_indices
from aggregator.ports import Permits
from proofs.permits import PermitTerms, permit_digest

router = APIRouter(tags=["permits"], responses=RESPONSES)

_AMOUNT = r"^[1-9][0-9]{0,38}$"
_CAIP19 = r"^[-a-z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}/[-a-z0-9]{3,8}:[-.%a-zA-Z0-9]{1,128}$"
_ADDRESS = r"^[-.%a-zA-Z0-9]{1,128}$"
_NONCE = r"^0x[0-9a-f]{64}$"
_ASSET_TEXT = "CAIP-19 of the token; the vault is on its chain"
_TO_TEXT = "Who receives it: a canonical address on the vault's chain"


class AskPermit(BaseModel):
    """What the controller of an account asks for, as it signed it."""

    model_config = ConfigDict(extra="forbid")

    asset: str = Field(pattern=_CAIP19, description=_ASSET_TEXT, examples=["eip155:31337/erc20:0x" + "bb" * 20])
    amount: str = Field(pattern=_AMOUNT, description="Base units", examples=["1000000"])
    vault: str = Field(pattern=_ADDRESS, description="The vault's address", examples=["0x" + "aa" * 20])
    to: str = Field(pattern=_ADDRESS, description=_TO_TEXT, examples=["0x" + "cc" * 20])
    nonce: str = Field(pattern=_NONCE, description="32 bytes that no other permit has", examples=["0x" + "01" * 32])
    epoch: int = Field(ge=0, le=EPOCH_MAX, description="The newest certified epoch, or one just before")
    expiry: int = Field(ge=0, le=2**40, description="Unix seconds until which the vault pays")
    signature: Signature = Field(description="The controller's: 0x hex of 65 bytes (EVM), base58 (Solana)")


class PermitSignatureView(BaseModel):
    """One attestor's signature, EIP-2098."""

    index: int = Field(description="Its place in the set of the epoch")
    r: str
    vs: str


class PermitView(BaseModel):
    """A permit, and what to bring to the vault with it."""

    account: str
    chain: str = Field(description="CAIP-2 of the vault")
    vault: str
    asset: str
    amount: str = Field(description="Base units")
    to: str
    nonce: str
    epoch: int
    expiry: int = Field(description="Unix seconds")
    digest: str = Field(description="EIP-712 digest of WithdrawalPermit")
    signed: bool = Field(description="Whether a quorum signed it; its amount counts 0 until it has expired either way")
    signatures: list[PermitSignatureView] = Field(description="Ascending by index")
    indices: str = Field(description="The signers' indices packed eight bits each, as EVM vaults take them")


class PermitPage(BaseModel):
    """An account's permits that may still be used."""

    permits: list[PermitView]


class PermitMessageView(BaseModel):
    """What the controller signs, and the terms to send with the signature."""

    signer: str = Field(description="CAIP-10 of the controller")
    form: Literal["eip712", "text"] = Field(description="eth_signTypedData_v4, or a text signed with Ed25519")
    message: str = Field(description="Exactly what is signed: EIP-712 JSON, or the text")
    digest: str = Field(description="EIP-712 digest; empty for a text")
    asset: str
    amount: str
    vault: str
    to: str
    nonce: str
    epoch: int
    expiry: int


@router.get("/accounts/{ref}/permits", responses=WRITE_RESPONSES)
async def list_permits(service: Service, ref: Reference) -> PermitPage:
    """List an account's permits that may still be used."""
    account = await service.store.account(ref)
    found = await _permits(service).permits(account.id)
    return PermitPage(permits=[_build_permit(service, signed) for signed in found])


@router.post("/accounts/{ref}/permits", status_code=201, responses=WRITE_RESPONSES)
async def ask_permit(service: Service, ref: Reference, wanted: AskPermit) -> PermitView:
    """Have the attestors sign a permit; the same one again gives the same answer.

    At most three of an account may be unexpired at a time, and the attestors are asked for one of an account at a time.
    """
    account = await service.store.account(ref)
    terms = wanted.model_dump(exclude={"amount", "signature"})
    permit = PermitRecord(
        account=account.id,
        chain=wanted.asset.partition("/")[0],
        amount=int(wanted.amount),
        request=wanted.signature,
        **terms,
    )
    return _build_permit(service, await _permits(service).collect_permit(permit))


@router.get("/accounts/{ref}/permits/message", responses=WRITE_RESPONSES)
async def get_permit_message(
    service: Service,
    ref: Reference,
    asset: Annotated[str, Query(pattern=_CAIP19, description=_ASSET_TEXT)],
    amount: Annotated[str, Query(pattern=_AMOUNT, description="Base units")],
    to: Annotated[str, Query(pattern=_ADDRESS, description=_TO_TEXT)],
    vault: Annotated[str | None, Query(pattern=_ADDRESS, description="Default: the only one on the chain")] = None,
    nonce: Annotated[str | None, Query(pattern=_NONCE, description="Default: a random one")] = None,
    epoch: Annotated[int | None, Query(ge=0, le=EPOCH_MAX, description="Default: the newest certified one")] = None,
    expiry: Annotated[int | None, Query(ge=0, le=2**40, description="Unix seconds; default: the latest")] = None,
) -> PermitMessageView:
    """Return what the controller signs to ask for a permit."""
    account = await service.store.account(ref)
    made = await _permits(service).message(account.id, asset, int(amount), to, vault, nonce, epoch, expiry)
    permit = made.permit
    return PermitMessageView(
        signer=made.signer,
        form="text" if made.typed is None else "eip712",
        message=made.text if made.typed is None else json.dumps(made.typed, indent=2),
        digest=made.digest,
        asset=permit.asset,
        amount=str(permit.amount),
        vault=permit.vault,
        to=permit.to,
        nonce=permit.nonce,
        epoch=permit.epoch,
        expiry=permit.expiry,
    )


def _permits(service: ApiService) -> Permits:
    if service.permits is None:
        raise ConflictError("permits", "this service asks no attestors", "ask the one that proposes statements")
    return service.permits


def _build_permit(service: ApiService, signed: SignedPermit) -> PermitView:
    permit = signed.permit
    account, nonce = (bytes.fromhex(text.removeprefix("0x")) for text in (permit.account, permit.nonce))
    terms = PermitTerms(
        *(account, permit.chain, permit.vault, permit.asset, permit.amount, permit.to, nonce),
        *(permit.epoch, permit.expiry),
    )
    return PermitView(
        **permit._asdict() | {"amount": str(permit.amount)},
        digest="0x" + permit_digest(terms.permit, service.deployment_id).hex(),
        signed=bool(signed.attestations),
        signatures=[
            PermitSignatureView(index=a.index, r="0x" + a.r.hex(), vs="0x" + a.vs.hex()) for a in signed.attestations
        ],
        indices=hex(pack_indices(signed.attestations)),
    )
