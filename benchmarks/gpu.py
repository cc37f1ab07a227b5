"""Steps on one GPU, in minutes: time, utilisation, memory, phases, and the reference's own step.

    python -m benchmarks.gpu --out OUT [--reference CHECKOUT] [--budget 330]
    python -m benchmarks.gpu --out OUT --small          # a tiny step, on any device, in a minute

CHECKOUT is one of https://github.com/facebookresearch/dinov3, given by path and never copied; its
packages (torch with CUDA, torchvision, omegaconf) must be there. Its compiled step and ours run in
turns on the same card, on crops that are there already; the ratio is the median of the rounds'.

Programs are compiled beside each other, then timed one at a time: CASES in order, each printed as a
JSON line as soon as it is known and kept in OUT/gpu.jsonl; those that no time is left for are told
as skipped. A second call with the same OUT finds the compiled programs there. value: seconds of a
step with several dispatched ahead, as training does, the median of rounds; blocked: of a step that
is waited for. Utilisation is of the 16-bit peak: model FLOPs, and those of what remat repeats too.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STEPS, ROUNDS = 8, 5
OP_NAME = re.compile(r'op_name="([^"]*)"')
WORKERS = 6  # compilations beside each other; the searches for fast kernels take turns on the card


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    smoke: bool = False


def vit(size: str, images: int, *overrides: str) -> Case:
    """A size of ViT by the ImageNet recipe."""
    keys = (
        f"batch_size={images}",
        f"group_size={images}",
        "mesh.devices=1",
        "mesh.strategy=dp",
    )
    name = " ".join([size, f"{images} images", *overrides])
    return Case(name, "vitl16_in1k", (f"model.name={size}", *keys, *overrides))


# In order of worth. The first is what users get, and meets the reference.
CASES = (
    vit("vitl", 64),
    vit("vits", 256),
    vit("vitb", 128),
    vit("vitl", 64, "model.attention=xla"),
    vit("vitl", 64, "model.remat=products"),
    vit("vitl", 128, "model.remat=products"),
    vit("vitl", 256, "model.remat=full"),
    vit("vitl", 64, "model.unroll=24"),
    vit("vits", 32),
    vit("vitl", 64, "model.attention=plain"),
)
SMALL = (Case("tiny", "tiny", ("mesh.devices=1", "mesh.strategy=dp"), smoke=True),)
# Of the same recipe with few images: whether a step gives what plain attention in float32 gives.
EXACT = ("model.attention=plain", "precision.compute=float32")


def set_environment(out: Path, *, shared: bool) -> None:
    """Before jax is imported. shared: with a process of torch on the same card."""
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "cache"))
    if shared:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        os.environ["XLA_CLIENT_MEM_FRACTION"] = ".60"


@dataclasses.dataclass
class Running:
    """A compiled step with its state and what it takes: images, or crops that are ready."""

    built: Any
    step: Callable
    state: Any
    batch: Any

    def seconds(self, num_steps: int) -> float:
        """Of one step, with all of them dispatched before the last is waited for."""
        import jax

        start = time.perf_counter()
        for _ in range(num_steps):
            self.state, scalars = self.step(self.state, self.batch, self.built.now(100))
        jax.block_until_ready((self.state, scalars))
        return (time.perf_counter() - start) / num_steps


def build(case: Case):
    from dinojax import config as configs
    from dinojax.sharding import mesh
    from dinojax.train import program

    config = configs.load(case.recipe, list(case.overrides), smoke=case.smoke)
    return program.build(config, mesh.from_section(config.mesh))


def images_of(built) -> dict:
    """A batch of noise in full boxes: loading is not measured."""
    import numpy as np

    from dinojax.sharding.batch import global_batch

    num_images, height, width, _ = built.batch_shape
    images = np.random.default_rng(0).integers(0, 256, built.batch_shape, dtype=np.uint8)
    sizes = np.tile(np.int32([height, width]), (num_images, 1))
    return global_batch(built.layout, {"images": images, "sizes": sizes})


def with_views(built):
    """(A compiled step of crops that are there, those crops): what the reference's step takes."""
    import jax

    from dinojax.sharding import mesh

    with mesh.use(built.layout):
        state, batch = built.new_state(), images_of(built)

        def inputs(state, batch):
            return built.step.inputs(state, built.step.views(state, batch), batch)

        views = jax.jit(inputs)(state, batch)
        update = jax.jit(built.step.update, donate_argnums=0)
        return update.lower(state, views, built.now(100)).compile(), state, views


def utilisation(built, seconds: float) -> dict[str, float | None]:
    """Shares of the card's peak, None for a card that is not in the table of targets."""
    import jax

    from dinojax.plan.formula import closed_form, total
    from dinojax.plan.targets import CHIPS

    kind = jax.devices()[0].device_kind.lower()
    gpus = {name: chip for name, chip in CHIPS.items() if chip.platform == "gpu"}
    chip = next((chip for name, chip in gpus.items() if name in kind.split()), None)
    parts = closed_form(built)
    flops = {name: total(parts, name) for name in ("model", "hardware")}
    shares = {f"{k}_mfu": v / seconds / chip.flops if chip else None for k, v in flops.items()}
    return {"model_tflop": flops["model"] / 1e12, **shares}


def measure(case: Case, running: Running, compile_seconds: float, **more) -> dict:
    """A row: seconds of a step, what follows from them, memory."""
    import jax

    running.seconds(3)  # warm
    rounds = [running.seconds(STEPS) for _ in range(ROUNDS)]
    blocked = [running.seconds(1) for _ in range(ROUNDS)]
    seconds, spec = statistics.median(rounds), running.built.step.view_spec
    images = running.built.batch_shape[0]
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "value": round(seconds, 6),
        "range": [round(min(rounds), 6), round(max(rounds), 6)],
        "blocked": round(statistics.median(blocked), 6),
        "images_per_second": round(images / seconds, 2),
        "views_per_second": round(images * (2 + spec.num_local) / seconds, 2),
        **utilisation(running.built, seconds),
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "compile_seconds": round(compile_seconds, 1),
        "attention": getattr(running.built.step.objective.backbone.spec, "attention", None),
        **more,
    }


def equality(case: Case, images: int) -> dict:
    """Losses of two steps against float32 with plain attention, and how far plain 16 bits are."""
    from dinojax.plan.targets import replaced

    few = [f"batch_size={images}", f"group_size={images}"]
    found = []
    for changes in ((), EXACT[:1], EXACT):
        one = dataclasses.replace(case, overrides=tuple(replaced(case.overrides, [*few, *changes])))
        running, _ = compiled(build(one))
        losses = []
        for _ in range(2):
            running.state, scalars = running.step(
                running.state, running.batch, running.built.now(100)
            )
            losses.append(float(scalars["total"]))
        found.append(losses)
    ours, plain, exact = found
    error, allowed = (max(abs(a - b) for a, b in zip(x, exact, strict=True)) for x in (ours, plain))
    return {
        "equal": error <= max(3 * allowed, 1e-4),
        "error": error,
        "error_of_plain": allowed,
    }


def compiled(built, lowered=None) -> tuple[Running, float]:
    """(The step, ready to run; seconds that it took to compile)."""
    from dinojax.sharding import mesh

    with mesh.use(built.layout):
        start = time.perf_counter()
        step = (built.lower() if lowered is None else lowered).compile()
        seconds = time.perf_counter() - start
        return Running(built, step, built.new_state(), images_of(built)), seconds


class Worker:
    """A process that runs steps of its own when told how many, and says how long one took.

    Its first line of output is a JSON object that describes it. Raises RuntimeError as soon as it
    ends, with the last that it said.
    """

    def __init__(self, command: Sequence[str]):
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout")}
        self._process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        self._command = " ".join(command)

    def describe(self) -> dict:
        """Waits until it is ready."""
        return json.loads(self._line())

    def seconds(self, num_steps: int) -> float:
        self._process.stdin.write(f"{num_steps}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self._command} ended with {code} before it had answered.")
        return line


def in_turns(ours: Callable[[int], float], theirs: Callable[[int], float], rounds: int) -> dict:
    """Rounds of both, so that a change of the machine hits both; above 1 ours is faster."""
    pairs = [(ours(STEPS), theirs(STEPS)) for _ in range(rounds)]
    ratios = [b / a for a, b in pairs]
    return {
        "value": round(statistics.median(a for a, _ in pairs), 6),
        "baseline": round(statistics.median(b for _, b in pairs), 6),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(x, 4) for x in ratios],
    }


def phases(running: Running, folder: Path, num_steps: int = 3) -> dict[str, float]:
    """Seconds of kernels of a step by phase, from a profile; "unknown" for those without a name."""
    import jax

    from benchmarks.roofline import direction, phase
    from dinojax.plan.hlo import computations
    from dinojax.plan.kernels import INSTRUCTION

    lines, _ = computations(running.step.as_text())
    names = {}
    for line in (line for body in lines.values() for line in body):
        match, found = INSTRUCTION.match(line), OP_NAME.search(line)
        if match and found:
            names[match[2]] = found[1]
    with jax.profiler.trace(str(folder)):
        running.seconds(num_steps)
    trace = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    seconds: dict[str, float] = collections.defaultdict(float)
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for event in (event for line in plane.lines for event in line.events):
            stats = dict(event.stats)
            if "hlo_op" in stats:
                name = names.get(stats["hlo_op"], "")
                where = (
                    " ".join(dict.fromkeys((phase(name), direction(name)))) if name else "unknown"
                )
                seconds[where] += event.duration_ns / 1e9 / num_steps
    return {name: round(value, 6) for name, value in sorted(seconds.items())}


def lowered_cases(cases: Sequence[Case], pool) -> list[tuple[Case, Any, Any]]:
    """(Case, its program, its compilation under way). Tracing has one thread, compiling several."""
    from dinojax.sharding import mesh

    found = []
    for case in cases:
        built = build(case)
        with mesh.use(built.layout):
            found.append((case, built, pool.submit(_compile, built.lower())))
    return found


def _compile(lowered):
    start = time.perf_counter()
    return lowered.compile(), time.perf_counter() - start


def run(
    cases: Sequence[Case],
    *,
    out: Path,
    deadline: float,
    worker: Worker | None,
    images: int,
):
    """All rows in turn, as JSON objects; images: of the comparison with float32."""
    import jax

    from dinojax.sharding import mesh

    first = cases[0]
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        under_way = lowered_cases(cases, pool)
        concurrent.futures.wait(
            [future for _, _, future in under_way],
            timeout=max(deadline - time.monotonic(), 0),
        )
        for case, built, future in under_way:
            if not future.done() or time.monotonic() > deadline:
                yield {"name": case.name, "skipped": "no time is left"}
                continue
            try:
                step, compile_seconds = future.result()
                with mesh.use(built.layout):
                    running = Running(built, step, built.new_state(), images_of(built))
                    yield {"name": case.name, **measure(case, running, compile_seconds)}
                    if case is first:
                        yield {
                            "name": f"{case.name}, phases",
                            **phases(running, out / "profile"),
                        }
            except jax.errors.JaxRuntimeError as error:  # out of memory is an answer
                yield {"name": case.name, "error": str(error).splitlines()[0][:300]}
            running = None
        if time.monotonic() < deadline:
            yield {"name": f"{first.name}, equality", **equality(first, images)}
        if worker is not None:
            yield {"name": "reference", **worker.describe()}
            step, state, views = with_views(built := build(first))
            ours = Running(built, step, state, views)
            ours.seconds(3)
            worker.seconds(3)
            yield {
                "name": "against the reference",
                **in_turns(ours.seconds, worker.seconds, ROUNDS),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, programs, profile")
    parser.add_argument("--reference", metavar="CHECKOUT", help="of the reference's source")
    parser.add_argument("--budget", type=float, default=330.0, help="seconds for all")
    parser.add_argument("--small", action="store_true", help="a tiny step, to try the script")
    args = parser.parse_args()
    deadline = time.monotonic() + args.budget
    set_environment(args.out, shared=args.reference is not None)
    worker = None
    if args.reference:
        small = ["--small"] if args.small else []
        worker = Worker([sys.executable, "-m", "benchmarks.reference_step", args.reference, *small])
    from benchmarks.rows import commit

    cases, images = (SMALL, 16) if args.small else (CASES, 8)
    with (args.out / "gpu.jsonl").open("a") as kept:
        for found in run(cases, out=args.out, deadline=deadline, worker=worker, images=images):
            line = json.dumps({**found, "commit": commit()})
            print(line, flush=True)
            kept.write(f"{line}\n")
            kept.flush()
    if worker is not None:
        worker.close()


if __name__ == "__main__":
    main()
