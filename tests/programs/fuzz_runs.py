"""Mutated run folders through the commands that read them, up to where they would compute."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax import config as configs
from dinojax.checkpoint.manager import Checkpoints
from dinojax.eval import targets as measure
from dinojax.monitor.energy import summed
from dinojax.train import loop, replay
from dinojax.train.checks import check_data
from dinojax.train.records import open_metrics
from dinojax.train.state import State
from tests.programs.fuzz_configs import checks_only
from tests.programs.fuzz_json import in_the_way, mutated_bytes, mutated_json, mutated_lines, watched

STEP = 30  # of the folder's checkpoint
FILES = ("config.json", "env.json", "energy.json", "lock", "hosts.json", "stages/pretrain.json")
FILES += ("stages/gram.json", "autopsy/12/step.json", "autopsy/12/config.json")
LISTS = ("metrics.jsonl", "resumes.jsonl", "bad_images.jsonl", "bad_images.knn.jsonl")
SAVED = f"checkpoints/pretrain/{STEP}"
OTHERS = ("pictures/patches-00000010.png", f"{SAVED}/meta/metadata", f"{SAVED}/arrays/metadata")
COLUMNS = ("total", "dino_local", "dino_global", "ibot", "koleo", "lr", "momentum", "patch_norm")
COLUMNS += ("effective_rank", "cls_spread", "grad_norm/backbone", "ema_change", "data_wait")
RECIPE = """\
from dinojax.configs import tiny_stages

get_config, smoke = tiny_stages.get_config, tiny_stages.smoke
STAGES = {name: tiny_stages.STAGES[name] for name in ("pretrain", "gram")}
"""


class Reached(Exception):
    """A command has read what it needs and would begin to compute."""


def make(folder: Path) -> None:
    """A run of two stages with all that a run may hold, but for weights of any size."""
    folder.mkdir(parents=True)
    (folder.parent / "recipe.py").write_text(RECIPE)
    stages = configs.load_stages(folder.parent / "recipe.py", ["mesh.devices=1"])
    names = ["pretrain", "gram"]
    (folder / "stages").mkdir()
    configs.save(stages[0], folder / "config.json", stages=names)
    for name, config in zip(names, stages, strict=True):
        over = STEP if name == "pretrain" else None
        configs.save(config, folder / "stages" / f"{name}.json", stages=names, finished=over)
    rows = [{"step": n, "stage": "pretrain"} | dict.fromkeys(COLUMNS, 0.5) for n in range(1, 31)]
    rows += [{"step": n, "stage": "pretrain", "knn/cls": 20.0 + n} for n in (0, 15, 30)]
    image = {"id": 3, "reason": "truncated", "substitute": 4}
    starts = [{"time": "2026-11-30", "event": event, "step": 0} for event in ("start", "stop")]
    session = {"device_hours": 2.0, "energy_kwh": 1.5, "method": "a meter", "notes": ["a note"]}
    bad = {"step": 12, "culprit": "ibot is nan", "scalars": {"bad_steps": 1.0, "ibot": "nan"}}
    (folder / "autopsy/12").mkdir(parents=True)
    shutil.copy(folder / "config.json", folder / "autopsy/12/config.json")
    files = {
        "env.json": {"versions": {"jax": "1.2.3"}, "devices": ["cpu"], "commit": None},
        "energy.json": summed([session]),
        "lock": {"pid": 1, "host": "a", "since": "2026"},
        "hosts.json": {"token": "a"},
        "autopsy/12/step.json": bad | {"seed": 0, "now": {"lr": 0.1}, "ids": [1]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    lists = {"metrics": rows, "resumes": starts, "bad_images": [image]}
    lists["bad_images.knn"] = [{"id": 3, "reason": "cut", "source": "bank"}]
    for name, content in lists.items():
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "pictures").mkdir()
    (folder / "pictures/patches-00000010.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 30)
    _save(folder, stages[0])


def _save(folder: Path, config) -> None:
    """A checkpoint of a few numbers in place of a state."""
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("replica", "fsdp", "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    number = lambda: jax.device_put(jnp.zeros((3,), jnp.float32), whole)  # noqa: E731
    step = jax.device_put(jnp.asarray(STEP, jnp.int32), whole)
    state = State(
        step=step,
        key=jax.device_put(jax.random.key(0), whole),
        student={"backbone": {"kernel": number()}},
        ema={"backbone": {"kernel": number()}},
        gram=None,
        opt_state=({"mu": number()},),
        centers={},
        bad_steps=step,
    )
    meta = {"position": 30, "seconds": 1.0, "fingerprint": "f", "num_images": 9, "devices": 1}
    meta |= {"config": config.to_dict(), "versions": {"jax": "1"}}
    checkpoints = Checkpoints(folder / "checkpoints/pretrain", keep_last=1, keep_every=None)
    checkpoints.save(state, step=STEP, meta=meta)
    checkpoints.close()


def mutate(folder: Path, rng) -> str:
    """Change one file of a run; its name."""
    name = str(rng.choice([*FILES, *FILES[:1] * 6, *LISTS, *LISTS[:1] * 3, *OTHERS]))
    path = folder / name
    if rng.random() < 0.06 and not name.startswith("checkpoints"):
        in_the_way(path, rng)
        return name
    if name in LISTS:
        change = mutated_lines
    else:
        change = mutated_bytes if name.endswith(".png") else mutated_json
    path.write_bytes(change(path.read_bytes(), rng))
    return name


@contextlib.contextmanager
def reading_only() -> Iterator[None]:
    """Commands end, as if done, where they would compute."""

    def reached(*_, **__):
        raise Reached

    before = measure.backbone_of, replay.program, loop._at_work
    stand_in = type("Program", (), {"build": reached, "build_sizes": reached})
    with checks_only([]):
        measure.backbone_of, replay.program = reached, stand_in  # type: ignore[assignment]
        loop._at_work = _begin  # type: ignore[assignment]
        try:
            yield
        except Reached:
            pass
        finally:
            measure.backbone_of, replay.program, loop._at_work = before


@contextlib.contextmanager
def _begin(run, interrupt, accept, **_):
    """What a run reads before its first step."""
    step = run.checkpoints.latest()
    if step is not None:
        check_data(run.checkpoints.restore_meta(step), run.source, ("new-data",))
    run.note(event="start", step=step or 0)
    with open_metrics(run, step) as metrics:
        metrics.rows()
    yield SimpleNamespace(state=None), ()


def commands(folder: Path) -> list[list[str]]:
    run = str(folder)
    knn = ["--set", "knn.bank=", "--set", "knn.query="]
    return [
        ["doctor", run],
        ["report", run],
        ["config", "diff", run, "tiny"],
        ["ckpt", "inspect", run],
        ["eval", "knn", "--run", run, *knn],
        ["replay", str(folder / "autopsy/12")],
        ["train", "--config", str(folder.parent / "recipe.py"), "--run", run]
        + ["--set", "mesh.devices=1", "--accept-new-data"],
    ]


def _named(name: str, said: str) -> bool:
    """Whether a refusal names the file, or the checkpoint that it is a part of."""
    if name.startswith(SAVED):
        return SAVED in said
    return Path(name).name in said


def fuzz(seed: int, count: int, *, progress=lambda done, faults: None) -> dict:
    """{"read", "refused": numbers of commands, "faults": list of (file, what)}."""
    rng, result, faults = np.random.default_rng(seed), {"read": 0, "refused": 0}, []
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole" / "run"
        make(whole)
        for number in range(count):
            folder = Path(place) / "mutant" / "run"
            shutil.copytree(whole.parent, folder.parent)
            name = mutate(folder, rng)
            for words in commands(folder):
                code, wrong = watched(
                    words,
                    lambda said: _named(name, said),  # noqa: B023
                    within=reading_only,
                )
                result["read" if code == 0 else "refused"] += 1
                faults += [f"{name}: {line}" for line in wrong]
            shutil.rmtree(folder.parent)
            progress(number + 1, faults)
    return {**result, "faults": faults}
