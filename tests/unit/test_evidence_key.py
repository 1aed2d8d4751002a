"""The key that signs disputes signs nothing else: no attestor and no payer may be given it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.bootstrap import evidence_signer
from aggregator.config import parse_settings
from aggregator.domain.errors import ConfigError
from tests.worlds.documents import make_document


@pytest.mark.parametrize("table", ["service", "destinations"])
def test_an_attestor_or_payer_cannot_be_the_witness(tmp_path: Path, table: str) -> None:
    document = make_document(tmp_path)
    if table == "service":
        document["service"]["attestor_keys"][0] = "evidence"
    else:
        document["destinations"][0]["payer_key"] = "evidence"
    with pytest.raises(ConfigError, match="is the key that signs disputes"):
        evidence_signer(parse_settings(document))
    assert not list(tmp_path.rglob("evidence.json"))
