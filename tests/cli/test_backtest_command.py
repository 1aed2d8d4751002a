"""``crossmargin backtest``, ``recalibrate`` and ``policy`` by hand, on the slice of prices that the repository has."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from aggregator.__main__ import app
from aggregator.cli.policy import render_policy, replace_policy
from aggregator.config import load_policy, load_settings, parse_policy
from aggregator.domain.errors import ConfigError, ConflictError, InputError
from aggregator.domain.policy import PolicyRow, policy_digest
from infra.devnet.world import World
from tests.cli.conftest import Shell
from tests.risk_world import history, risk_policy

SLICE = Path(__file__).parents[1] / "unit" / "core" / "prices"
EXAMPLE = Path(__file__).parents[2] / "infra" / "config" / "policy.toml"
ON = ("--prices", str(SLICE))


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "CROSSMARGIN_CONFIG": ""})
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """A policy document of its own, in a folder of its own."""
    path = tmp_path / "policy.toml"
    shutil.copyfile(EXAMPLE, path)
    return path


# --- backtest ---------------------------------------------------------------------------------------------------------


def test_a_backtest_reads_well_and_says_what_it_rests_on(tmp_path: Path) -> None:
    picture = tmp_path / "sol.svg"
    shown = run("backtest", *ON, "--series", "sol_usdt_1d_binance", "--policy", str(EXAMPLE), "--plot", str(picture))
    assert "sol_usdt_1d_binance: 729 periods of 1d, 2021-01-02 to 2022-12-31" in shown
    for model in ("haircut IM", "haircut MM", "ewma", "fhs", "normal"):
        assert model in shown
    assert "2022-11-09" in shown  # FTX: the day farthest beyond
    assert policy_digest(load_policy(EXAMPLE)) in shown
    assert "profit and loss" in picture.read_text("utf-8")


def test_the_json_agrees_with_itself_and_with_kupiec() -> None:
    arguments = ("backtest", *ON, "--asset", "SOL", "--horizon", "1h", "--window", "250", "--json")
    told = json.loads(run(*arguments, "--policy", str(EXAMPLE)))
    rows = {row["model"]: row for row in told["backtests"]}
    assert set(rows) == {"haircut IM", "haircut MM", "ewma", "fhs", "normal"}
    for row in rows.values():
        assert row["n"] == 1872 - 1 - (0 if row["policy_row"] else 250)
        assert row["breaches"] == len(row["breached_at"])
        low, high = row["accepted"]
        word = "too low" if row["breaches"] > high else "ample" if row["breaches"] < low else "holds"
        assert row["coverage"] == word
        assert (word == "holds") == (row["kupiec"]["pvalue"] > 0.05)
    assert rows["haircut IM"]["mean_set_aside"] > rows["haircut MM"]["mean_set_aside"]
    assert rows["haircut MM"]["breaches_of_whole_haircut"] <= rows["haircut MM"]["breaches"]


def test_the_lows_of_a_period_are_a_harder_test() -> None:
    arguments = ("backtest", *ON, "--asset", "SOL", "--horizon", "1h", "--model", "fhs", "--json")
    plain, low = (json.loads(run(*arguments, *more))["backtests"][0] for more in ((), ("--low",)))
    assert low["breaches"] > plain["breaches"]
    assert low["worst_loss"] > plain["worst_loss"]


def test_a_haircut_for_a_longer_horizon_is_breached_less() -> None:
    arguments = ("backtest", *ON, "--asset", "stETH", "--horizon", "1h", "--model", "haircut", "--since", "2022-05-01")
    more = ("--policy", str(EXAMPLE), "--json")
    rows = [json.loads(run(*arguments, *more, "--charged-for", at))["backtests"][0] for at in ("1h", "7d")]
    assert rows[0]["breaches"] > rows[1]["breaches"]
    assert rows[0]["policy_row"] == "receipt"


def test_without_a_policy_the_models_are_tested_and_the_haircut_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("backtest", "--series", "sol_usdt_1d_binance")
    assert "haircut IM" not in shown
    assert "no policy is configured here" in shown
    assert "only the small slice" in shown
    assert "needs a policy" in run("backtest", *ON, "--asset", "SOL", "--model", "haircut", code=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--asset", "DOGE"), "no history of 'DOGE'"),
        (("--series", "../secret"), "no '../secret'"),
        (("--asset", "SOL", "--model", "oracle"), "one of haircut, ewma, fhs, normal"),
        (("--asset", "SOL", "--horizon", "7m"), "no multiple"),
        (("--asset", "SOL", "--window", "5"), "window"),
        (("--asset", "SOL", "--window", "99999"), "leave 0 of"),
        (("--asset", "SOL", "--alpha", "1"), "alpha"),
        (("--asset", "SOL", "--since", "yesterday"), "no day"),
        (("--asset", "SOL", "--since", "2031-01-01"), "fewer than two bars"),
        (("--asset", "SOL", "--row", "odd", "--policy", str(EXAMPLE)), "there are: alt, major, receipt, stable"),
        (("--asset", "SOL", "--policy", str(EXAMPLE), "--horizon", "1h", "--plot", "x.gif"), "must end with .png"),
    ],
)
def test_a_backtest_that_cannot_be_says_why(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = run("backtest", *ON, *arguments, code=2)
    assert error.startswith("error: ")
    assert says in error


# --- policy -----------------------------------------------------------------------------------------------------------


def test_the_policy_in_force_is_shown_with_its_digest(shell: Shell) -> None:
    settings = load_settings(shell.config)
    told = shell.json("policy")
    assert told["version"] == settings.policy.version
    assert told["digest"] == policy_digest(settings.policy)
    assert parse_policy(told["policy"]) == settings.policy
    shown = shell("policy").stdout
    assert told["digest"] in shown
    for row in settings.policy.assets:
        assert row in shown


def test_the_digest_is_of_what_statements_commit_to(shell: Shell) -> None:
    """An auditor finds it in the preimage of policyDigest: the member ``policy``, as it stands there."""
    import asyncio

    from aggregator.bootstrap import open_store
    from proofs.hashing import keccak256

    async def preimage() -> str:
        store = await open_store(load_settings(shell.config))
        try:
            record = await store.epoch()
            assert record is not None
            return record.preimages["policy"]
        finally:
            await store.close()

    committed = json.loads(asyncio.run(preimage()))["policy"]
    text = json.dumps(committed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert "0x" + keccak256(text.encode()).hex() == shell.json("policy")["digest"]


def test_a_document_is_checked_by_itself(document: Path) -> None:
    assert "is valid" in run("policy", "--check", str(document))
    document.write_text(document.read_text("utf-8").replace("range = 0.18", "range = 0.4"), "utf-8")
    assert "scenario.tails must lie beyond" in run("policy", "--check", str(document), code=2)
    document.write_text("volatilty = 1\n", "utf-8")
    assert "policy.toml: " in run("policy", "--check", str(document), code=2)


def test_a_surface_with_a_negative_density_is_remarked_on(document: Path) -> None:
    # Gatheral and Jacquier (2014), example 3.1: no calendar arbitrage, and a butterfly
    bad = "surface = [{ tenor = 31536000, a = -0.041, b = 0.1331, rho = 0.306, m = 0.3586, sigma = 0.4153 }]"
    text = document.read_text("utf-8")
    assert "butterfly" not in run("policy", "--check", str(document))
    document.write_text(text.replace('[underlyings."BTC/USD"]', f'[underlyings."BTC/USD"]\n{bad}'), "utf-8")
    assert "underlyings.BTC/USD.surface: the tenor of 365d has butterfly arbitrage" in run(
        "policy", "--check", str(document)
    )


def test_what_is_written_reads_back_as_the_same_policy(document: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    run("policy", "--check", str(document), "--write", str(other))
    assert load_policy(other) == load_policy(document)
    assert "exists" in run("policy", "--check", str(document), "--write", str(other), code=2)
    rich = risk_policy(past=history())
    assert parse_policy(tomllib.loads(render_policy(rich))) == rich


def test_a_configuration_may_name_its_policy(shell: Shell, tmp_path: Path) -> None:
    settings, whole = load_settings(shell.config), tomllib.loads(shell.config.read_text("utf-8"))
    inline = whole.pop("policy")
    assert isinstance(inline, dict)
    (shell.config.parent / "risk").mkdir()
    (shell.config.parent / "risk" / "p.toml").write_text(tomli_w.dumps(inline), "utf-8")
    shell.config.write_text(tomli_w.dumps({"policy": "risk/p.toml"} | whole), "utf-8")
    assert load_settings(shell.config) == settings
    (shell.config.parent / "risk" / "p.toml").write_text(tomli_w.dumps(inline | {"lifetime": -1}), "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(shell.config)
    assert caught.value.file.endswith("p.toml")
    assert caught.value.key == "lifetime"
    (shell.config.parent / "risk" / "p.toml").unlink()
    with pytest.raises(ConfigError, match="does not exist; a policy document is expected"):
        load_settings(shell.config)


# --- recalibrate ------------------------------------------------------------------------------------------------------


def recalibrated(*arguments: str, code: int = 0) -> Any:
    told = run("recalibrate", *ON, "--use", "assets.major=sol_usdt_1d_binance", *arguments, "--json", code=code)
    return told if code else json.loads(told)


def test_a_recalibration_shows_and_changes_nothing(document: Path) -> None:
    before = document.read_bytes()
    shown = run("recalibrate", *ON, "--policy", str(document), "--use", "assets.major=sol_usdt_1d_binance")
    for text in ("example-2 → example-3", "assets.major.volatility", "0.8", "nothing was changed", "15m"):
        assert text in shown
    assert document.read_bytes() == before
    assert [p.name for p in document.parent.iterdir()] == ["policy.toml"]


def test_apply_replaces_the_document_and_keeps_the_old_one(document: Path) -> None:
    before, old = document.read_bytes(), load_policy(document)
    told = recalibrated("--policy", str(document), "--apply", "--expect", policy_digest(old))
    new = load_policy(document)
    assert told["applied"]
    assert (new.version, policy_digest(new)) == (told["new"]["version"], told["new"]["digest"])
    assert new.assets["major"].volatility == next(
        c["new"] for c in told["changes"] if c["path"] == "assets.major.volatility"
    )
    assert [p.series for p in new.provenance] == ["sol_usdt_1d_binance"]
    assert (document.parent / "policy-example-2.toml").read_bytes() == before
    assert sorted(p.name for p in document.parent.iterdir()) == ["policy-example-2.toml", "policy.toml"]
    # once more: the same data say the same, and another digest for nothing would only cost a quorum
    again = recalibrated("--policy", str(document), "--apply")
    assert (again["applied"], again["kept"], load_policy(document)) == (False, None, new)
    shown = run("recalibrate", *ON, "--use", "assets.major=sol_usdt_1d_binance", "--policy", str(document), "--apply")
    assert "there is nothing to apply" in shown
    # other data: the next version, the one before is kept too, and so is where the rest of it came from
    arguments = (*ON, "--policy", str(document), "--use", "underlyings.ETH/USD=sol_usdt_1d_binance", "--apply")
    shown = run("recalibrate", *arguments)
    assert "restart crossmargin run" in shown
    assert f"cp {document.parent / 'policy-example-3.toml'} {document}" in shown
    assert load_policy(document).version == "example-4"
    assert [p.target for p in load_policy(document).provenance] == ["assets.major", "underlyings.ETH/USD"]
    assert load_policy(document.parent / "policy-example-3.toml") == new


def test_another_policy_than_expected_is_not_replaced(document: Path) -> None:
    before = document.read_bytes()
    error = recalibrated("--policy", str(document), "--apply", "--expect", "0x" + "00" * 32, code=2)
    assert "has digest" in error
    assert document.read_bytes() == before


def test_a_document_that_changed_meanwhile_is_not_replaced(document: Path) -> None:
    old = load_policy(document)
    new = PolicyRow.model_validate(old.model_dump() | {"version": "mine"})
    document.write_text(document.read_text("utf-8").replace("lifetime = 600", "lifetime = 601"), "utf-8")
    changed = document.read_bytes()
    with pytest.raises(ConflictError, match="was changed since"):
        replace_policy(document, old, new)
    assert document.read_bytes() == changed
    assert [p.name for p in document.parent.iterdir()] == ["policy.toml"]


def test_a_failed_write_leaves_the_old_document(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, old = document.read_bytes(), load_policy(document)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        replace_policy(document, old, PolicyRow.model_validate(old.model_dump() | {"version": "mine"}))
    monkeypatch.undo()
    assert document.read_bytes() == before
    assert load_policy(document) == old
    assert [p.name for p in document.parent.iterdir()] == ["policy.toml"]


def test_an_older_document_of_that_name_is_not_overwritten(document: Path) -> None:
    kept = document.parent / "policy-example-2.toml"
    kept.write_text("# mine\n", "utf-8")
    assert "holds another document" in recalibrated("--policy", str(document), "--apply", code=2)
    assert kept.read_text("utf-8") == "# mine\n"


def test_parameters_that_do_not_hold_together_are_refused_whole(document: Path) -> None:
    text = document.read_text("utf-8").replace("-0.66, -0.33,", "-0.19,")
    document.write_text(text, "utf-8")
    arguments = ("--policy", str(document), "--use", "underlyings.ETH/USD=sol_usdt_1d_binance", "--apply")
    error = recalibrated(*arguments, code=2)
    assert "nothing was changed" in error
    assert "scenario.tails" in error
    assert document.read_text("utf-8") == text


def test_accounts_are_told_what_would_change(shell: Shell) -> None:
    told = shell.json("recalibrate", *ON, "--use", "assets.major=sol_usdt_1d_binance")
    assert not told["applied"]
    assert told["accounts"]
    volatility = next(c for c in told["changes"] if c["path"] == "assets.major.volatility")
    assert volatility["new"] > volatility["old"]
    moved = [a for a in told["accounts"] if a["free_before"] != a["free_after"]]
    assert moved
    shell.refused(("recalibrate", *ON, "--apply"), 2, "is a table inside the configuration", "--write")


def test_the_devnets_policy_is_recalibrated_with_what_the_repository_carries(tmp_path: Path) -> None:
    place = tmp_path / "policy.toml"
    place.write_text(tomli_w.dumps(World._policy()), "utf-8")
    run("policy", "--check", str(place))
    told = run("recalibrate", *ON, "--policy", str(place), "--apply")
    # the hourly bars at hand do not reach back far enough: the daily ones do
    assert "sol_usdt_1h_binance is passed over" in told
    changed = load_policy(place)
    assert [(p.series, p.target) for p in changed.provenance] == [("sol_usdt_1d_binance", "underlyings.SOL/USD")]
    assert changed.underlyings["SOL/USD"].range != 0.22


def test_a_configured_document_is_replaced_where_it_is(shell: Shell) -> None:
    whole = tomllib.loads(shell.config.read_text("utf-8"))
    place = shell.config.parent / "risk.toml"
    place.write_text(tomli_w.dumps(whole.pop("policy")), "utf-8")
    shell.config.write_text(tomli_w.dumps({"policy": "risk.toml"} | whole), "utf-8")
    told = shell.json("recalibrate", *ON, "--use", "assets.major=sol_usdt_1d_binance", "--apply")
    assert told["applied"]
    assert policy_digest(load_settings(shell.config).policy) == told["new"]["digest"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--use", "major=sol_usdt_1d_binance"), "no row of the policy"),
        (("--use", "assets.major=none"), "no 'none'"),
        (("--use", "assets.major=sol_usdt_1d_binance", "--since", "2022-12-01"), "daily returns"),
    ],
)
def test_a_recalibration_that_cannot_be_says_why(arguments: tuple[str, ...], says: str, document: Path) -> None:
    assert says in run("recalibrate", *ON, "--policy", str(document), *arguments, code=2)
