"""The JSON-RPC methods of a Solana node, as far as this project and solana-py use them.

Shapes and error codes follow solana.com/docs/rpc and agave's `rpc/src/rpc.rs`, `rpc-client-api/src/custom_error.rs`.
Not offered: stakes, votes, leaders, inflation, block production.
`x_` methods steer the chain: x_advance [slots, seconds], x_reorg [slots], x_pause, x_resume, x_setAccount [address,
{lamports, owner, data (base64), executable}], x_addProgram [address, elf (base64)], x_status.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Sequence
from typing import Any

from solders.account import Account
from solders.hash import Hash
from solders.instruction import CompiledInstruction
from solders.message import MessageV0, from_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from infra.devnet.svm.chain import HISTORY, Block, ChainError, Commitment, Landed, Rejected, SvmChain

PACKET_SIZE = 1_232
MAX_BASE64_SIZE, MAX_BASE58_SIZE = 1_644, 1_683
MAX_ACCOUNTS = 100
LAMPORTS_PER_SIGNATURE = 5_000

PARSE_ERROR, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32601, -32602
BLOCK_CLEANED_UP, PREFLIGHT_FAILURE, SIGNATURE_FAILURE, BLOCK_NOT_AVAILABLE = -32001, -32002, -32003, -32004
SLOT_SKIPPED, VERSION_NOT_SUPPORTED, MIN_CONTEXT_SLOT = -32007, -32015, -32016

TOKEN_PROGRAMS = {
    Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"): "spl-token",
    Pubkey.from_string("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb"): "spl-token-2022",
}
MINT_SIZE, TOKEN_ACCOUNT_SIZE = 82, 165
_TRANSACTION_TYPE = "solana_transaction::versioned::VersionedTransaction"
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

Config = dict[str, Any]
Method = Callable[..., Any]


class RpcError(Exception):
    """What the node answers instead of a result."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.code, self.message, self.data = code, message, data
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """Return the JSON-RPC error object."""
        extra = {} if self.data is None else {"data": self.data}
        return {"code": self.code, "message": self.message, **extra}


class Rpc:
    """Every method, over one chain. Methods take the positional parameters of the JSON-RPC call."""

    def __init__(self, chain: SvmChain) -> None:
        self.chain = chain
        self._methods: dict[str, Method] = {
            "getAccountInfo": self._account_info,
            "getBalance": self._balance,
            "getBlock": self._block,
            "getBlockHeight": self._slot,
            "getBlockTime": self._block_time,
            "getBlocks": self._blocks,
            "getEpochInfo": self._epoch_info,
            "getFeeForMessage": self._fee_for_message,
            "getFirstAvailableBlock": lambda: next(iter(chain.blocks)),
            "getGenesisHash": lambda: str(chain.genesis),
            "getHealth": lambda: "ok",
            "getLatestBlockhash": self._latest_blockhash,
            "getMinimumBalanceForRentExemption": self._rent_exemption,
            "getMultipleAccounts": self._multiple_accounts,
            "getProgramAccounts": self._program_accounts,
            "getRecentPrioritizationFees": self._prioritization_fees,
            "getSignatureStatuses": self._signature_statuses,
            "getSignaturesForAddress": self._signatures_for_address,
            "getSlot": self._slot,
            "getTokenAccountBalance": self._token_account_balance,
            "getTokenAccountsByOwner": self._token_accounts_by_owner,
            "getTokenSupply": self._token_supply,
            "getTransaction": self._transaction,
            "getTransactionCount": lambda config=None: len(chain.landed),
            "getVersion": lambda: {"solana-core": "3.0.0", "feature-set": 0},
            "isBlockhashValid": self._is_blockhash_valid,
            "requestAirdrop": self._request_airdrop,
            "sendTransaction": self._send_transaction,
            "simulateTransaction": self._simulate_transaction,
            "x_addProgram": self._add_program,
            "x_advance": lambda slots, seconds=0: chain.advance(slots, seconds),
            "x_pause": chain.pause,
            "x_reorg": lambda depth: {"dropped": chain.reorg(depth), "slot": chain.tick()},
            "x_resume": chain.resume,
            "x_setAccount": self._set_account,
            "x_status": self._status,
        }

    def call(self, method: str, params: Sequence[Any]) -> Any:
        """Return the result of one call. Raises RpcError."""
        function = self._methods.get(method)
        if function is None:
            raise RpcError(METHOD_NOT_FOUND, "Method not found")
        # A key that is null counts as not given; clients send both.
        given = [{k: v for k, v in one.items() if v is not None} if isinstance(one, dict) else one for one in params]
        try:
            return function(*given)
        except ChainError as error:
            raise RpcError(INVALID_PARAMS, str(error)) from error
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, struct.error) as error:
            raise RpcError(INVALID_PARAMS, f"Invalid params: {error}") from error

    def commitment(self, config: Config | str | None) -> Commitment:
        """Return the commitment a call asks for; the default is finalized, as on a node."""
        name = config.get("commitment") if isinstance(config, dict) else None
        if name not in (None, "processed", "confirmed", "finalized"):
            raise RpcError(INVALID_PARAMS, f"Invalid params: unknown commitment {name!r}")
        return name or "finalized"

    # ---- the chain ----

    def _view(self, config: Config | None) -> int:
        """Return the slot a call reads at, having honoured minContextSlot."""
        slot = self.chain.slot_at(self.commitment(config))
        least = (config or {}).get("minContextSlot")
        if least is not None and slot < least:
            raise RpcError(MIN_CONTEXT_SLOT, "Minimum context slot has not been reached", {"contextSlot": slot})
        return slot

    def _context(self, slot: int, value: Any) -> dict[str, Any]:
        return {"context": {"apiVersion": "3.0.0", "slot": slot}, "value": value}

    def _slot(self, config: Config | None = None) -> int:
        return self._view(config)

    def _status(self) -> dict[str, Any]:
        chain = self.chain
        levels: tuple[Commitment, ...] = ("processed", "confirmed", "finalized")
        slots: dict[str, Any] = {level: chain.slot_at(level) for level in levels}
        return {"paused": chain.paused, "time": chain.blocks[slots["processed"]].time, **slots}

    def _epoch_info(self, config: Config | None = None) -> dict[str, Any]:
        slot, length = self._view(config), 432_000
        epoch, index = divmod(slot, length)
        return {
            "absoluteSlot": slot,
            "blockHeight": slot,
            "epoch": epoch,
            "slotIndex": index,
            "slotsInEpoch": length,
            "transactionCount": len(self.chain.landed),
        }

    def _find_block(self, slot: int, highest: int) -> Block:
        block = self.chain.blocks.get(slot)
        if slot > highest:
            raise RpcError(BLOCK_NOT_AVAILABLE, f"Block not available for slot {slot}")
        first = next(iter(self.chain.blocks))
        if slot < first:
            message = f"Block {slot} cleaned up, does not exist on node. First available block: {first}"
            raise RpcError(BLOCK_CLEANED_UP, message)
        if block is None:
            raise RpcError(SLOT_SKIPPED, f"Slot {slot} was skipped, or missing due to ledger jump to recent snapshot")
        return block

    def _block_time(self, slot: int) -> int:
        return self._find_block(slot, self.chain.tick()).time

    def _blocks(self, start: int, end: Any = None, config: Config | None = None) -> list[int]:
        if isinstance(end, dict):
            end, config = None, end
        last = self._view(config)
        last = last if end is None else min(last, end)
        return [slot for slot in self.chain.blocks if start <= slot <= last]

    def _block(self, slot: int, config: Config | None = None) -> dict[str, Any]:
        config = config or {}
        if config.get("commitment") == "processed":
            raise RpcError(INVALID_PARAMS, "Method does not support commitment below `confirmed`")
        block = self._find_block(slot, self._view(config))
        body: dict[str, Any] = {
            "blockhash": str(block.hash),
            "previousBlockhash": str(block.parent_hash),
            "parentSlot": block.parent_slot,
            "blockHeight": block.slot,
            "blockTime": block.time,
        }
        detail = config.get("transactionDetails", "full")
        inside = [(signature, one) for signature, one in self.chain.landed.items() if one.slot == slot]
        if detail == "signatures":
            body["signatures"] = [signature for signature, _ in inside]
        elif detail == "full":
            body["transactions"] = [self._rendered(one, config) for _, one in inside if one.transaction is not None]
        elif detail != "none":
            raise RpcError(INVALID_PARAMS, f"Invalid params: transactionDetails {detail!r} is not offered here")
        if config.get("rewards", True):
            body["rewards"] = []
        return body

    def _latest_blockhash(self, config: Config | None = None) -> dict[str, Any]:
        slot = self._view(config)
        block = self.chain.blocks[slot]
        last = self.chain.expiry(block.hash)
        return self._context(slot, {"blockhash": str(block.hash), "lastValidBlockHeight": last})

    def _is_blockhash_valid(self, blockhash: str, config: Config | None = None) -> dict[str, Any]:
        return self._context(self._view(config), self.chain.is_usable(Hash.from_string(blockhash)))

    def _rent_exemption(self, size: int, config: Config | None = None) -> int:
        return self.chain.svm.minimum_balance_for_rent_exemption(size)

    def _prioritization_fees(self, keys: list[str] | None = None) -> list[dict[str, int]]:
        slots = list(self.chain.blocks)[-min(150, HISTORY) :]
        return [{"slot": slot, "prioritizationFee": 0} for slot in slots]

    def _fee_for_message(self, message: str, config: Config | None = None) -> dict[str, Any]:
        decoded = from_bytes_versioned(base64.b64decode(message))
        fee = LAMPORTS_PER_SIGNATURE * decoded.header.num_required_signatures
        return self._context(self._view(config), fee if self.chain.is_usable(decoded.recent_blockhash) else None)

    # ---- accounts ----

    def _balance(self, address: str, config: Config | None = None) -> dict[str, Any]:
        slot = self._view(config)
        account = self.chain.account(Pubkey.from_string(address), slot)
        return self._context(slot, account.lamports if account else 0)

    def _account_info(self, address: str, config: Config | None = None) -> dict[str, Any]:
        slot = self._view(config)
        account = self.chain.account(Pubkey.from_string(address), slot)
        return self._context(slot, self._encoded(account, config, slot))

    def _multiple_accounts(self, addresses: list[str], config: Config | None = None) -> dict[str, Any]:
        if len(addresses) > MAX_ACCOUNTS:
            raise RpcError(INVALID_PARAMS, f"Too many inputs provided; max {MAX_ACCOUNTS}")
        slot = self._view(config)
        found = [self.chain.account(Pubkey.from_string(address), slot) for address in addresses]
        return self._context(slot, [self._encoded(account, config, slot) for account in found])

    def _program_accounts(self, program: str, config: Config | None = None) -> Any:
        slot = self._view(config)
        rows = self._scan(Pubkey.from_string(program), config, slot)
        return self._context(slot, rows) if (config or {}).get("withContext") else rows

    def _token_accounts_by_owner(
        self, owner: str, which: dict[str, str], config: Config | None = None
    ) -> dict[str, Any]:
        slot, wallet = self._view(config), bytes(Pubkey.from_string(owner))
        if "mint" in which:
            mint_key = Pubkey.from_string(which["mint"])
            mint = self.chain.account(mint_key, slot)
            if mint is None or mint.owner not in TOKEN_PROGRAMS:
                raise RpcError(INVALID_PARAMS, "Invalid param: could not find mint")
            program, prefix = mint.owner, bytes(mint_key)
        else:
            program, prefix = Pubkey.from_string(which["programId"]), b""
            if program not in TOKEN_PROGRAMS:
                raise RpcError(INVALID_PARAMS, "Invalid param: unrecognized Token program id")
        rows = self._scan(
            program,
            config,
            slot,
            lambda data: len(data) >= TOKEN_ACCOUNT_SIZE and data[32:64] == wallet and data.startswith(prefix),
        )
        return self._context(slot, rows)

    def _token_account_balance(self, address: str, config: Config | None = None) -> dict[str, Any]:
        slot = self._view(config)
        account = self.chain.account(Pubkey.from_string(address), slot)
        if account is None:
            raise RpcError(INVALID_PARAMS, "Invalid param: could not find account")
        parsed = self._parsed(account, slot)
        if parsed is None or parsed["parsed"]["type"] != "account":
            raise RpcError(INVALID_PARAMS, "Invalid param: not a Token account")
        return self._context(slot, parsed["parsed"]["info"]["tokenAmount"])

    def _token_supply(self, address: str, config: Config | None = None) -> dict[str, Any]:
        slot = self._view(config)
        account = self.chain.account(Pubkey.from_string(address), slot)
        parsed = self._parsed(account, slot) if account else None
        if parsed is None or parsed["parsed"]["type"] != "mint":
            raise RpcError(INVALID_PARAMS, "Invalid param: not a Token mint")
        info = parsed["parsed"]["info"]
        return self._context(slot, _ui_amount(int(info["supply"]), info["decimals"]))

    def _scan(
        self, program: Pubkey, config: Config | None, slot: int, wanted: Callable[[bytes], bool] = lambda data: True
    ) -> list[dict[str, Any]]:
        filters = (config or {}).get("filters") or []
        rows = []
        for key, account in self.chain.accounts_of(program, slot):
            data = bytes(account.data)
            if wanted(data) and all(_matches(one, data) for one in filters):
                rows.append({"pubkey": str(key), "account": self._encoded(account, config, slot)})
        return rows

    def _encoded(self, account: Account | None, config: Config | None, slot: int) -> dict[str, Any] | None:
        if account is None:
            return None
        config = config or {}
        encoding, data = config.get("encoding", "base58"), bytes(account.data)
        if cut := config.get("dataSlice"):
            data = data[cut["offset"] : cut["offset"] + cut["length"]]
        body: Any
        if encoding == "jsonParsed" and (parsed := self._parsed(account, slot)):
            body = parsed
        elif encoding in ("base64", "jsonParsed"):
            body = [base64.b64encode(data).decode(), "base64"]
        elif encoding in ("base58", "binary"):
            if len(data) > 128:
                message = "Encoded binary (base 58) data should be less than 128 bytes, please use Base64 encoding."
                raise RpcError(-32600, message)
            body = [encode_base58(data), "base58"] if encoding == "base58" else encode_base58(data)
        else:
            raise RpcError(INVALID_PARAMS, f"Invalid params: encoding {encoding!r} is not offered here")
        return {
            "lamports": account.lamports,
            "owner": str(account.owner),
            "executable": account.executable,
            "rentEpoch": account.rent_epoch,
            "space": len(account.data),
            "data": body,
        }

    def _parsed(self, account: Account, slot: int) -> dict[str, Any] | None:
        """Return the jsonParsed form of a mint or token account, None for anything else."""
        program, data = TOKEN_PROGRAMS.get(account.owner), bytes(account.data)
        if program is None:
            return None
        if len(data) == MINT_SIZE:
            info: dict[str, Any] = {
                "mintAuthority": _optional_key(data, 0),
                "supply": str(struct.unpack_from("<Q", data, 36)[0]),
                "decimals": data[44],
                "isInitialized": bool(data[45]),
                "freezeAuthority": _optional_key(data, 46),
            }
            kind = "mint"
        elif len(data) >= TOKEN_ACCOUNT_SIZE:
            mint = Pubkey(data[:32])
            info = {
                "mint": str(mint),
                "owner": str(Pubkey(data[32:64])),
                "state": ("uninitialized", "initialized", "frozen")[data[108]],
                "isNative": bool(data[109]),
                "tokenAmount": _ui_amount(struct.unpack_from("<Q", data, 64)[0], self._decimals(mint, slot)),
            }
            kind = "account"
        else:
            return None
        return {"program": program, "space": len(data), "parsed": {"type": kind, "info": info}}

    def _decimals(self, mint: Pubkey, slot: int) -> int:
        account = self.chain.account(mint, slot)
        return bytes(account.data)[44] if account is not None and len(account.data) >= MINT_SIZE else 0

    # ---- transactions ----

    def _request_airdrop(self, address: str, lamports: int, config: Config | None = None) -> str:
        if self.chain.paused:
            raise RpcError(-32603, "Internal error: the chain is paused")
        try:
            return self.chain.airdrop(Pubkey.from_string(address), lamports)
        except Rejected as error:
            raise RpcError(-32603, f"Internal error: {error}") from error

    def _send_transaction(self, encoded: str, config: Config | None = None) -> str:
        config = config or {}
        transaction = _decode_transaction(encoded, config)
        if not config.get("skipPreflight"):
            self._view({**config, "commitment": config.get("preflightCommitment")})
            try:
                self.chain.simulate(transaction, verify_signatures=True, any_blockhash=False)
            except Rejected as error:
                raise _preflight_error(error) from error
        try:
            self.chain.send(transaction)
        except Rejected as error:
            # A node that skips preflight forwards whatever it is given; the leader drops it in silence.
            if not config.get("skipPreflight"):
                raise _preflight_error(error) from error
        return str(transaction.signatures[0])

    def _simulate_transaction(self, encoded: str, config: Config | None = None) -> dict[str, Any]:
        config = config or {}
        slot, replace = self._view(config), bool(config.get("replaceRecentBlockhash"))
        if replace and config.get("sigVerify"):
            raise RpcError(INVALID_PARAMS, "sigVerify may not be used with replaceRecentBlockhash")
        transaction = _decode_transaction(encoded, config)
        value: dict[str, Any] = {"err": None, "accounts": None, "returnData": None, "innerInstructions": None}
        try:
            done = self.chain.simulate(
                transaction, verify_signatures=bool(config.get("sigVerify")), any_blockhash=replace
            )
        except Rejected as error:
            if error.err == "SignatureFailure":
                raise RpcError(SIGNATURE_FAILURE, "Transaction signature verification failure") from error
            value |= {"err": error.err, "logs": list(error.logs), "unitsConsumed": error.units}
        else:
            meta = done.meta()
            back = meta.return_data()
            value |= {"logs": meta.logs(), "unitsConsumed": meta.compute_units_consumed()}
            if bytes(back.data):
                data = [base64.b64encode(bytes(back.data)).decode(), "base64"]
                value["returnData"] = {"programId": str(back.program_id), "data": data}
            if wanted := config.get("accounts"):
                after = dict(done.post_accounts())
                value["accounts"] = [self._after(address, after, wanted) for address in wanted["addresses"]]
        if replace:
            value["replacementBlockhash"] = self._latest_blockhash({"commitment": "processed"})["value"]
        return self._context(slot, value)

    def _after(self, address: str, after: dict[Pubkey, Any], config: Config) -> dict[str, Any] | None:
        key = Pubkey.from_string(address)
        found = after.get(key) or self.chain.svm.get_account(key)
        # The SVM gives shared accounts here; make them plain ones.
        plain = found and Account(found.lamports, bytes(found.data), found.owner, found.executable, found.rent_epoch)
        return self._encoded(plain, {"encoding": config.get("encoding", "base64")}, self.chain.tick())

    def _signature_statuses(self, signatures: list[str], config: Config | None = None) -> dict[str, Any]:
        if len(signatures) > 256:
            raise RpcError(INVALID_PARAMS, "Too many inputs provided; max 256")
        slot = self.chain.tick()
        for signature in signatures:
            Signature.from_string(signature)
        found = [self.chain.landed.get(signature) for signature in signatures]
        return self._context(slot, [self._status_of(one) if one else None for one in found])

    def _status_of(self, landed: Landed) -> dict[str, Any]:
        chain, level = self.chain, "processed"
        if landed.slot <= chain.slot_at("finalized"):
            level = "finalized"
        elif landed.slot <= chain.slot_at("confirmed"):
            level = "confirmed"
        return {
            "slot": landed.slot,
            "confirmations": None if level == "finalized" else chain.tick() - landed.slot,
            "err": landed.err,
            "status": {"Err": landed.err} if landed.err else {"Ok": None},
            "confirmationStatus": level,
        }

    def _signatures_for_address(self, address: str, config: Config | None = None) -> list[dict[str, Any]]:
        key, config, slot = Pubkey.from_string(address), config or {}, self._view(config)
        rows = []
        skipping = "before" in config
        for signature, one in reversed(self.chain.landed.items()):
            if signature == config.get("until"):
                break
            if not skipping and key in one.keys and one.slot <= slot:
                rows.append(
                    {
                        "signature": signature,
                        "slot": one.slot,
                        "err": one.err,
                        "memo": None,
                        "blockTime": one.time,
                        "confirmationStatus": self._status_of(one)["confirmationStatus"],
                    }
                )
            skipping = skipping and signature != config["before"]
        return rows[: config.get("limit", 1000)]

    def _transaction(self, signature: str, config: Config | str | None = None) -> dict[str, Any] | None:
        config = {"encoding": config} if isinstance(config, str) else config or {}
        landed = self.chain.landed.get(signature)
        if landed is None or landed.transaction is None or landed.slot > self._view(config):
            return None
        return {"slot": landed.slot, "blockTime": landed.time, **self._rendered(landed, config)}

    def _rendered(self, landed: Landed, config: Config) -> dict[str, Any]:
        transaction = landed.transaction
        assert transaction is not None
        versioned = isinstance(transaction.message, MessageV0)
        if versioned and config.get("maxSupportedTransactionVersion") is None:
            raise RpcError(
                VERSION_NOT_SUPPORTED,
                "Transaction version (0) is not supported by the requesting client. Please try the request again "
                'with the following configuration parameter: "maxSupportedTransactionVersion": 0',
            )
        static = len(transaction.message.account_keys)
        loaded = landed.keys[static:]
        writable = (
            sum(len(one.writable_indexes) for one in transaction.message.address_table_lookups)
            if isinstance(transaction.message, MessageV0)
            else 0
        )
        return {
            "transaction": _render_transaction(transaction, config.get("encoding", "json")),
            "version": 0 if versioned else "legacy",
            "meta": {
                "err": landed.err,
                "status": {"Err": landed.err} if landed.err else {"Ok": None},
                "fee": landed.fee,
                "preBalances": [account.lamports if account else 0 for account in landed.before],
                "postBalances": [account.lamports if account else 0 for account in landed.after],
                "preTokenBalances": self._token_balances(landed.keys, landed.before, landed.slot),
                "postTokenBalances": self._token_balances(landed.keys, landed.after, landed.slot),
                "innerInstructions": [
                    {"index": i, "instructions": [_render_instruction(ix, height) for ix, height in group]}
                    for i, group in enumerate(landed.inner)
                    if group
                ],
                "logMessages": list(landed.logs),
                "rewards": [],
                "loadedAddresses": {
                    "writable": [str(key) for key in loaded[:writable]],
                    "readonly": [str(key) for key in loaded[writable:]],
                },
                "computeUnitsConsumed": landed.units,
            },
        }

    def _token_balances(
        self, keys: Sequence[Pubkey], accounts: Sequence[Account | None], slot: int
    ) -> list[dict[str, Any]]:
        rows = []
        for index, (_, account) in enumerate(zip(keys, accounts, strict=True)):
            parsed = self._parsed(account, slot) if account is not None else None
            if account is None or parsed is None or parsed["parsed"]["type"] != "account":
                continue
            info = parsed["parsed"]["info"]
            rows.append(
                {
                    "accountIndex": index,
                    "mint": info["mint"],
                    "owner": info["owner"],
                    "programId": str(account.owner),
                    "uiTokenAmount": info["tokenAmount"],
                }
            )
        return rows

    # ---- steering ----

    def _set_account(self, address: str, body: dict[str, Any]) -> None:
        account = Account(
            body["lamports"],
            base64.b64decode(body.get("data", ""), validate=True),
            Pubkey.from_string(body["owner"]),
            body.get("executable", False),
        )
        self.chain.set_account(Pubkey.from_string(address), account)

    def _add_program(self, address: str, elf: str) -> None:
        self.chain.add_program(Pubkey.from_string(address), base64.b64decode(elf, validate=True))


def encode_base58(data: bytes) -> str:
    """Return the base58 text of `data`, Bitcoin's alphabet."""
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def decode_base58(text: str) -> bytes:
    """Return the bytes of base58 `text`. Raises ValueError for a character outside the alphabet."""
    number = 0
    for character in text:
        number = number * 58 + _ALPHABET.index(character)
    return b"\0" * (len(text) - len(text.lstrip("1"))) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def _decode_transaction(encoded: str, config: Config) -> VersionedTransaction:
    """Decode a transaction, refusing one that fits no packet with the node's own words."""
    encoding = config.get("encoding", "base58")
    limit = {"base58": MAX_BASE58_SIZE, "base64": MAX_BASE64_SIZE}.get(encoding)
    if limit is None:
        raise RpcError(INVALID_PARAMS, f"unsupported encoding: {encoding}. Supported encodings: base58, base64")
    if len(encoded) > limit:
        what = f"{encoding} encoded {_TRANSACTION_TYPE} too large"
        raise RpcError(INVALID_PARAMS, f"{what}: {len(encoded)} bytes (max: encoded/raw {limit}/{PACKET_SIZE})")
    try:
        raw = base64.b64decode(encoded, validate=True) if encoding == "base64" else decode_base58(encoded)
    except (binascii.Error, ValueError) as error:
        raise RpcError(INVALID_PARAMS, f"invalid {encoding} encoding: {error}") from error
    if len(raw) > PACKET_SIZE:
        what = f"decoded {_TRANSACTION_TYPE} too large"
        raise RpcError(INVALID_PARAMS, f"{what}: {len(raw)} bytes (max: {PACKET_SIZE} bytes)")
    try:
        transaction = VersionedTransaction.from_bytes(raw)
        transaction.sanitize()
    except Exception as error:  # solders raises its own kinds
        raise RpcError(INVALID_PARAMS, f"failed to deserialize {_TRANSACTION_TYPE}: {error}") from error
    return transaction


def _preflight_error(error: Rejected) -> RpcError:
    if error.err == "SignatureFailure":
        return RpcError(SIGNATURE_FAILURE, "Transaction signature verification failure")
    words = {
        "BlockhashNotFound": "Blockhash not found",
        "AlreadyProcessed": "This transaction has already been processed",
    }
    reason = words.get(error.err, str(error.err)) if isinstance(error.err, str) else str(error.err)
    data = {"err": error.err, "logs": list(error.logs), "accounts": None, "unitsConsumed": error.units}
    return RpcError(PREFLIGHT_FAILURE, f"Transaction simulation failed: {reason}", data)


def _render_transaction(transaction: VersionedTransaction, encoding: str) -> Any:
    if encoding == "base64":
        return [base64.b64encode(bytes(transaction)).decode(), "base64"]
    if encoding == "base58":
        return [encode_base58(bytes(transaction)), "base58"]
    if encoding != "json":
        raise RpcError(INVALID_PARAMS, f"Invalid params: encoding {encoding!r} is not offered here")
    message = transaction.message
    header = message.header
    body: dict[str, Any] = {
        "header": {
            "numRequiredSignatures": header.num_required_signatures,
            "numReadonlySignedAccounts": header.num_readonly_signed_accounts,
            "numReadonlyUnsignedAccounts": header.num_readonly_unsigned_accounts,
        },
        "accountKeys": [str(key) for key in message.account_keys],
        "recentBlockhash": str(message.recent_blockhash),
        "instructions": [_render_instruction(instruction, None) for instruction in message.instructions],
    }
    if isinstance(message, MessageV0):
        body["addressTableLookups"] = [
            {
                "accountKey": str(one.account_key),
                "writableIndexes": list(one.writable_indexes),
                "readonlyIndexes": list(one.readonly_indexes),
            }
            for one in message.address_table_lookups
        ]
    return {"signatures": [str(signature) for signature in transaction.signatures], "message": body}


def _render_instruction(instruction: CompiledInstruction, height: int | None) -> dict[str, Any]:
    return {
        "programIdIndex": instruction.program_id_index,
        "accounts": list(instruction.accounts),
        "data": encode_base58(bytes(instruction.data)),
        "stackHeight": height,
    }


def _matches(one: Any, data: bytes) -> bool:
    if isinstance(one, dict) and "memcmp" in one:
        compare = one["memcmp"]
        wanted = compare["bytes"]
        if isinstance(wanted, list):
            needle = bytes(wanted)
        elif compare.get("encoding") == "base64":
            needle = base64.b64decode(wanted)
        else:
            needle = decode_base58(wanted)
        return data[compare["offset"] : compare["offset"] + len(needle)] == needle
    if isinstance(one, dict) and "dataSize" in one:
        return bool(len(data) == one["dataSize"])
    raise RpcError(INVALID_PARAMS, f"Invalid params: filter {one!r} is not offered here")


def _optional_key(data: bytes, at: int) -> str | None:
    return str(Pubkey(data[at + 4 : at + 36])) if data[at] else None


def _ui_amount(amount: int, decimals: int) -> dict[str, Any]:
    whole, part = divmod(amount, 10**decimals)
    text = f"{whole}.{part:0{decimals}d}".rstrip("0").rstrip(".") if decimals else str(whole)
    return {"amount": str(amount), "decimals": decimals, "uiAmount": amount / 10**decimals, "uiAmountString": text}
