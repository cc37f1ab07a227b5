"""Many students of one teacher: the same results wherever and with whomever they learn."""

import contextlib
import dataclasses
import importlib
import io
import json
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import pytest

from dinojax import config as configs
from dinojax.checkpoint import inspect
from dinojax.checkpoint.manager import COMMITTED
from dinojax.cli import main as cli
from dinojax.config import ConfigError
from dinojax.distill import loop as distill_loop
from dinojax.distill import placement as placements
from dinojax.distill import placement_search, shares
from dinojax.distill import stage as distill_stage
from dinojax.distill.students import check_shared
from dinojax.distributed.interrupt import LOST
from dinojax.models.vit import Vit
from dinojax.monitor import doctor, report
from dinojax.ops.flops import count_flops
from dinojax.runs import early_stopping
from dinojax.runs.files import read_run
from dinojax.runs.scalars import read_metrics
from dinojax.sharding import mesh
from dinojax.train import loop, program, records, trainer
from dinojax.train.teacher import open_teacher
from dinojax.train.teacher_forward import SharedTeacher
from dinojax.train.trainer import StudentFailed, Trainer
from dinojax.weights import run as convert
from tests.support import several, small
from tests.support.family import COMPOSED, RECIPE, same_rows
from tests.support.recipes import FAMILIES, READ_BY_THE_RUN

TINY = (
    *("batch_size=48", "group_size=2", "crops.num_local=1", "log.pictures=False", "log.every=1"),
    *("augment.blur_rates=0.0,0.0,0.0", "knn.every=None", "data.box_size=40"),
    *("schedules.lr.warmup=0", "distill.place=turn", "checkpoint.every=1"),
    "optim.eps=1.0",  # steps along the gradient: of a smaller one Adam magnifies the rounding
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "family.py"
    path.write_text(RECIPE)
    return path


def load(recipe, *overrides: str):
    given = {override.split("=")[0] for override in overrides}
    kept = [override for override in TINY if override.split("=")[0] not in given]
    return configs.load_students(recipe, [*kept, *overrides])


# -- before anything runs ------------------------------------------------------------------------


def test_a_key_may_be_set_for_one_student(recipe):
    found = load(recipe, "one:model.depth=4", "seed=7", "two:optim.clip=1.0")
    (one,), (two,) = found["one"], found["two"]
    assert (one.model.depth, two.model.depth, one.seed, two.seed) == (4, 1, 7, 7)
    assert (one.optim.clip, two.optim.clip) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"two": two', '"one": two', "the student's name 'one' is there twice in STUDENTS"),
        ('"two": two', '"One": two', "the student's name 'One' is there twice in STUDENTS"),
        ('"two": two', '"eval": two', "is that of something else in a run directory"),
        ("STUDENTS = {", 'STAGES = {"two": two}\nSTUDENTS = {', "is that of a stage"),
        ('"two": two', '"a b": two', "becomes a folder; use letters"),
    ],
)
def test_names_of_students_that_collide_are_refused(old, new, message, tmp_path):
    path = tmp_path / "family.py"
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        configs.load_students(path)


def test_the_right_command_is_named_for_a_recipe(recipe, capsys):
    args = ["--config", str(recipe), "--run", "never"]
    assert cli.main(["train", *args]) == cli.REFUSED
    assert "use `dinojax distill` or `dinojax plan`, with --student NAME" in capsys.readouterr().err
    assert cli.main(["distill", *args, "--student", "three"]) == cli.REFUSED
    assert "no student three in" in capsys.readouterr().err
    assert cli.main(["distill", "--config", "tiny", "--run", "never"]) == cli.REFUSED
    assert "has no STUDENTS; `dinojax train`" in capsys.readouterr().err


REFUSALS = {
    "two:crops.local_size=8": "crops.local_size: 16 for one, 8 for two",
    "two:precision.compute=bfloat16": "precision.compute: 'float32' for one, 'bfloat16' for two",
    "crops.patch_size=None": "model.patch_size: 8 for one, 4 for two\nSet them in get_config or "
    "STAGES of the recipe, not in STUDENTS; crops.patch_size=8, with sizes of crops that it "
    "divides, frees model.patch_size.",
    "two:model.patch_size=3": "crops.patch_size=8 is not a multiple of model.patch_size=3, and the "
    "student's crops are those reduced by a whole number; use crops.patch_size=6 or 9, or a "
    "model.patch_size of 1, 2, 4, 8.",
    "crops.global_size=36": "crops.global_size=36 is not a multiple of crops.patch_size=8; use 32 "
    "or 40.",
    "distill.enabled=False crops.patch_size=None two:model.patch_size=8": "needs distill.enabled="
    "True",
    "two:dino_head.prototypes=32": "set dino_head.prototypes=64",
    "distill.place=apart one:distill.share=2 two:distill.share=4": "do not add up: one 2 + two 4 "
    "= 6, but there are 8 devices; computed from cost they would be one 2, two 6",
    "distill.place=apart one:distill.share=3 two:distill.share=5": "two: distill.share=5 does "
    "not divide the groups of a batch; use one of [1, 2, 3, 4, 6, 8]",
    "distill.place=apart one:distill.share=2": "give one to every student, or to none",
    "distill.place=turn batch_size=40": "batch_size=40 over 8 devices",
    "distill.teacher=/absent": "distill.teacher=/absent does not exist",
}


@pytest.mark.parametrize("keys", REFUSALS)
def test_students_who_cannot_learn_together_are_refused_before_compiling(
    keys, recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(distill_stage, "SharedTeacher", None)
    monkeypatch.setattr(placements, "costs", lambda *args: {"one": 1.0, "two": 2.1})
    with pytest.raises(ValueError) as refused:
        distill_loop.distill(load(recipe, *keys.split(" ")), tmp_path / "run")
    assert REFUSALS[keys] in str(refused.value)


def test_images_are_read_once_for_all_students(recipe):
    """Only the first student's config opens them, and is asked what nothing has read."""
    found = load(recipe, "data.source=folder", "data.path=/images", "mesh.devices=1")
    one, two = (configs[0] for configs in found.values())
    check_shared({"one": one, "two": two})
    shared = {"data.path", "mesh.devices"}
    assert not shared & set(two.unread()) and shared <= set(one.unread())


def test_a_directory_of_something_else_is_left_alone(recipe, tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "photo.png").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no family.json"):
        distill_loop.distill(load(recipe), tmp_path)


def test_who_joins_and_who_leaves_is_said(tmp_path, caplog):
    placements.Notes(tmp_path, ["one", "two"]).tell()
    assert not caplog.messages
    with caplog.at_level("INFO", logger="dinojax"):
        placements.Notes(tmp_path, ["two", "three"]).tell()
    assert "student three is new" in caplog.text and "student one does not learn now" in caplog.text


def test_shares_let_all_students_finish_together():
    """Costs 1 : 2 : 5 get 2, 4 and 10 of 16 devices; what does not fit leaves the least idle."""
    found = shares.computed(
        {"s": 1.0, "b": 2.0, "l": 5.0}, dict.fromkeys("sbl", range(1, 17)), total=16
    )
    assert found.devices == {"s": 2, "b": 4, "l": 10}
    assert max(found.idle.values()) == 0.0
    halves = shares.computed({"a": 1.0, "b": 1.0}, dict.fromkeys("ab", [1, 2, 4]), total=8)
    assert halves.devices == {"a": 4, "b": 4}
    uneven = shares.computed({"a": 1.0, "b": 3.0}, dict.fromkeys("ab", [1, 2, 4]), total=8)
    assert uneven.devices == {"a": 2, "b": 4}
    assert uneven.idle == {"a": pytest.approx(1 / 3), "b": 0.0}
    with pytest.raises(ValueError, match="2 students do not fit on 1 devices"):
        shares.computed({"a": 1.0, "b": 1.0}, dict.fromkeys("ab", [1]), total=1)


def test_the_boxes_that_unequal_shares_copy_to_every_device_are_told(recipe):
    told = []
    for one, two in ((2, 6), (4, 4)):
        found = load(
            recipe, "data.box_size=1024", f"one:distill.share={one}", f"two:distill.share={two}"
        )
        students = {name: config for name, (config,) in found.items()}
        told.append(
            placements.placed(students, placements.APART, dict.fromkeys(students, 1.0)).told()
        )
    assert "every device gets all boxes of a step, 48 MiB" in told[0]
    assert "boxes" not in told[1]


def test_copies_of_the_teacher_are_as_many_as_of_the_student(recipe):
    settings = ("mesh.strategy=hsdp", "mesh.replicas=4", "distill.strategy=hsdp")
    found = load(recipe, *settings)
    students = {name: config for name, (config,) in found.items()}
    placement = placements.placed(students, placements.TURN, {"one": 1.0, "two": 1.0})
    assert placement.teacher.mesh.shape == {"replica": 4, "fsdp": 2, "tensor": 1}
    config = students["one"]
    built = program.build(config, mesh.from_section(config.mesh))
    assert built.teacher_forward.layout == built.layout and built.layout == placement.teacher


def test_shares_of_more_powers_of_two_come_first(recipe):
    """So that the copies of each lie within a machine: four devices, then three."""
    found = load(recipe, "distill.place=apart", "one:distill.share=3", "two:distill.share=4")
    students = {name: config for name, (config,) in found.items()}
    placement = placements.placed(
        students, placements.APART, {"one": 1.0, "two": 1.0}, jax.devices()[:7]
    )
    one, two = (list(placement.students[name].mesh.devices.flat) for name in ("one", "two"))
    assert (two, one) == (jax.devices()[:4], jax.devices()[4:7])
    assert list(placement.students) == ["one", "two"]


@pytest.mark.parametrize(
    "places",
    [
        ("turn", "mesh.strategy=dp"),
        ("apart", "mesh.strategy=hsdp", "one:distill.share=4", "two:distill.share=4"),
        ("apart", "mesh.strategy=dp", "one:distill.share=2", "two:distill.share=6"),
    ],
)
def test_students_take_devices_in_the_order_of_the_teacher(recipe, places, monkeypatch):
    """On a torus every mesh would have an order of its own, and images would lie elsewhere."""
    monkeypatch.setattr(mesh.topology, "arrange", small.twisted)
    kind, *settings = places
    found = load(recipe, "distill.strategy=fsdp", *settings)
    students = {name: config for name, (config,) in found.items()}
    placement = placements.placed(students, kind, dict.fromkeys(students, 1.0))
    teacher = list(placement.teacher.mesh.devices.flat)
    assert teacher != jax.devices()
    begin = 0
    for layout in placement.students.values():
        own = list(layout.mesh.devices.flat)
        assert own == teacher[begin : begin + len(own)]
        begin += len(own) if kind == placements.APART else 0


@pytest.mark.slow
def test_the_step_of_a_student_holds_no_forward_pass_of_the_teacher(recipe):
    """A teacher of other depth changes the FLOPs of the forward pass alone."""
    (config,), layout = load(recipe)["one"], mesh.make("dp", 1)
    teacher, found = open_teacher(config), []
    for depth in (2, 4):
        backbone = Vit(dataclasses.replace(teacher.networks.backbone.spec, depth=depth))
        other = dataclasses.replace(teacher.networks, backbone=backbone)
        built = program.build(config, layout, dataclasses.replace(teacher, networks=other))
        with mesh.use(built.layout):
            student = count_flops(built.step, *built.abstract_inputs())
            forward = count_flops(
                built.teacher_forward.forward, *built.teacher_forward.abstract_inputs()
            )
        found.append((student, forward))
    (student, two), (again, four) = found
    assert student == again and four > 1.5 * two


def test_only_students_who_have_come_so_far_take_a_step(monkeypatch):
    """Those ahead wait for the others; who has failed or is over takes none at all."""
    at_3, ahead, failed, over = students = [
        SimpleNamespace(number=number, has_failed=False, is_over=False) for number in (3, 5, 3, 3)
    ]
    failed.has_failed = over.is_over = True
    at_3.run = SimpleNamespace(draw=lambda number: number)
    monkeypatch.setattr(distill_stage, "global_batch", lambda layout, images: images)
    stage = object.__new__(distill_stage.Stage)
    vars(stage).update(_students=students, _number=3, _stopwatch=None)
    lesson = stage._lesson(MagicMock(), MagicMock(), {"images": 1, "sizes": 2})
    assert lesson.students == [at_3]


def test_a_step_is_measured_when_all_students_have_come_as_far(monkeypatch):
    """One that is new in the recipe catches up first: the others take no steps until then."""
    students = [
        SimpleNamespace(name=str(number), number=number, is_over=False) for number in (50, 0)
    ]
    sessions = []

    def session(self, shared_teacher, placement, *, end, measures=False):
        sessions.append((min(student.number for student in students), end, measures))
        for student in students:
            student.number = max(student.number, end)
        yield "a step"

    def open_students(self, *_):
        self._students = students

    placement = SimpleNamespace(told=lambda: "somewhere")
    search = SimpleNamespace(measures=True, placements=lambda: [placement] * 9)
    monkeypatch.setattr(distill_stage, "PlacementSearch", lambda *args: search)
    stage = object.__new__(distill_stage.Stage)
    stage._configs, stage._teacher, stage._notes = {}, None, None
    stage._num_steps = 50 + 2 * distill_stage.MEASURED
    stage._opened = contextlib.ExitStack()
    monkeypatch.setattr(distill_stage.Stage, "_open", open_students)
    monkeypatch.setattr(distill_stage.Stage, "_session", session)
    monkeypatch.setattr(distill_stage.Stage, "_finish", lambda self: None)
    assert list(stage._lessons(())) == 3 * ["a step"]
    first, last = 50 + distill_stage.MEASURED, 50 + 2 * distill_stage.MEASURED
    assert sessions == [(0, 50, False), (50, first, True), (first, last, False)]


# -- recipes -------------------------------------------------------------------------------------

TEACHERS = {"distill_7b": "vit7b16", "distill_vitl": "vitl16", "distill_tiny": "tiny"}
TEACHERS |= dict.fromkeys(("distill_convnext_7b", "distill_all_7b"), "vit7b16")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_resolves_says_what_it_does_and_shrinks(name, capsys):
    found = configs.load_students(name)
    stages = len(next(iter(found.values())))
    for number in range(stages):
        check_shared({student: each[number] for student, each in found.items()})
    assert cli.main(["plan", "--words", name]) == cli.FINISHED
    told = capsys.readouterr().out
    assert told.count("teacher: (none yet: set distill.teacher)") == stages * len(found)
    header = importlib.import_module(f"dinojax.configs.{name}").__doc__
    assert all(word in header for word in ("Run: ", "Cost: ", "Score:", f"configs/{name}.py"))
    for each in configs.load_students(name, smoke=True).values():
        for small_one in each:
            assert (small_one.num_steps, small_one.distill.teacher[:6]) == (2, "smoke:")
            assert small_one.batch_size <= 16 and small_one.dino_head.prototypes <= 64


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_changes_a_key_that_nothing_reads(name):
    """Of every student's first stage, and of the first student's last, with all its sizes."""
    layout, read = mesh.make("fsdp", 1), ("start.", "mesh.", *READ_BY_THE_RUN)
    found = configs.load_students(name, [f"distill.teacher=random:{TEACHERS[name]}"])
    check_shared({student: each[0] for student, each in found.items()})
    check_shared({"last": (last := next(iter(found.values()))[-1])})
    for config in (*(each[0] for each in found.values()), last):
        built = program.build_sizes(config, layout)
        assert all(one.teacher_forward is not None for one in built)
        assert [key for key in config.unread() if not key.startswith(read)] == []


def test_the_released_family_has_the_published_values():
    found = configs.load_students("distill_7b")
    assert list(found) == ["vits", "vitsplus", "vitb", "vitl", "vithplus"]
    main, cooldown, highres = found["vitl"]
    assert (main.num_steps, cooldown.num_steps, main.batch_size) == (1_000_000, 250_000, 1920)
    assert (main.crops.global_size, main.crops.local_size) == (256, 112)
    assert cooldown.start.what == "state" and highres.start.what == "ema"
    layout = mesh.make("fsdp", 1)
    config = configs.load_students("distill_7b", ["distill.teacher=random:vit7b16"])["vitl"][2]
    now = program.build(config, layout).now
    assert now(0)["lr"] == 0.0 and now(12_500)["lr"] == pytest.approx(2.634e-4)
    assert now(0)["momentum"] == pytest.approx(0.994) and now(0)["teacher_temperature"] == 0.07
    # The released shares of 296 GPUs are possible ones.
    valid = shares.fitting(1920, 8, 1, 296)
    assert {48, 80, 120} <= set(valid)
    convnext = configs.load_students("distill_convnext_7b")
    both = configs.load_students("distill_all_7b")
    assert list(both) == [*found, *convnext]
    for name, vit in found.items():  # of the ViTs nothing but what the crops are cut at
        different = {
            key for stage in (0, 1) for key, *_ in configs.diff(vit[stage], both[name][stage])
        }
        sizes = {f"crops.{key}" for key in ("global_size", "local_size", "patch_size")}
        assert different == sizes | {"data.box_size"}
    for name, (own,) in convnext.items():
        changed = {key for key, *_ in configs.diff(own, both[name][0])}
        assert not any(key.startswith(("model.", "dino_head.", "ibot_head.")) for key in changed)
        assert own.schedules.lr.peak == both[name][0].schedules.lr.peak
    assert convnext["convnext_base"][0].schedules.weight_decay.start == 0.02
    assert convnext["convnext_large"][0].schedules.lr.peak == 1e-4


# -- at work -------------------------------------------------------------------------------------


def run(found, directory, **options):
    return distill_loop.distill(found, directory, **options)


class Events:
    """In place of the package for TensorBoard: what each directory was told."""

    opened: dict = {}

    def __init__(self, directory, **_):
        self.rows = self.opened.setdefault(directory, [])

    def __call__(self, step, values):
        self.rows.append((step, set(values)))

    def close(self): ...


@pytest.fixture(scope="module")
def together(recipe, tmp_path_factory):
    """Both students in turn on eight devices: (directory, states, forward passes taken)."""
    directory, taken = tmp_path_factory.mktemp("family") / "turn", []
    call = SharedTeacher.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SharedTeacher,
            "__call__",
            lambda self, *args: taken.append(args[1]) or call(self, *args),
        )
        states = run(load(recipe), directory)
    return directory, jax.device_get(states), taken


@pytest.mark.slow
def test_the_teacher_looks_once_however_many_learn(together):
    directory, states, taken = together
    assert taken == [0, 1]
    assert {name: int(state.step) for name, state in states.items()} == {"one": 2, "two": 2}
    for name in states:
        assert configs.read(directory / name).model.patch_size == {"one": 8, "two": 4}[name]
        names = (directory / name / "checkpoints/pretrain/2/arrays/metadata").read_text()
        assert "frozen" not in names and '"teacher' not in names


ENDS_EARLY = (
    *("num_steps=5", "one:until.left_chance=0.5", "one:until.every=1", "log.every=5"),
    *("mesh.devices=1", "batch_size=4", "log.tensorboard=True"),
)


class Killed(BaseException):
    """Nothing in the program handles it."""


@pytest.fixture(scope="module")
def early(recipe, tmp_path_factory):
    """(directory, students of each step, states, stderr): one leaves chance at step 3 of 5.

    Killed at the fifth step, and begun anew.
    """
    directory, taken, step = tmp_path_factory.mktemp("early") / "run", [], Trainer.step
    stderr, killed = io.StringIO(), []

    def killed_at_the_fifth(self, *args):
        if (self.name, self.number) == ("two", 4) and not killed:
            killed.append(self.name)
            raise Killed
        taken.append(self.name)
        step(self, *args)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(stderr):
        patch.setattr(early_stopping, "ways_gone", lambda *_: {"ibot": 1.0})
        patch.setattr(trainer, "compile_step", lambda built: built.lower().compile(small.FAST))
        patch.setattr(records, "EventLog", Events)
        patch.setattr(Trainer, "step", killed_at_the_fifth)
        with pytest.raises(Killed):
            run(load(recipe, *ENDS_EARLY), directory)
        marked = {n: read_run(directory / n).finished for n in ("one", "two")}
        states = run(load(recipe, *ENDS_EARLY), directory)
    return directory, taken, marked, states, stderr.getvalue()


@pytest.mark.slow
def test_a_student_whose_losses_left_chance_ends_and_the_others_go_on(early):
    directory, taken, marked, states, told = early
    assert taken[:7] == ["one", "two"] * 3 + ["two"] and taken[7:] == ["two"]
    assert marked == {"one": 3, "two": None}
    assert {name: int(state.step) for name, state in states.items()} == {"one": 3, "two": 5}
    assert {n: read_run(directory / n).finished for n in states} == {"one": 3, "two": 5}
    assert "step 1/5  loss one " in told and "one: the stage is over at step 3" in told
    findings = doctor.diagnose(read_run(directory / "one"))
    assert "ended before num_steps" in {finding.name for finding in findings}


@pytest.mark.slow
def test_students_leave_behind_what_a_run_of_train_does(early):
    """Their energy is that of all: devices and teacher are shared."""
    directory = early[0]
    for name, last in (("one", 3), ("two", 5)):
        found = read_run(directory / name)
        assert found.home == directory
        assert [note["event"] for note in found.resumes][-2:] == ["start", "stop"]
        assert found.resumes[-1]["reason"] == "finished"
        assert {"data_wait", "compile_seconds"} <= set(found.rows[0])
        told = Events.opened[directory / name / "tensorboard"]
        assert told[-1][0] == last and "dino_global" in told[-1][1]
        assert found.energy == json.loads((directory / "energy.json").read_text())
        assert found.energy["device_hours"] > 0 and len(found.energy["sessions"]) == 2
        assert "all students and their teacher" in report.page(found)


@pytest.mark.slow
def test_shares_and_a_student_who_fails_change_no_result(recipe, together, tmp_path, monkeypatch):
    """2 + 6 devices, of which the 6 are 3 copies over 2, until one student fails, then 4 + 4, one
    of them tensor-parallel; the other student waits meanwhile."""
    step = Trainer.step

    def fail(self, *args):
        if (self.name, self.number) == ("two", 1):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        step(self, *args)

    place = ("distill.place=apart", "one:distill.share=2", "two:distill.share=6")
    place += ("two:mesh.strategy=hsdp",)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", fail)
        with pytest.raises(StudentFailed, match="student two failed, so all stop: .*out of memory"):
            run(load(recipe, *place), tmp_path / "run")
    stands = {
        name: sorted(
            int(p.parent.name) for p in (tmp_path / "run").glob(f"{name}/*/*/*/{COMMITTED}")
        )
        for name in ("one", "two")
    }
    assert stands == {"one": [1, 2], "two": [1]}
    learned = []
    monkeypatch.setattr(
        Trainer, "step", lambda self, *args: learned.append(self.name) or step(self, *args)
    )
    place = ("distill.place=apart", "one:distill.share=4", "two:distill.share=4")
    place += ("two:mesh.strategy=fsdp_tp", "two:mesh.tensor=2")
    states = run(load(recipe, *place), tmp_path / "run")
    assert learned == ["two"]
    assert json.loads((tmp_path / "run/family.json").read_text())["students"] == ["one", "two"]
    for name, state in together[1].items():
        small.assert_close(jax.device_get(states[name]), state, COMPOSED)
        same_rows(tmp_path / "run", together[0], name)


@pytest.mark.slow
def test_one_student_learns_like_in_train_and_another_joins_later(recipe, together, tmp_path):
    found = load(recipe)
    (config,) = load(recipe, "distill.place=auto")["one"]  # `train` has no use for the key
    alone = loop.train(config, tmp_path / "train")
    states = run({"one": found["one"]}, tmp_path / "family")
    assert small.same(jax.device_get(_plain(states["one"])), jax.device_get(_plain(alone)))
    meta = (tmp_path / "train/checkpoints/pretrain/2/meta/metadata").read_text()
    assert json.loads(meta)["teacher"] == open_teacher(found["one"][0]).fingerprint
    states = run(found, tmp_path / "family")
    for name, state in together[1].items():
        small.assert_close(jax.device_get(states[name]), state, COMPOSED)
    other = load(recipe, "distill.teacher=smoke:tiny_stages")  # the same networks
    with pytest.raises(ConfigError, match="not the one that this run began with"):
        loop.train(other["one"][0].replaced({"distill.place": "auto"}), tmp_path / "train")
    with pytest.raises(ConfigError, match="not the one that this run began with"):
        run(other, tmp_path / "family")


def _plain(state):
    return {name: getattr(state, name) for name in ("step", "student", "ema", "opt_state")}


@pytest.mark.slow
def test_placements_are_measured_and_the_faster_one_stays(recipe, tmp_path, monkeypatch):
    """With steps enough for it: apart, then in turn, then whatever took less time."""
    for name, steps in (("WARM", 0), ("ALONE", 1), ("TOGETHER", 1)):
        monkeypatch.setattr(placement_search, name, steps)
    monkeypatch.setattr(distill_stage, "MEASURED", 2)
    monkeypatch.setattr(placement_search, "BETTER", 0.0)  # no other shares
    monkeypatch.setattr(placements, "costs", lambda *args: {"one": 1.0, "two": 1.0})
    found = load(recipe, "distill.place=auto", "num_steps=6", "checkpoint.every=6")
    states = run(found, tmp_path / "run")
    assert {int(state.step) for state in states.values()} == {6}
    rows = json.loads((tmp_path / "run/family.json").read_text())["measured"]
    assert [row["kind"] for row in rows] == ["apart", "turn"]
    assert all(row["step_seconds"] > 0 for row in rows)
    told = (tmp_path / "run/log.txt").read_text()
    faster = min(rows, key=lambda row: row["step_seconds"])["kind"]
    assert f"{faster}: a step takes" in told and "idle" in told
    assert [r["step"] for r in read_metrics(tmp_path / "run/one/metrics.jsonl")] == list(
        range(1, 7)
    )


SEVERAL = [*(key for key in TINY if key != "distill.place=turn"), "num_steps=3"]
SEVERAL += ["data.source=tiles"]
EVEN = ("one:distill.share=4", "two:distill.share=4")


@pytest.fixture(scope="module")
def teach(recipe):
    """teach(directory, settings, count=...): a family on eight devices, to the end of its run."""

    def teach(directory, settings, *, count, **more):
        begin = ("distill", "--config", str(recipe))
        options = dict(count=count, devices=8 // count, begin=begin, **more)
        return several.train(directory, [*SEVERAL, *settings], **options)

    return teach


@pytest.fixture(scope="module")
def alone(teach, tmp_path_factory):
    """The run directory of one process with eight devices, students in turn."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    (done,) = teach(directory, ["distill.place=turn"], count=1)
    assert done.code == 0, done.told
    return directory


def same_family(run, other) -> None:
    for name in ("one", "two"):
        assert [row["step"] for row in read_metrics(run / name / "metrics.jsonl")] == [1, 2, 3]
        same_rows(run, other, name)
        ours, theirs = (convert.load(root / name).params for root in (run, other))
        small.assert_close(ours, theirs, COMPOSED)


@pytest.mark.exhaustive  # the next one has all of it but the turns
def test_two_processes_teach_like_one_even_if_one_of_them_is_killed(teach, alone, tmp_path):
    run, place = tmp_path / "run", ["distill.place=turn"]
    killed = teach(run, place, count=2, ACT="1 3 SIGKILL")
    assert [ended.code for ended in killed] == [LOST, -9], "\n".join(e.told for e in killed)
    steps = [int(p.parent.name) for p in run.glob(f"one/*/*/*/{COMMITTED}")]
    assert steps and max(steps) < 3
    both = teach(run, place, count=2)
    assert [ended.code for ended in both] == [0, 0], "\n".join(e.told for e in both)
    same_family(run, alone)


@pytest.mark.slow
def test_processes_teach_students_apart_like_one_even_if_one_is_killed(teach, alone, tmp_path):
    """2 + 6 devices, of which the second student has some in both processes; then 4 + 4."""
    run, wide = tmp_path / "run", tmp_path / "wide"
    share = ["distill.place=apart", "one:distill.share=2", "two:distill.share=6"]
    killed = teach(run, share, count=2, ACT="1 3 SIGKILL")
    assert [ended.code for ended in killed] == [LOST, -9], "\n".join(e.told for e in killed)
    shutil.copytree(run, wide)
    for name, devices in {"one": 2, "two": 6}.items():
        saved = inspect.read(run / f"{name}/checkpoints/pretrain/1")
        assert saved.mesh == {"replica": devices, "fsdp": 1, "tensor": 1}
        assert not (run / f"{name}/checkpoints/pretrain/3").exists()
        shutil.rmtree(wide / f"{name}/checkpoints/pretrain/2", ignore_errors=True)
    both = teach(wide, share, count=2)
    assert [ended.code for ended in both] == [0, 0], "\n".join(e.told for e in both)
    same_family(wide, alone)
    for name in ("one", "two"):  # step 2 was taken before the end and after it: the same bits
        before, after = (read_metrics(d / name / "metrics.jsonl")[1] for d in (run, wide))
        timed = {"data_wait", "images_per_second", "compile_seconds", "time"}
        assert {c: v for c, v in before.items() if c not in timed} == {
            c: v for c, v in after.items() if c not in timed
        }
    both = teach(run, ["distill.place=apart", *EVEN], count=2)
    assert [ended.code for ended in both] == [0, 0], "\n".join(e.told for e in both)
    same_family(run, alone)
