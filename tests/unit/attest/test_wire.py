"""Who may ask, once, and whose answer counts."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapters.wire as wire
from adapters.keys import KeySigner
from adapters.wire import SKEW, WireGate
from aggregator.domain.errors import RefusedError
from tests.fault.wired import ANSWERER, ASKER, DEPLOYMENT_ID, STRANGER, make_gate
from tests.unit.attest.statements import ManualClock

NOW = 1_900_000_000.0
BODY = b"a proposal"
PATH = "/v1/attest/epoch"


def signed(
    signer: KeySigner = ASKER,
    *,
    method: str = "POST",
    path: str = PATH,
    time: float = NOW,
    nonce: bytes = bytes(16),
    body: bytes = BODY,
    deployment_id: bytes = DEPLOYMENT_ID,
    receiver: str = ANSWERER.address,
) -> dict[str, str]:
    terms = wire._Terms(
        bytes.fromhex(signer.address[2:]),
        bytes.fromhex(receiver[2:]),
        method,
        path,
        int(time),
        nonce,
        sha256(body).digest(),
    )
    r, vs = signer.sign(wire._request_digest(deployment_id, terms))
    return {
        "x-crossmargin-from": signer.address,
        "x-crossmargin-to": receiver,
        "x-crossmargin-time": str(int(time)),
        "x-crossmargin-nonce": nonce.hex(),
        "x-crossmargin-sha256": sha256(body).hexdigest(),
        "x-crossmargin-signature": (r + vs).hex(),
    }


def gate_since(since: float = NOW - 100) -> tuple[WireGate, ManualClock]:
    clock = ManualClock(since)
    gate = make_gate(clock)
    clock.time = NOW
    return gate, clock


def test_a_known_peers_request_is_let_in_once() -> None:
    gate, _ = gate_since()
    ticket = gate.admit("POST", PATH, signed())
    ticket.verify_body(BODY)
    assert (ticket.sender, ticket.name) == (ASKER.address, "coordinator")
    with pytest.raises(RefusedError, match="was made before"):
        gate.admit("POST", PATH, signed())
    gate.admit("POST", PATH, signed(nonce=b"\x01" * 16))


@given(st.data())
def test_any_changed_byte_of_a_request_is_refused(data: st.DataObject) -> None:
    gate, _ = gate_since()
    parts: dict[str, str] = {"method": "POST", "path": PATH, "body": BODY.decode(), **signed()}
    name = data.draw(st.sampled_from(sorted(parts)))
    at = data.draw(st.integers(0, len(parts[name]) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != parts[name][at]))
    parts[name] = parts[name][:at] + other + parts[name][at + 1 :]
    with pytest.raises(RefusedError) as refusal:
        gate.admit(parts.pop("method"), parts.pop("path"), parts).verify_body(parts["body"].encode())
    assert refusal.value.rule == "wire"


@given(st.dictionaries(st.sampled_from(sorted(signed())), st.text(max_size=140)))
def test_no_header_whatever_raises_anything_else(headers: dict[str, str]) -> None:
    gate, _ = gate_since()
    with pytest.raises(RefusedError):
        gate.admit("POST", PATH, {**signed(STRANGER), **headers})
    for name in signed():
        with pytest.raises(RefusedError):
            gate.admit("POST", PATH, {k: v for k, v in signed().items() if k != name})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"signer": STRANGER}, "not known"),
        ({"deployment_id": bytes(32)}, "not known"),
        ({"receiver": STRANGER.address}, "somebody else"),
        ({"time": NOW - SKEW - 1}, "signed at"),
        ({"time": NOW + SKEW + 1}, "signed at"),
    ],
)
def test_who_is_a_stranger_late_or_early_is_refused(changes: dict[str, Any], why: str) -> None:
    gate, _ = gate_since()
    with pytest.raises(RefusedError, match=why):
        gate.admit("POST", PATH, signed(**changes))
    assert gate._nonces == {}  # no stranger fills our memory


def test_the_window_is_thirty_seconds_both_ways() -> None:
    gate, _ = gate_since()
    gate.admit("POST", PATH, signed(time=NOW - SKEW, nonce=b"\x01" * 16))
    gate.admit("POST", PATH, signed(time=NOW + SKEW, nonce=b"\x02" * 16))


def test_what_was_signed_before_a_restart_is_refused_after_it() -> None:
    gate, _ = gate_since(NOW)
    gate.admit("POST", PATH, signed(time=NOW))
    with pytest.raises(RefusedError, match="the gate opened at"):
        gate.admit("POST", PATH, signed(time=NOW - 1, nonce=b"\x01" * 16))


def test_nonces_are_bounded_and_never_forgotten_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "NONCES", 3)
    gate, clock = gate_since()
    for i in range(3):
        gate.admit("POST", PATH, signed(nonce=bytes([i]) * 16))
    with pytest.raises(RefusedError, match="more than 3 requests"):
        gate.admit("POST", PATH, signed(nonce=b"\x09" * 16))
    clock.time += SKEW  # the first ones may still be replayed
    with pytest.raises(RefusedError, match="more than 3 requests"):
        gate.admit("POST", PATH, signed(nonce=b"\x09" * 16, time=clock.time))
    clock.time += 1
    gate.admit("POST", PATH, signed(nonce=b"\x09" * 16, time=clock.time))
    assert len(gate._nonces[bytes.fromhex(ASKER.address[2:])]) == 1
