"""Energy of a run: the paper's table, NVML's counters, estimates, sums over resumes, failures."""

import json
import sys
import types

import pytest

from dinojax.monitor import energy
from dinojax.monitor.energy import COUNTER, RATED, EnergyMeter, carbon

H200 = "NVIDIA H200"


@pytest.mark.parametrize(
    "power_w, hours, mwh, tonnes",
    [
        (700.0, 61_440, 47.3088, 18.2139),  # DINOv3 on H100
        (400.0, 22_016, 9.68704, 3.72951),  # DINOv2 on A100
        (400.0, 368_640, 162.2016, 62.4476),  # MetaCLIP on A100
        (700.0, 9e6, 6930.0, 2668.05),  # the whole DINOv3 project
    ],
)
def test_carbon_gives_the_rows_of_the_papers_table(power_w, hours, mwh, tonnes):
    assert carbon(power_w, hours) == pytest.approx((mwh, tonnes), rel=1e-5)


def test_carbon_takes_another_facility_and_grid():
    assert carbon(1000.0, 1000.0, pue=1.5, tonnes_per_mwh=0.2) == pytest.approx((1.5, 0.3))


class Clock:
    """Monotonic seconds that a test sets."""

    seconds = 0.0

    def monotonic(self):
        return self.seconds


class FakeNvml(types.ModuleType):
    """The few functions of pynvml that are used, with the counters in millijoules."""

    class NVMLError(Exception):
        pass

    def __init__(self, *counters_mj):
        super().__init__("pynvml")
        self.counters_mj, self.open, self.broken = list(counters_mj), 0, False

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.broken:
            raise self.NVMLError("GPU is lost")
        return self.counters_mj[handle]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(energy, "time", clock)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return clock


@pytest.fixture
def nvml(monkeypatch):
    """Installs a fake pynvml; without a call, importing it fails."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def install(*counters_mj):
        fake = FakeNvml(*counters_mj)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


def content(path):
    return json.loads(path.read_text())


def test_counters_give_the_energy_between_enter_and_exit(clock, nvml, tmp_path):
    fake, path = nvml(5_000_000, 7_000_000), tmp_path / "energy.json"
    with EnergyMeter([H200, H200], path):
        clock.seconds = 1800.0
        fake.counters_mj = [5_000_000 + 900_000_000, 7_000_000 + 1_800_000_000]
    told = content(path)
    assert told["device_hours"] == pytest.approx(1.0)
    assert told["energy_kwh"] == pytest.approx(2.7e6 / 3.6e6)  # joules in a kWh
    assert told["tonnes_co2e"] == pytest.approx(0.75e-3 * 1.1 * 0.385)
    assert told["method"] == COUNTER
    assert told["sessions"][0]["devices"] == {H200: 2} and told["sessions"][0]["notes"] == []
    assert fake.open == 0 and [file.name for file in tmp_path.iterdir()] == ["energy.json"]


def test_sessions_add_up_and_keep_their_methods(clock, nvml, tmp_path):
    fake, path = nvml(0), tmp_path / "energy.json"
    with EnergyMeter([H200], path):
        clock.seconds, fake.counters_mj = 3600.0, [3_600_000_000]  # 1 kWh
    nvml(0).broken = True
    with EnergyMeter([H200], path):
        clock.seconds = 3 * 3600.0
    told = content(path)
    assert told["device_hours"] == pytest.approx(3.0)
    assert told["energy_kwh"] == pytest.approx(1.0 + 2 * 0.7)
    assert told["method"] == f"{COUNTER} + {RATED}"
    assert [session["method"] for session in told["sessions"]] == [COUNTER, RATED]


def test_hosts_that_are_not_seen_count_like_the_one_that_is(clock, nvml, tmp_path):
    fake, path = nvml(0, 0), tmp_path / "energy.json"
    with EnergyMeter([H200] * 8, path, gpus=[0, 1]):
        clock.seconds, fake.counters_mj = 3600.0, [1_800_000_000, 1_800_000_000]
    assert content(path)["energy_kwh"] == pytest.approx(4.0)
    assert content(path)["method"] == f"{COUNTER}, 2 of 8 devices measured"


@pytest.mark.parametrize("visible", ["2", "GPU-2", "0,2"])
def test_the_gpus_that_cuda_sees_are_the_ones_measured(clock, nvml, tmp_path, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    fake, path = nvml(0, 0, 0), tmp_path / "energy.json"
    with EnergyMeter([H200], path, gpus=[visible.count(",")]):
        fake.counters_mj = [0, 0, 3_600_000_000]
    assert content(path)["energy_kwh"] == pytest.approx(1.0)


def test_without_the_package_rated_power_is_the_estimate(clock, nvml, tmp_path):
    path = tmp_path / "energy.json"
    with EnergyMeter(["NVIDIA A100-SXM4-80GB"] * 4, path):
        clock.seconds = 7200.0
    told = content(path)
    assert told["energy_kwh"] == pytest.approx(4 * 2 * 0.4) and told["method"] == RATED
    assert "pip install nvidia-ml-py" in told["sessions"][0]["notes"][0]


def test_a_counter_that_breaks_on_the_way_leaves_an_estimate(clock, nvml, tmp_path):
    fake, path = nvml(100), tmp_path / "energy.json"
    with EnergyMeter([H200], path) as meter:
        clock.seconds = 1800.0
        meter.write()
        assert content(path)["method"] == COUNTER
        fake.broken, clock.seconds = True, 3600.0
    told = content(path)
    assert told["energy_kwh"] == pytest.approx(0.7) and told["method"] == RATED
    assert told["sessions"][0]["notes"] == ["not measured: NVMLError: GPU is lost"]
    assert fake.open == 0


def test_a_counter_that_goes_backwards_is_not_believed(clock, nvml, tmp_path):
    fake, path = nvml(100), tmp_path / "energy.json"
    with EnergyMeter([H200], path):
        fake.counters_mj = [50]
    assert content(path)["method"] == RATED
    assert "went backwards" in content(path)["sessions"][0]["notes"][0]


@pytest.mark.parametrize("kind", ["cpu", "TPU v5 lite", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_kinds_without_a_rating_give_hours_and_the_reason(clock, nvml, tmp_path, kind):
    fake, path = nvml(0, 0), tmp_path / "energy.json"
    with EnergyMeter([kind] * 2, path):
        clock.seconds, fake.counters_mj = 3600.0, [10**9, 10**9]  # of whole GPUs, if any
    told = content(path)
    assert told["device_hours"] == pytest.approx(2.0)
    assert told["energy_kwh"] is None and told["tonnes_co2e"] is None
    assert told["sessions"][0]["notes"][-1] == f"no energy: no rated power is known of {kind}"


def test_a_machine_with_gpus_is_not_measured_when_the_run_is_on_its_cpu(clock, nvml, tmp_path):
    fake, path = nvml(0), tmp_path / "energy.json"
    with EnergyMeter(["cpu"], path):
        fake.counters_mj = [10**9]
    assert content(path)["energy_kwh"] is None


def test_it_writes_while_the_run_goes_on(clock, nvml, tmp_path, monkeypatch):
    written = energy.threading.Event()
    replace = energy.os.replace
    monkeypatch.setattr(energy.os, "replace", lambda a, b: (replace(a, b), written.set()))
    with EnergyMeter([H200], tmp_path / "energy.json", every_minutes=0.0001):
        assert written.wait(timeout=10)
        assert content(tmp_path / "energy.json")["method"] == RATED


def test_an_interrupted_run_is_counted_and_its_error_passes(clock, nvml, tmp_path):
    path = tmp_path / "energy.json"
    with pytest.raises(KeyboardInterrupt), EnergyMeter([H200], path):
        clock.seconds = 3600.0
        raise KeyboardInterrupt
    assert content(path)["energy_kwh"] == pytest.approx(0.7)


@pytest.mark.parametrize("text", ["{", "[]", '{"sessions": [{}]}'])
def test_a_file_that_cannot_be_summed_is_kept_aside(clock, nvml, tmp_path, text):
    path = tmp_path / "energy.json"
    path.write_text(text)
    with EnergyMeter([H200], path):
        clock.seconds = 3600.0
    assert content(path)["device_hours"] == pytest.approx(1.0)
    assert "earlier sessions are not counted" in content(path)["sessions"][0]["notes"][0]
    assert (tmp_path / "energy.json.unreadable").read_text() == text


def test_a_directory_that_cannot_be_written_is_logged_and_not_raised(clock, nvml, tmp_path, caplog):
    with EnergyMeter([H200], tmp_path / "absent" / "energy.json"):
        pass
    assert "energy.json was not written" in caplog.text


def test_a_run_without_devices_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="at least one device"):
        EnergyMeter([], tmp_path / "energy.json")
