"""Runs of several processes: the same results as one, stopped together, continued on fewer."""

import functools
import json
import threading
import time

import jax
import numpy as np
import pytest

from dinojax.checkpoint.manager import Checkpoints
from dinojax.cli import main
from dinojax.config import ConfigError
from dinojax.distributed.channel import HostError
from dinojax.distributed.cluster import ProcessSpec, find
from dinojax.distributed.interrupt import (
    FAILED,
    LOST,
    NOT_SAVED,
    REFUSED,
    SAVED,
    Asked,
    Interrupt,
    within,
)
from dinojax.distributed.process_group import ProcessGroup
from dinojax.runs.scalars import read_metrics
from dinojax.sharding import mesh
from dinojax.train import initialize, loop, preflight, program
from tests.support import several, several_worker, small
from tests.support.stored_run import TIMES

NUM_STEPS, EVERY = 6, 3
KEPT = [s for s in small.STAGED if not s.startswith(("mesh.", "batch_size", "knn", "group"))]
SETTINGS = [
    *KEPT,
    *(f"num_steps={NUM_STEPS}", "checkpoint.every=2", "batch_size=16", "group_size=2"),
    *(f"knn.every={EVERY}", "schedules.lr.warmup=1", "schedules.teacher_temperature.warmup=1"),
    *("expect.platform=cpu", "optim.eps=1e-3"),
]


def rows(run):
    found = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found]


def assert_same_rows(got, want):
    assert [set(row) for row in got] == [set(row) for row in want]
    for ours, theirs in zip(got, want, strict=True):
        for name, value in theirs.items():
            # The step's own tolerance (tests/train/test_step.py), a few steps on.
            np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_stop_together_and_one_continues_as_if_there_had_been_one_all_along(tmp_path):
    """Two hosts of four devices; SIGTERM to the second; then one host of four devices."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    (done,) = several.train(whole, SETTINGS, count=1, devices=1)
    assert done.code == 0, done.told
    both = several.train(
        run, [*SETTINGS, "mesh.strategy=dp"], count=2, devices=4, ACT="1 3 SIGTERM"
    )
    assert [ended.code for ended in both] == [SAVED, SAVED], "\n".join(e.told for e in both)
    assert "process 1 (" in both[0].told and "devices 4 to 7, 4 x cpu" in both[0].told
    notes = [json.loads(line) for line in (run / "resumes.jsonl").read_text().splitlines()]
    assert [note["event"] for note in notes] == ["start", "stop"]
    assert "stopped by SIGTERM after step" in notes[-1]["reason"]
    stopped = max(int(path.name) for path in (run / "checkpoints/pretrain").iterdir())
    assert 3 <= stopped < NUM_STEPS
    assert f"stopped by SIGTERM after step {stopped}; saved" in both[1].told
    seen = several.order(run, count=2)

    (ended,) = several.train(run, [*SETTINGS, "mesh.strategy=fsdp"], count=1, devices=4)
    assert ended.code == 0 and f"continuing from step {stopped}" in ended.told, ended.told
    later = several.order(run, count=1)
    wanted = several.order(whole, count=1)
    assert {step: ids for step, ids in seen.items() if step <= stopped} == {
        step: ids for step, ids in wanted.items() if step <= stopped
    }
    assert all(later[step] == wanted[step] for step in range(stopped + 1, NUM_STEPS + 1))
    assert_same_rows(rows(run), rows(whole))


STRATEGIES = ("dp", "fsdp", "hsdp", "fsdp_tp")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of several_worker on one device."""
    run = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        several_worker.begin(patch)
        loop.train(several_worker.config("dp", 1), run)
    return run


@pytest.fixture(scope="module", params=[(2, 4), (4, 2)], ids=["2x4", "4x2"])
def trained(request, tmp_path_factory):
    """Folder of a run per strategy, by so many processes with so many devices each."""
    (count, devices), out = request.param, tmp_path_factory.mktemp("several")
    flags = several.places(count, several.free_port())
    args = [str(out), ",".join(STRATEGIES)]
    started = [
        several.start("tests.support.several_worker", [*args, *f], devices=devices) for f in flags
    ]
    stops = f"stopped by SIGTERM after step {several_worker.FIRST}; saved"
    for ended in several.wait(started):
        assert ended.code == 0, ended.told
        # Logged, and raised by `train`.
        assert ended.told.count(stops) == 2 * len(STRATEGIES), ended.told
    return out


@functools.cache
def shapes(strategy, devices):
    """A state's, on this host."""
    chosen = several_worker.config(strategy, devices)
    return program.build(chosen, mesh.from_section(chosen.mesh)).abstract_state()


def last_state(run, strategy, devices):
    checkpoints = Checkpoints.reader(run / "checkpoints/pretrain")
    state = checkpoints.restore(shapes(strategy, devices), several_worker.LAST)
    checkpoints.close()
    return state


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_processes_train_stop_and_continue_as_one_and_their_state_fits_fewer_devices(
    strategy, trained, one
):
    """Images, a step, SIGTERM, a save, a restore, a step, a k-NN, a save; then on this one host."""
    run = trained / strategy
    assert_same_rows(rows(run), rows(one))
    want = last_state(one, "dp", 1)
    for devices in (8, 4, 1):
        found = last_state(run, strategy if devices == 8 else "fsdp", devices)
        small.assert_close(found, want)


# -- what goes wrong -------------------------------------------------------------------------------


def workers(out, what, *, count=2, **more):
    flags = several.places(count, several.free_port())
    return [
        several.start("tests.support.several_worker", [str(out), what, *f], devices=1, **more)
        for f in flags
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_is_killed_ends_all_with_its_name(dies, tmp_path):
    """Process 0 is also JAX's coordinator."""
    began = time.monotonic()
    started = workers(tmp_path, "die", count=2, DIES=str(dies))
    left = several.wait(started, 120)[1 - dies]
    assert left.code == LOST, left.told
    assert f"process {dies} (" in left.told and "ended without a word" in left.told
    assert time.monotonic() - began < 100, "before JAX would have noticed"


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_words(tmp_path):
    first, second = several.wait(workers(tmp_path, "fail"), 120)
    assert (first.code, second.code) == (FAILED, FAILED), first.told + second.told
    assert "process 1 (" in first.told and "failed: OSError: no such luck" in first.told


@pytest.mark.slow
def test_a_process_that_never_comes_is_named_before_any_device_work(tmp_path):
    flags = several.places(2, several.free_port())[0]
    args = ["train", "--config", "tiny", "--run", str(tmp_path / "run"), "--wait", "2", *flags]
    (ended,) = several.wait([several.start("dinojax", args, devices=1)], 120)
    assert ended.code == REFUSED, ended.told
    assert "1 of 2 processes did not come within 2 s: --process-id 1" in ended.told


@pytest.fixture
def teams():
    """Two processes of a run, here two threads; together(function) calls it in both."""
    port = several.free_port()
    found = [None, None]

    def come(index):
        found[index] = ProcessGroup(ProcessSpec(f"localhost:{port}", 2, index), wait=60.0)

    def together(function):
        results = [None, None]

        def call(index):
            try:
                results[index] = function(found[index])
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=call, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    threads = [threading.Thread(target=come, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield together
    for processes in found:
        processes._leaving = True  # or the end of one would end this process
    for processes in found:
        several.cut(processes.channel)


@pytest.fixture
def stops(teams, monkeypatch):
    """stops(process): runs process(interrupt, group) in both; {index: exit code or the reason}."""
    ended = {}

    def end(processes, code):
        ended[processes.index] = code
        threading.Event().wait(0.5)  # the real one never returns

    monkeypatch.setattr(ProcessGroup, "end", end)
    monkeypatch.setattr("dinojax.distributed.interrupt.HURRY", 1.0)
    monkeypatch.setattr("dinojax.distributed.process_group.HURRY", 1.0)

    def run(process):
        def one(processes):
            with Interrupt(grace=0.1, processes=processes) as interrupt:
                try:
                    process(interrupt, processes)
                except Asked as asked:
                    ended.setdefault(processes.index, str(asked))

        teams(one)
        return ended

    return run


@pytest.mark.parametrize("where", ["ending", "unsaved"])
def test_asked_while_all_compile_all_end_with_their_last_words(where, stops):
    ended, inside = [threading.Event(), threading.Event()], threading.Barrier(2)

    def process(interrupt, processes):
        def last_words(why):
            ended[processes.index].set()
            return 70 + processes.index

        with getattr(interrupt, where)(last_words):
            inside.wait(20.0)
            interrupt.ask("SIGTERM")
            for event in ended:  # a compile that takes as long as it must
                event.wait(20.0)

    assert stops(process) == {0: 70, 1: 71}


def test_making_the_first_state_is_work_that_may_be_ended(tmp_path, monkeypatch):
    opened = []

    class Kept(Interrupt):
        def __enter__(self):
            opened.append(self)
            return super().__enter__()

    def first_state(*_):
        raise RuntimeError(f"would end with {opened[0]._last_words('SIGTERM')}")

    monkeypatch.setattr(loop, "Interrupt", Kept)
    monkeypatch.setattr(initialize, "first_state", first_state)
    with pytest.raises(RuntimeError, match=f"would end with {NOT_SAVED}"):
        loop.train(small.config("mesh.devices=1"), tmp_path / "run")


def test_asked_while_some_compile_and_others_do_not_all_stop_at_the_next_turn(stops):
    done, step = [], threading.Barrier(2)

    def process(interrupt, processes):
        with interrupt.ending(lambda why: 70):
            time.sleep(0.6 * processes.index)  # process 0 is through, process 1 compiles
            if processes.index == 1:
                interrupt.ask("SIGTERM")
                time.sleep(0.4)
        done.append(processes.index)
        for _ in range(10):
            with interrupt.breakable():
                pass
            step.wait(10.0)  # process 0 is a step ahead: process 1 has to catch up
        raise AssertionError("nobody stopped")

    assert stops(process) == {0: "SIGTERM", 1: "SIGTERM"} and sorted(done) == [0, 1]


def test_asked_while_one_waits_for_images_for_ever_all_end_in_time(stops):
    def process(interrupt, processes):
        for _ in range(2 + processes.index):
            interrupt.check()
        if processes.index == 1:
            interrupt.ask("SIGTERM")
        time.sleep(3.0)  # in a collective, or in the loader

    assert stops(process) == {0: NOT_SAVED, 1: NOT_SAVED}


def test_the_wall_is_a_stop_of_all_with_time_left_to_save(stops):
    seen = {}

    def process(interrupt, processes):
        began = time.monotonic()
        try:
            with within(1.0 if processes.index == 1 else None, interrupt):
                while True:
                    interrupt.check()
                    time.sleep(0.01)
        finally:
            seen[processes.index] = time.monotonic() - began

    assert set(stops(process).values()) == {"--max-wall (1 s left when the run was opened)"}
    assert seen[1] >= 0.9, "a tenth is kept"


class Images:
    fingerprint = "abc"

    def __len__(self):
        return 7


def test_processes_that_were_started_differently_are_refused_by_key_and_process(teams, tmp_path):
    configs = [small.config(f"seed={seed}") for seed in range(2)]

    def check(processes):
        config, run = configs[processes.index], tmp_path / str(processes.index)
        preflight.check_same(processes, [config], {"pretrain": Images()}, run)

    for error in teams(check):
        assert "process 1 (" in str(error)
        assert "pretrain: seed is 1, in process 0 0" in str(error)
        assert "--run is" in str(error)


@pytest.mark.parametrize("stale", [False, True])
def test_storage_that_is_not_shared_is_found_in_time(stale, teams, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "VISIBLE", 0.3)
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
    if stale:  # of an earlier run, on a disk of its own
        (tmp_path / "1" / "hosts.json").write_text(json.dumps({"token": "earlier"}))
    errors = teams(
        lambda processes: preflight.check_storage(processes, tmp_path / str(processes.index))
    )
    for error in errors:
        assert "storage is not shared" in str(error) and "process 1 (" in str(error)
    assert teams(lambda processes: preflight.check_storage(processes, tmp_path)) == [None, None]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("expect.platform=gpu", "expect.platform=gpu, but the run has cpu (did JAX fall back"),
        ("expect.devices=9", "expect.devices=9, but the run has 8"),
        ("expect.hosts=2", "expect.hosts=2, but the run has 1"),
    ],
)
def test_machines_that_are_not_as_expected_are_refused(override, told):
    with pytest.raises(ConfigError) as refused:
        preflight.check_devices(ProcessGroup(), [small.config(override).expect])
    assert told in str(refused.value)
    preflight.check_devices(ProcessGroup(), [small.config("expect.platform=cpu").expect])


def test_hosts_with_different_devices_are_refused_in_all(teams, monkeypatch):
    here, devices = threading.local(), jax.devices()
    monkeypatch.setattr(jax, "local_devices", lambda: devices[: here.num])

    def check(processes):
        here.num = 4 - processes.index
        preflight.check_devices(processes, [])

    for error in teams(check):
        assert isinstance(error, ConfigError) and "have different devices" in str(error)
        assert "process 1 (" in str(error) and "devices 4 to 6, 3 x cpu" in str(error)


def test_devices_that_do_not_sum_right_are_refused_in_all(teams, monkeypatch):
    monkeypatch.setattr(preflight.jnp, "sum", preflight.jnp.max)
    for error in teams(lambda processes: preflight.check_devices(processes, [])):
        assert "a sum over all devices is wrong" in str(error)
        assert "process 1 (" in str(error) and "summed 1, not 8" in str(error)


def test_devices_that_do_not_talk_end_all_in_time(teams, monkeypatch, caplog):
    ended, make = {}, jax.make_array_from_callback
    monkeypatch.setattr(preflight, "COLLECTIVE", 0.2)
    monkeypatch.setattr(
        ProcessGroup, "end", lambda processes, code: ended.setdefault(processes.index, code)
    )

    def hanging(*args):
        assert wait_until(lambda: len(ended) == 2)
        return make(*args)

    monkeypatch.setattr(jax, "make_array_from_callback", hanging)
    teams(lambda processes: preflight.check_devices(processes, []))
    assert ended == {0: LOST, 1: LOST}
    assert "a sum over all devices did not finish within 0 s: is a port closed?" in caplog.text


def wait_until(done, seconds=60.0):
    """Whether something came true in time."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    return done()


def test_the_table_of_processes_counts_devices_on():
    rows = [{"name": f"process {i}", "platform": "tpu", "kind": "v5p", "num": 4} for i in range(2)]
    assert preflight.table(rows)[1] == "process 1: devices 4 to 7, 4 x v5p (tpu)"


def test_who_a_process_is_comes_from_flags_or_the_environment(monkeypatch):
    assert find(None, None, None, None) is None
    assert find("a:5", 2, 1, None) == ProcessSpec("a:5", 2, 1)
    monkeypatch.setenv("DINOJAX_COORDINATOR", "b:6")
    monkeypatch.setenv("DINOJAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("DINOJAX_PROCESS_ID", "2")
    assert find(None, None, None, None) == ProcessSpec("b:6", 3, 2)
    assert find(None, None, 0, None) == ProcessSpec("b:6", 3, 0)
    assert find(None, 1, None, None) is None, "alone, whatever else is said"


@pytest.mark.parametrize(
    ("told", "given"),
    [
        ("--coordinator a: give HOST:PORT", ("a", 2, 0, None)),
        ("--process-id 2 is not one of 0 to 1", ("a:5", 2, 2, None)),
        ("--process-id missing", ("a:5", 2, None, None)),
    ],
)
def test_half_told_places_are_refused(told, given):
    with pytest.raises(HostError, match=told):
        find(*given)


def test_a_process_that_a_launcher_started_among_others_does_not_run_alone(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(HostError, match="SLURM_STEP_NUM_TASKS=4 .* --cluster auto"):
        find(None, None, None, None)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert find(None, None, None, None) is None


@pytest.mark.parametrize(
    "command",
    [
        "eval knn --run {}",
        "gram pick {}",
        "embed --weights {} --data {} --out {}",
        "export --run {} --format hf --out {}",
        "import --from {} --out {}",
        "data convert {} --out {}",
    ],
)
def test_commands_of_one_process_are_refused_to_several(command, monkeypatch, tmp_path, capsys):
    words = [str(tmp_path / "absent") if word == "{}" else word for word in command.split()]
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert main.main(words) == REFUSED
    told = capsys.readouterr().err
    assert "SLURM_STEP_NUM_TASKS=4 says" in told and "start it once" in told
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("DINOJAX_NUM_PROCESSES", "1")
    assert main.main(words) == REFUSED
    assert "SLURM" not in capsys.readouterr().err


def test_slurm_tells_who_a_process_is(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_STEP_NUM_NODES": "2",
    }.items():
        monkeypatch.setenv(name, value)
    place = find(None, None, None, "slurm")
    assert (place.count, place.index) == (2, 1) and place.coordinator.startswith("node07:")
    assert place.devices is None, "one task per node takes all devices of its node"
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")
    assert find(None, None, None, "slurm").devices == [0]
