"""`dinojax report RUN`: report.html, one file that shows a run on any screen, without a network."""

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinojax.config.saved import FAMILY
from dinojax.data import fields
from dinojax.eval.suite import SUITE
from dinojax.files.drafts import write_text
from dinojax.monitor import headline, pages, results
from dinojax.monitor.curves import figures
from dinojax.monitor.doctor import diagnose, verdict
from dinojax.monitor.pages import Figure
from dinojax.runs.files import RunFiles, read_run, read_whole
from dinojax.viz.charts import line_chart

log = logging.getLogger(__name__)

FILE = "report.html"
MAX_PICTURES = 6  # looks at the probe, evenly over the run
NOT_OF_STUDENTS = ("energy",)  # tiles of a run that a family's table leaves out


def refresh(run_dir: str | Path) -> None:
    """Write the report of a run that is under way; what goes wrong is logged, not raised.

    Of a student the family's page as well.
    """
    try:
        directory = write(run_dir).resolve().parent
        if (directory.parent / FAMILY).exists():
            write(directory.parent)
    except Exception:  # training is worth more than its report
        log.exception("report.html could not be written; later: dinojax report %s", run_dir)


def write(run_dir: str | Path) -> Path:
    """Write RUN/report.html from the files of a run or a family; raises as `runs.read_run`."""
    directory = Path(run_dir)
    text = family_page(directory) if (directory / FAMILY).exists() else page(read_run(directory))
    write_text(directory / FILE, text)
    return directory / FILE


def main(run_dir: str | Path) -> None:
    print(write(run_dir))


def page(run: RunFiles) -> str:
    """The whole page of a run."""
    whole = read_whole(run.directory) if len(run.stages) > 1 else run
    findings = diagnose(run)
    fine = not any(finding.severity != "note" for finding in findings)
    keys = [{"key": k, "value": v, "from": run.sources[k]} for k, v in run.values.items()]
    return pages.render(
        "report",
        [*figures(whole), *results.figures(run)],
        title=run.directory.resolve().name,
        when=_when(run.directory, f"{run.recipe}, stage {run.stage}"),
        tiles=list(headline.tiles(run)),
        share=min(100.0, 100.0 * run.step / run.values["num_steps"]),
        tables=[
            headline.losses(run),
            headline.evaluations(run),
            headline.learned(_quickstart(run.directory)),
        ],
        findings=findings,
        verdict=verdict(run) if fine else "",
        results=list(results.tables(run)),
        crops=list(_crops(run)),
        looks=list(_looks(run)),
        measured=list(_measured(run)),
        autopsies=[{"step": a["step"], "culprit": a["culprit"]} for a in run.autopsies],
        bad_images=run.bad_images,
        skipped_images=run.skipped_images,
        resumes=run.resumes,
        energy=_energy(run.energy, shared=run.home != run.directory),
        environment=run.environment,
        changed=[row for row in keys if row["from"] != "base"],
        keys=keys,
    )


def family_page(root: Path) -> str:
    """All students of a family beside each other, each with a link to its own page."""
    names = sorted(p.parent.name for p in root.glob("*/config.json"))
    runs = {name: read_run(root / name) for name in names}
    columns, of_each = dict[str, None](), dict[str, dict[str, str]]()
    for name, run in runs.items():
        tiles = {
            tile.name: f"{tile.value} ({tile.detail})" if tile.detail else tile.value
            for tile in headline.tiles(run)
            if tile.name not in NOT_OF_STUDENTS
        }
        columns |= dict.fromkeys(tiles)
        of_each[name] = tiles
    students = [
        {
            "name": name,
            "tiles": dict.fromkeys(columns, "") | tiles,
            "link": f"{name}/{FILE}" if (root / name / FILE).exists() else "",
        }
        for name, tiles in of_each.items()
    ]
    lines = {name: run.column("total") for name, run in runs.items()}
    chart = line_chart(lines, unit="loss, all terms")
    energy = next((run.energy for run in runs.values()), {})
    return pages.render(
        "family",
        [Figure("Loss of each student", "Their heads say how low it can be.", chart)],
        title=root.resolve().name,
        when=_when(root, f"{len(runs)} students"),
        columns=list(columns),
        students=students,
        energy=_energy(energy, shared=True),
    )


def _when(directory: Path, what: str) -> str:
    return (
        f"{what}. Written {pages.now()}, and true of then; "
        f"`dinojax report {directory}` writes it anew."
    )


def _quickstart(directory: Path) -> dict[str, Any]:
    """quickstart.json; empty without it."""
    path = directory / "quickstart.json"
    if not path.exists():
        return {}
    content = fields.checked(fields.read(path), dict, name="the whole", where=path)
    for name in ("raw", "random", "ema"):
        fields.field(content, name, float, where=path)
    return content


def _crops(run: RunFiles) -> Iterator[dict[str, Any]]:
    for stage in run.stages:
        name = "crops.png" if stage == run.stages[0] else f"crops-{stage}.png"
        where = "" if len(run.stages) == 1 else f"Stage {stage}. "
        yield from _picture(run, name, f"{where}Global, then local crops.")


def _looks(run: RunFiles) -> Iterator[dict[str, Any]]:
    """Sheets of the probe, from first to last."""
    names = sorted(path.name for path in (run.directory / "pictures").glob("patches-*.png"))
    if len(names) > MAX_PICTURES:
        places = [round(n * (len(names) - 1) / (MAX_PICTURES - 1)) for n in range(MAX_PICTURES)]
        names = [names[place] for place in places]
    for name in names:
        step = int(Path(name).stem.split("-")[1])
        yield from _picture(run, name, f"Step {step:,}: image, PCA, similarity.")


def _measured(run: RunFiles) -> Iterator[dict[str, Any]]:
    """The last pictures of each evaluation: NAME-STEP-PICTURE.png."""
    for name, row in SUITE.items():
        last: dict[str, tuple[int, str]] = {}
        for path in sorted((run.directory / "pictures").glob(f"{name}-*-*.png")):
            step, _, picture = path.stem.removeprefix(f"{name}-").partition("-")
            if step.isdecimal():
                last[picture] = (int(step), path.name)
        for picture, (number, file) in last.items():
            yield from _picture(run, file, f"{row.title}, {picture}, step {number:,}.")


def _picture(run: RunFiles, name: str, caption: str) -> Iterator[dict[str, Any]]:
    path = run.directory / "pictures" / name
    if not path.exists():
        return
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # where a PNG tells it
    width *= max(1, 360 // max(width, 1))  # small pictures are hard to see
    yield {"caption": caption, "width": width, "data": base64.b64encode(content).decode()}


def _energy(energy: dict[str, Any], *, shared: bool) -> dict[str, str]:
    """energy.json in words; what is not known is said with the reason.

    shared: a student's, whose teacher and devices are those of all students."""
    if not energy:
        return {}
    kwh, tonnes, sessions = energy["energy_kwh"], energy["tonnes_co2e"], energy["sessions"]
    factors = f"facility factor {energy['pue']}, {energy['tonnes_per_mwh']} t per MWh"
    notes = dict.fromkeys(note for session in sessions for note in session["notes"])
    return {
        **({"of": "all students and their teacher"} if shared else {}),
        "device hours": f"{energy['device_hours']:.3g}, {len(sessions)} sessions",
        "energy": "not known" if kwh is None else f"{kwh:.4g} kWh, {energy['method']}",
        "CO2 equivalent": "not known" if tonnes is None else f"{tonnes:.3g} t ({factors})",
        **({"notes": "; ".join(notes)} if notes else {}),
    }
