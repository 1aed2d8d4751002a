"""The audit bundle: what every step finds in a good one, in a changed one and in garbage."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proofs_world import CUT_TIME, World, commit

from proofs import statement
from proofs.__main__ import main
from proofs.bundle import MAX_BYTES, Bundle, parse_bundle, render_bundle
from proofs.document import canonical_json
from proofs.errors import BundleError, ProofError
from proofs.hashing import keccak256
from proofs.leaf import Leaf
from proofs.verify import Step, verify_bundle

SETTLED = {1: "pass", 2: "pass", 3: "pass", 6: "pass", 8: "pass"}


def outcomes(steps: tuple[Step, ...]) -> dict[int, str]:
    return {step.number: step.outcome for step in steps}


def failures(bundle: Bundle, **given: Any) -> dict[int, str]:
    return {step.number: step.detail for step in verify_bundle(bundle, **given) if step.outcome == "fail"}


def recertified(world: World, bundle: Bundle, **changes: Any) -> Bundle:
    """Change preimages and have the attestors sign the statement that commits to the change."""
    preimages = replace(bundle.preimages, **changes)
    body = replace(
        bundle.statement.body,
        price_digest=keccak256(preimages.prices.encode()),
        policy_digest=keccak256(preimages.policy.encode()),
        state_digest=keccak256(preimages.state.encode()),
    )
    header = replace(bundle.statement.header, body=statement.body_hash(body))
    return replace(bundle, preimages=preimages, statement=world.certify(header, body, (0, 1, 2)))


def scalars(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from scalars(inner, (*path, key))
    else:
        yield path


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def changed(document: Any, path: tuple[Any, ...], value: object) -> Any:
    document = copy.deepcopy(document)
    at(document, path[:-1])[path[-1]] = value
    return document


def test_a_good_bundle_passes_what_can_be_proven_and_says_what_cannot(bundle: Bundle) -> None:
    steps = verify_bundle(bundle)
    assert [step.number for step in steps] == list(range(1, 10))
    assert outcomes(steps) == {
        **SETTLED, 4: "not provable yet", 5: "not provable yet", 7: "not provable yet", 9: "not checked",
    }  # fmt: skip
    assert "between its neighbours" in steps[2].detail
    assert "1 Chainlink quotes rest on" in steps[5].detail
    assert "compare it with one you trust" in steps[1].detail


def test_a_bundle_comes_back_from_its_text(bundle: Bundle) -> None:
    text = render_bundle(bundle)
    assert parse_bundle(text) == bundle
    assert text == canonical_json(json.loads(text))


def test_every_scalar_of_a_bundle_is_under_a_check(bundle: Bundle) -> None:
    document = json.loads(render_bundle(bundle))
    paths = list(scalars(document))
    assert len(paths) > 80
    for path in paths:
        value = at(document, path)
        if isinstance(value, int):
            other: object = value + 1
        elif value.lstrip("-").isdigit():
            other = str(int(value) + 1)
        else:
            other = value[:-1] + ("0" if value[-1] != "0" else "1")
        try:
            found = failures(parse_bundle(json.dumps(changed(document, path, other))))
        except BundleError:
            continue
        assert found, f"{path} can be changed unnoticed"


def test_a_failing_step_does_not_hide_the_later_ones(bundle: Bundle) -> None:
    broken = replace(bundle, preimages=replace(bundle.preimages, risk="{}"))
    steps = verify_bundle(broken)
    assert outcomes(steps)[1] == "fail"
    assert "preimages.risk" in steps[0].detail
    assert {n: o for n, o in outcomes(steps).items() if n > 1 and n in SETTLED} == {
        n: o for n, o in SETTLED.items() if n > 1
    }


def test_quorum_deployment_and_time_are_judged_in_step_2(bundle: Bundle, world: World) -> None:
    few = replace(bundle, statement=replace(bundle.statement, signatures=bundle.statement.signatures[:2]))
    assert "signatures: 2 given, the set's threshold is 3" in failures(few)[2]
    assert failures(bundle, deployment_id=world.id, now=CUT_TIME) == {}
    assert failures(bundle, deployment_id=bytes(32)).keys() == {2}
    assert failures(bundle, now=CUT_TIME - 1).keys() == {2}
    assert "no longer current" in verify_bundle(bundle, now=CUT_TIME + 10_000)[1].detail
    other_set = replace(bundle.statement.header, set_id=2)
    signed = world.certify(other_set, bundle.statement.body, (0, 1, 2))
    assert "header.setId" in failures(replace(bundle, statement=signed))[2]
    late = replace(bundle.statement.header, produced_at=world.deployment.not_after + 1)
    signed = world.certify(late, bundle.statement.body, (0, 1, 2))
    assert "the set ended" in failures(replace(bundle, statement=signed))[2]


def test_uniqueness_without_neighbours_rests_on_the_attestors(bundle: Bundle) -> None:
    step = verify_bundle(replace(bundle, neighbours=()))[2]
    assert step.outcome == "pass"
    assert "rests on the attestors' order" in step.detail


def test_a_leaf_of_another_epoch_fails_step_3(bundle: Bundle) -> None:
    (proven,) = bundle.leaves
    older = replace(proven, leaf=replace(proven.leaf, epoch=proven.leaf.epoch - 1))
    assert "leaves[0].leaf.epoch" in failures(replace(bundle, leaves=(older,)))[3]


def price_change(bundle: Bundle, path: tuple[Any, ...], value: object) -> str:
    return canonical_json(changed(json.loads(bundle.preimages.prices), path, value))


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("quotes", 0, "price"), "1", "preimages.prices.quotes[0].price"),
        (("quotes", 0, "conf"), "1", "preimages.prices.quotes[0].conf"),
        (("quotes", 0, "ema_price"), "1", "preimages.prices.quotes[0].ema_price"),
        (("quotes", 0, "ema_conf"), "1", "preimages.prices.quotes[0].ema_conf"),
        (("quotes", 0, "name"), "feed 1", "preimages.prices.quotes[0].feed"),  # a signed price used as another feed's
        (("quotes", 5, "feed"), "0x" + "12" * 20, "preimages.prices.quotes[5].feed"),
        (("quotes", 0, "name"), "feed 9", "preimages.prices.quotes[0].name"),
        (("quotes", 0, "source"), "chainlink", "preimages.prices.quotes[0].name"),
        (("quotes", 0, "expo"), -7, "preimages.prices.quotes[0].expo"),
        (("quotes", 0, "publish_time"), CUT_TIME + 1, "preimages.prices.quotes[0].publish_time"),
        (("quotes", 0, "feed"), "00" * 32, "preimages.prices.quotes[0].feed"),
        (("quotes", 0, "price"), 1, "preimages.prices.quotes[0].price"),
        (("quotes", 0, "kind"), "hearsay", "preimages.prices.quotes[0].kind"),
        (("cut_time",), CUT_TIME - 5, "preimages.prices.quotes[0].publish_time"),
        (("updates", 0), "0x00", "preimages.prices.updates[0].magic"),
        (("updates",), [], "preimages.prices.quotes[0].feed"),
    ],
)
def test_even_a_signed_price_that_the_guardians_did_not_sign_fails_step_6(
    bundle: Bundle, world: World, path: tuple[Any, ...], value: object, field: str
) -> None:
    found = failures(recertified(world, bundle, prices=price_change(bundle, path, value)))
    assert found.keys() == {6}
    assert found[6].startswith(f"{field}: ")


def test_a_price_older_than_the_cut_is_no_failure_but_is_said(bundle: Bundle, world: World) -> None:
    aged = recertified(world, bundle, prices=price_change(bundle, ("cut_time",), CUT_TIME + 1))
    step = verify_bundle(aged)[5]
    assert step.outcome == "not provable yet"
    assert "0 of them the first" in step.detail
    assert "5 are from before it: whether a newer price was to be had is not checked" in step.detail
    assert "5 of them the first at or after" in verify_bundle(bundle)[5].detail


def test_a_policy_without_sources_fails_step_6(bundle: Bundle, world: World) -> None:
    bare = canonical_json({"pyth": json.loads(bundle.preimages.policy)["pyth"]})
    assert failures(recertified(world, bundle, policy=bare)) == {6: "preimages.policy.sources: missing"}


def test_a_policy_without_guardians_fails_step_6(bundle: Bundle, world: World) -> None:
    assert failures(recertified(world, bundle, policy="{}")) == {6: "preimages.policy.pyth: missing"}


def test_a_link_that_the_state_does_not_commit_to_fails_step_7(bundle: Bundle, world: World) -> None:
    other, _ = commit([replace(bundle.links[0], accepted_at=CUT_TIME - 201)])
    assert failures(recertified(world, bundle, state=other)) == {
        7: "accounts[0].path: does not lead from this document and these 1 links to preimages.state.accounts.root"
    }
    assert failures(recertified(world, bundle, state='{"rotations":[]}')) == {7: "preimages.state.accounts: missing"}
    assert failures(recertified(world, bundle, state="{}")).keys() == {2, 7}
    late = replace(bundle.links[0], accepted_at=bundle.links[0].terms.expiry)
    assert "links[0].expiry" in failures(replace(bundle, links=(late,)))[7]


def test_an_injected_core_must_find_the_attested_leaves(bundle: Bundle) -> None:
    leaf = bundle.leaves[0].leaf

    def core(*changes: Any, **fields: Any) -> Any:
        return lambda _: [replace(leaf, **fields)]

    assert verify_bundle(bundle, recompute=core())[6].outcome == "pass"
    assert verify_bundle(bundle, recompute=core(budget=leaf.budget + 1))[6].outcome == "pass"
    assert "leaves[0].leaf.budget" in failures(bundle, recompute=core(budget=leaf.budget + 2))[7]
    assert "leaves[0].leaf.flags" in failures(bundle, recompute=core(flags=0))[7]
    assert failures(bundle, recompute=lambda _: list[Leaf]()).keys() == {7}

    def broken(_: Bundle) -> list[Leaf]:
        raise ProofError("balances", "absent")

    assert failures(bundle, recompute=broken) == {7: "balances: absent"}


def test_the_log_links_back_or_says_where_it_ends(bundle: Bundle) -> None:
    assert "back to the first of the log" in verify_bundle(bundle)[7].detail
    alone = verify_bundle(replace(bundle, history=()))[7]
    assert alone.outcome == "not checked"
    assert bundle.statement.body.previous.hex() in alone.detail
    assert "body.previous" in failures(replace(bundle, history=(bundle.statement,)))[8]


def test_stored_roots_are_compared_where_a_reader_is_given(bundle: Bundle) -> None:
    root = bundle.statement.header.root
    assert verify_bundle(bundle, roots=lambda _: {"eip155:1": root})[8].outcome == "pass"
    assert "eip155:1 stores" in failures(bundle, roots=lambda _: {"eip155:1": bytes(32)})[9]


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("format",), "crossmargin-bundle/1", "format"),
        (("surprise",), 1, "surprise"),
        (("header", "epoch"), "1", "header.epoch"),
        (("header", "epoch"), 2**64, "header.epoch"),
        (("header", "root"), "0x00", "header.root"),
        (("header", "root"), "00" * 32, "header.root"),
        (("deployment", "threshold"), 1, "deployment.threshold"),
        (("deployment", "members", 0), "0x" + "AB" * 20, "deployment.members[0]"),
        (("signatures", 1, "index"), 256, "signatures[1].index"),
        (("leaves", 0, "leaf", "equity"), 5, "leaves[0].leaf.equity"),
        (("leaves", 0, "leaf", "equity"), "-0", "leaves[0].leaf.equity"),
        (("leaves", 0, "leaf", "budget"), str(2**256), "leaves[0].leaf.budget"),
        (("leaves", 0, "leaf", "budget"), "9" * 5000, "leaves[0].leaf.budget"),
        (("leaves", 0, "proof"), "0x", "leaves[0].proof"),
        (("preimages", "cut"), "{", "preimages.cut"),
        (("preimages", "cut"), '{"a":NaN}', "preimages.cut"),
        (("preimages", "cut"), "[" * 100 + "]" * 100, "preimages.cut"),
        (("links", 0, "member"), "nobody", "links[0].member"),
    ],
)
def test_a_malformed_field_is_named_by_its_path(
    bundle: Bundle, path: tuple[Any, ...], value: object, field: str
) -> None:
    with pytest.raises(BundleError) as refusal:
        parse_bundle(json.dumps(changed(json.loads(render_bundle(bundle)), path, value)))
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "\ud800",
        '"\\ud800"',
        "[" * 100_000,
        "1" * 10_000,
        '{"format": "crossmargin-bundle/2", "format": "crossmargin-bundle/2"}',
        " " * (MAX_BYTES + 1),
    ],
)
def test_what_is_no_bundle_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        parse_bundle(text)


@given(st.text(max_size=200))
def test_no_text_raises_anything_but_a_bundle_error(text: str) -> None:
    with pytest.raises(BundleError):
        parse_bundle(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("0x" + "00" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), json_values)
@settings(max_examples=200)
def test_any_value_anywhere_is_refused_by_name_or_judged(bundle: Bundle, data: st.DataObject, value: object) -> None:
    document = json.loads(render_bundle(bundle))
    path: list[Any] = []
    target: Any = document
    while isinstance(target, dict | list) and target and (not path or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
        path.append(key)
        target = target[key]
    try:
        parsed = parse_bundle(json.dumps(changed(document, tuple(path), value)))
    except BundleError as refusal:
        judged = bool(refusal.field)
    else:
        judged = len(verify_bundle(parsed)) == 9
    assert judged


@given(st.data(), json_values)
def test_any_signed_preimage_is_judged_without_raising(
    bundle: Bundle, world: World, data: st.DataObject, value: object
) -> None:
    name = data.draw(st.sampled_from(("prices", "policy", "state")))
    document = json.loads(getattr(bundle.preimages, name))
    path = data.draw(st.sampled_from([(), *scalars(document), *((key,) for key in document)]))
    text = json.dumps(changed({"": document}, ("", *path), value)[""])
    steps = verify_bundle(recertified(world, bundle, **{name: text}))
    assert outcomes(steps)[1] == "pass"


def test_the_command_prints_each_step_and_exits_by_the_verdict(
    bundle: Bundle, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bundle.json"
    file.write_text(render_bundle(bundle))
    assert main(["verify", str(file), "--deployment", f"0x{world.id.hex()}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == list("123456789")

    file.write_text(render_bundle(replace(bundle, preimages=replace(bundle.preimages, state="{}"))))
    assert main(["verify", str(file), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["steps"][0]["outcome"] == "fail"
    assert "preimages.state" in answer["steps"][0]["detail"]

    file.write_text("{}")
    assert main(["verify", str(file)]) == 2
    assert "format: missing" in capsys.readouterr().err
