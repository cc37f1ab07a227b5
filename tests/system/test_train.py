"""Training from recipe to run directory: what is written, what is refused, and going on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import dinojax
from dinojax import config as configs
from dinojax.cli import main
from dinojax.data import tiles
from dinojax.eval import features
from dinojax.eval.features import EvalTransform
from dinojax.eval.knn import knn_accuracy
from dinojax.runs import records
from dinojax.runs.scalars import read_metrics
from dinojax.train import loop
from dinojax.train.records import Records
from dinojax.weights import libraries
from tests.support import small
from tests.support.library_models import needs

# The tiny recipe's `smoke`, longer, on one device.
RUN = ("num_steps=4", "checkpoint.every=2", "log.every=1", "knn.every=4", "mesh.devices=1")
TERMS = {"total", "dino_local", "dino_global", "ibot", "koleo"}
NORMS = {"grad_norm/backbone", "grad_norm/dino_head", "grad_norm/ibot_head"}
NOW = {"lr", "last_layer_lr", "weight_decay", "momentum", "teacher_temperature", "local_weight"}
NOW |= {"gram_weight"}
HEALTH = {"effective_rank", "cls_patch_cosine", "teacher_entropy/dino", "student_entropy/ibot"}
HEALTH |= {"prototypes_used/dino", "neighbor_distance", "patch_norm", "ema_change", "bad_steps"}


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """Few tiles, compiled quickly and once."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SPLITS", {"train": 64, "bank": 48, "val": 32, "test": 32})
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


def config(*overrides: str):
    given = {override.split("=")[0] for override in overrides}
    kept = [override for override in RUN if override.split("=")[0] not in given]
    return configs.load("tiny", [*kept, *overrides], smoke=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run directory, last state, numbers of compilations after each step)."""
    directory = tmp_path_factory.mktemp("run") / "tiny"
    compiled: list[str] = []
    after_step: list[int] = []

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    add = Records.add

    def counted(self, *args):
        after_step.append(len(compiled))
        add(self, *args)

    jax.monitoring.register_event_duration_secs_listener(listen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Records, "add", counted)
        state = loop.train(config(), directory)
    return directory, state, after_step


@pytest.mark.slow
def test_a_run_directory_holds_everything_to_understand_the_run(run):
    directory, state, _ = run
    found = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    wanted = {"config.json", "env.json", "log.txt", "metrics.jsonl", "quickstart.json"}
    assert wanted | {"pictures/crops.png", "pictures/patches.png"} <= found
    assert sorted(os.listdir(directory / "checkpoints" / "pretrain")) == ["2", "4"]
    assert configs.read(directory) == config()
    versions = json.loads((directory / "env.json").read_text())["versions"]
    assert versions["jax"] == jax.__version__
    quickstart = json.loads((directory / "quickstart.json").read_text())
    assert set(quickstart) == {"raw", "random", "ema", "train_seconds", "seed"}
    assert all(0 <= quickstart[name] <= 100 for name in ("raw", "random", "ema"))
    assert state.step == 4
    assert (directory / "report.html").exists()
    assert {"patches-00000000.png", "patches-00000004.png"} < set(
        os.listdir(directory / "pictures")
    )
    log = (directory / "log.txt").read_text()
    assert "64 images, 1 devices" in log and "step 0: k-NN" in log


@pytest.mark.slow
def test_metrics_have_a_row_per_step_and_knn_at_both_ends(run):
    rows = read_metrics(run[0] / "metrics.jsonl")
    knn = [row for row in rows if "knn/cls" in row]
    steps = [row for row in rows if "total" in row]
    assert [row["step"] for row in knn] == [0, 4]
    assert all(set(row) == {"step", "knn/cls", "knn/patches", "knn/both", "time"} for row in knn)
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(set(row) > {"step", "data_wait"} | TERMS | NORMS | NOW | HEALTH for row in steps)
    assert [row["step"] for row in rows if "probe/drift" in row] == [4]
    assert all(value is not None for row in rows for value in row.values())
    assert [row["lr"] for row in steps[:2]] == [0.0, pytest.approx(2e-3)]


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_step_and_the_first_save(run):
    first, second, third, fourth = run[2]  # the save of step 2 compiles its checksums
    assert first == second and third == fourth, run[2]


@pytest.mark.slow
def test_another_config_is_refused_and_free_keys_are_not(run):
    with pytest.raises(configs.ConfigError, match=r"(?s)another config.*seed: 0 there, 1 now"):
        loop.train(config("seed=1"), run[0])
    loop.claim(run[0], config("knn.every=2", "mesh.devices=2", "accumulate=2"))
    loop.claim(run[0], config())


@pytest.mark.slow
def test_changed_images_are_refused(run, monkeypatch):
    monkeypatch.setattr(tiles, "SPLITS", tiles.SPLITS | {"train": 80})
    with pytest.raises(configs.ConfigError, match="images changed since the checkpoint"):
        loop.train(config(), run[0])


@pytest.mark.slow
def test_eval_knn_measures_the_checkpoint_of_a_run(run, capsys):
    directory = run[0]
    assert main.main(["eval", "knn", "--run", str(directory)]) == main.FINISHED
    assert "step 4, 48 images in the bank, 32 queries" in capsys.readouterr().out
    (row,) = records.read(directory / "eval")
    during = [r for r in read_metrics(directory / "metrics.jsonl") if "knn/cls" in r][-1]
    names = ("cls", "patches", "both")
    assert during["step"] == row["step"] == 4
    assert row["values"] == {f"knn/{name}": during[f"knn/{name}"] for name in names}
    low, high = row["intervals"]["knn/cls"]
    assert low < row["values"]["knn/cls"] < high and row["n"] == 32
    # A second one reads the features of the first, and what is of another protocol stands apart.
    again = ["eval", "knn", "--run", str(directory), "--set", "knn.neighbors=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "extract_outputs", None)
        assert main.main(again) == main.FINISHED
    assert main.main(["report", str(directory)]) == main.FINISHED
    groups = records.grouped(records.read(directory / "eval"))
    assert [len(rows) for rows in groups.values()] == [1, 1]
    report = (directory / "report.html").read_text()
    assert all(f"protocol {fingerprint}" in report for _, fingerprint in groups)
    assert main.main(["eval", "knn", "--run", str(directory), "--step", "3"]) == main.REFUSED
    assert "has no checkpoint 3; it has [2, 4]" in capsys.readouterr().err


# -- the command line, on a folder of one's own ---------------------------------------------------


def pngs(folder: Path, number: int) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(number):
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def command(run: Path, *overrides: str) -> list[str]:
    """`dinojax train` of the tiny recipe, shrunk as `smoke` does."""
    shrunk = [*small.flat_smoke(), "mesh.devices=1"]
    given = {override.split("=")[0] for override in overrides}
    settings = [*(s for s in shrunk if s.split("=")[0] not in given), *overrides]
    args = ["train", "--config", "configs/tiny.py", "--run", str(run)]
    return args + [word for setting in settings for word in ("--set", setting)]


@pytest.mark.slow
def test_a_folder_without_labels_trains_by_setting_its_path(tmp_path):
    folder = pngs(tmp_path / "images", 24)
    args = command(tmp_path / "run", f"data.path={folder}")
    assert main.main(args) == main.FINISHED
    assert "no k-NN" in (tmp_path / "run" / "log.txt").read_text()
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 2
    assert not (tmp_path / "run" / "quickstart.json").exists()


REFUSALS = {
    "missing folder": ("data.path=absent", "data.path=absent does not exist"),
    "empty folder": ("data.path=empty", "data.path=empty"),
    "no image": ("data.path=broken", "data.path=broken"),
    "channels": ("image.normalize=fixed", "image.mean=(0.485, 0.456, 0.406) has 3 values"),
    "key": ("model.widht=24", "model.widht is not a key; nearest: model.width"),
    "groups": ("group_size=3", "group_size=3 does not divide"),
    "patches": ("crops.local_size=12", "crops.local_size=12 is not a multiple"),
    "devices": ("mesh.devices=9", "mesh.devices=9, but jax sees 8 devices"),
    "gram": ("gram.enabled=True", "gram.teacher=frozen needs an earlier ema"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_work_is_refused_before_any_work(what, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"not an image")
    args = command(tmp_path / "run", REFUSALS[what][0])
    args[2] = str(Path(args[2]).absolute())
    monkeypatch.chdir(tmp_path)
    assert main.main(args) == main.REFUSED
    told = capsys.readouterr().err
    assert REFUSALS[what][1] in told and "Traceback" not in told
    assert not list(tmp_path.glob("run/checkpoints/*/*"))


def test_a_refused_attempt_does_not_occupy_its_run_directory(tmp_path, capsys):
    args = command(tmp_path / "run", "data.path=/absent")
    assert main.main(args) == main.REFUSED
    loop.claim(tmp_path / "run", config())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    assert main.main(command(tmp_path / "other")) == main.REFUSED
    assert "is not empty and no run directory" in capsys.readouterr().err


# -- it learns ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_quickstart_learns(tmp_path):
    """In a process of its own, with all of XLA's optimizations and as many devices as there are."""
    overrides = ["num_steps=300", "checkpoint.every=300", "log.pictures=False", "log.every=25"]
    overrides += ["schedules.teacher_temperature.warmup=100", "knn.every=300"]
    args = ["train", "--config", "tiny", "--run", str(tmp_path)]
    args += [word for setting in overrides for word in ("--set", setting)]
    ours = ("XLA_FLAGS", "NPROC", "JAX_DISABLE_MOST_OPTIMIZATIONS")  # of conftest.py
    env = {k: v for k, v in os.environ.items() if k not in ours}
    env |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}  # as the quickstart
    done = subprocess.run([sys.executable, "-m", "dinojax", *args], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    steps = [row for row in rows if "total" in row]
    found = json.loads((tmp_path / "quickstart.json").read_text())
    chance = 0.5 * np.log(512)
    assert steps[-1]["ibot"] < chance - 0.12
    assert found["ema"] > found["random"] + 5 and found["ema"] > found["raw"] + 5
    knn = [row["knn/both"] for row in rows if "knn/both" in row]
    assert knn[-1] > knn[0] + 5


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other people's libraries
@pytest.mark.parametrize("format", ["meta", "hf", "timm"])
def test_a_run_exports_and_has_the_same_knn_in_every_library(run, tmp_path, capsys, format):
    """Held-out tiles are classified the same from our features and from the library's."""
    needs(format)
    out = tmp_path / "out"
    words = ["export", "--run", str(run[0]), "--format", format, "--out", str(out)]
    assert main.main(words) == main.FINISHED
    told = capsys.readouterr().out
    assert "same features in torch" in told and "normalised by its own mean" in told
    backbone = dinojax.load(out)
    own = backbone.preprocessing
    transform = EvalTransform(own.resize_size, own.crop_size, own.normalize, (), ())
    bank, query = (tiles.tiles(channels=1, split=split) for split in ("train", "test"))
    images = [np.stack([transform(one.pixels) for one in source]) for source in (bank, query)]
    library = libraries.open_in_library(out, format, backbone.spec)
    accuracies = []
    for cls in (lambda images: backbone(images).cls, lambda images: library(images)[0][:, 0]):
        features = [np.asarray(cls(part)) for part in images]
        accuracy = knn_accuracy(
            *(features[0], bank.labels, features[1], query.labels),
            neighbors=10,
            temperature=0.07,
            num_classes=len(bank.class_names),
        )
        accuracies.append(accuracy)
        # After four steps a class may be told no better than by chance; images differ all the same.
        assert np.ptp(features[0], axis=0).max() > 0.1
    assert accuracies[0] == accuracies[1] > 0
