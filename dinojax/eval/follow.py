"""`dinojax eval NAME --run RUN --follow`: each new checkpoint of a run, by a job of its own.

What is done stands in the records, so that a job that was killed goes on with what is not, and
several evaluations of the same checkpoint are each made once. It never writes to a checkpoint.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dinojax import config as configs
from dinojax.checkpoint.manager import COMMITTED
from dinojax.eval import evaluate as once
from dinojax.eval.contract import Evaluation
from dinojax.eval.targets import Target, of_run
from dinojax.runs import records
from dinojax.runs.finished import last_step, stage_file
from dinojax.runs.records import Record

log = logging.getLogger(__name__)

SECONDS = 30.0  # between looks for a new checkpoint


def follow(
    name: str,
    run_dir: str | Path,
    overrides: Sequence[str],
    *,
    data: str | None = None,
    protocol: str | None = None,
    cache: bool = True,
    seconds: float = SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Record]:
    """Evaluate the checkpoints that are there and those to come, until the run is finished.

    Checkpoints that the run removes before their turn are told and left out.
    Raises FileNotFoundError if there is no run.
    """
    directory = Path(run_dir)
    settings = [*once.protocol_settings(name, protocol, overrides), *overrides]
    opened: dict[str, tuple[Target, dict[str, Evaluation]]] = {}
    gone: set[tuple[str, int]] = set()
    found: list[Record] = []
    is_told = False
    while True:
        is_over = is_finished(directory)  # asked first: what it ends with is there then
        before = len(found)
        for stage in _begun(directory):
            if stage not in opened:
                target = of_run(directory, settings, stage=stage, data=data)
                opened[stage] = target, once.build_named(name, target)
                target.config.check_settings_read(overrides)
            for step, due in _due(directory, stage, *opened[stage], gone):
                is_told = False
                measured = _measure(opened[stage][0], due, step, protocol=protocol, cache=cache)
                found += measured
                if not measured:
                    gone.add((stage, step))
                    print(f"{stage}/{step} was removed before it was evaluated", flush=True)
        if len(found) == before:
            if is_over:
                print(f"{directory} is finished; {len(found)} results", flush=True)
                return found
            if not is_told:
                print(f"waiting for the next checkpoint of {directory}", flush=True)
            is_told = True
            sleep(seconds)


def _measure(
    target: Target, due: dict[str, Evaluation], step: int, *, protocol: str | None, cache: bool
) -> list[Record]:
    """Nothing where the checkpoint went while it was read."""
    try:
        return once.measure(target, due, step, protocol=protocol, cache=cache, keep=False)
    except (FileNotFoundError, ValueError):
        if target.has_step(step):
            raise
        return []


def is_finished(directory: Path) -> bool:
    """Whether all stages of a run are over. Raises FileNotFoundError if it is no run."""
    stages = configs.saved_stages(directory)
    return all(
        stage in _begun(directory)
        and last_step(directory, configs.read(directory, stage=stage).values()) is not None
        for stage in stages
    )


def _begun(directory: Path) -> list[str]:
    """The stages whose config is there."""
    stages = configs.saved_stages(directory)
    if len(stages) == 1:
        return stages
    return [stage for stage in stages if stage_file(directory, stage).exists()]


def _due(
    directory: Path,
    stage: str,
    target: Target,
    made: dict[str, Evaluation],
    gone: set[tuple[str, int]],
) -> Iterator[tuple[int, dict[str, Evaluation]]]:
    """(step, evaluations that it lacks) of every whole checkpoint, in order."""
    wanted = {n: records.fingerprint(once.protocol_of(target, n, e)) for n, e in made.items()}
    folder = directory / "checkpoints" / stage
    for step in sorted(int(path.parent.name) for path in folder.glob(f"*/{COMMITTED}")):
        rows = records.read(target.folder)
        done = {
            (r["evaluation"], r["fingerprint"])
            for r in rows
            if (r["stage"], r["step"]) == (stage, step)
        }
        due = {n: e for n, e in made.items() if (n, wanted[n]) not in done}
        if due and (stage, step) not in gone:
            yield step, due
