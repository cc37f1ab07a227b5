"""`dinojax plan` and `dinojax shard report`, from the command line."""

import json

import pytest

from dinojax.cli import main
from dinojax.cli import plan as cli_plan
from dinojax.config import ConfigError
from dinojax.plan import partitioner_log
from tests.support.planned import FOUND


def planned(monkeypatch, answer):
    """Plan with answers in place of compilers; the list of what was asked."""
    asked = []

    def one(
        recipe, target, overrides, *, images=None, stage=None, size=0, timeout=0, students=None
    ):
        asked.append([*overrides, *(students or ())])
        found = {**FOUND, "stage": stage or "pretrain", "size": size, "replicated": []}
        return {**found, **answer(overrides)}

    monkeypatch.setattr(cli_plan, "one", one)
    monkeypatch.setattr(cli_plan.compilers, "check_compiler", lambda target: None)
    return asked


def test_every_strategy_is_planned(monkeypatch, capsys):
    asked = planned(monkeypatch, lambda overrides: {"strategy": overrides[-1].split("=")[1]})
    argv = ["plan", "--config", "tiny", "--target", "v5p:2x2x2", "--strategy", "all", "--json"]
    assert main.main(argv) == 0
    assert [plan["strategy"] for plan in json.loads(capsys.readouterr().out)] == [
        *("dp", "fsdp", "hsdp", "fsdp_tp")
    ]
    assert asked[0] == ["mesh.strategy=dp"]


def test_every_size_of_every_stage_is_planned(monkeypatch, capsys):
    planned(monkeypatch, lambda overrides: {})
    argv = ["plan", "--config", "vit7b16", "--target", "v5p:2x2x2", "--stage", "all", "--json"]
    assert main.main(argv) == 0
    plans = json.loads(capsys.readouterr().out)
    sizes = [("pretrain", 0), ("gram", 0), *(("highres", size) for size in range(5))]
    assert [(plan["stage"], plan["size"]) for plan in plans] == sizes


PLACES = ["distill.place=turn", "distill.place=apart"]


@pytest.mark.parametrize(
    ("options", "places", "names"),
    [
        ([], PLACES, ["narrow", "shallow"]),
        (["--set", "distill.place=apart"], PLACES[1:], ["narrow", "shallow"]),
        (["--student", "shallow"], PLACES[:1], ["shallow"]),
        (["--student", "narrow", "--set", "distill.place=apart"], PLACES[1:], ["narrow"]),
    ],
)
def test_students_are_planned_together_wherever_they_may_lie(options, places, names, monkeypatch):
    asked = planned(monkeypatch, lambda overrides: {})
    argv = ["plan", "--config", "distill_tiny", "--target", "v5p:2x2x2", *options]
    assert main.main(argv) == 0
    assert [one[-1 - len(names) :] for one in asked] == [[place, *names] for place in places]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["plan", "--target", "cpu:2", "--student", "wide"], "no student wide in"),
        (["shard", "report", "--student", "wide"], "no student wide in"),
        (["shard", "report"], "give --student one of narrow, shallow"),
    ],
)
def test_of_students_one_that_is_there_is_wanted(options, message, capsys):
    assert main.main([*options, "--config", "distill_tiny"]) == main.REFUSED
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--student", "narrow"), ("--target", "cpu:8"), ("--price", "0")],
)
def test_words_take_no_option_that_they_would_not_read(flag, value, capsys):
    assert main.main(["plan", "--words", "distill_tiny", flag, value]) == main.REFUSED
    assert f"{flag} goes with --config" in capsys.readouterr().err


def test_a_recipe_without_students_has_none_to_plan(capsys):
    argv = ["plan", "--config", "tiny", "--target", "cpu:2", "--student", "narrow"]
    assert main.main(argv) == main.REFUSED
    assert "--student narrow: tiny has no STUDENTS" in capsys.readouterr().err


def test_what_can_lie_nowhere_is_refused(monkeypatch, capsys):
    def answer(overrides):
        raise ConfigError("distill.teacher is empty")

    planned(monkeypatch, answer)
    assert main.main(["plan", "--config", "distill_tiny", "--target", "cpu:2"]) == main.REFUSED
    assert "distill.teacher is empty" in capsys.readouterr().err


def test_what_several_strategies_refuse_is_told_whole_and_in_a_row(monkeypatch, capsys):
    def answer(overrides):
        raise ConfigError("cannot shard:\n  axis 1")

    planned(monkeypatch, answer)
    argv = ["plan", "--config", "tiny", "--target", "cpu:2", "--strategy", "all"]
    assert main.main(argv) == 0
    told = capsys.readouterr().out
    assert told.count("refused: cannot shard:\n  axis 1") == 4
    assert told.count("| refused: cannot shard: |") == 4


def test_when_it_does_not_fit_the_first_changes_that_do_are_told(monkeypatch, capsys):
    asked = planned(monkeypatch, lambda overrides: {"fits": "model.remat=full" in overrides})
    given = ["--set", "model.remat=dots", "--strategy", "dp"]
    assert main.main(["plan", "--config", "tiny", "--target", "v5p:2x2x2", *given]) == 0
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
    assert main.main(["plan", "--config", "tiny", *options]) == main.REFUSED
    assert message in capsys.readouterr().err


def test_what_becomes_whole_on_every_device_is_told_by_operation_array_and_parts():
    """From the log of a real compiler, in a process of its own."""
    _, log = cli_plan.process("tests.support.replicating", "cpu:8", {})
    found = partitioner_log.replicated(log)
    assert found[0].startswith("jit(move)/layer/")
    assert found[0].endswith(": f32[8,16,4], from 2 x 1 x 4 parts to 1 x 8 x 1 parts")
    other = "W1 x.cc:1] [SPMD] Involuntary full rematerialization. In other words."
    assert partitioner_log.replicated(f"{other}\n{other}\nanything else") == [
        other.split("[SPMD] ")[1]
    ]


@pytest.mark.parametrize("lines", [[], ["jit(step)/dot: f32[8], from 8 parts to 1 parts"]])
def test_a_report_and_a_plan_tell_what_the_compiler_makes_whole(lines, monkeypatch, capsys):
    planned(monkeypatch, lambda overrides: {"replicated": lines})
    rows = [{"name": "kernel", "shape": [8], "axes": ["width"], "sharded": {}}]
    rows[0] |= {"bytes": 32, "device_bytes": 32}
    monkeypatch.setattr(cli_plan, "process", lambda *args, **options: (rows, ""))
    report = ["shard", "report", "--config", "tiny", "--devices", "8"]
    plan = ["plan", "--config", "tiny", "--target", "cpu:8"]
    for argv in ([*report, "--compile"], plan):
        assert main.main(argv) == 0
        told = capsys.readouterr().out
        assert ("makes nothing else whole" in told) == (not lines)
        assert all(f"! {line}" in told for line in lines)
    assert main.main([*report, "--compile", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"parameters": rows, "replicated": lines}
    assert main.main([*report, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows


@pytest.mark.slow
def test_a_process_says_where_parameters_live_and_what_cannot_be_sharded(capsys):
    sharded = ["shard", "report", "--config", "tiny", "--set", "mesh.strategy=fsdp", "--devices"]
    assert main.main([*sharded, "8", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    kernel = rows["dino_head/prototypes/kernel"]
    assert kernel["sharded"] == {"prototype": "fsdp=8"}
    assert kernel["device_bytes"] * 8 == kernel["bytes"] == 64 * 512 * 4
    family = ["shard", "report", "--config", "distill_tiny", "--student", "narrow", "--json"]
    assert main.main([*family, "--set", "distill.teacher=smoke:tiny"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["backbone/patch_embed/kernel"]["shape"][-1] == 48, "of the narrow one"
    assert main.main([*sharded, "7"]) == main.REFUSED
    assert "Cannot shard with mesh.strategy=fsdp" in capsys.readouterr().err
