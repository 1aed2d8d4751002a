"""The whole surface under generated requests: nothing fails, and every answer is what /openapi.json promises."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from aggregator.api import create_app
from aggregator.store import SqlStore
from tests.api.synthetic_epochs import make_world

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_answers_are_as_described(tmp_path: Path, filled: Path) -> None:
    store = asyncio.run(SqlStore.open(f"sqlite:///{shutil.copy(filled, tmp_path / 'store.db')}"))
    world = make_world(store)
    statuses: Counter[int] = Counter()
    operations = [
        r.ok() for r in schemathesis.openapi.from_asgi("/openapi.json", create_app(world.service)).get_all_operations()
    ]
    assert len(operations) > 15
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=10,
            database=None,
            deadline=None,
            derandomize=True,  # the same requests every time: a red run is a change of ours
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: schemathesis.Case) -> None:
            statuses[case.call_and_validate(checks=CHECKS).status_code] += 1

        ask()
    asyncio.run(store.close())
    assert {200, 404, 422} <= set(statuses), "the requests reach neither success nor refusal"
