"""What goes wrong in a long run, met by real training: how each ends, and that nothing is lost.

| fault | test |
|---|---|
| truncated, foreign, empty image, bomb | here: every kind of image |
| CMYK, 16 bit, palette, animated, huge, wrong channels | here: every kind of image |
| more bad images than allowed | here: above the quota |
| bad images of an evaluation | test_online |
| a worker process that dies | here: a dead worker |
| full disk | here: a disk that takes no more; in a checkpoint: test_stopped_processes |
| storage that fails during a save | test_resume |
| read-only run directory | here: from the start; from one step on: a disk that takes no more |
| truncated or bit-flipped checkpoint | here: a damaged checkpoint; missing files: test_checkpoint |
| torn checkpoint | test_resume |
| changed images, changed config | here: changed images; config: test_resume |
| a loss term or a layer's gradient that is not finite | here: poison; test_nonfinite |
| SIGKILL and signals in every phase | test_resume, test_interrupt, kill_and_compare |
| a compile or a loader that hangs | test_stopped_processes |
| two processes on one run | test_lock |
| a host that is missing, dies or fails; unshared storage; other config or devices | test_hosts |
| a stop in every phase of several processes | test_hosts, test_line |
| no step finishes any more | test_watchdog |
| a student that cannot go on | test_distill; while other processes teach others: test_subgroups |
| damaged files and configs at random | test_fuzz |
"""

import dataclasses
import errno
import gc
import json
import os
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from dinojax.checkpoint.manager import COMMITTED, Damaged
from dinojax.cli import main
from dinojax.config import ConfigError
from dinojax.data.decode import decode
from dinojax.data.encoded import EncodedSource
from dinojax.data.folder import folder
from dinojax.data.loader import WorkerDied
from dinojax.data.order import image_index
from dinojax.data.quarantine import FILE, TooManyBadImages, read_list
from dinojax.files import full
from dinojax.monitor.autopsy import NonFiniteError
from dinojax.runs.scalars import MetricsLog, read_metrics
from dinojax.train import finish, loop, program
from dinojax.train.program import Program
from dinojax.train.step import Step
from tests.support import small
from tests.support.poisoned import FINE, Poisoned, PoisonedStep
from tests.support.stored_data import saved
from tests.support.stored_run import state

pytestmark = pytest.mark.slow

STEPS, BATCH, SEED = 6, 16, 0
SETTINGS = (
    *(f"num_steps={STEPS}", f"batch_size={BATCH}", "checkpoint.every=2", "log.every=1"),
    *("knn.every=None", "mesh.devices=1", "gram.enabled=True", "gram.teacher=ema"),
)
POISONS = ("dino_local", "dino_global", "ibot", "koleo", "gram", "grads")


@pytest.fixture(scope="module", autouse=True)
def shared():
    """One compiled step for all, whose loss terms and gradients a test can spoil."""
    build = program.build

    def poisonable(config, layout, *more):
        built = build(config, layout, *more)
        parts = {f.name: getattr(built.step, f.name) for f in dataclasses.fields(Step)}
        objective = parts["objective"]
        fields = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
        step = PoisonedStep(**{**parts, "objective": Poisoned(**fields)})
        fine = {**{name: 1.0 for name in FINE}, "poison/gram": 1.0}
        return dataclasses.replace(
            built, step=step, schedules=lambda number: {**built.schedules(number), **fine}
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "build", poisonable)
        patch.setattr(finish, "finish", lambda *args, **options: None)
        small.share_programs(patch)
        yield


def noise(number, mode="RGB", size=(40, 48)):
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def images(tmp_path):
    """A folder of 24 PNG files."""
    (tmp_path / "images").mkdir()
    for number in range(24):
        noise(number).save(tmp_path / "images" / f"{number:02}.png")
    return tmp_path / "images"


def config(images, *overrides):
    given = {override.split("=")[0] for override in overrides}
    kept = [setting for setting in SETTINGS if setting.split("=")[0] not in given]
    return small.config(*kept, f"data.path={images}", *overrides)


def whole(run):
    """Steps of the complete checkpoints of a run."""
    folders = (run / "checkpoints" / "pretrain").glob(f"*/{COMMITTED}")
    return sorted(int(path.parent.name) for path in folders)


def steps(run):
    return [row["step"] for row in read_metrics(run / "metrics.jsonl")]


def bomb():
    """A PNG that says it has 40,000 x 40,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def kinds():
    """File name -> bytes of every kind; the second dict has what cannot be read."""
    sixteen = Image.fromarray(np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 30)
    good = {
        "cmyk.jpg": saved(noise(1, "CMYK"), "JPEG"),
        "sixteen.png": saved(sixteen, "PNG"),
        "palette.png": saved(noise(2).quantize(16), "PNG", transparency=3),
        "animated.gif": saved(noise(3), "GIF", save_all=True, append_images=[noise(4)]),
        "rgba.png": saved(noise(5, "RGBA"), "PNG"),
        "grey.png": saved(noise(6, "LA"), "PNG"),
        "huge.png": saved(Image.new("RGB", (3000, 2000), (9, 90, 200)), "PNG"),
    }
    bad = {
        "truncated.jpg": saved(noise(7), "JPEG")[:400],
        "truncated.png": saved(noise(7), "PNG")[:400],
        "foreign.jpg": b"<html>not found</html>",
        "empty.png": b"",
        "bomb.png": bomb(),
    }
    return good, bad


def test_every_kind_of_image_is_read_or_replaced_and_listed(images, tmp_path):
    good, bad = kinds()
    for name, data in (good | bad).items():
        (images / name).write_bytes(data)
    loop.train(config(images), tmp_path / "run")  # 96 images: more than two epochs
    assert steps(tmp_path / "run")[-1] == STEPS
    rows = read_list(tmp_path / "run" / FILE)
    told = {name: [row["reason"] for row in rows if name in row["reason"]] for name in good | bad}
    assert all(len(told[name]) == 1 for name in bad) and not any(told[name] for name in good)
    assert len(rows) == len(bad)
    assert "exceeds limit" in told["bomb.png"][0] and "empty" in told["empty.png"][0]
    for name, data in good.items():
        assert decode(data, name=name, channels=1, box_size=40).max() > 0


def test_above_the_quota_the_run_stops_and_goes_on_once_it_is_raised(images, tmp_path):
    ids = image_index(SEED, np.arange(24), 24)
    (images / f"{ids[BATCH * 1 + 3]:02}.png").write_bytes(b"")  # an image of the second step
    settings = ("checkpoint.every=1", "data.prefetch=1")
    with pytest.raises(TooManyBadImages, match=r"data\.max_bad_share=0\.0 allows"):
        loop.train(config(images, *settings, "data.max_bad_share=0"), tmp_path / "run")
    assert whole(tmp_path / "run") == [1] and len(read_list(tmp_path / "run" / FILE)) == 1
    loop.train(config(images, *settings), tmp_path / "run")
    assert steps(tmp_path / "run") == list(range(1, STEPS + 1))
    assert len(read_list(tmp_path / "run" / FILE)) == 1


@dataclasses.dataclass(frozen=True, eq=False)
class Killer(EncodedSource):
    """Reading one image kills a worker process, as the system does when memory runs out."""

    victim: int = -1
    parent: int = 0

    def read(self, index, box_size=None):
        if index == self.victim and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, box_size)


def test_a_dead_worker_ends_the_run_with_its_cause_and_what_was_saved_stays(
    images, tmp_path, monkeypatch
):
    settings = config(images, "data.num_workers=1", "checkpoint.every=1")
    source = folder(path=str(images), channels=1)
    fields = {f.name: getattr(source, f.name) for f in dataclasses.fields(source)}
    # The last image of the first epoch: of the second step, so that one is whole before.
    victim = int(image_index(SEED, np.array([23]), 24)[0])
    killer = Killer(**fields, victim=victim, parent=os.getpid())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "open_train_source", lambda config: killer)
        with pytest.raises(WorkerDied, match="exit code -9"):
            loop.train(settings, tmp_path / "run")
    rows = [json.loads(x) for x in (tmp_path / "run" / "resumes.jsonl").read_text().splitlines()]
    assert "WorkerDied" in rows[-1]["reason"]
    saved_steps = whole(tmp_path / "run")
    loop.train(config(images, "checkpoint.every=1"), tmp_path / "run")
    assert steps(tmp_path / "run") == list(range(1, STEPS + 1))
    assert whole(tmp_path / "run")[-1] == STEPS and saved_steps in ([], [1])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_disk_that_takes_no_more_is_reported_and_what_was_saved_stays(
    number, images, tmp_path, monkeypatch
):
    write = MetricsLog.write

    def failing(self, step, values):
        if step == 4:
            raise OSError(number, os.strerror(number))
        write(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", failing)
        with pytest.raises(OSError) as raised:
            loop.train(config(images), tmp_path / "run")
    assert full.cause(raised.value) is raised.value
    assert whole(tmp_path / "run") == [2]
    loop.train(config(images), tmp_path / "run")
    assert steps(tmp_path / "run") == list(range(1, STEPS + 1))


# Root may write anywhere, so the system's answer is made up; what python opens to write meets it.
READ_ONLY = """
import errno, os, sys
from dinojax.cli.main import main
def refuse(event, args):
    path, writes = str(args[0]) if args else "", True
    if event == "open":
        writes = any(c in str(args[1]) for c in "wax+") or bool(args[2] & (os.O_WRONLY | os.O_RDWR))
    if event in ("open", "os.mkdir", "os.rename", "os.remove") and writes and RUN in path:
        raise OSError(errno.EROFS, "Read-only file system", path)
RUN = sys.argv[sys.argv.index("--run") + 1]
sys.addaudithook(refuse)
sys.exit(main(sys.argv[1:]))
"""


def test_a_read_only_run_directory_is_told_before_any_work(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-c", READ_ONLY, "train", "--config", "tiny", "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == main.FAILED, done.stderr  # as of a disk that fills up on the way
    assert f"{run} cannot be written to (Read-only file system)." in done.stderr
    assert done.stderr.count("cannot be written") == 1 and "Traceback" not in done.stderr
    assert not list(run.iterdir())


# Orbax reads many arrays at once and drops the errors of all but the first.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("hurt", ["truncated", "bit-flipped"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_good(hurt, images, tmp_path):
    run = tmp_path / "run"
    last = loop.train(config(images), run)
    newest = run / "checkpoints" / "pretrain" / str(STEPS)
    for file in [path for path in (newest / "state").rglob("*") if path.parent.name == "d"]:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content[: len(content) // 2] if hurt == "truncated" else content)
    with pytest.raises(Damaged, match=rf"{STEPS} is damaged: .*Move it away .* step 4"):
        loop.train(config(images), run)
    gc.collect()  # the errors that Orbax dropped come to light here, not in a later test
    newest.rename(run / "damaged")
    again = loop.train(config(images), run)
    assert small.same(last.student, again.student) and small.same(last.ema, again.ema)


def test_changed_images_are_refused_and_the_checkpoint_stays(images, tmp_path):
    run = tmp_path / "run"
    loop.train(config(images), run)
    (images / "00.png").unlink()
    with pytest.raises(ConfigError, match="24 images then, 23 now.*--accept-new-data"):
        loop.train(config(images), run)
    assert whole(run) == [2, 4, 6]
    loop.train(config(images), run, accept=["new-data"])


@pytest.mark.parametrize("name", POISONS)
def test_poison_in_a_term_or_a_gradient_stops_the_run_with_clean_weights_saved(
    name, images, tmp_path, monkeypatch
):
    """From step 3 on every step is bad; the third in a row ends the run, which then goes on."""
    run, now = tmp_path / "run", Program.now

    def poisoned(self, step):
        return {**now(self, step), **({f"poison/{name}": np.float32("nan")} if step >= 2 else {})}

    with monkeypatch.context() as patch:
        patch.setattr(Program, "now", poisoned)
        with pytest.raises(NonFiniteError, match="3 steps in a row"):
            loop.train(config(images), run)
    seen = [json.loads((run / "autopsy" / str(s) / "step.json").read_text()) for s in (3, 4, 5)]
    culprit = "the gradient of backbone" if name == "grads" else f"{name} is nan"
    assert all(row["culprit"] == culprit for row in seen)
    assert whole(run) == [2, 4, 5]
    before, after = state(run, 2), state(run, 5)
    kept = [key for key in before if "student" in key or "ema" in key]
    assert kept and all(before[key] == after[key] for key in kept)
    final = loop.train(config(images), run)
    assert int(final.bad_steps) == 0 and steps(run) == list(range(1, STEPS + 1))
