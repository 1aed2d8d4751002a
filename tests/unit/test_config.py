"""A configuration that is wrong anywhere says where: file, key, what is wrong, and what would work."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from aggregator.bootstrap import deployment_of
from aggregator.config import EXAMPLES, Settings, load_settings, parse_settings
from aggregator.domain.errors import ConfigError
from tests.worlds.documents import (
    ALPHA,
    BETA,
    LIFETIME,
    MAX_LIFETIME,
    PYTH_SECRET,
    RPC_SECRET,
    SOL,
    USDC,
    make_document,
)

FILE = "prod.toml"
EXAMPLE = Path(__file__).parents[2] / "infra" / "config" / "example.toml"
OTHER = "0x" + "07" * 20
# USD Coin on Ethereum as block explorers print it, with its EIP-55 checksum; then with one letter's case wrong.
CHECKSUMMED = "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"
MISSPELT = "0xa0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"
MINT = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"  # USD Coin on Solana
SHORT_MINT = MINT[:-2]
Document = dict[str, Any]
Place = tuple[str | int, ...]


def at(document: Document, place: Place) -> Any:
    value: Any = document
    for part in place:
        value = value[part]
    return value


def put(*place: str | int, value: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        at(document, place[:-1])[place[-1]] = value

    return change


def drop(*place: str | int) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        del at(document, place[:-1])[place[-1]]

    return change


def twice(table: str, index: int = 0) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document[table].append(copy.deepcopy(document[table][index]))

    return change


def both(*changes: Callable[[Document], None]) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for each in changes:
            each(document)

    return change


def venue(chain: str, kind: str, **addresses: str) -> Callable[[Document], None]:
    return lambda document: document["venues"].append({"chain": chain, "kind": kind, "addresses": addresses})


def asset_id(value: str, index: int = 0) -> Callable[[Document], None]:
    return put("assets", index, "id", value=value)


def shown(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def refusal(document: Document) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_settings(document, FILE)
    return caught.value


def test_the_valid_document_is_accepted_and_frozen() -> None:
    settings = parse_settings(make_document(), FILE)
    assert settings.chain("beta") == settings.chains[1] == settings.chain("eip155:31338")
    assert settings.chain("gamma") is None
    with pytest.raises(ValueError, match="frozen"):
        settings.service.epoch_seconds = 1  # type: ignore[misc]


REQUIRED: tuple[Place, ...] = (
    *(("service", key) for key in ("data", "epoch_seconds", "listen", "attestor_keys", "passphrase_file")),
    *(("deployment", key) for key in ("network_class", "members", "threshold", "not_after", "salt")),
    *(("chains", 1, key) for key in ("id", "name", "family", "rpc", "genesis", "block_seconds", "max_age", "hold")),
    ("chains", 1, "finality"),
    *(("assets", 0, key) for key in ("id", "symbol", "kind", "decimals", "feed", "policy")),
    *(("sources", 2, key) for key in ("name", "feed", "kind", "id")),
    *(("venues", 0, key) for key in ("chain", "kind")),
    *(("destinations", 2, key) for key in ("chain", "kind", "address", "clock_bound", "payer_key")),
    *(("pyth", key) for key in ("url", "guardian_set_index", "guardians", "emitter_chain", "emitter_address")),
    *(("policy", key) for key in ("version", "lifetime", "assets")),
    *(("policy", "assets", "major", key) for key in ("volatility", "daily_volume", "initial", "maintenance")),
    *((table,) for table in ("service", "deployment", "chains", "assets", "sources", "destinations", "policy")),
)


@pytest.mark.parametrize("place", REQUIRED, ids=shown)
def test_a_missing_key_is_named_with_an_example(place: Place) -> None:
    document = make_document()
    drop(*place)(document)
    error = refusal(document)
    assert error.file == FILE
    assert error.key == shown(place)
    assert str(error).startswith(f"{FILE}: {shown(place)}: is missing; for example {shown(place)} = ")
    assert len(error.example) > 0


def keys_of(row: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every key that a configuration can have, as the examples name them."""
    for name, field in row.model_fields.items():
        plain = f"{prefix}{name}"
        yield plain
        annotation, inner = field.annotation, field.annotation
        if get_origin(annotation) is dict:
            plain += ".*"
            yield plain
        while (parts := [a for a in get_args(inner) if a is not type(None) and a is not Ellipsis]) and parts:
            inner = parts[-1]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys_of(inner, f"{plain}.")


def test_every_key_has_an_example_and_every_example_a_key() -> None:
    assert set(EXAMPLES) == set(keys_of(Settings))


def rollup(index: int, l1: str, key: str = "finality", **more: Any) -> Callable[[Document], None]:
    """Let a chain be final by its L1."""
    return put("chains", index, key, value={"l1": l1, "origin": OTHER, "typical": 900} | more)


BROKEN: tuple[tuple[str, Callable[[Document], None], str, str], ...] = (
    ("a chain without blocks", put("chains", 0, "block_seconds", value=0), "chains[0].block_seconds", "greater than 0"),
    ("a word for a number", put("chains", 2, "max_age", value="long"), "chains[2].max_age", "integer"),
    ("no rpc", put("chains", 0, "rpc", value=[]), "chains[0].rpc", "at least 1"),
    ("an unknown family", put("chains", 0, "family", value="cosmos"), "chains[0].family", "'evm' or 'solana'"),
    ("no legs", put("chains", 0, "hold", value=[]), "chains[0].hold", "at least 1"),
    ("an odd chance", put("chains", 0, "hold", 0, "outage_probability", value=2), "chains[0].hold[0]", "less than or"),
    ("an endless timeout", put("chains", 0, "timeout", value=1e6), "chains[0].timeout", "120"),
    ("too many decimals", put("assets", 0, "decimals", value=77), "assets[0].decimals", "36"),
    ("an unknown kind", put("assets", 0, "kind", value="nft"), "assets[0].kind", "'erc20'"),
    ("a receipt of nothing", drop("assets", 2, "underlying"), "assets[2]", "underlying"),
    ("an uncapped rate", drop("assets", 2, "rate_cap"), "assets[2]", "rate_cap"),
    ("a coin with a rate", put("assets", 0, "rate_cap", value=2.0), "assets[0]", "rate_cap"),
    ("a weightless source", put("sources", 0, "weight", value=0), "sources[0].weight", "greater than 0"),
    ("an unknown source", put("sources", 0, "kind", value="tv"), "sources[0].kind", "'pyth' or 'chainlink'"),
    ("a network class", put("deployment", "network_class", value=4), "deployment.network_class", "1, 2 or 3"),
    ("no members", put("deployment", "members", value=[]), "deployment.members", "at least 1"),
    ("a short salt", put("deployment", "salt", value="0x12"), "deployment.salt", "pattern"),
    ("no threshold", put("deployment", "threshold", value=0), "deployment.threshold", "greater than or equal to 1"),
    ("no epochs", put("service", "epoch_seconds", value=0), "service.epoch_seconds", "greater than or equal to 1"),
    ("no port", put("service", "listen", value="localhost"), "service.listen", "pattern"),
    ("a path as a key", put("service", "attestor_keys", value=["../k"]), "service.attestor_keys[0]", "pattern"),
    ("a short emitter", put("pyth", "emitter_address", value="00"), "pyth.emitter_address", "pattern"),
    ("a negative bound", put("destinations", 0, "clock_bound", value=-1), "destinations[0].clock_bound", "0"),
    ("a huge volatility", put("policy", "assets", "major", "volatility", value=50), "policy.assets.major", "10"),
    ("a haircut of two", put("policy", "assets", "stable", "initial", "haircut", value=2), "policy.assets.stable", "1"),
    (
        "an initial margin looser than maintenance",
        put("policy", "assets", "major", "initial", "haircut", value=0.0),
        "policy.assets.major",
        "at least maintenance's",
    ),
    ("a table where a list belongs", put("chains", value={}), "chains", "tuple"),
    ("a list where a table belongs", put("service", value=[]), "service", "ServiceRow"),
    # finality
    ("no rule", put("chains", 0, "finality", value={}), "chains[0].finality", "one of depth, tag and l1"),
    ("two rules", put("chains", 0, "finality", "tag", value="safe"), "chains[0].finality", "one of depth, tag and l1"),
    ("a made-up tag", put("chains", 0, "finality", value={"tag": "latest"}), "chains[0].finality.tag", "'finalized'"),
    ("a tag of any length", put("chains", 0, "finality", value={"tag": "safe"}), "chains[0].finality", "typical"),
    ("a timed depth", put("chains", 0, "finality", "typical", value=9), "chains[0].finality", "typical"),
    ("a negative depth", put("chains", 0, "finality", "depth", value=-1), "chains[0].finality.depth", "0"),
    ("an L1 without origin", rollup(0, BETA, origin=None), "chains[0].finality", "origin"),
    ("a short origin", rollup(0, BETA, origin="0x12"), "chains[0].finality.origin", "40 hex digits"),
    ("an L1 that is no id", rollup(0, "ethereum"), "chains[0].finality.l1", "not CAIP-2"),
    ("an L1 that is not configured", rollup(0, "eip155:1"), "chains[0].finality.l1", "not among the EVM chains"),
    ("an L1 on Solana", rollup(0, SOL), "chains[0].finality.l1", "not among the EVM chains"),
    ("an L1 by its name", rollup(0, "beta"), "chains[0].finality.l1", "not CAIP-2"),
    ("its own L1", rollup(0, ALPHA), "chains[0].finality.l1", "settled on eip155:31337 itself"),
    ("an L1 in a ring", both(rollup(0, BETA), rollup(1, ALPHA)), "chains[0].finality.l1", "itself"),
    (
        "an L1 in a ring of rules",
        both(rollup(0, BETA), rollup(1, ALPHA, "irreversible")),
        "chains[0].finality.l1",
        "itself",
    ),
    (
        "a shallow floor",
        put("chains", 0, "irreversible", value={"depth": 1}),
        "chains[0].irreversible",
        "1 block deep is shallower than finality, 2 blocks deep",
    ),
    (
        "a shallow tag",
        both(
            put("chains", 0, "finality", value={"tag": "finalized", "typical": 9}),
            put("chains", 0, "irreversible", value={"tag": "safe", "typical": 9}),
        ),
        "chains[0].irreversible",
        "tag safe is shallower",
    ),
    ("finality of Solana", put("chains", 2, "finality", value={"depth": 1}), "chains[2].finality", "leave it out"),
    ("a floor of Solana", put("chains", 2, "irreversible", value={"depth": 1}), "chains[2].irreversible", "leave it"),
    ("a sequencer of Solana", put("chains", 2, "sequencer", value={"feed": OTHER}), "chains[2].sequencer", "leave it"),
    ("proofs of Solana", put("chains", 2, "prove", value=True), "chains[2].prove", "leave it out"),
    ("a short uptime feed", put("chains", 0, "sequencer", value={"feed": "0x1"}), "chains[0].sequencer.feed", "40 hex"),
    ("no grace", put("chains", 0, "sequencer", value={"feed": OTHER, "grace": -1}), "chains[0].sequencer.grace", "0"),
    ("a websocket by http", put("chains", 0, "ws", value=[f"https://x/{RPC_SECRET}"]), "chains[0].ws", "wss://"),
    ("a websocket twice", put("chains", 0, "ws", value=[f"wss://x/{RPC_SECRET}"] * 2), "chains[0].ws", "twice"),
    # reading and links
    ("no sample", put("service", "reread_epochs", value=0), "service.reread_epochs", "greater than or equal to 1"),
    ("a cool-down too short", put("service", "link_cooldown", value=MAX_LIFETIME + 4), "service.link_cooldown", "605"),
    # references and duplicates
    ("a chain given twice", twice("chains"), "chains[3].id", "given twice"),
    ("a name given twice", put("chains", 1, "name", value="alpha"), "chains[1].name", "'alpha' is given twice"),
    ("an asset given twice", twice("assets"), "assets[6].id", "given twice"),
    ("a destination given twice", twice("destinations", 1), "destinations[3].chain", "given twice"),
    ("a source given twice", twice("sources"), "sources[9].name", "given twice"),
    ("an asset of no chain", put("assets", 0, "id", value=f"eip155:9/erc20:{OTHER}"), "assets[0].id", "not among"),
    ("an asset of no feed", put("assets", 0, "feed", value="DOGE/USD"), "assets[0].feed", "not among"),
    ("an asset of no policy", put("assets", 0, "policy", value="odd"), "assets[0].policy", "not among"),
    (
        "a receipt of the unknown",
        put("assets", 2, "underlying", value=f"{ALPHA}/erc20:{OTHER}"),
        "assets[2].underlying",
        "not among",
    ),
    ("a receipt with its own feed", put("assets", 2, "feed", value="ETH/USD"), "assets[2].feed", "underlying"),
    ("a feed of no chain", put("sources", 1, "id", value=f"eip155:9:{OTHER}"), "sources[1].id", "not among"),
    ("a pyth source without pyth", drop("pyth"), "pyth", "a pyth source is configured"),
    ("a venue of no chain", put("venues", 0, "chain", value="eip155:9"), "venues[0].chain", "not among"),
    ("a destination of no chain", put("destinations", 0, "chain", value="eip155:9"), "destinations[0].chain", "not"),
    (
        "more keys than members",
        put("service", "attestor_keys", value=[f"k{i}" for i in range(5)]),
        "service.attestor_keys",
        "more keys than",
    ),
    (
        "a lifetime that registries refuse",
        put("policy", "lifetime", value=MAX_LIFETIME + 1),
        "policy.lifetime",
        "above service.max_lifetime",
    ),
    (
        "an underlying without prices",
        put("policy", "underlyings", value={"DOGE/USD": {"range": 0.3}}),
        "policy.underlyings.DOGE/USD",
        "no source gives prices of it",
    ),
    (
        "a dollar without prices",
        put("policy", "dollars", value=["USDC/USD", "USDD/USD"]),
        "policy.dollars[1]",
        "'USDD/USD' is no feed",
    ),
    (
        "a range beyond the tails",
        put("policy", "underlyings", value={"ETH/USD": {"range": 0.5}}),
        "policy",
        "tails must lie beyond",
    ),
    (
        "a group of nobody",
        put("policy", "groups", value={"majors": {"offset": 0.3}}),
        "policy",
        "no row of underlyings names it",
    ),
    ("a model without its history", put("policy", "models", value={"monitored": "var"}), "policy", "needs history"),
    (
        "a model nobody wrote",
        put("policy", "models", value={"monitored": "guess"}),
        "policy.models.monitored",
        "scenario",
    ),
    (
        "a jump a second",
        put("policy", "assets", "major", "jumps", 0, "rate", value=1e9),
        "policy.assets.major",
        "10000",
    ),
    # ids and addresses
    ("a chain without a number", put("chains", 0, "id", value="eip155"), "chains[0].id", "not CAIP-2"),
    ("a chain by two names", put("chains", 0, "id", value="eip155:031337"), "chains[0].id", "EVM chain id in decimal"),
    ("a short genesis reference", put("chains", 2, "id", value=SOL[:-1]), "chains[2].id", "first 32 characters"),
    ("a family of another chain", put("chains", 0, "family", value="solana"), "chains[0].family", "does not fit"),
    ("a short block hash", put("chains", 0, "genesis", value="0x11"), "chains[0].genesis", "64 hex digits"),
    ("a short genesis on Solana", put("chains", 2, "genesis", value=SHORT_MINT), "chains[2].genesis", "32 expected"),
    ("a misspelt multicall", put("chains", 0, "multicall", value=MISSPELT), "chains[0].multicall", "EIP-55 checksum"),
    ("an asset that is no id", asset_id(USDC.replace("/", ":")), "assets[0].id", "not CAIP-19"),
    ("an asset of a foreign kind", asset_id(f"{ALPHA}/erc721:{OTHER}"), "assets[0].id", "slip44 or erc20 expected"),
    ("a short contract", asset_id(f"{ALPHA}/erc20:0x12"), "assets[0].id", "40 hex digits"),
    ("a short mint", asset_id(f"{SOL}/token:{SHORT_MINT}", 5), "assets[5].id", "32 expected"),
    ("ether on Solana", asset_id(f"{SOL}/slip44:60", 5), "assets[5].id", "slip44:501"),
    ("a contract that is native", put("assets", 0, "kind", value="native"), "assets[0].kind", "erc20 or erc4626"),
    (
        "an asset in two spellings",
        both(twice("assets"), asset_id(f"{ALPHA}/erc20:0x{'E1' * 20}", 6)),
        "assets[6]",
        "twice",
    ),
    ("two native coins", both(twice("assets", 3), asset_id(f"{BETA}/slip44:61", 6)), "assets[6].id", "second native"),
    (
        "a receipt of another chain",
        put("assets", 2, "underlying", value=f"{BETA}/erc20:{OTHER}"),
        "assets[2].underlying",
        "is on",
    ),
    ("a Pyth id with 0x", put("sources", 0, "id", value="0x" + "ff" * 32), "sources[0].id", "without 0x"),
    ("a feed without chain", put("sources", 1, "id", value=OTHER), "sources[1].id", "not CAIP-10"),
    ("a feed on Solana", put("sources", 1, "id", value=f"{SOL}:{MINT}"), "sources[1].id", "EVM chains only"),
    (
        "a Pyth id of two feeds",
        both(put("sources", 0, "id", value="ff" * 32), put("sources", 3, "id", value="FF" * 32)),
        "sources[3].id",
        "another feed",
    ),
    ("one source by two names", both(twice("sources"), put("sources", 9, "name", value="x")), "sources[9].id", "vote"),
    ("a guardian without 0x", put("pyth", "guardians", 0, value="12" * 20), "pyth.guardians[0]", "40 hex digits"),
    ("a guardian twice", put("pyth", "guardians", value=[OTHER, OTHER]), "pyth.guardians[1]", "twice"),
    # venues, destinations, parties
    ("a venue nobody reads", venue(ALPHA, "casino"), "venues[2].kind", "wallet, vault, lender, aave-v3, margin-venue"),
    ("an EVM venue on Solana", venue(SOL, "lender", lender=OTHER), "venues[2].kind", "wallet, vault"),
    ("a vault without program", venue(SOL, "vault", vault=MINT), "venues[2].addresses.program", "is missing"),
    ("a pool without data", venue(ALPHA, "aave-v3", pool=OTHER), "venues[2].addresses.data_provider", "is missing"),
    ("a wallet's address", venue(ALPHA, "wallet", wallet=OTHER), "venues[2].addresses", "none expected"),
    ("a short vault", venue(ALPHA, "vault", vault="0x7a"), "venues[2].addresses.vault", "40 hex digits"),
    ("a vault twice", venue(ALPHA, "vault", vault="0x" + "7A" * 20), "venues[2]", "earlier venue again"),
    ("a short registry", put("destinations", 0, "address", value="0x9e"), "destinations[0].address", "40 hex digits"),
    ("a foreign registry", put("destinations", 2, "kind", value="evm-registry"), "destinations[2].kind", "cannot be"),
    (
        "a payer that attests",
        put("destinations", 1, "payer_key", value="attestor-2"),
        "destinations[1].payer_key",
        "own",
    ),
    ("one key twice", put("service", "attestor_keys", 3, value="attestor-0"), "service.attestor_keys[3]", "twice"),
    ("a port too high", put("service", "listen", value="127.0.0.1:65536"), "service.listen", "above 65535"),
    ("a slow node", put("chains", 1, "timeout", value=LIFETIME / 2), "chains[1].timeout", "half of policy.lifetime"),
    ("a low threshold", put("deployment", "threshold", value=2), "deployment.threshold", "from 3 to 4"),
    ("a high threshold", put("deployment", "threshold", value=5), "deployment.threshold", "from 3 to 4"),
    ("a member twice", put("deployment", "members", value=[OTHER] * 4), "deployment.members[1]", "given twice"),
    ("a short member", put("deployment", "members", 1, value="0x12"), "deployment.members[1]", "40 hex digits"),
    ("nobody", put("deployment", "members", 0, value="0x" + "00" * 20), "deployment.members[0]", "zero"),
    (
        "too few",
        both(put("deployment", "network_class", value=2), put("deployment", "members", value=[OTHER])),
        "deployment.members",
        "at least 4",
    ),
)


@pytest.mark.parametrize(("change", "key", "says"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_key_is_named(change: Callable[[Document], None], key: str, says: str) -> None:
    document = make_document()
    change(document)
    error = refusal(document)
    assert error.file == FILE
    assert error.key.startswith(key)
    assert says in str(error)
    assert error.example
    assert RPC_SECRET not in str(error)


def test_a_lifetime_that_registries_accept_is_accepted() -> None:
    document = make_document()
    document["policy"]["lifetime"] = MAX_LIFETIME
    assert parse_settings(document).policy.lifetime == MAX_LIFETIME


def tables(value: Any, place: Place = ()) -> list[Place]:
    """Return the place of every table whose keys are fixed."""
    free = place in (("policy", "assets"), ("venues", 0, "addresses"))
    found: list[Place] = [place] if isinstance(value, dict) and not free else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += tables(inner, (*place, key))
    return found


@pytest.mark.parametrize("place", tables(make_document()), ids=lambda place: shown(place) or "document")
def test_a_misspelt_key_is_an_error_not_a_default(place: Place) -> None:
    document = make_document()
    at(document, place)["lifetme"] = 1
    error = refusal(document)
    assert error.key == shown((*place, "lifetme"))
    assert "is not a known key" in str(error)


def leaves(value: Any, place: Place = ()) -> list[Place]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for key, inner in items for leaf in leaves(inner, (*place, key))]
    return found or [place]


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just([]), st.just({}), st.just([{}])
)


@given(place=st.sampled_from(leaves(make_document())), junk=JUNK)
def test_junk_anywhere_is_accepted_or_named_and_tells_no_secret(place: Place, junk: object) -> None:
    document = make_document()
    at(document, place[:-1])[place[-1]] = junk
    caught: ConfigError | None = None
    try:
        parse_settings(document, FILE)
    except ConfigError as error:
        caught = error
    if caught is not None:
        assert caught.key
        assert str(caught).startswith(f"{FILE}: {caught.key}: ")
        assert RPC_SECRET not in str(caught)
        assert PYTH_SECRET not in str(caught)


def test_secrets_are_in_no_text_of_the_settings() -> None:
    document = make_document()
    document["chains"][0]["ws"] = [f"wss://rpc.example.org/{RPC_SECRET}"]
    settings = parse_settings(document)
    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.chains[0])):
        assert RPC_SECRET not in text
        assert PYTH_SECRET not in text
    assert RPC_SECRET in settings.chains[0].rpc[0].get_secret_value()


def test_a_secret_of_the_wrong_type_is_not_repeated() -> None:
    document = make_document()
    document["chains"][0]["rpc"] = [{"url": RPC_SECRET}]
    assert RPC_SECRET not in str(refusal(document))
    document = make_document()
    document["chains"][0]["rpc"] = f"https://rpc.example.org/{RPC_SECRET}"
    assert RPC_SECRET not in str(refusal(document))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold": 2}, "threshold"),
        ({"threshold": 5}, "threshold"),
        ({"members": ["0x" + "11" * 20] * 4}, "members"),
        ({"members": ["0x12"] * 4}, "members"),
        ({"members": ["nobody"] * 4}, "deployment"),
        ({"network_class": 1, "members": ["0x" + "11" * 20], "threshold": 1}, "members"),
    ],
    ids=["low threshold", "high threshold", "twice", "short", "no hex", "too few outside a devnet"],
)
def test_a_deployment_that_cannot_be_is_named(changes: Document, says: str) -> None:
    document = make_document()
    document["deployment"] |= changes
    document["service"]["attestor_keys"] = ["k"]
    with pytest.raises(ConfigError, match=r"^.*deployment") as caught:
        deployment_of(parse_settings(document))
    assert says in str(caught.value)


def test_a_cool_down_as_long_as_any_statement_lives_is_accepted() -> None:
    document = make_document()
    document["service"]["link_cooldown"] = MAX_LIFETIME + 5
    assert parse_settings(document).service.link_cooldown == MAX_LIFETIME + 5


@pytest.mark.parametrize(
    ("rule", "seconds", "text"),
    [
        ({"depth": 0}, 0, "the newest block"),
        ({"depth": 1}, 3, "1 block deep"),
        ({"depth": 64}, 192, "64 blocks deep"),
        ({"tag": "safe", "typical": 400}, 400, "tag safe"),
        ({"l1": BETA, "origin": OTHER, "typical": 900}, 900, f"final on its L1 {BETA}"),
    ],
)
def test_a_rule_of_finality_says_what_it_is_and_how_long_it_takes(rule: Document, seconds: int, text: str) -> None:
    document = make_document()
    document["chains"][0] |= {"finality": rule, "block_seconds": 3}
    row = parse_settings(document).chains[0]
    assert (row.finality_seconds, row.finality_text) == (seconds, text)
    assert row.irreversible == row.finality


def test_on_solana_the_rule_is_what_validators_finalized() -> None:
    row = parse_settings(make_document()).chains[2]
    assert row.finality_text == "finalized by its validators"
    assert row.finality_seconds == 32 * row.block_seconds  # 31 confirmed slots on top, docs.solana.com


def test_rules_that_cannot_be_compared_stand_side_by_side() -> None:
    document = make_document()
    document["chains"][0] |= {"finality": {"depth": 500}, "irreversible": {"tag": "finalized", "typical": 900}}
    document["chains"][1] |= {"finality": {"tag": "safe", "typical": 9}, "irreversible": {"depth": 1}}
    parse_settings(document)


def test_every_spelling_of_an_address_becomes_one() -> None:
    document, lower = make_document(), CHECKSUMMED.lower()
    put("deployment", "members", 0, value=CHECKSUMMED)(document)
    put("venues", 0, "addresses", "vault", value=CHECKSUMMED)(document)
    put("assets", 1, "id", value=f"{ALPHA}/erc20:{CHECKSUMMED}")(document)
    put("assets", 2, "underlying", value=f"{ALPHA}/erc20:0x{CHECKSUMMED[2:].upper()}")(document)
    put("sources", 1, "id", value=f"{ALPHA}:{CHECKSUMMED}")(document)
    put("chains", 0, "finality", value={"l1": BETA, "origin": CHECKSUMMED, "typical": 9})(document)
    put("chains", 0, "sequencer", value={"feed": CHECKSUMMED})(document)
    s = parse_settings(document)
    assert s.chains[0].finality.origin == s.chains[0].irreversible.origin == lower
    assert s.chains[0].sequencer is not None
    assert s.chains[0].sequencer.feed == lower
    assert s.deployment.members[0] == s.venues[0].addresses["vault"] == lower
    assert s.assets[1].id == s.assets[2].underlying == f"{ALPHA}/erc20:{lower}"
    assert s.sources[1].id == f"{ALPHA}:{lower}"


def test_the_example_is_a_valid_configuration() -> None:
    assert len(load_settings(EXAMPLE).destinations) == 1


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(tomli_w.dumps(make_document(tmp_path)), "utf-8")
    assert load_settings(path) == parse_settings(make_document(tmp_path))


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: file: does not exist; name one with --config") as caught:
        load_settings(tmp_path / "none.toml")
    assert "CROSSMARGIN_CONFIG" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"[service\n", "is not TOML"), (b"\xff\xfe", "cannot be read"), (b"", "service: is missing")],
    ids=["not TOML", "not UTF-8", "empty"],
)
def test_a_file_that_is_none_says_so(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        load_settings(path)
    assert caught.value.file == str(path)


def test_a_document_that_nests_beyond_the_interpreters_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("policy = " + "[" * 5_000, "utf-8")
    limit = sys.getrecursionlimit()  # libraries raise it
    sys.setrecursionlimit(1_000)
    try:
        with pytest.raises(ConfigError, match="is nested too deeply"):
            load_settings(path)
    finally:
        sys.setrecursionlimit(limit)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "a.toml"
    path.write_text(tomli_w.dumps(make_document("../data")), "utf-8")
    monkeypatch.chdir(tmp_path)
    for spelling in (path, Path("etc/a.toml")):
        service = load_settings(spelling).service
        assert Path(service.data).resolve() == tmp_path / "data"
        assert Path(service.passphrase_file).resolve() == tmp_path / "data" / "passphrase"


def test_the_indices_above_mean_what_their_names_say() -> None:
    document = make_document()
    assert document["chains"][0]["id"] == ALPHA
    assert document["assets"][2]["underlying"] == USDC
    assert document["sources"][1]["kind"] == "chainlink"
