"""Real Pyth updates verify, with the recorded values; changed ones do not."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proofs_world import VECTORS

from proofs.__main__ import main
from proofs.document import parse_json
from proofs.errors import FieldError, PriceError
from proofs.pyth import GuardianSet, parse_update, verify_price_file, verify_update

DOCUMENT = json.loads((VECTORS / "pyth_updates.json").read_text())
UPDATES = {u["name"]: bytes.fromhex(u["update_hex"]) for u in DOCUMENT["updates"]}
GUARDIANS = GuardianSet(4, tuple(bytes.fromhex(a[2:]) for a in DOCUMENT["guardian_set"]["addresses"]))
EMITTER = (DOCUMENT["emitter_chain"], bytes.fromhex(DOCUMENT["emitter_address"]))
MINOR_VERSION = 5


def verify(raw: bytes, **memory: set[bytes]) -> object:
    return verify_update(raw, GUARDIANS, *EMITTER, **memory)


def test_the_four_recorded_updates_verify_with_their_expected_values(price_file: dict[str, object]) -> None:
    results = verify_price_file(price_file)
    assert [(r.name, r.problem, len(r.prices)) for r in results] == [
        ("multi_gs4", None, 5),
        ("btc_gs4", None, 1),
        ("eth_gs4", None, 1),
        ("sol_gs4", None, 1),
    ]
    assert (results[2].prices[0].price, results[2].prices[0].expo) == (419448431592, -8)


def test_nineteen_guardians_need_thirteen() -> None:
    assert GUARDIANS.needed == 13
    assert GuardianSet(0, GUARDIANS.addresses[:5], 3).needed == 3


@pytest.mark.parametrize("name", UPDATES)
@given(data=st.data())
def test_one_flipped_byte_fails_except_in_the_minor_version(name: str, data: st.DataObject) -> None:
    raw = UPDATES[name]
    at = data.draw(st.integers(0, len(raw) - 1).filter(lambda i: i != MINOR_VERSION))
    changed = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
    with pytest.raises(PriceError):
        verify(changed)


@pytest.mark.parametrize("name", UPDATES)
def test_every_byte_position_is_under_a_check(name: str) -> None:
    raw, seen = UPDATES[name], set[bytes]()
    verify(raw, verified=seen)
    passing = []
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 0x01]) + raw[at + 1 :]
        try:
            verify(changed, verified=seen)  # the memory must not let a changed VAA through either
        except PriceError:
            continue
        passing.append(at)
    assert passing == [MINOR_VERSION]


@given(st.sampled_from(sorted(UPDATES)), st.data())
def test_a_cut_or_lengthened_update_fails_as_a_price_error(name: str, data: st.DataObject) -> None:
    raw = UPDATES[name]
    with pytest.raises(PriceError):
        verify(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(PriceError, match="left over"):
        verify(raw + data.draw(st.binary(min_size=1, max_size=9)))


@given(st.binary(max_size=300))
def test_garbage_is_refused_as_a_price_error(raw: bytes) -> None:
    for garbage in (raw, b"PNAU\x01\x00\x00\x00" + raw):
        with pytest.raises(PriceError):
            verify(garbage)


def test_other_signers_emitters_and_sets_are_refused() -> None:
    raw = UPDATES["eth_gs4"]
    swapped = GuardianSet(4, (GUARDIANS.addresses[1], GUARDIANS.addresses[0], *GUARDIANS.addresses[2:]))
    for guardian_set, chain, address, field in [
        (GuardianSet(3, GUARDIANS.addresses), *EMITTER, "vaa.guardian_set_index"),
        (GuardianSet(4, GUARDIANS.addresses, 14), *EMITTER, "vaa.signatures"),
        (swapped, *EMITTER, "vaa.signatures[0]"),
        (GUARDIANS, 1, EMITTER[1], "vaa.emitter_chain"),
        (GUARDIANS, EMITTER[0], bytes(32), "vaa.emitter_address"),
    ]:
        with pytest.raises(PriceError) as refusal:
            verify_update(raw, guardian_set, chain, address)
        assert refusal.value.field == field


def rebuilt(raw: bytes, signatures: list[bytes]) -> bytes:
    """Replace the VAA's 66-byte signature records."""
    vaa = parse_update(raw).vaa
    new = vaa.raw[:5] + bytes([len(signatures)]) + b"".join(signatures) + vaa.body
    tail = raw[10 + len(vaa.raw) :]
    return raw[:8] + len(new).to_bytes(2, "big") + new + tail


def test_twelve_signatures_repeated_or_reordered_ones_are_no_quorum() -> None:
    raw = UPDATES["eth_gs4"]
    records = parse_update(raw).vaa.raw[6:]
    signatures = [records[66 * i : 66 * (i + 1)] for i in range(13)]
    assert rebuilt(raw, signatures) == raw
    for changed, field in [
        (signatures[:12], "vaa.signatures"),
        ([*signatures[:12], signatures[11]], "vaa.signatures[12].index"),
        ([signatures[1], signatures[0], *signatures[2:]], "vaa.signatures[1].index"),
    ]:
        with pytest.raises(PriceError) as refusal:
            verify(rebuilt(raw, changed))
        assert refusal.value.field == field


def test_a_price_of_another_update_does_not_lie_under_this_root() -> None:
    eth, btc = UPDATES["eth_gs4"], UPDATES["btc_gs4"]
    vaa_end = 10 + len(parse_update(eth).vaa.raw)
    with pytest.raises(PriceError, match=r"updates\[0\]\.proof"):
        verify(eth[:vaa_end] + btc[10 + len(parse_update(btc).vaa.raw) :])


def test_the_memory_is_bound_to_signers_and_emitter() -> None:
    seen: set[bytes] = set()
    verify(UPDATES["eth_gs4"], verified=seen)
    verify(UPDATES["sol_gs4"], verified=seen)
    assert len(seen) == 1  # both carry one VAA
    with pytest.raises(PriceError):
        verify_update(UPDATES["eth_gs4"], GUARDIANS, 1, EMITTER[1], verified=seen)
    with pytest.raises(PriceError):
        verify_update(UPDATES["eth_gs4"], GuardianSet(4, GUARDIANS.addresses, 14), *EMITTER, verified=seen)


def changed_document(path: tuple[Any, ...], value: object) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    target: Any = document
    for key in path[:-1]:
        target = target[key]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("updates", 1, "expected", 0, "price"), 1, r"expected\[0\].price: 1 expected"),
        (("updates", 1, "expected", 0, "feed_id"), "00" * 32, r"expected\[0\].feed_id"),
        (("updates", 1, "guardian_set_index"), 3, "guardian_set_index"),
        (("updates", 1, "update_hex"), "00", "magic"),
    ],
)
def test_a_file_with_one_wrong_update_fails_that_one_only(path: tuple[Any, ...], value: object, says: str) -> None:
    results = verify_price_file(changed_document(path, value))
    assert [r.ok for r in results] == [True, False, True, True]
    assert results[1].prices == ()
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(results[1].problem)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("guardian_set",), ..., "guardian_set"),
        (("guardian_set", "index"), "4", "guardian_set.index"),
        (("guardian_set", "quorum"), 9, "guardian_set.quorum"),
        (("guardian_set", "quorum"), 20, "guardian_set.quorum"),
        (("guardian_set", "addresses", 3), "0x12", "guardian_set.addresses[3]"),
        (("guardian_set", "addresses", 3), "0x" + "00" * 20, "guardian_set.addresses[3]"),
        (("guardian_set", "addresses", 3), DOCUMENT["guardian_set"]["addresses"][0], "guardian_set.addresses"),
        (("emitter_chain",), 70000, "emitter_chain"),
        (("emitter_address",), None, "emitter_address"),
        (("updates",), {}, "updates"),
        (("updates",), [], "updates"),
        (("updates", 2), 5, "updates[2]"),
        (("updates", 2, "name"), ..., "updates[2].name"),
        (("updates", 2, "update_hex"), "abc", "updates[2].update_hex"),
        (("updates", 2, "expected", 0, "price"), 1.5, "updates[2].expected[0].price"),
    ],
)
def test_an_unusable_file_is_refused_by_the_field_at_fault(path: tuple[Any, ...], value: object, field: str) -> None:
    with pytest.raises(FieldError) as refusal:
        verify_price_file(changed_document(path, value))
    assert refusal.value.field == field


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.data())
def test_any_value_anywhere_in_a_file_is_judged_or_refused_by_name(value: object, data: st.DataObject) -> None:
    path: list[Any] = []
    target: Any = DOCUMENT
    while isinstance(target, dict | list) and target and (not path or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
        path.append(key)
        target = target[key]
    try:
        results = verify_price_file(changed_document(tuple(path), value))
    except FieldError as refusal:
        judged = bool(refusal.field)
    else:
        judged = len(results) >= 1
    assert judged


def test_the_command_exits_1_for_a_failing_update_and_2_for_an_unusable_file(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prices", str(VECTORS / "pyth_updates.json")]) == 0
    capsys.readouterr()
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(changed_document(("updates", 1, "expected", 0, "price"), 1)))
    assert main(["prices", str(bad), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert [update["ok"] for update in answer["updates"]] == [True, False, True, True]
    bad.write_text(json.dumps(changed_document(("emitter_chain",), "26")))
    assert main(["prices", str(bad)]) == 2
    assert "emitter_chain: an integer expected, text given" in capsys.readouterr().err
    bad.write_bytes(b"\xff")
    assert main(["prices", str(bad)]) == 2
    assert main(["prices", str(tmp_path / "none.json")]) == 2


def test_a_key_given_twice_is_ambiguous_and_refused() -> None:
    with pytest.raises(FieldError, match="'a' is given twice"):
        parse_json('{"a": 1, "a": 2}', max_bytes=99)
