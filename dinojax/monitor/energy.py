"""Energy and carbon of a run: NVIDIA's counters where they can be read, else rated power x time.

`RUN/energy.json` sums over the sessions of a run, so what a killed session had to repeat counts
twice: the devices were on both times.
"""

import contextlib
import datetime
import importlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dinojax.files.drafts import set_aside, write_json

log = logging.getLogger(__name__)

# JAX device kind -> watts that the device is rated for. Kinds are whole names: the same chip on
# another board (PCIe, NVL) or a MIG slice of it has another rating. Other kinds, TPUs among them,
# have no estimate.
RATED_W = {
    "NVIDIA A100-SXM4-40GB": 400.0,  # DINOv3, arXiv:2508.10104, section 9: A100 at 400 W
    "NVIDIA A100-SXM4-80GB": 400.0,  # the same
    "NVIDIA H100 80GB HBM3": 700.0,  # DINOv3, section 9: H100 at 700 W
    "NVIDIA H100 PCIe": 350.0,  # NVIDIA product brief PB-11133-001
    "NVIDIA H200": 700.0,  # NVIDIA H200 SXM data sheet; NVIDIA in MLPerf inference 4.1
    "NVIDIA B200": 1000.0,  # NVIDIA HGX B200 data sheet
}
PUE = 1.1  # facility energy / device energy; DINOv3, section 9
TONNES_PER_MWH = 0.385  # CO2 equivalent; DINOv3, section 9

COUNTER = "NVML energy counter"
RATED = "rated power (estimate)"
UNKNOWN = "unknown"


class Carbon(NamedTuple):
    """Energy that the facility drew and what its making emitted."""

    energy_mwh: float
    tonnes_co2e: float


def carbon(
    power_w: float, device_hours: float, pue: float = PUE, tonnes_per_mwh: float = TONNES_PER_MWH
) -> Carbon:
    """Energy and carbon of devices that draw `power_w` each, as in DINOv3 (section 9).

    pue: facility energy per device energy. tonnes_per_mwh: CO2 equivalent of the electricity.
    """
    energy_mwh = power_w * device_hours * pue / 1e6
    return Carbon(energy_mwh, energy_mwh * tonnes_per_mwh)


class EnergyMeter:
    """Measures the devices of a run while it is entered; writes and sums in one JSON file.

    Once made, it never raises for what it cannot read or write: the file, or else the log, says
    what was wrong.
    """

    def __init__(
        self,
        device_kinds: Sequence[str],
        path: Path,
        *,
        gpus: Sequence[int] | None = None,
        every_minutes: float = 1.0,
    ):
        """device_kinds: of every device of the run, as JAX names them, on all hosts.

        gpus: which of the GPUs this process can see are in the run (`local_hardware_id`); None:
        the first ones. Where other hosts hold the rest, their energy is taken to be alike.
        every_minutes: between writes, so that a killed session loses no more than that.
        Raises ValueError if there is no device.
        """
        self._kinds, self._path = list(device_kinds), Path(path)
        if not self._kinds:
            raise ValueError("an EnergyMeter needs at least one device")
        self._gpus = list(range(len(self._kinds)) if gpus is None else gpus)
        self._every_s = 60.0 * every_minutes
        self._stop, self._writing = threading.Event(), threading.Lock()
        self._earlier: list[dict] = []
        self._notes: list[str] = []

    def __enter__(self) -> "EnergyMeter":
        self._earlier = self._read_earlier()
        self._counters: _Counters | None = None
        # The counter of a GPU covers all its MIG slices, so it says nothing of one of them.
        if all(kind.startswith("NVIDIA") and " MIG " not in kind for kind in self._kinds):
            try:
                self._counters = _Counters(self._gpus)
            except Exception as error:
                self._blame_nvml(error)
        self._began, self._start = _now(), time.monotonic()
        self._thread = threading.Thread(target=self._keep_writing, name="energy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()
        self.write()
        if self._counters is not None:
            self._counters.close()

    def write(self) -> None:
        """Put the sums up to now on disk, whole or not at all."""
        with self._writing:
            content = summed([*self._earlier, self._session()])
            try:
                write_json(self._path, content)
            except OSError as error:
                log.warning("%s was not written: %s", self._path, error)

    def _keep_writing(self) -> None:
        while not self._stop.wait(self._every_s):
            self.write()

    def _session(self) -> dict[str, Any]:
        """This session so far."""
        hours = (time.monotonic() - self._start) / 3600
        energy_kwh, method = self._energy_kwh(hours)
        return {
            "began": self._began,
            "ended": _now(),
            "devices": dict(Counter(self._kinds)),
            "device_hours": hours * len(self._kinds),
            "energy_kwh": energy_kwh,
            "method": method,
            "notes": list(self._notes),
        }

    def _energy_kwh(self, hours: float) -> tuple[float | None, str]:
        """Energy of all devices and how it is known; once NVML fails, all is estimated."""
        if self._counters is not None:
            try:
                measured = self._counters.joules() / 3.6e6
            except Exception as error:
                self._blame_nvml(error)
                self._counters.close()
                self._counters = None
            else:
                share = len(self._gpus), len(self._kinds)
                others = f", {share[0]} of {share[1]} devices measured"
                method = COUNTER + (others if share[0] < share[1] else "")
                return measured * share[1] / share[0], method
        unknown = sorted(set(self._kinds) - RATED_W.keys())
        if not unknown:
            return sum(RATED_W[kind] for kind in self._kinds) * hours / 1000, RATED
        note = f"no energy: no rated power is known of {', '.join(unknown)}"
        if note not in self._notes:
            self._notes.append(note)
        return None, UNKNOWN

    def _blame_nvml(self, error: Exception) -> None:
        advice = "; pip install nvidia-ml-py" if isinstance(error, ImportError) else ""
        self._notes.append(f"not measured: {type(error).__name__}: {error}{advice}")
        log.warning("energy is %s", self._notes[-1])

    def _read_earlier(self) -> list[dict]:
        """The sessions that the file holds; a file that cannot be summed is kept beside it."""
        try:
            sessions = json.loads(self._path.read_text())["sessions"]
            summed(sessions)
            return sessions
        except FileNotFoundError:
            return []
        except Exception as error:
            kept = "is replaced"
            with contextlib.suppress(OSError):
                kept = f"was kept as {set_aside(self._path, 'unreadable').name}"
            self._notes.append(
                f"earlier sessions are not counted: {type(error).__name__}: {error}; "
                f"the file {kept}"
            )
            log.warning("%s: %s", self._path, self._notes[-1])
            return []


def summed(sessions: Sequence[dict]) -> dict[str, Any]:
    """What energy.json holds: totals over sessions, and the sessions.

    `energy_kwh` is that of the devices alone; `tonnes_co2e` counts the facility (`pue`) too. Both
    are None if a session's energy is not known.
    """
    known = [session["energy_kwh"] for session in sessions]
    energy_kwh = None if None in known else sum(known)
    # Watt hours are watts x hours, so one device hour at that many watts.
    tonnes = None if energy_kwh is None else carbon(1000 * energy_kwh, 1.0).tonnes_co2e
    return {
        "device_hours": sum(session["device_hours"] for session in sessions),
        "energy_kwh": energy_kwh,
        "tonnes_co2e": tonnes,
        "method": " + ".join(dict.fromkeys(session["method"] for session in sessions)),
        "pue": PUE,
        "tonnes_per_mwh": TONNES_PER_MWH,
        "sessions": list(sessions),
    }


class _Counters:
    """Energy of GPUs since now, from counters that run since the driver was loaded.

    NVML: nvmlDeviceGetTotalEnergyConsumption, in millijoules, Volta or newer.
    """

    def __init__(self, gpus: Sequence[int]):
        """gpus: indices among those this process can see. Raises what importing or NVML raises."""
        self._nvml = importlib.import_module("pynvml")
        self._nvml.nvmlInit()
        try:
            self._handles = _handles(self._nvml, gpus)
            self._first = self._read_mj()
        except Exception:
            self.close()
            raise

    def joules(self) -> float:
        """Used since the beginning, by all GPUs together."""
        used = [now - first for now, first in zip(self._read_mj(), self._first, strict=True)]
        if min(used) < 0:
            raise RuntimeError("an energy counter went backwards")
        return sum(used) / 1000

    def close(self) -> None:
        with contextlib.suppress(Exception):  # nothing is left to lose
            self._nvml.nvmlShutdown()

    def _read_mj(self) -> list[int]:
        return [self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles]


def _handles(nvml: ModuleType, gpus: Sequence[int]) -> list[Any]:
    """NVML counts the GPUs of the machine; CUDA only those that the environment shows it."""
    visible = os.environ["CUDA_VISIBLE_DEVICES"] if "CUDA_VISIBLE_DEVICES" in os.environ else None
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in gpus]
    names = [name.strip() for name in visible.split(",")]
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(names[gpu]))
        if names[gpu].isdigit()
        else nvml.nvmlDeviceGetHandleByUUID(names[gpu])
        for gpu in gpus
    ]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
