"""A configuration that is wrong anywhere says where: file, key, what is wrong, and what would work."""

from __future__ import annotations

import copy
import re
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
from tests.worlds.documents import ALPHA, MAX_LIFETIME, PYTH_SECRET, RPC_SECRET, USDC, make_document

FILE = "prod.toml"
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
    # references and duplicates
    ("a chain given twice", twice("chains"), "chains[3].id", "given twice"),
    ("a name given twice", put("chains", 1, "name", value="alpha"), "chains[1].name", "'alpha' is given twice"),
    ("an asset given twice", twice("assets"), "assets[6].id", "given twice"),
    ("a destination given twice", twice("destinations", 1), "destinations[3].chain", "given twice"),
    ("a source given twice", twice("sources"), "sources[9].feed and name", "given twice"),
    ("an asset of no chain", put("assets", 0, "id", value="eip155:9/erc20:0x1"), "assets[0].id", "not among"),
    ("an asset of no feed", put("assets", 0, "feed", value="DOGE/USD"), "assets[0].feed", "not among"),
    ("an asset of no policy", put("assets", 0, "policy", value="odd"), "assets[0].policy", "not among"),
    ("a receipt of the unknown", put("assets", 2, "underlying", value="x"), "assets[2].underlying", "not among"),
    ("a receipt with its own feed", put("assets", 2, "feed", value="ETH/USD"), "assets[2].feed", "underlying"),
    ("a feed of no chain", put("sources", 1, "id", value="eip155:9:0x1"), "sources[1].id", "not among"),
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
)


@pytest.mark.parametrize(("change", "key", "says"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_key_is_named(change: Callable[[Document], None], key: str, says: str) -> None:
    document = make_document()
    change(document)
    error = refusal(document)
    assert error.file == FILE
    assert error.key.startswith(key)
    assert says in str(error)
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
    settings = parse_settings(make_document())
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
