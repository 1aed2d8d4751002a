"""Who attests, as the two kinds of file say it: the coordinator's and an attestor's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from aggregator.config import load_settings, parse_settings
from aggregator.domain.errors import ConfigError
from tests.worlds.documents import make_document

CONFIG = Path(__file__).resolve().parents[2] / "infra" / "config"
Document = dict[str, Any]


def row(index: int, **changes: Any) -> Document:
    return {"index": index, "url": f"https://attestor-{index}.example.org", "wire": f"0x{0xA0 + index:040x}"} | changes


def coordinator(**changes: Any) -> Document:
    document = make_document()
    del document["service"]["attestor_keys"]
    document["service"] |= {"wire_key": "wire"} | changes
    document["attestors"] = [row(i) for i in range(4)]
    return document


def attestor(**changes: Any) -> Document:
    document = make_document()
    del document["service"]["attestor_keys"]
    own = {"index": 0, "key": "attestor", "wire_key": "wire", "listen": "127.0.0.1:8090", "propose_after": 6}
    document["attestor"] = own | {"coordinator": f"0x{0xC0:040x}", "peers": [row(i) for i in (1, 2, 3)]} | changes
    return document


def test_the_coordinators_file_names_whom_to_ask() -> None:
    settings = parse_settings(coordinator(wire_listen="127.0.0.1:8081"))
    assert [settings.member(r) for r in settings.attestors] == list(settings.deployment.members)
    assert [r.name for r in settings.attestors] == [f"attestor-{i}" for i in range(4)]


def test_one_that_joined_by_a_rotation_names_its_address() -> None:
    document = coordinator()
    document["attestors"].append(row(9, member="0x" + "AB" * 20))
    settings = parse_settings(document)
    assert settings.member(settings.attestors[4]) == "0x" + "ab" * 20


def test_an_attestors_file_names_its_peers() -> None:
    settings = parse_settings(attestor())
    assert settings.attestor is not None
    assert settings.member(settings.attestor) == settings.deployment.members[0]
    assert [settings.member(r) for r in settings.attestor.peers] == list(settings.deployment.members[1:])
    joined = parse_settings(attestor(index=9)).attestor
    assert joined is not None
    assert settings.member(joined) is None, "its key alone tells"


def test_the_example_of_an_attestor_is_a_valid_configuration_with_that_of_the_rest(tmp_path: Path) -> None:
    import tomllib

    document = tomllib.loads((CONFIG / "example.toml").read_text("utf-8"))
    document |= tomllib.loads((CONFIG / "attestor.toml").read_text("utf-8"))
    del document["attestors"], document["service"]["wire_key"], document["service"]["wire_listen"]
    document["policy"] = str(CONFIG / "policy.toml")
    path = tmp_path / "attestor.toml"
    path.write_text(tomli_w.dumps(document), "utf-8")
    settings = load_settings(path)
    assert settings.attestor is not None
    assert len(settings.attestor.peers) == 3
    asked = {r.index: r for r in load_settings(CONFIG / "example.toml").attestors}
    assert {r.index: r.wire for r in settings.attestor.peers} == {i: asked[i].wire for i in (1, 2, 3)}


def _change(table: str, **changes: Any) -> Callable[[Document], None]:
    return lambda document: document[table].update(changes)


BROKEN: list[tuple[Document, Callable[[Document], None], str, str]] = [
    (make_document(), lambda d: d["service"].pop("attestor_keys"), "service.attestor_keys", "is missing"),
    (make_document(), _change("deployment", network_class=2), "service.attestor_keys", "are for devnets"),
    (make_document(), _change("service", wire_key="wire"), "service.wire_key", "there are no attestors"),
    (make_document(), _change("service", wire_listen="127.0.0.1:1"), "service.wire_listen", "no attestors to listen"),
    (coordinator(), _change("service", attestor_keys=["a"]), "attestors", "are both given"),
    (coordinator(), lambda d: d["service"].pop("wire_key"), "service.wire_key", "is missing"),
    (coordinator(), _change("service", wire_key="payer-0"), "destinations[0].payer_key", "is also the wire_key"),
    (coordinator(), _change("service", wire_listen="127.0.0.1:99999"), "service.wire_listen", "above 65535"),
    (coordinator(), lambda d: d["attestors"][1].update(index=0), "attestors[1].index", "given twice"),
    (coordinator(), lambda d: d["attestors"][1].update(wire=f"0x{0xA0:040x}"), "attestors[1].wire", "given twice"),
    (coordinator(), lambda d: d["attestors"][1].update(url=d["attestors"][0]["url"]), "attestors[1].url", "twice"),
    (coordinator(), lambda d: d["attestors"][1].update(wire=f"0x{2:040x}"), "attestors[1].wire", "an attestor's addr"),
    (coordinator(), lambda d: d["attestors"][1].update(url="https://user@example.org"), "attestors[1].url", "match"),
    (coordinator(), lambda d: d["attestors"][1].update(url="file:///etc"), "attestors[1].url", "match"),
    (coordinator(), lambda d: d["attestors"].append(row(9)), "attestors[4].member", "no place in deployment.members"),
    (coordinator(), lambda d: d["attestors"].append(row(9, member=f"0x{2:040x}")), "attestors[4].member", "twice"),
    (attestor(), _change("service", wire_key="wire"), "attestor", "an attestor's own table"),
    (attestor(), _change("attestor", wire_key="attestor"), "attestor.wire_key", "is also the key"),
    (attestor(), _change("attestor", coordinator=f"0x{2:040x}"), "attestor.coordinator", "an attestor's address"),
    (attestor(), _change("attestor", index=1), "attestor.peers", "names index 1, which is this attestor itself"),
    (attestor(), _change("attestor", listen="127.0.0.1:70000"), "attestor.listen", "above 65535"),
    (attestor(), _change("attestor", propose_after=0), "attestor.propose_after", "greater than 0"),
    (attestor(), _change("attestor", propose_after=601), "attestor.propose_after", "less than or equal to 600"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "change", "key", "says"), BROKEN, ids=[f"{b[2]}: {b[3]}" for b in BROKEN])
def test_a_file_that_cannot_work_names_the_key(
    document: Document, change: Callable[[Document], None], key: str, says: str
) -> None:
    change(document)
    with pytest.raises(ConfigError) as caught:
        parse_settings(document)
    assert caught.value.key == key
    assert says in str(caught.value)
