"""What trainer and loop give to what, one call at a time: stand-ins record it, nothing is trained.

The slow tests of whole runs see the same, and much later.
"""

import gc
import weakref
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.checkpoint.locate import Place
from dinojax.config.stages import EMA, Anchor
from dinojax.distributed import process_group
from dinojax.eval.contract import Measured
from dinojax.sharding import mesh
from dinojax.train import initialize, periodic, trainer
from dinojax.train import loop as train
from dinojax.train.batch_types import Targets
from dinojax.train.state import State
from dinojax.train.step import Step

STEPS = 4


class Stop(Exception):
    """Ends a function where a test has seen enough."""


def networks(**values: float) -> dict:
    return {name: {"w": jnp.full(2, value)} for name, value in values.items()}


def state(**trees) -> State:
    """Each network has a number of its own: student 1, ema 2, gram 3."""
    parts = {
        "student": networks(backbone=1.0, dino_head=1.0),
        "ema": networks(backbone=2.0, dino_head=2.0),
        "gram": networks(backbone=3.0)["backbone"],
        "opt_state": networks(backbone=4.0),
    }
    counts = {name: jnp.zeros((), jnp.int32) for name in ("step", "bad_steps")}
    return State(**parts | counts | {"key": jax.random.key(0), "centers": {}} | trees)


def value(tree) -> float:
    """The number that all entries of a tree are."""
    (found,) = np.unique(jnp.concatenate(jax.tree.leaves(tree)))
    return float(found)


def run(**parts):
    """A run of STEPS steps in which nothing but them is due."""
    program = SimpleNamespace(
        network=lambda wrap: None,
        layout=mesh.make("dp", 1),
        now=lambda number: {"of step": number},
        batch_names=("images", "sizes"),
    )
    program.abstract_state, program.teacher_forward = lambda: "shapes", MagicMock()
    program.batch_names = ("images", "sizes")
    made = MagicMock(
        program=program, num_steps=STEPS, anchor=None, pictures=False, draw=lambda number: 0
    )
    made.programs, made.processes, made.matmul = [program], process_group.current(), "default"
    made.watch.ended, made.every.minutes, made.every.checkpoint = False, None, 100
    made.every.measuring, made.config.batch_size = set(), 1
    made.config.text.enabled = False
    made.checkpoints.latest = lambda: None
    made.metadata = {}
    made.hang = {"factor": 10.0, "minutes": 1.0, "seconds": 60.0}
    for name, part in parts.items():
        setattr(made, name, part)
    return made


@pytest.fixture
def opened(monkeypatch):
    """A trainer of a run, whose state counts its steps; what is written down is in `_records`."""

    def step(state, batch, now, *features):
        seen.steps.append((state.step, now))
        return SimpleNamespace(step=state.step + 1), {}

    def renewed(state):
        seen.renewed.append(state.step)
        return state

    def restore(shapes, number):
        assert shapes == "shapes"
        return SimpleNamespace(step=number)

    def opened(begin: int = 0, *, meta=None, teacher=None, **parts) -> trainer.Trainer:
        made = run(**parts)
        if begin:
            made.checkpoints.latest = lambda: begin
            made.checkpoints.restore_meta = {begin: meta}.get
        made.checkpoints.restore = restore
        options = dict(interrupt=MagicMock(), watchdog=MagicMock(), compiles=MagicMock())
        trains = trainer.Trainer(made, teacher=teacher, **options)
        trains.seen = seen
        trains.compile()
        return trains

    seen = SimpleNamespace(steps=[], renewed=[])
    monkeypatch.setattr(trainer, "check_data", lambda *_: None)
    monkeypatch.setattr(trainer, "Records", MagicMock())
    monkeypatch.setattr(trainer, "compile_step", lambda built: step)
    monkeypatch.setattr(initialize, "first_state", lambda *_: SimpleNamespace(step=0))
    monkeypatch.setattr(initialize, "refresh", lambda state: renewed)
    return opened


META = {"position": 96, "seconds": 1000.0}


def looped(trains: trainer.Trainer) -> SimpleNamespace:
    """(number of the state, schedules) of every step to the end, and the steps of refreshes."""
    images = {"images": np.zeros((1, 4, 4, 1), np.uint8), "sizes": np.ones((1, 2), np.int32)}
    while not trains.is_over:
        trains.step(images)
        trains.after_step(waited=0.0)
    return trains.seen


@pytest.mark.parametrize("begin", [0, 2])
def test_a_step_gets_the_schedules_of_the_steps_done_before_it(opened, begin):
    seen = looped(opened(begin, meta=META))
    assert seen.steps == [(number, {"of step": number}) for number in range(begin, STEPS)]


def test_the_anchor_is_renewed_once_as_many_steps_are_done_as_the_config_says(opened):
    every = Anchor(EMA, anchor_step=1, refresh_every=3, refresh_from=3, max_refreshes=None)
    assert looped(opened(anchor=every)).renewed == [1, 3]


def test_a_renewed_anchor_is_the_ema():
    before = state()
    after = initialize.refresh(before)(before)
    assert value(after.gram) == 2.0
    assert (value(after.student), value(after.ema)) == (1.0, 2.0)


def test_images_go_on_where_the_checkpoint_says(monkeypatch):
    given = {}

    def loader(source, **options):
        given.update(options)
        raise Stop

    monkeypatch.setattr(train, "Trainer", lambda *_, **__: MagicMock(position=96))
    monkeypatch.setattr(train, "Loader", loader)
    made = run(loader_options={"batch_size": 32}, programs=[])
    with pytest.raises(Stop), train._at_work(made, MagicMock(), (), is_last=True):
        pass
    assert given == {"batch_size": 32, "start": 96}


def test_a_run_goes_on_from_all_that_its_checkpoint_holds(opened):
    trains = opened(3, meta=META)
    assert (trains.state.step, trains.number, trains.position) == (3, 3, 96)
    assert 1000.0 <= trains._clock.seconds() < 1100.0
    looped(trains)
    assert trains.position == 97


def test_an_evaluation_looks_at_the_ema():
    looks = []

    class Looks:
        def __init__(self, column):
            self.column = column

        def measure(self, network):
            looks.append((self.column, value(network)))
            return Measured({self.column: 50.0})

    columns = {"knn": "knn/cls", "mosaics": "dense/mosaic"}
    made = run(steps_before=0, evaluations={n: Looks(column) for n, column in columns.items()})
    made.config.values = lambda: {"knn.features": "cls"}
    made.every.probe, made.every.evaluations = 3, {"knn": 3, "mosaics": 2}
    made.probe.look = lambda network, step: looks.append(("probe", value(network))) or {}
    metrics = MagicMock()
    periodic.evaluate(made, lambda params: params, state(), 3, metrics=metrics)
    assert looks == [("probe", 2.0), ("knn/cls", 2.0)]  # each when it is due, and all at the end
    periodic.evaluate(made, lambda params: params, state(), STEPS, metrics=metrics)
    assert looks[2:] == [("probe", 2.0), ("knn/cls", 2.0), ("dense/mosaic", 2.0)]
    assert [call.args for call in metrics.write.call_args_list] == [
        (3, {"knn/cls": 50.0}),
        (STEPS, {"knn/cls": 50.0, "dense/mosaic": 50.0}),
    ]


RESTORED = {
    "student": networks(backbone=11.0, dino_head=11.0),
    "ema": networks(backbone=12.0, dino_head=12.0),
    "opt_state": networks(backbone=14.0),
}
# (start.what, start.heads) -> what then stands in backbone and head of the student and of the ema,
# and in the optimizer's state.
HANDED_OVER = {
    ("ema", "keep"): (12.0, 12.0, 12.0, 12.0, 4.0),
    ("ema", "new"): (12.0, 1.0, 12.0, 2.0, 4.0),
    ("state", "keep"): (11.0, 11.0, 12.0, 12.0, 14.0),
}


@pytest.mark.parametrize("what", HANDED_OVER, ids="-".join)
def test_a_stage_is_handed_over_what_it_asks_for(what, monkeypatch):
    monkeypatch.setattr(initialize, "_restored", lambda place, like: _like(RESTORED, like))
    place = Place(None, 7)
    after = initialize._hand_over(state(), place, what=what[0], heads=what[1])
    parts = [
        tree[part] for tree in (after.student, after.ema) for part in ("backbone", "dino_head")
    ]
    assert tuple(map(value, [*parts, after.opt_state])) == HANDED_OVER[what]
    assert value(after.gram) == 3.0 and after.step == 0


def _like(tree, like):
    """The parts of a tree that another one has."""
    return {n: _like(tree[n], like[n]) for n in like} if isinstance(like, dict) else tree


def test_a_gradient_is_the_mean_of_those_of_the_micro_batches():
    """Of a loss that is the student times its micro-batch's number plus a target's."""

    def loss(student, inputs, targets, now):
        total = student["w"] * (inputs + targets.dino)
        return total, {"total": total}

    rows = Targets(jnp.array([10.0, 20.0]), None, None, None)
    for parts in (1, 2):
        plain = SimpleNamespace(are_needed=False)
        step = Step(
            SimpleNamespace(loss=loss, batch_statistics=plain), None, None, accumulate=parts
        )
        own = Targets(rows.dino[:parts], None, None, None)
        grads, terms = step.gradients(
            {"w": jnp.float32(2.0)}, jnp.array([1.0, 3.0])[:parts], own, {}
        )
        want = {1: 11.0, 2: (11.0 + 23.0) / 2}[parts]
        assert (grads["w"], terms["total"]) == (want, 2 * want)


def test_a_student_of_a_family_learns_the_step_that_it_is_at(opened, monkeypatch):
    """The schedules, the row of metrics and the images of an autopsy are of one step."""
    monkeypatch.setattr(trainer, "view_on", lambda batch, place: batch)
    monkeypatch.setattr(trainer, "for_student", lambda *_, **__: None)
    own = opened(teacher=MagicMock())
    for _ in range(2):
        own.step({}, {}, MagicMock())
    assert own.seen.steps == [(number, {"of step": number}) for number in (0, 1)]
    written = [call.args for call in own._records.add.call_args_list]
    assert [(number, now) for number, _, now in written] == [
        (1, {"of step": 0}),
        (2, {"of step": 1}),
    ]
    assert [call.args[0] for call in own._records.keep_images.call_args_list] == [1, 2]


@pytest.mark.parametrize(
    ("column", "done"), [("probe/drift", {0, 4}), ("knn/cls", {4}), ("dense/mosaic", {4})]
)
def test_a_look_is_not_repeated_at_a_resume_where_it_is_all_of_an_evaluation(column, done):
    """Else metrics.jsonl gets one more row of it; with k-NN the whole evaluation is repeated."""
    rows = [{"step": 0, "probe/drift": 0.1}, {"step": 2, "total": 1.0}, {"step": 4}]
    rows[2][column] = 9
    run = SimpleNamespace(evaluations={} if column == "probe/drift" else {"some": object()})
    assert periodic.evaluated_steps(SimpleNamespace(rows=lambda: rows), run) == done


def test_cycles_are_gone_whenever_a_page_is_written(monkeypatch, tmp_path):
    """Where they wait for Python to look for them, the memory of a long run grows."""

    class Cycle:
        pass

    monkeypatch.setattr(periodic.reports, "refresh", lambda directory: None)
    gc.collect()
    gc.disable()
    try:
        cycle = Cycle()
        cycle.itself, seen = cycle, weakref.ref(cycle)
        del cycle
        assert seen() is not None
        processes = SimpleNamespace(is_main=True)
        periodic.Page(SimpleNamespace(processes=processes, directory=tmp_path)).write()
        assert seen() is None
    finally:
        gc.enable()
