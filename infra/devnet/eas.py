"""Deploy the real Ethereum Attestation Service from the artifacts of npm's ``eas-contracts``, and our schema on it.

The package is under MIT; it is a dev dependency of the devnet, never part of what is shipped.
"""

from __future__ import annotations

import json
from typing import Any

from web3 import Web3
from web3.contract import Contract

from infra.devnet.anvil import NODE_MODULES, AnvilError, deploy_code, transact
from infra.devnet.artifacts import load

ARTIFACTS = NODE_MODULES / "@ethereum-attestation-service" / "eas-contracts" / "artifacts" / "contracts"


def load_eas(name: str) -> dict[str, Any]:
    """Return a Hardhat artifact of the package, ``EAS`` or ``SchemaRegistry``: abi, bytecode."""
    path = ARTIFACTS / f"{name}.sol" / f"{name}.json"
    if not path.is_file():
        raise AnvilError("the EAS artifacts (node_modules/@ethereum-attestation-service) are missing: `make install`")
    artifact: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return artifact


def deploy_eas(w3: Web3, registry: Contract) -> dict[str, str]:
    """Deploy EAS, its schema registry and a MarginResolver for ``registry``; register the schema of statements.

    Return name -> lower-case hex: eas, eas_schemas, eas_resolver (addresses) and eas_schema (the schema's uid).
    """
    schemas = deploy_code(w3, *_code("SchemaRegistry"))
    eas = deploy_code(w3, *_code("EAS"), schemas.address)
    resolver = deploy_code(w3, *load("MarginResolver"), eas.address, registry.address)
    text = resolver.functions.SCHEMA().call()
    receipt = transact(w3, schemas.functions.register(text, resolver.address, False))
    (event,) = schemas.events.Registered().process_receipt(receipt)
    return {
        "eas": eas.address.lower(),
        "eas_schemas": schemas.address.lower(),
        "eas_resolver": resolver.address.lower(),
        "eas_schema": Web3.to_hex(event["args"]["uid"]),
    }


def _code(name: str) -> tuple[Any, str]:
    artifact = load_eas(name)
    return artifact["abi"], artifact["bytecode"]
