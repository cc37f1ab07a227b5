"""Compiled programs: kept from run to run, timed, and named where a step needs a new one.

Steps are compiled before the first one. Whatever is compiled between two steps later on costs time
at every one of them, and comes from an argument that is not like the one before.
"""

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax

log = logging.getLogger(__name__)

VARIABLE = "DINOJAX_COMPILE_CACHE"  # of the environment: a folder, or "off"
EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
EXPLAINED_BY = "jax._src.interpreters.partial_eval"  # the logger that says why JAX traces anew
WARM = 2  # steps after which nothing may be compiled between steps


def keep_programs() -> Path | None:
    """Have JAX keep compiled programs in a folder, which is returned; None where they are not kept.

    JAX_COMPILATION_CACHE_DIR, where it is set, goes before DINOJAX_COMPILE_CACHE.
    """
    if (given := jax.config.values["jax_compilation_cache_dir"]) is not None:
        return Path(given)
    told = os.environ.get(VARIABLE, "")
    if told == "off":
        return None
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(told) if told else caches / "dinojax" / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("%s: compiled programs are not kept (%s)", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _machine() -> str:
    """What programs for the CPU may rely on, where hosts of several kinds share a home."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


class Compiles:
    """Listens, while entered, to what JAX compiles.

    `step_ended` after every step; `elsewhere` before it whenever something else than steps went on,
    such as an evaluation, which may compile what it likes.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._reported: dict[str, float] = {}  # who asked -> seconds told so far
        self._names: list[str] = []  # compiled since the last step
        self._steps, self._elsewhere = 0, False
        self._reasons: list[str] = []
        self.recompiled: list[str] = []  # all that was compiled between warm steps, with the reason

    def __enter__(self) -> "Compiles":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self._explained = bool(jax.config.values["jax_explain_cache_misses"])
        logging.getLogger(EXPLAINED_BY).addFilter(self._explain)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
        jax.config.update("jax_explain_cache_misses", self._explained)
        logging.getLogger(EXPLAINED_BY).removeFilter(self._explain)

    def seconds(self, who: str = "") -> float:
        """Spent on compiling, by all of this process, since `who` last asked."""
        spent = self._seconds - self._reported.get(who, 0.0)
        self._reported[who] = self._seconds
        return spent

    def elsewhere(self) -> None:
        """Something else than a step comes next, or has just been."""
        self._elsewhere = True

    def step_ended(self, number: int) -> None:
        """Warn of what was compiled since the last step, once steps are warm."""
        names, self._names = self._names, []
        reasons, self._reasons = self._reasons, []
        elsewhere, self._elsewhere = self._elsewhere, False
        self._steps += 1
        if self._steps == WARM:
            jax.config.update("jax_explain_cache_misses", True)
        if self._steps <= WARM or elsewhere or not names:
            return
        why = "; ".join(reasons) or "no reason given by JAX"
        self.recompiled.append(f"step {number} compiled {', '.join(names)} anew: {why}")
        log.warning("%s", self.recompiled[-1])

    def refuse(self, where: str) -> None:
        """Raise RuntimeError if anything was compiled, which would spoil a benchmark's times."""
        if self._names:
            names = ", ".join(self._names)
            raise RuntimeError(f"{where} compiled {names}; its time would be that of compiling.")

    def _listen(self, event: str, duration_secs: float, **told: str | int) -> None:
        if event in EVENTS:
            self._seconds += duration_secs
        if event == EVENTS[-1]:
            self._names.append(str(told.get("fun_name", "a program")))

    def _explain(self, record: logging.LogRecord) -> bool:
        """Keeps JAX's words for our own; nothing is printed twice."""
        text = record.getMessage()
        if "TRACING CACHE MISS" not in text:
            return True
        self._reasons.append(" ".join(text.split()))
        return self._explained
