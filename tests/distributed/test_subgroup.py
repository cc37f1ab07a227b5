"""Some processes of a run act as a process group of their own; here each process is a thread."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from dinojax.distill import placement_search
from dinojax.distill.remote_student import RemoteStudent
from dinojax.distill.shutdown import Shutdown
from dinojax.distill.stage import Stage
from dinojax.distributed import process_group, subgroup
from dinojax.distributed.channel import HostError
from dinojax.distributed.cluster import ProcessSpec
from dinojax.distributed.interrupt import Alarm, Asked, Interrupt, Interrupted
from dinojax.distributed.process_group import ProcessGroup
from dinojax.monitor.autopsy import Autopsy, NonFiniteError
from dinojax.monitor.compilation import Compiles
from dinojax.monitor.watchdog import Watchdog
from dinojax.train import periodic, replay
from dinojax.train.stops import stoppable
from dinojax.train.trainer import StudentFailed, Trainer
from tests.support import several

COUNT = 3


@pytest.fixture
def teams():
    """Three processes of a run: together(function) is what function(processes) returns in each."""
    port = several.free_port()

    def together(function, given=range(COUNT)):
        with ThreadPoolExecutor(COUNT) as pool:
            return list(pool.map(function, given))

    def act(function):
        def of(processes):
            with process_group.acting(processes):
                return function(processes)

        return together(of, found)

    found = together(
        lambda index: ProcessGroup(ProcessSpec(f"localhost:{port}", COUNT, index), wait=60.0)
    )
    yield act
    for processes in found:
        processes._leaving = True  # or the end of one would end this process
    for processes in found:
        several.cut(processes.channel)


def test_a_part_settles_what_is_its_own_while_others_do_something_else(teams):
    def work(processes):
        part, found = subgroup.of(processes, (1, 2)), []
        assert (
            subgroup.of(processes, (1, 2)) is part
            and subgroup.of(processes, (0, 1, 2)) is processes
        )
        for number in range(3 * part.has_me):
            found.append(part.settle("number", 10 * number + processes.index, sum))
        name = part.settle("main", f"process {processes.index}") if part.has_me else None
        return part.is_main, found, name, processes.settle("all", processes.index, list)

    assert teams(work) == [
        (False, [], None, [0, 1, 2]),
        (True, [3, 23, 43], "process 1", [0, 1, 2]),
        (False, [3, 23, 43], "process 1", [0, 1, 2]),
    ]


def test_a_part_of_one_process_asks_nobody(teams):
    def work(processes):
        with process_group.acting(subgroup.of(processes, (processes.index,))):
            alone = process_group.current()
            assert alone.is_main and alone.index == processes.index and alone.count == 1
            return alone.settle("me", processes.index), alone.settle("sum", 5, sum)

    assert teams(work) == [(0, 5), (1, 5), (2, 5)]


def test_who_of_a_part_does_not_come_is_named(teams):
    def work(processes):
        try:
            return processes.index or subgroup.of(processes, (0, 2)).settle("step", seconds=0.2)
        except HostError as error:
            return str(error)

    told = teams(work)[0]
    assert "process 2" in told and "process 1" not in told and "did not answer" in told


class Student:
    """As much of a student as an ending needs."""

    def __init__(self, name, processes):
        self.name, self.number, self.has_failed, self.done = name, 0, False, []
        config = SimpleNamespace(batch_size=1)
        self.run = SimpleNamespace(processes=processes, config=config, note_stop=self.done.append)

    def save_now(self):
        self.done += [self.number, "on disk"]

    def failed(self, error):
        return StudentFailed(f"student {self.name} failed: {error}")


def ended(teams, members, error, where):
    """What ends every process when a student of `members` meets an error `where`; its students."""

    def work(processes):
        own, other = Student("one", subgroup.of(processes, members)), Student("two", processes)
        students = [own, other] if own.run.processes.has_me else [other]
        ending = Shutdown(Watchdog(lambda why: None, factor=None, seconds=1, minutes=1), minutes=1)
        with Interrupt(processes=processes) as interrupt:
            try:
                for step in itertools.count(1):
                    time.sleep(0.001)
                    for student in (p for p in students if not p.has_failed):
                        with ending.naming(student):
                            student.number = step
                            if student is own and step == 3 and processes.index in where:
                                raise error
                    interrupt.check()
            except Asked as asked:
                found = ending.stopped(students, Interrupted(str(asked), step))
            except Exception as raised:
                found = raised
        return found, {student.name: student for student in students}

    return teams(work)


@pytest.mark.parametrize(
    ("error", "kind"), [(NonFiniteError("nan"), StudentFailed), (Alarm("k-NN fell"), Alarm)]
)
def test_a_student_who_cannot_go_on_waits_for_the_others_to_be_saved(teams, error, kind):
    found = ended(teams, (0, 2), error, where=(0, 2))
    assert [type(why) for why, _ in found] == [kind] * COUNT
    assert all(str(error) in str(why) for why, _ in found)
    turns = {students["two"].number for _, students in found}
    assert len(turns) == 1, "all stop at the same turn"
    for why, students in found:
        assert students["two"].done == [*turns, "on disk", why]
        assert "one" not in students or students["one"].done == [3, "on disk", why]


def test_an_error_that_others_of_the_student_cannot_know_of_is_raised_at_once(teams):
    def work(processes):
        student = Student("one", subgroup.of(processes, (0, 2)))
        ending = Shutdown(Watchdog(lambda why: None, factor=None, seconds=1, minutes=1), minutes=1)
        with pytest.raises(StudentFailed, match="student one failed: out of memory") as raised:
            with ending.naming(student):
                raise RuntimeError("out of memory")
        assert ending.failed([student], raised.value) is raised.value
        return student.done == [raised.value]  # noted, not saved: the others would not join

    assert teams(work) == [True] * COUNT


def test_an_error_of_a_student_of_one_process_stops_all_with_its_name(teams):
    found = ended(teams, (1,), RuntimeError("out of memory"), where=(1,))
    assert {str(why) for why, _ in found} == {"student one failed: out of memory"}
    assert len({students["two"].number for _, students in found}) == 1


def test_a_student_that_cannot_be_saved_ends_with_its_name_and_the_others_are_saved(teams):
    def work(processes):
        full, other = Student("one", subgroup.of(processes, (1,))), Student("two", processes)
        full.save_now = lambda: (_ for _ in ()).throw(OSError("disk full"))
        students = [full, other] if full.run.processes.has_me else [other]
        ending = Shutdown(Watchdog(lambda why: None, factor=None, seconds=1, minutes=1), minutes=1)
        return str(ending.stopped(students)), other.done[:2]

    assert teams(work) == [("student one failed: disk full", [0, "on disk"])] * COUNT


def test_an_evaluation_of_a_part_is_put_off_when_a_stop_is_asked_for(teams, monkeypatch):
    def look(run, embed, state, number, **how):
        for batch in range(1000):
            run.seen.append(embed(None, batch))
            if batch == 2 and run.processes.is_main:
                run.processes.ask("stop", "SIGTERM")

    monkeypatch.setattr(periodic, "evaluate", look)
    monkeypatch.setattr(periodic, "is_evaluation_due", lambda run, number, done: number not in done)

    def work(processes):
        student = object.__new__(Trainer)
        student.number, student.state, student._evaluated = 4, None, {0}
        student._records = SimpleNamespace(flush=lambda: None, metrics=None)
        student._page = SimpleNamespace(changed=lambda: None)
        student.run = SimpleNamespace(
            processes=subgroup.of(processes, (0, 1)), matmul="highest", seen=[]
        )
        student.run.hang = {"minutes": 1}
        student.layout, student._who, student._compiles = None, "one: ", Compiles()
        student._watchdog = Watchdog(lambda why: None, factor=None, seconds=1, minutes=1)
        student._network = stoppable(
            lambda params, images: images, student.run.processes, interrupt=None
        )
        if student.run.processes.has_me:
            student.evaluate()
        return student.run.seen, student._evaluated

    monkeypatch.setattr(
        "dinojax.sharding.mesh.use", lambda layout: process_group.contextlib.nullcontext()
    )
    one, two, three = teams(work)
    assert one == two and 3 <= len(one[0]) < 1000 and one[1] == {0}
    assert three == ([], {0})


def test_all_processes_hear_whose_stage_is_over_where_they_pause(teams):
    """Its losses left chance, which those without its devices cannot see."""

    def work(processes):
        part, other = subgroup.of(processes, (0, 2)), subgroup.of(processes, (1,))
        students = [
            SimpleNamespace(name=name, number=4, is_over=is_over, is_here=True, is_put_off=False)
            if members.has_me
            else RemoteStudent(name, SimpleNamespace(num_steps=9), 4, False)
            for name, members, is_over in (("one", part, True), ("two", other, False))
        ]
        stage = object.__new__(Stage)
        watchdog = Watchdog(lambda why: None, factor=None, seconds=1, minutes=1)
        stage._students, stage._shutdown = students, Shutdown(watchdog, minutes=1)
        stage._pause()
        return [student.name for student in stage._going()]

    assert teams(work) == [["two"]] * COUNT


def test_the_images_of_a_bad_step_are_written_once_by_the_first_of_the_students_processes(
    teams, tmp_path
):
    """Of all processes: those that do not learn with the student have some of them as well."""
    (tmp_path / "config.json").write_text("{}")
    folder = tmp_path / "autopsy/7"
    folder.mkdir(parents=True)
    (folder / "batch-0.npz").touch()  # of a time with other shares
    batch = {"images": np.zeros((4, 2, 2, 3), np.uint8), "sizes": np.ones((4, 2), np.int32)}

    def work(processes):
        autopsy = Autopsy(tmp_path, seed=0)
        with process_group.acting(part := subgroup.of(processes, (1, 2))):
            if part.has_me:
                autopsy.keep(7, batch)
                autopsy.check(7, {"bad_steps": 1, "total": np.nan, "ibot": np.nan}, {"lr": 0.1})
        return autopsy.suspicious

    assert teams(work) == [False, True, True]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("batch-1.npz", "config.json", "step.json")
    ]
    assert replay._batch(folder)["images"].shape == (4, 2, 2, 3)


def test_a_step_is_as_long_as_for_the_process_that_came_last():
    """The first one to come has waited for it, in the same collective."""
    rows = [{"one": 3.0, "two": 9.0}, {"two": 4.0}, {}]
    assert placement_search.shortest(rows) == {"one": 3.0, "two": 4.0}
