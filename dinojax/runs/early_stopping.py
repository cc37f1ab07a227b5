"""What a stage is watched for: losses that leave chance may end it, k-NN that falls is an alarm.

Dense features that degrade (degradation.py) are told, once for each time they were best.

All is decided from config values and rows of metrics.jsonl, so that it is the same on every host,
and a run that was stopped decides like one that was not.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dinojax.config.stage_rules import IN_A_ROW
from dinojax.configs.keys import ALL_TERMS, TERMS
from dinojax.distributed.interrupt import Alarm
from dinojax.eval import suite
from dinojax.runs.degradation import advice, degraded
from dinojax.runs.loss_ranges import loss_ranges

log = logging.getLogger(__name__)

Values = Mapping[str, Any]  # dotted key -> value
Row = Mapping[str, Any]  # of metrics.jsonl


def left_chance(values: Values, rows: Iterable[Row]) -> int | None:
    """The step at which a stage is over because its losses left chance; None without one.

    That is the third look in a row at which every term with a weight has gone the share
    `until.left_chance` of the way from chance to its floor. rows: of training steps, in order.
    """
    share, every, agreed = values["until.left_chance"], values["until.every"], 0
    if share is None:
        return None
    for row in rows:
        if row["step"] % every:
            continue
        gone = ways_gone(values, row)
        agreed = agreed + 1 if all(way is not None and way >= share for way in gone.values()) else 0
        if agreed == IN_A_ROW:
            return row["step"]
    return None


def ways_gone(values: Values, row: Row) -> dict[str, float | None]:
    """Loss term -> share of the way from chance (0) to its floor (1); None if it is not finite.

    Of terms that have a weight, and a range to move in.
    """
    ranges = loss_ranges(dict(values))
    terms = [term for weight, names in TERMS.items() if values[weight] for term in names]
    return {
        term: None if row[term] is None else 1.0 - ranges[term].position(row[term])
        for term in terms
        if term in ranges
    }


def never_left(values: Values, rows: Sequence[Row]) -> str | None:
    """Why a stage that ran all its steps has not done what it was for; None if it has."""
    share, steps = values["until.left_chance"], values["num_steps"]
    if share is None or left_chance(values, rows) is not None:
        return None
    looks = [row for row in rows if row["step"] % values["until.every"] == 0][-1:]
    gone = ways_gone(values, looks[0]) if looks else {}
    told = ", ".join(f"{term} {'?' if way is None else f'{way:.1%}'}" for term, way in gone.items())
    return (
        f"stage {values['stage']}: after {steps} steps the losses have not left chance by "
        f"until.left_chance={share:g} of the way to their floors (gone at the last look: {told}), "
        "so the heads are not ready to teach the backbone. Give the stage more steps (num_steps, "
        "with --accept-new-config), raise schedules.lr.peak, lower dino_head.prototypes and "
        "ibot_head.prototypes or schedules.teacher_temperature, or ask for less "
        "(until.left_chance, None = nothing)."
    )


def fallen(values: Values, evaluations: Iterable[Row]) -> str | None:
    """What the last evaluation of a stage lost against that of its step 0, if it is too much.

    k-NN where there are labels, else the dense metric: the first evaluation of the table that is
    watched and has results. evaluations: rows of evaluations, in order.
    """
    if values["knn.alarm"] is None:
        return None
    found: list[tuple[int, float]] = []
    for column in suite.watched(values):
        found = [(row["step"], row[column]) for row in evaluations if row.get(column) is not None]
        if found:
            break
    if not found or found[0][0] != 0:
        return None
    first, (step, last) = found[0][1], found[-1]
    if last >= (1.0 - values["knn.alarm"]) * first:
        return None
    return (
        f"{column} fell to {last:.1f} % at step {step}, from {first:.1f} % at step 0; "
        f"knn.alarm={values['knn.alarm']:g} allows {(1.0 - values['knn.alarm']) * first:.1f} %"
    )


def objection(values: Values, rows: Sequence[Row]) -> str | None:
    """Why no other stage should start from one that is done. rows: all of it."""
    training = [row for row in rows if _steps(row)]
    if told := never_left(values, training):
        return told
    lost = fallen(values, [row for row in rows if not _steps(row)])
    return f"stage {values['stage']}: {lost}. {WAYS_ON}" if lost and stops(values) else None


def stops(values: Values) -> bool:
    return values["knn.alarm_stops"]


WAYS_ON = (
    "Go back to an earlier checkpoint with a lower schedules.lr.peak, a longer warm-up or a Gram "
    "anchor; knn.alarm_stops=False goes on as it is."
)


def _steps(row: Row) -> bool:
    """Whether a row is of a training step, not of an evaluation."""
    return "total" in row


class Watch:
    """Watches one stage while it runs."""

    def __init__(self, until, knn, *, values: Values):
        """until, knn: the config's sections; values: all of it."""
        self._values = values
        # Reading them here is what tells that they are used.
        self._every = None if until.left_chance is None else until.every
        self._stops = knn.alarm is not None and knn.alarm_stops
        self._looks: list[Row] = []
        self._evaluations: list[Row] = []
        self._told: int | None = None  # step of the best dense features that was warned of
        self.ended = False  # the losses have left chance

    def of_interest(self, rows: Sequence[Row]) -> list[Row]:
        """What `begin` needs of the rows of the stage: little enough to be told to every host."""
        return [row for row in rows if not _steps(row) or self.is_due(row["step"])]

    def begin(self, rows: Sequence[Row]) -> None:
        """rows: of the stage so far, or those of interest.

        Raises Alarm if the run was stopped for one that stands.
        """
        self._looks, self._evaluations = [], []
        for row in rows:
            if not _steps(row):
                self._evaluations.append(row)
            elif self.is_due(row["step"]):
                self._looks.append(row)
        self.ended = left_chance(self._values, self._looks) is not None
        self._raise()

    def is_due(self, step: int) -> bool:
        """Whether the losses of a step are compared with chance."""
        return self._every is not None and step % self._every == 0

    def add_losses(self, step: int, scalars: Mapping[str, Any]) -> None:
        """The losses of a step for which `is_due` holds."""
        terms = {term: float(scalars[term]) for term in ALL_TERMS if term in scalars}
        self._looks.append({"step": step, **terms})
        self.ended = left_chance(self._values, self._looks[-IN_A_ROW:]) is not None
        if self.ended:
            log.info("step %d: the losses have left chance, the stage ends", step)
        elif step + (self._every or 1) > self._values["num_steps"]:  # the last look
            log.warning("%s", never_left(self._values, self._looks))

    def add_evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """The result of an evaluation. Logs a warning, or raises Alarm, if it is too low."""
        self._evaluations.append({"step": step, **results})
        self._raise()
        if lost := fallen(self._values, self._evaluations):
            log.warning("ALARM: %s", lost)
        found = degraded(self._values, self._evaluations)
        if found is not None and found.best != self._told:
            log.warning("ALARM: dense features degrade: %s. %s", found.evidence,
                        advice(self._values, found.best))  # fmt: skip
            self._told = found.best

    def _raise(self) -> None:
        lost = fallen(self._values, self._evaluations)
        if lost and self._stops:
            raise Alarm(f"stopped by knn.alarm: {lost}. {WAYS_ON}")
