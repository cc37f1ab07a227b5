"""Killed, asked to stop, or out of disk: the run continues as if nothing had happened."""

import errno
import itertools
import json
import threading
import time
from types import SimpleNamespace

import pytest

from dinojax.checkpoint.manager import COMMITTED, Checkpoints
from dinojax.config import ConfigError
from dinojax.data import tiles
from dinojax.distributed.interrupt import Interrupted, StorageError
from dinojax.train import finish, loop, periodic, trainer
from dinojax.train.checks import check_data
from dinojax.train.periodic import Saves
from dinojax.train.records import Records
from tests.programs.kill_and_compare import kill_and_compare
from tests.programs.kill_kinds import SMALLER
from tests.support import small
from tests.support.killer import Place
from tests.support.stopping import Stop, ask, at, die, rows, same_state
from tests.support.stored_run import differences, order_differences

STEPS = 6
OVERRIDES = [
    f"num_steps={STEPS}",
    "log.every=1",
    "checkpoint.every=2",
    "knn.every=3",
    "mesh.devices=1",
    "knn.batch_size=240",
]


@pytest.fixture(scope="module")
def config():
    return small.config(*OVERRIDES)


@pytest.fixture(scope="module", autouse=True)
def cheap():
    """Few tiles, no comparison at the end, and one compile for all runs: none is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SPLITS", dict.fromkeys(tiles.SPLITS, 240))
        patch.setattr(finish, "finish", lambda *args, **options: None)
        small.share_programs(patch)
        yield


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing disturbed: its directory and last state."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, loop.train(config, directory)


@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.slow
def test_a_killed_run_ends_like_one_that_was_not(config, whole, tmp_path, monkeypatch, step):
    """Killed before the first checkpoint, between two, and right after one."""
    with at(monkeypatch, (Records, "add"), step, die), pytest.raises(Stop):
        loop.train(config, tmp_path / "run")
    state = loop.train(config, tmp_path / "run")
    same_state(state, whole[1])
    assert rows(tmp_path / "run") == rows(whole[0])


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ((trainer, "compile_step"), 1),
        ((loop.DataWait, "__next__"), 3),
        ((Records, "add"), 2),
        ((trainer.Trainer, "evaluate"), 4),
        ((Saves, "save"), 1),
    ],
    ids=["compile", "data wait", "step", "evaluation", "save"],
)
@pytest.mark.slow
def test_asked_to_stop_it_saves_and_the_rest_is_the_same(
    config, whole, tmp_path, monkeypatch, where, number
):
    with at(monkeypatch, where, number, ask), pytest.raises(Interrupted) as stopped:
        loop.train(config, tmp_path / "run")
    assert (tmp_path / "run/checkpoints/pretrain" / str(stopped.value.step) / COMMITTED).exists()
    assert stopped.value.step < STEPS
    state = loop.train(config, tmp_path / "run")
    same_state(state, whole[1])
    assert rows(tmp_path / "run") == rows(whole[0])
    lines = (tmp_path / "run/resumes.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert [line["event"] for line in history] == ["start", "stop", "start", "stop"]
    assert "SIGTERM" in history[1]["reason"] and history[2]["step"] == stopped.value.step


@pytest.mark.slow
def test_a_loader_that_hangs_does_not_keep_the_run(config, tmp_path, monkeypatch):
    def hang(self):
        threading.Timer(0.2, ask).start()
        time.sleep(60)

    began = time.monotonic()
    monkeypatch.setattr(loop.DataWait, "__next__", hang)
    with pytest.raises(Interrupted):
        loop.train(config, tmp_path / "run")
    assert time.monotonic() - began < 50


@pytest.mark.slow
def test_a_torn_checkpoint_is_set_aside(config, whole, tmp_path, monkeypatch):
    with at(monkeypatch, (Records, "add"), 5, die), pytest.raises(Stop):
        loop.train(config, tmp_path / "run")
    newest = max((tmp_path / "run/checkpoints/pretrain").iterdir(), key=lambda p: int(p.name))
    (newest / COMMITTED).unlink()
    same_state(loop.train(config, tmp_path / "run"), whole[1])
    assert newest.with_name(newest.name + ".torn").exists()


@pytest.mark.slow
def test_storage_that_fails_in_the_background_is_reported_and_what_was_saved_stays(
    config, tmp_path, monkeypatch
):
    """The save of step 4 fails while step 5 runs."""
    original, saves = Checkpoints.save, []

    def save(self, state, *, step, meta):
        saves.append(step)
        original(self, state, step=step, meta=meta)

    def check_for_errors():
        if 4 in saves:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", save)
    made = Checkpoints.__init__

    def init(self, *args, **options):
        made(self, *args, **options)
        monkeypatch.setattr(self._manager, "check_for_errors", check_for_errors)

    monkeypatch.setattr(Checkpoints, "__init__", init)
    with pytest.raises(StorageError, match=r"No space left.*stands"):
        loop.train(config, tmp_path / "run")
    assert (tmp_path / "run/checkpoints/pretrain/2" / COMMITTED).exists()
    assert 6 not in saves


@pytest.mark.slow
def test_saving_by_minutes_comes_before_saving_by_steps(tmp_path, monkeypatch):
    config = small.config(*OVERRIDES, "checkpoint.minutes=0.01")
    saved = []
    original = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, state, *, step, meta: (
            saved.append(step),
            original(self, state, step=step, meta=meta),
        ),
    )
    monkeypatch.setattr(trainer.Trainer, "evaluate", lambda self: None)
    seconds = itertools.count()  # by a real clock a step may be over before a save is due
    monkeypatch.setattr(periodic, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    loop.train(config, tmp_path / "run")
    assert saved == list(range(1, STEPS + 1))


def test_changed_images_are_refused_unless_accepted(caplog):
    class Source:
        fingerprint = "new"

        def __len__(self):
            return 12

    meta = {"fingerprint": "old", "num_images": 1000}
    with pytest.raises(ConfigError, match=r"1,000 images then, 12 now.*--accept-new-data"):
        check_data(meta, Source())
    check_data(meta, Source(), ["new-data"])
    assert "order differs" in caplog.text
    check_data({**meta, "fingerprint": "new"}, Source())


def test_another_config_is_refused_unless_accepted_or_nothing_was_trained(tmp_path):
    other = small.config(*OVERRIDES, "seed=5")
    loop.claim(tmp_path / "trained", small.config(*OVERRIDES))
    (tmp_path / "trained/metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match=r"seed: 0 there, 5 now[\s\S]*--accept-new-config"):
        loop.claim(tmp_path / "trained", other)
    loop.claim(tmp_path / "trained", other, ["new-config"])
    loop.claim(tmp_path / "fresh", small.config(*OVERRIDES))
    loop.claim(tmp_path / "fresh", other)
    assert json.loads((tmp_path / "fresh/config.json").read_text())["config"]["seed"] == 5


def test_the_images_of_several_processes_are_compared_as_parts_of_one_batch(tmp_path):
    """As kill_and_compare.py reads them: a step may have been taken by some before a kill."""

    def took(name, *ids_of_steps):
        lines = [
            json.dumps({"step": i, "ids": ids}) for i, ids in enumerate(ids_of_steps, 1) if ids
        ]
        (tmp_path / name).write_text("\n".join(lines))

    took("one.order", [1, 2, 3, 4], [5, 6, 7, 8])
    took("two.order.0", [1, 2], [5, 6])
    took("two.order.1", [3, 4], [7, 8])
    took("moved.order", None, [5, 6, 7, 8])
    took("moved.order.0", [1, 2], None)
    took("moved.order.1", [3, 4], [7, 8])
    for run in ("two", "moved"):
        assert order_differences(tmp_path / run, tmp_path / "one", 2) == []
    took("moved.order.1", [3, 4], [8, 7])
    assert order_differences(tmp_path / "moved", tmp_path / "one", 2)
    took("two.order.1", [3, 4], None)
    assert order_differences(tmp_path / "two", tmp_path / "one", 2)


@pytest.mark.slow
def test_real_processes_stopped_in_any_phase_end_like_one_that_was_not(tmp_path):
    """Seven points of kill_and_compare.py, one in each phase, on a smaller network."""
    smaller = ("batch_size=16", "model.width=24", "model.depth=1", "dino_head.prototypes=64")
    smaller += ("log.every=2",)
    found = kill_and_compare(tmp_path, 7, seed=3, num_steps=20, extra=smaller, few=True)
    assert found["equal"], found["faults"]
    assert found["points"] == 7


@pytest.mark.exhaustive  # of several processes, test_hosts.py stops some at chosen moments
def test_several_processes_stopped_at_random_moments_end_like_some_that_were_not(tmp_path):
    """Twice on the same hosts; after a third time one process goes on alone."""
    place = Place(processes=2, devices=2)
    found = kill_and_compare(
        tmp_path, 3, seed=1, num_steps=20, extra=SMALLER, place=place, per_run=2, few=True
    )
    assert found["equal"], found["faults"]
    assert found["points"] == 3


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "num_steps"), [("stages", 40), ("family", 20)])
def test_stages_on_a_mixture_and_families_stopped_at_random_moments_too(tmp_path, kind, num_steps):
    found = kill_and_compare(tmp_path, 3, seed=0, num_steps=num_steps, few=True, kind=kind)
    assert found["equal"], found["faults"]
    assert found["points"] == 3


def test_a_student_that_differs_is_found(tmp_path):
    """In its rows, and in a picture of the one that has them."""
    for run in ("a", "b"):
        for student in ("narrow", "shallow"):
            folder = tmp_path / run / student
            (folder / "pictures").mkdir(parents=True)
            (folder / "checkpoints").mkdir()
            row = {"step": 1, "total": 2.0 + (run == "b") * (student == "narrow")}
            (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (tmp_path / f"{run}.order").write_text(json.dumps({"step": 1, "ids": [1]}) + "\n")
    (tmp_path / "b/shallow/pictures/patches.png").write_bytes(b"x")
    found = differences(tmp_path / "a", tmp_path / "b", 1)
    assert [line.split(":")[0] for line in found] == ["narrow, metrics", "shallow, pictures"]
