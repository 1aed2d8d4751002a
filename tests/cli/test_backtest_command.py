"""``crossmargin backtest``, ``recalibrate`` and ``policy`` by hand, on the slice of prices that the repository has."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from aggregator.__main__ import app
from aggregator.cli.history import FULL
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


def test_without_arguments_what_the_repository_carries_is_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("backtest")
    assert "sol_usdt_1d_binance: 729 periods of 1d" in shown, "of the hourly bars too few are carried"
    assert "sol_usdt_1d_binance has 729 periods: models see 364 first, not 500" in shown
    assert "no history of 'BTC/USD'" in shown
    rows = json.loads(run("backtest", "--asset", "SOL", "--json"))["backtests"]
    assert {(row["series"], row["window"], row["n"]) for row in rows} == {("sol_usdt_1d_binance", 364, 729 - 364)}
    chosen = json.loads(run("backtest", "--asset", "SOL", "--window", "60", "--json"))
    assert {row["series"] for row in chosen["backtests"]} == {"sol_usdt_1h_binance"}, "its 77 days are enough for this"
    assert chosen["window"] == 60


def test_hours_stay_on_the_line_of_their_day() -> None:
    shown = run("backtest", *ON, "--asset", "SOL", "--horizon", "1h", "--policy", str(EXAMPLE))
    assert "2022-11-08 17:00" in shown


def test_a_report_embeds_its_pictures_by_relative_paths(tmp_path: Path) -> None:
    written = tmp_path / "deep" / "report.md"
    written.parent.mkdir()
    arguments = ("backtest", *ON, "--asset", "SOL", "--asset", "stETH", "--horizon", "1h", "--window", "250")
    shown = run(*arguments, "--policy", str(EXAMPLE), "--report", str(written), "--json")
    text = written.read_text("utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert pictures == ["report-sol_usdt_1h_binance.svg", "report-steth_eth_1h_coingecko.svg"]
    for name in pictures:
        assert "<svg" in (written.parent / name).read_text("utf-8")
    for row in json.loads(shown)["backtests"]:
        assert f"| {row['model']} | {100 * row['alpha']:g} | {row['n']:,} |" in text
        assert f"| {row['breaches']:,} | {row['promised']:,.1f} | " in text
    assert policy_digest(load_policy(EXAMPLE)) in text
    assert "| ewma | floor and buffer |" in text
    again = text
    run(*arguments, "--policy", str(EXAMPLE), "--report", str(written))
    assert written.read_text("utf-8") == again
    assert "must end with .md" in run(*arguments, "--report", str(tmp_path / "report.txt"), code=2)


def test_every_class_of_the_example_says_where_it_came_from() -> None:
    policy = load_policy(EXAMPLE)
    assert {p.target for p in policy.provenance} == {f"assets.{name}" for name in policy.assets}
    arguments = ("backtest", *ON, "--policy", str(EXAMPLE), "--model", "haircut", "--series", "sol_usdt_1d_binance")
    told = json.loads(run(*arguments, "--json"))["backtests"]
    assert [(row["policy_row"], row["coverage"]) for row in told] == [("alt", "holds"), ("alt", "holds")]


@pytest.mark.skipif(not FULL.is_dir(), reason="the full price histories are not beside the repository")
@pytest.mark.parametrize("horizon", ["1h", "1d"])
def test_the_examples_haircuts_hold_or_are_ample_on_all_histories(horizon: str) -> None:
    arguments = ("--prices", str(FULL), "--policy", str(EXAMPLE), "--model", "haircut", "--horizon", horizon)
    told = json.loads(run("backtest", *arguments, "--json"))["backtests"]
    assert len(told) == 10  # five series, two levels
    assert {row["coverage"] for row in told} <= {"holds", "ample"}
    for row in told:
        (source,) = [p for p in load_policy(EXAMPLE).provenance if p.series == row["series"]]
        assert (source.sha256, source.target) == (row["sha256"], f"assets.{row['policy_row']}")


# --- procyclicality ---------------------------------------------------------------------------------------------------


def test_procyclicality_is_told_with_and_without_floor_and_buffer(tmp_path: Path) -> None:
    picture = tmp_path / "p.svg"
    arguments = ("procyclicality", *ON, "--series", "sol_usdt_1d_binance", "--window", "100")
    shown = run(*arguments, "--plot", str(picture))
    rules = ["as it is", "floor", "buffer", "floor and buffer"]
    told = json.loads(run(*arguments, "--json"))["margins"]
    assert [row["rule"] for row in told] == rules
    for row in told:
        assert f"{row['peak_to_trough']:.2f}" in shown
        assert row["peak_to_trough"] == pytest.approx(row["peak"] / row["trough"])
        assert 0 <= row["rises"]["1"] <= row["rises"]["5"] <= row["rises"]["30"]
    plain, floor = told[0], told[1]
    assert floor["peak_to_trough"] < plain["peak_to_trough"]
    assert floor["trough"] > plain["trough"]
    assert floor["peak"] == plain["peak"]
    for rule in rules:
        assert rule in picture.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "haircut"), "one of ewma, fhs, normal"),
        (("--horizon", "7d"), "does not divide a day"),
        (("--window", "10"), "window: 10 periods; at least 30"),
        (("--window", "5000"), "leave none"),
        (("--alpha", "2"), "alpha"),
    ],
)
def test_a_procyclicality_that_cannot_be_says_why(arguments: tuple[str, ...], says: str) -> None:
    assert says in run("procyclicality", *ON, "--series", "sol_usdt_1d_binance", *arguments, code=2)


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
        (("--asset", "SOL", "--window", "99999"), "choose a shorter window or a longer history"),
        (("--asset", "SOL", "--alpha", "1"), "--alpha: 1.0 is no confidence"),
        (("--alpha", "nan"), "--alpha: nan is no confidence"),
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
    told = recalibrated("--policy", str(document), "--apply", "--allow-looser", "--expect", policy_digest(old))
    new = load_policy(document)
    assert told["applied"]
    assert (new.version, policy_digest(new)) == (told["new"]["version"], told["new"]["digest"])
    assert new.assets["major"].volatility == next(
        c["new"] for c in told["changes"] if c["path"] == "assets.major.volatility"
    )
    assert [p.series for p in new.provenance if p.target == "assets.major"] == ["sol_usdt_1d_binance"]
    assert [p for p in new.provenance if p.target != "assets.major"] == [
        p for p in old.provenance if p.target != "assets.major"
    ]
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
    assert [p.target for p in load_policy(document).provenance][-2:] == ["assets.major", "underlyings.ETH/USD"]
    assert load_policy(document.parent / "policy-example-3.toml") == new


def test_what_loosens_is_listed_and_not_applied_unless_asked_for(document: Path) -> None:
    document.write_text(document.read_text("utf-8").replace("volatility = 1.324", "volatility = 5.0"), "utf-8")
    before = document.read_bytes()
    milder = ("--policy", str(document), *ON, "--use", "assets.alt=sol_usdt_1d_binance")
    shown = run("recalibrate", *milder)
    assert "lower requirements: assets.alt.jumps, assets.alt.volatility" in shown
    told = json.loads(run("recalibrate", *milder, "--json"))
    (change,) = [c for c in told["changes"] if c["path"] == "assets.alt.volatility"]
    assert (change["initial"], change["maintenance"], change["loosens"]) == ("lower", "lower", True)
    error = run("recalibrate", *milder, "--apply", code=2)
    for text in ("assets.alt.jumps, assets.alt.volatility", "--allow-looser", "nothing was changed"):
        assert text in error
    assert document.read_bytes() == before
    run("recalibrate", *milder, "--apply", "--allow-looser")
    assert load_policy(document).assets["alt"].volatility == change["new"]


def test_a_document_beside_a_configuration_takes_its_series_from_there(shell: Shell, tmp_path: Path) -> None:
    """-c with --policy is used: what stands behind the rows, and the accounts; the document is what changes."""
    place = tmp_path / "other.toml"
    place.write_text(render_policy(load_settings(shell.config).policy), "utf-8")
    before = shell.config.read_bytes()
    told = shell.json("recalibrate", "--policy", str(place), *ON, "--use", "assets.major=sol_usdt_1d_binance")
    assert told["accounts"]
    assert any("assets." in note or "underlyings." in note for note in told["notes"])
    missing = shell.config.with_name("none.toml")
    error = run("recalibrate", "-c", str(missing), "--policy", str(place), *ON, code=2)
    assert "none.toml" in error
    assert shell.config.read_bytes() == before


def test_joint_moves_by_copula_are_told_with_their_seed(document: Path) -> None:
    use = [f"underlyings.{feed}/USD=sol_usdt_1d_binance" for feed in ("BTC", "ETH")]
    arguments = ("--use", use[0], "--use", use[1], "--moves", "copula", "--seed", "5")
    told = run("recalibrate", *ON, "--policy", str(document), *arguments, "--apply", "--allow-looser")
    assert "2048 moves" in told
    new = load_policy(document)
    assert new.history is not None
    assert len(new.history.moves) == 2048
    assert {(p.method, p.seed) for p in new.provenance if p.target == "history"} == {("copula", 5)}
    assert "one of fhs, copula" in run("recalibrate", *ON, "--policy", str(document), "--moves", "dice", code=2)


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
    assert "holds another document" in recalibrated("--policy", str(document), "--apply", "--allow-looser", code=2)
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
