"""Command line: `python -m proofs verify BUNDLE` and `python -m proofs prices FILE`.

Exit status: 0 everything that can be checked holds, 1 a check failed, 2 the file cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from proofs.bundle import MAX_BYTES, Bundle, parse_bundle
from proofs.document import parse_json
from proofs.errors import BundleError, ProofError
from proofs.pyth import PriceFileResult, PriceMessage, verify_price_file
from proofs.verify import Step, verify_bundle

PASSED, FAILED, UNUSABLE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "verify":
            return _run_verify(options.file, options.json, options.deployment, options.now, options.recovered)
        return _run_prices(options.file, options.json)
    except ProofError as error:
        if options.json:
            print(json.dumps({"ok": False, "error": {"field": error.field, "reason": error.reason}}))
        else:
            print(f"{options.file}: {error}", file=sys.stderr)
        return UNUSABLE


def _run_verify(
    file: str, as_json: bool, deployment_id: bytes | None, now: int | None, recovered: Sequence[bytes]
) -> int:
    bundle = parse_bundle(_read_text(file))
    steps = verify_bundle(bundle, now=now, deployment_id=deployment_id, recovered=recovered)
    failed = any(step.outcome == "fail" for step in steps)
    if as_json:
        print(json.dumps(_bundle_document(bundle, steps, ok=not failed)))
    else:
        for step in steps:
            print(f"{step.number} {step.title:<36} {step.outcome:<16} {step.detail}")
    return FAILED if failed else PASSED


def _run_prices(file: str, as_json: bool) -> int:
    results = verify_price_file(parse_json(_read_text(file), max_bytes=MAX_BYTES).value)
    if as_json:
        print(json.dumps({"ok": all(result.ok for result in results), "updates": [_result(r) for r in results]}))
    else:
        for result in results:
            print(f"{result.name}: {result.problem or f'{len(result.prices)} prices verified'}")
    return PASSED if all(result.ok for result in results) else FAILED


def _bundle_document(bundle: Bundle, steps: Sequence[Step], *, ok: bool) -> dict[str, object]:
    return {
        "ok": ok,
        "deployment": f"0x{bundle.deployment.deployment_id().hex()}",
        "epoch": bundle.statement.header.epoch,
        "steps": [asdict(step) for step in steps],
    }


def _result(result: PriceFileResult) -> dict[str, object]:
    prices = [_price(price) for price in result.prices]
    return {"name": result.name, "ok": result.ok, "problem": result.problem, "prices": prices}


def _price(price: PriceMessage) -> dict[str, object]:
    return {
        "feed_id": f"0x{price.feed_id.hex()}",
        "price": str(price.price),
        "conf": str(price.conf),
        "expo": price.expo,
        "publish_time": price.publish_time,
    }


def _read_text(file: str) -> str:
    """Read a file, or standard input for `-`, and no more of it than any usable file has."""
    try:
        if file == "-":
            return _read_bounded(sys.stdin)
        with open(file, encoding="utf-8") as stream:
            return _read_bounded(stream)
    except OSError as error:
        raise BundleError("", f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BundleError("", f"not UTF-8 text: {error.reason} at byte {error.start}") from error


def _read_bounded(stream: TextIO) -> str:
    return stream.read(MAX_BYTES + 1)


def _word(text: str) -> bytes:
    decoded = bytes.fromhex(text.removeprefix("0x"))
    if len(decoded) != 32:
        raise ValueError("32 bytes of hex expected")
    return decoded


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m proofs",
        description="Verify what crossmargin attests, offline, sharing no code with its producer.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser(
        "verify",
        help="check an audit bundle step by step",
        description="Check an audit bundle and print its nine steps.",
    )
    verify.add_argument("file", metavar="BUNDLE", help="the bundle's file, or - for standard input")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.add_argument(
        "--deployment",
        type=_word,
        metavar="0xID",
        help="the deployment id you trust (32 bytes); step 2 compares it",
    )
    verify.add_argument(
        "--recovered",
        type=_word,
        action="append",
        default=[],
        metavar="0xDIGEST",
        help="a set of attestors that governance put in place, as the registries say; may be repeated",
    )
    verify.add_argument("--now", type=int, metavar="SECONDS", help="Unix time; statements from after it fail")
    prices = commands.add_parser(
        "prices",
        help="check a file of Pyth updates",
        description="Check each update of a price file: signatures, quorum, Merkle paths and expected values.",
    )
    prices.add_argument("file", metavar="FILE", help="the price file, or - for standard input")
    prices.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
