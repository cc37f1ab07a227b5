"""Their schedules, of either version, in steps of ours."""

from collections.abc import Mapping
from typing import Any

from dinojax.migrate import tables

Values = dict[str, Any]  # dotted key -> value


class Refusal(Exception):
    """What cannot be translated: key of theirs -> value and reason."""

    def __init__(self, reasons: dict[str, str]):
        super().__init__(reasons)
        self.reasons = reasons


def has_schedules(every: Mapping[str, Any]) -> bool:
    return any(key.startswith("schedules.") for key in every)


def schedules(every: Values, flavour: str, _: Values) -> Values:
    """Lengths in steps instead of epochs, and schedules of either version."""
    found: Values = {"num_steps": _steps(every, "optim.epochs")}

    def second(theirs: str, ours: str) -> None:
        """A schedule of version 2, whose section of theirs has this name."""
        for name in ("start", "peak", "end"):
            found[f"schedules.{ours}.{name}"] = float(every[f"{theirs}.{name}"])
        found[f"schedules.{ours}.warmup"] = _length(every, f"{theirs}.warmup")
        cosine = [every.get(f"{theirs}.cosine_{unit}") for unit in ("iterations", "epochs")]
        absent = cosine == [None, None]
        found[f"schedules.{ours}.cosine"] = None if absent else _length(every, f"{theirs}.cosine")

    try:
        if has_schedules(every):
            found["schedules.version"] = 2
            for theirs, ours in tables.SCHEDULES.items():
                second(f"schedules.{theirs}", ours)
            freeze = _length(every, "schedules.lr.freeze_last_layer")
        else:
            found |= _first(every, flavour)
            freeze = _steps(every, "optim.freeze_last_layer_epochs")
        if every["dino.reweight_dino_local_loss"]:
            second("dino.local_loss_weight_schedule", "local_weight")
        if every["gram.use_loss"] and "gram.loss_weight_schedule.peak" in every:
            second("gram.loss_weight_schedule", "gram_weight")
        elif every["gram.use_loss"]:
            weight = float(every["gram.loss_weight"])
            found |= {f"schedules.gram_weight.{n}": weight for n in ("start", "peak", "end")}
    except KeyError as missing:
        raise Refusal({str(missing.args[0]): "the file leaves it out; add it"}) from None
    return found | {"optim.freeze_last_layer": freeze}


def _length(every: Values, name: str) -> int:
    """Steps of a part of a schedule, told in iterations or in epochs."""
    iterations = f"{name}_iterations"
    if (told := every.get(iterations)) is None:
        return _steps(every, f"{name}_epochs")
    return _whole(told, iterations, told)


def _steps(every: Values, key: str) -> int:
    """Steps of a number of epochs."""
    return _whole(every[key] * every["train.OFFICIAL_EPOCH_LENGTH"], key, every[key])


def _whole(number: float, key: str, told: Any) -> int:
    if abs(number - round(number)) > 1e-6:
        raise Refusal({key: f"{told!r} makes {number:g} steps; give a whole number of them"})
    return round(number)


def _first(every: Values, flavour: str) -> Values:
    """Schedules of version 1, from the sections `optim` and `teacher`."""
    # DINOv2 scales by sqrt(batch / 1024), DINOv3 by four times that.
    peak = every["optim.base_lr"] / 4 if flavour == "dinov2" else every["optim.lr"]
    # start, peak, end, and the key of the epochs of warm-up
    curves: dict[str, tuple[float, float, float, str | None]] = {
        "lr": (0.0, peak, every["optim.min_lr"], "optim.warmup_epochs"),
        "weight_decay": (
            every["optim.weight_decay"],
            every["optim.weight_decay"],
            every["optim.weight_decay_end"],
            None,
        ),
        "momentum": (
            every["teacher.momentum_teacher"],
            every["teacher.momentum_teacher"],
            every["teacher.final_momentum_teacher"],
            None,
        ),
        "teacher_temperature": (
            every["teacher.warmup_teacher_temp"],
            every["teacher.teacher_temp"],
            every["teacher.teacher_temp"],
            "teacher.warmup_teacher_temp_epochs",
        ),
    }
    found: Values = {
        "schedules.version": 1,
        "schedules.truncate_extra": every["optim.schedule_trunc_extra"],
    }
    for name, (start, top, end, warmup) in curves.items():
        found |= {f"schedules.{name}.start": start, f"schedules.{name}.peak": top}
        steps = 0 if warmup is None else _steps(every, warmup)
        found |= {f"schedules.{name}.end": end, f"schedules.{name}.warmup": steps}
        found[f"schedules.{name}.cosine"] = None
    return found
