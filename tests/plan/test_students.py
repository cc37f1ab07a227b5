"""A plan of several students of one teacher: every program, once, and what a device has to hold."""

import pytest

from dinojax.plan import formula, report, step_model, students, targets
from dinojax.plan.targets import GIB
from dinojax.sharding import mesh
from dinojax.train import program as programs
from tests.support.planned import FOUND

OVERRIDES = ["distill.teacher=smoke:tiny", "narrow:mesh.strategy=fsdp"]
OVERRIDES += ["model.width=24", "model.depth=1", "model.num_heads=2", "masks.rate=0.5"]
HEADS = ["distill.targets=heads", "dino_head.prototypes=64", "ibot_head.prototypes=64"]
HEADS += ["crops.num_local=1"]
PROTOTYPES = 4 * 2 * 64 * 16  # bytes of those of smoke:tiny


def program(name: str, kept: int, alone: int | None, *, learns: bool) -> dict:
    memory = {} if alone is None else {"memory": {"peak": alone}}
    return {"name": name, "kept": kept, "learns": learns, **memory}


FAMILY = [
    program("teacher", 100, 110, learns=False),
    program("images", 0, 5, learns=False),
    program("a", 10, 50, learns=True),
    program("b", 20, 40, learns=True),
]


def test_in_turn_a_device_keeps_the_state_of_all():
    found = students.with_peaks(FAMILY, apart=False)
    assert [one["peak"] for one in found] == [110 + 30, 5 + 130, 50 + 120, 40 + 110]


def test_apart_a_device_keeps_the_teacher_and_one_student():
    found = students.with_peaks(FAMILY, apart=True)
    assert [one["peak"] for one in found] == [110 + 20, 5 + 120, 50 + 100, 40 + 100]


def test_what_is_shared_counts_once_and_what_is_alive_as_well():
    more = [{**FAMILY[2], "shared": 7}, {**FAMILY[3], "alive": 3}]
    found = students.with_peaks([*FAMILY[:2], *more], apart=False)
    assert [one["peak"] for one in found[2:]] == [50 + 120 - 7, 40 + 110 + 3]


def test_a_program_that_fits_nowhere_has_no_peak():
    found = students.with_peaks([*FAMILY, program("c", 1000, None, learns=True)], apart=False)
    assert "peak" not in found[-1] and found[2]["peak"] == 50 + 1120


@pytest.fixture(scope="module")
def plans():
    asked = {"recipe": "distill_tiny", "target": "cpu:4", "students": ["narrow", "shallow"]}
    return {
        place: students.plan(**asked, images=8, overrides=[*OVERRIDES, f"distill.place={place}"])
        for place in ("turn", "apart")
    }


@pytest.mark.slow
def test_every_program_of_a_step_is_planned_once(plans):
    turn, apart = ({p["name"]: p for p in plans[n]["programs"]} for n in ("turn", "apart"))
    assert list(turn) == ["teacher", "narrow", "shallow"]
    assert {p["devices"] for p in turn.values()} == {4}
    assert list(apart)[:1] == ["teacher"] and list(apart)[-2:] == ["narrow", "shallow"]
    assert apart["narrow"]["devices"] + apart["shallow"]["devices"] <= 4
    assert apart["narrow"]["strategy"] == "fsdp" and apart["shallow"]["strategy"] == "dp"
    for name in ("teacher", "narrow", "shallow"):
        assert turn[name]["flops"] == apart[name]["flops"] > 0, "wherever it is computed"
    assert plans["turn"]["flops"] == sum(p["flops"] for p in turn.values())
    dp, moments = apart["shallow"]["state"], 4 * 2  # the counts of two optimizers differ
    assert abs(dp["optimizer"] - 2 * dp["student"]) <= moments
    for plan in plans.values():
        assert plan["memory"]["peak"] == max(p["peak"] for p in plan["programs"])
        assert plan["fits"] and plan["batch_size"] == 32


@pytest.mark.slow
def test_the_teacher_is_gathered_once_for_all(plans):
    """By its own program; no student's step has its weights (of features no prototypes either)."""
    for place in ("turn", "apart"):
        teacher, *_, narrow, shallow = plans[place]["programs"]
        sent = report.wire_by_kind(teacher)["all-gather"]
        outputs = teacher["memory"]["output"] if place == "apart" else 0  # go to every device
        assert teacher["closed_form"]["all-gather"] <= sent
        assert sent <= teacher["closed_form"]["all-gather"] + outputs
        assert report.wire_by_kind(shallow).get("all-gather", 0.0) == 0.0, "of dp nothing"
        assert shallow["closed_form"]["all-gather"] == 0.0
        sent = report.wire_by_kind(narrow)["all-gather"]  # one block is gathered once, not again
        assert 0 < sent <= narrow["closed_form"]["all-gather"]


@pytest.mark.slow
def test_a_part_of_the_devices_holds_more_of_a_student(plans):
    """Weights spread over fewer devices, images of the batch over fewer as well."""
    turn, apart = ({p["name"]: p for p in plans[n]["programs"]} for n in ("turn", "apart"))
    parts = 4 / apart["narrow"]["devices"]
    assert parts > 1
    ratio = apart["narrow"]["state"]["student"] / turn["narrow"]["state"]["student"]
    assert 0.8 * parts < ratio <= parts, "vectors are whole everywhere"
    assert apart["narrow"]["memory"]["temp"] > turn["narrow"]["memory"]["temp"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["turn", "apart"])
def test_the_teacher_s_prototypes_lie_where_students_want_them(place):
    """In turn `narrow`, sharded as it is, has its very arrays, `shallow` a copy; apart both."""
    plan = students.plan(
        recipe="distill_tiny",
        target="cpu:4",
        students=["narrow", "shallow"],
        images=8,
        overrides=[*OVERRIDES, *HEADS, f"distill.place={place}"],
    )
    teacher, *_, narrow, shallow = plan["programs"]
    whole = PROTOTYPES
    state = {one["name"]: sum(one["state"].values()) for one in (narrow, shallow)}
    assert shallow["kept"] - state["shallow"] == whole, "of dp"
    assert shallow["shared"] == 0
    own = whole // narrow["devices"]
    copied, shared = (own, 0) if place == "apart" else (0, own)
    assert narrow["kept"] - state["narrow"] == copied and narrow["shared"] == shared
    assert teacher["kept"] == teacher["state"]["teacher"] > whole // 4
    assert shallow["closed_form"]["all-gather"] == 0.0, "it has them whole"


def test_the_student_gathers_the_teacher_s_prototypes_and_the_teacher_does_not(monkeypatch):
    machine, layout = targets.parse("cpu:4"), mesh.make("fsdp", 4)
    asked = {"images": 8, "stage": None}
    names = ["narrow"]
    found = students.load("distill_tiny", machine, [*OVERRIDES, *HEADS], names, **asked)
    built = programs.build(found["narrow"], layout)
    one = [
        formula.wire(built)["all-gather"],
        formula.forward_wire(built.teacher_forward)["all-gather"],
    ]
    monkeypatch.setattr(formula, "prototypes", lambda params: {})
    two = [
        formula.wire(built)["all-gather"],
        formula.forward_wire(built.teacher_forward)["all-gather"],
    ]
    lacking = PROTOTYPES * 3 / 4
    assert one[0] - two[0] == 3 * lacking, "targets, and the loss forward and backward"
    assert two[1] - one[1] == lacking


def test_what_is_measured_in_a_run_is_not_planned():
    with pytest.raises(ValueError, match="distill.place=auto is measured in a run"):
        students.plan(
            recipe="distill_tiny",
            target="cpu:1",
            overrides=OVERRIDES,
            students=["narrow", "shallow"],
        )


def told(apart: bool) -> dict:
    one = {**FOUND, "kept": GIB, "peak": 10 * GIB, "learns": True, "name": "a"}
    more = {"name": "b", "devices": 4, "flops": FOUND["flops"], "reduction": 2}  # twice on each
    teacher = {"name": "teacher", "learns": False, "flops": FOUND["flops"] / 2, "collectives": []}
    programs = [{**one, **teacher}, one, {**one, **more}]
    plan = {key: FOUND[key] for key in ("target", "stage", "crops", "strategy", "batch_size")}
    plan |= {"programs": programs, "apart": apart, "devices": 8, "flops": 1, "fits": True}
    return {**plan, "place": "apart: a 4", "memory": {"peak": 11 * GIB}, "processor_seconds": 9}


def test_students_in_turn_add_up_and_the_slowest_one_counts_apart():
    """Of two students one computes for two seconds, one for four; the teacher for one."""
    turn, apart = (step_model.modelled(told(apart)) for apart in (False, True))
    assert turn["compute_seconds"] == pytest.approx(1 + 2 + 4)
    assert apart["compute_seconds"] == pytest.approx(1 + 4)
    assert report.wire_by_kind(told(False))["all-gather"] == 2 * 600e9 * 1.9
    assert report.wire_by_kind(told(True))["all-gather"] == 600e9 * 1.9


def test_tables_tell_every_program_and_who_waits():
    plan = step_model.complete(told(True))
    lines = report.details(plan).splitlines()
    assert "apart: a 4" in lines[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:] if "|" in line]
    assert [row[0] for row in rows] == ["program", "---", "teacher", "a", "b"]
    assert len({len(row) for row in rows}) == 1
    by_name = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert by_name["b"]["mesh"] == "1 x 8 x 1" and by_name["b"]["idle*"] == "0.0%"
    assert by_name["b"]["crops"] == "128/56 (70%)" and not by_name["a"]["crops"]
    assert by_name["a"]["idle*"] == f"{1 - 3.1 / 5.0:.1%}"
    assert by_name["teacher"]["idle*"] == "-" and by_name["a"]["stays"] == "1.000 GiB"
    row = report.summary([plan]).splitlines()[2]
    assert "| students apart | 11.00 | 95.7 | yes |" in row
    assert row.count("|") == report.summary([plan]).splitlines()[0].count("|")
    less = {k: v for k, v in plan.items() if k != "memory"} | {"out_of_memory": "b: 9G exceeds"}
    assert "| b: 9G exceeds |" in report.summary([less])
