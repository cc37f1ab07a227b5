"""`dinojax plan` and `dinojax shard report`, from the command line."""

import json

import pytest

from dinojax import cli, cli_plan
from tests.test_plan_report import FOUND


def planned(monkeypatch, answer):
    """Plan with answers in place of compilers; the list of what was asked."""
    asked = []

    def one(recipe, target, overrides, *, images, stage, size, timeout):
        asked.append(list(overrides))
        return {**FOUND, "stage": stage or "pretrain", "size": size, **answer(overrides)}

    monkeypatch.setattr(cli_plan, "one", one)
    monkeypatch.setattr(cli_plan.targets, "check_compiler", lambda target: None)
    return asked


def test_every_strategy_is_planned(monkeypatch, capsys):
    asked = planned(monkeypatch, lambda overrides: {"strategy": overrides[-1].split("=")[1]})
    argv = ["plan", "--config", "tiny", "--target", "v5p:2x2x2", "--strategy", "all", "--json"]
    assert cli.main(argv) == 0
    assert [plan["strategy"] for plan in json.loads(capsys.readouterr().out)] == [
        *("dp", "fsdp", "hsdp", "fsdp_tp")
    ]
    assert asked[0] == ["mesh.strategy=dp"]


def test_every_size_of_every_stage_is_planned(monkeypatch, capsys):
    planned(monkeypatch, lambda overrides: {})
    argv = ["plan", "--config", "vit7b16", "--target", "v5p:2x2x2", "--stage", "all", "--json"]
    assert cli.main(argv) == 0
    plans = json.loads(capsys.readouterr().out)
    sizes = [("pretrain", 0), ("gram", 0), *(("highres", size) for size in range(5))]
    assert [(plan["stage"], plan["size"]) for plan in plans] == sizes


def test_when_it_does_not_fit_the_first_changes_that_do_are_told(monkeypatch, capsys):
    asked = planned(monkeypatch, lambda overrides: {"fits": "model.remat=full" in overrides})
    given = ["--set", "model.remat=dots", "--strategy", "dp"]
    assert cli.main(["plan", "--config", "tiny", "--target", "v5p:2x2x2", *given]) == 0
    assert ["model.remat=full", "mesh.strategy=dp"] in asked, "each key once"
    told = capsys.readouterr().out
    assert told.count("fits with") == 3
    assert "fits with model.remat=full: peak 9.00 GiB" in told


@pytest.mark.parametrize(
    "options,message",
    [
        ([], "planned for a --target"),
        (["--target", "cpu:8", "--images", "9"], "--images goes with --words"),
        (["--target", "cpu:8", "--stage", "gram"], "tiny has no stage gram"),
        (["--target", "v9:4"], "'v9' is not one of"),
        (["--target", "cpu:8", "--strategy", "zero"], "--strategy 'zero' is not one of dp, fsdp"),
        (["--target", "cpu:8", "--set", "batch_size=0"], "batch_size=0 is out of range"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_compiling(options, message, capsys):
    assert cli.main(["plan", "--config", "tiny", *options]) == cli.REFUSED
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_says_where_parameters_live_and_what_cannot_be_sharded(capsys):
    sharded = ["shard", "report", "--config", "tiny", "--set", "mesh.strategy=fsdp", "--devices"]
    assert cli.main([*sharded, "8", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    kernel = rows["dino_head/prototypes/kernel"]
    assert kernel["sharded"] == {"prototype": "fsdp=8"}
    assert kernel["device_bytes"] * 8 == kernel["bytes"] == 64 * 512 * 4
    assert cli.main([*sharded, "7"]) == cli.REFUSED
    assert "Cannot shard with mesh.strategy=fsdp" in capsys.readouterr().err
