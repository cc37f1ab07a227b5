"""How students of one teacher end together, whatever ends one of them: named, and all others saved.

In several processes those of the other students know nothing of it. So a student that cannot go on
stays where it is until the turn at which all processes stop (sync_point.py); there all are saved.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from dinojax.distill.remote_student import RemoteStudent
from dinojax.distributed import process_group
from dinojax.distributed.channel import Combine
from dinojax.distributed.interrupt import Alarm
from dinojax.monitor.autopsy import NonFiniteError
from dinojax.monitor.watchdog import Watchdog
from dinojax.train.trainer import StudentFailed, Trainer

log = logging.getLogger(__name__)

Students = Sequence[Trainer | RemoteStudent]


class Shutdown:
    """The end of a session, and where its processes wait for each other on the way there."""

    def __init__(self, watchdog: Watchdog, *, minutes: float):
        """minutes: that some may have more to do than others."""
        self.watchdog, self._seconds = watchdog, 60.0 * minutes
        self._failed: list[Exception] = []  # of students of this process that have ended

    def meet(self, what: str, value: Any = None, combine: Combine | None = None) -> Any:
        """Settle something (process_group.ProcessGroup) where some processes may come late."""
        with self.watchdog.phase(f"waiting for other processes ({what})"):
            return process_group.current().settle(what, value, combine, seconds=self._seconds)

    @contextlib.contextmanager
    def naming(self, student: Trainer | RemoteStudent) -> Iterator[None]:
        """What ends a student names it.

        Of several processes all stop at one turn, if each of the student's knows of it by itself.
        Else the error is raised here, and the others hear of it as of any.
        """
        try:
            yield
        except Exception as error:
            failed: Exception = error if isinstance(error, Alarm) else student.failed(error)
            if failed is error:
                log.error("student %s: %s", student.name, error)
            known = student.run.processes.count == 1 or isinstance(error, Alarm | NonFiniteError)
            if process_group.current().count > 1 and known:
                student.has_failed = True
                self._failed.append(failed)
                process_group.current().ask("stop", f"student {student.name}, which cannot go on")
            elif failed is error:
                raise
            else:
                raise failed from error

    def stopped(self, students: Students, error: Exception | None = None) -> Exception | None:
        """Save all students; what all processes end with then, after noting it.

        error: of all processes, if there is no student that cannot go on.
        """
        self._save(students)
        here = [[isinstance(failed, Alarm), str(failed)] for failed in self._failed]
        failures = [row for rows in self.meet("saved", here, list) for row in rows]
        if self._failed:
            error = self._failed[0]
        elif failures:
            error = (Alarm if failures[0][0] else StudentFailed)(failures[0][1])
        return None if error is None else _noted(students, error)

    def failed(self, students: Students, error: Exception) -> Exception:
        """The same of an error of this process alone: of several, others would not save now."""
        if process_group.current().count == 1:
            self._save(students)
        return _noted(students, error)

    def _save(self, students: Students) -> None:
        """Everyone's last checkpoint, whole and on disk, whatever has happened to one of them.

        A student that cannot be saved is one that could not go on.
        """
        for student in students:
            try:
                student.save_now()
            except Exception as error:
                log.error(
                    "student %s: not saved at step %d (%s)", student.name, student.number, error
                )
                self._failed.append(error if isinstance(error, Alarm) else student.failed(error))


def _noted(students: Students, error: Exception) -> Exception:
    for student in students:
        student.run.note_stop(error)
    return error
