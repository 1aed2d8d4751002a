"""Keys, signatures and texts from which the tests of the verifier build statements, links and bundles."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coincurve import PrivateKey
from eth_account.messages import _hash_eip191_message, encode_typed_data
from solders.keypair import Keypair

from proofs import merkle, statement
from proofs.bundle import Preimages, ProvenAccount, SignedLink, Statement, encode_link, encode_set
from proofs.document import canonical_json
from proofs.hashing import keccak256
from proofs.links import LinkTerms, SharesTerms, account_id, encode_base58, link_digest, link_text
from proofs.quorum import IndexedSignature
from proofs.sets import AttestorSet
from proofs.signing import compact_from_rsv

VECTORS = Path(__file__).with_name("vectors")
CUT_TIME = 1_731_776_113
SOLANA = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"


def address_of(key: PrivateKey) -> bytes:
    return keccak256(key.public_key.format(compressed=False)[1:])[12:]


def sign_wallet(key: PrivateKey, digest: bytes) -> bytes:
    signature = key.sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


def sign_compact(key: PrivateKey, digest: bytes, index: int) -> IndexedSignature:
    signature = key.sign_recoverable(digest, hasher=None)
    r, vs = compact_from_rsv(
        int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    )
    return IndexedSignature(index, r, vs)


@dataclass(frozen=True)
class World:
    """Keys of four attestors, an EVM controller and a Solana member, and the deployment they make."""

    attestors: tuple[PrivateKey, ...]
    controller: PrivateKey
    member: Keypair
    deployment: statement.Deployment

    @property
    def id(self) -> bytes:
        return self.deployment.deployment_id()

    def certify(self, header: statement.Header, body: statement.StatementBody, signers: tuple[int, ...]) -> Statement:
        digest = statement.digest(header, self.id)
        return Statement(header, body, tuple(sign_compact(self.attestors[i], digest, i) for i in signers))

    def link(self, accepted_at: int, expiry: int) -> SignedLink:
        controller = f"eip155:31337:0x{address_of(self.controller).hex()}"
        salt = bytes(range(32))
        terms = LinkTerms(
            account=account_id(controller, salt),
            controller=controller,
            member=f"{SOLANA}:{encode_base58(bytes(self.member.pubkey()))}",
            nonce=7,
            expiry=expiry,
        )
        return SignedLink(
            terms=terms,
            salt=salt,
            invite=sign_wallet(self.controller, link_digest(self.id, "invite", terms)),
            accept=bytes(self.member.sign_message(link_text(self.id, "accept", terms))),
            accepted_at=accepted_at,
        )


def read_ema(update: bytes, feed_id: bytes) -> dict[str, str]:
    """Read a feed's moving average at its place in the message: after price, conf, expo and both publish times."""
    *_, price, conf = struct.unpack_from(">qQiqqqQ", update, update.index(feed_id) + 32)
    return {"ema_price": str(price), "ema_conf": str(conf)}


def commit(
    links: Sequence[SignedLink], sets: Sequence[AttestorSet] = (), /, **document: object
) -> tuple[str, tuple[ProvenAccount, ...]]:
    """Return a state text of three accounts, one of them with ``links``, and the proof of that one."""
    terms = links[0].terms
    backing = {x.terms.member: x.kind == "revoke" for x in links if isinstance(x.terms, LinkTerms)}
    for ended in (x.terms.member for x in links if x.kind == "end" and isinstance(x.terms, LinkTerms)):
        backing.pop(ended, None)
    shares = [x.terms.shares for x in links if isinstance(x.terms, SharesTerms)]
    text = canonical_json(
        {
            "id": f"0x{terms.account.hex()}",
            "controller": terms.controller,
            "kind": "risk-bearing",
            "home": "eip155:31337",
            "links": sorted(backing),
            "ending": sorted(member for member, revoked in backing.items() if revoked),
            "shares": shares[-1] if shares else "",
            **document,
        }
    )
    log = b"".join(keccak256(canonical_json(encode_link(link)).encode()) for link in links)
    own = terms.account + keccak256(text.encode()) + keccak256(log)
    entries = sorted([own, bytes(96), b"\xff" * 96])
    state = {
        "accounts": {"count": 3, "root": f"0x{merkle.tree_hash(entries).hex()}"},
        "rotations": [encode_set(to) for to in sets],
    }
    at = entries.index(own)
    return canonical_json(state), (ProvenAccount(text, at, merkle.inclusion_path(entries, at)),)


def build_preimages(price_file: dict[str, object], link: SignedLink) -> Preimages:
    signers, updates = price_file["guardian_set"], {u["name"]: u for u in price_file["updates"]}
    used = [updates["multi_gs4"]]
    quotes = [
        {
            "feed": expected["feed_id"],
            "name": f"feed {i}",
            "source": "pyth",
            "kind": "pyth",
            "price": str(expected["price"]),
            "conf": str(expected["conf"]),
            "expo": expected["expo"],
            "publish_time": expected["publish_time"],
            **read_ema(bytes.fromhex(update["update_hex"]), bytes.fromhex(expected["feed_id"])),
        }
        for update in used
        for i, expected in enumerate(update["expected"])
    ]
    chainlink = {"feed": "0x" + "11" * 20, "name": "feed 0", "source": "chainlink", "kind": "chainlink"}
    chainlink |= {"price": "1", "conf": "0", "ema_price": "0", "ema_conf": "0"}
    sources = [
        {"feed": quote["name"], "name": quote["source"], "kind": quote["kind"], "id": quote["feed"]}
        for quote in (*quotes, chainlink)
    ]
    return Preimages(
        cut=canonical_json([{"chain": "eip155:31337", "hash": "0x" + "22" * 32, "height": 9, "time": CUT_TIME}]),
        prices=canonical_json(
            {
                "cut_time": CUT_TIME,
                "updates": [f"0x{update['update_hex']}" for update in used],
                "quotes": [*quotes, {**chainlink, "expo": -8, "publish_time": CUT_TIME - 9}],
            }
        ),
        policy=canonical_json(
            {
                "pyth": {
                    "guardian_set_index": signers["index"],
                    "guardians": signers["addresses"],
                    "emitter_chain": price_file["emitter_chain"],
                    "emitter_address": f"0x{price_file['emitter_address']}",
                },
                "sources": sources,
            }
        ),
        risk=canonical_json({"volatility": {"ETH": 0.65}}),
        state=commit([link])[0],
    )


DOMAIN = [
    {"name": "name", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "salt", "type": "bytes32"},
]


def members_of(type_string: str) -> list[dict[str, str]]:
    inner = type_string[type_string.index("(") + 1 : -1]
    return [dict(zip(("type", "name"), member.split(" "), strict=True)) for member in inner.split(",")]


def typed(deployment_id: bytes, type_string: str, values: tuple[object, ...]) -> bytes:
    """Return eth_account's digest of one struct in the deployment's domain."""
    name, members = type_string[: type_string.index("(")], members_of(type_string)
    return _hash_eip191_message(
        encode_typed_data(
            full_message={
                "types": {"EIP712Domain": DOMAIN, name: members},
                "primaryType": name,
                "domain": {"name": "crossmargin", "version": "1", "salt": deployment_id},
                "message": {m["name"]: v for m, v in zip(members, values, strict=True)},
            }
        )
    )
