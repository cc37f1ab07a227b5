"""`dinojax report RUN`: report.html, one file that shows a run on any screen, without a network."""

import base64
import functools
import html
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dinojax.configs.keys import ALL_TERMS
from dinojax.eval.suite import SUITE
from dinojax.files.drafts import write_text
from dinojax.monitor.doctor import Finding, diagnose, verdict
from dinojax.monitor.report_style import STYLE
from dinojax.runs.files import RunFiles, read_run, read_whole
from dinojax.runs.loss_ranges import loss_ranges
from dinojax.viz.charts import line_chart, short

log = logging.getLogger(__name__)

MAX_PICTURES = 6  # looks at the probe, evenly over the run
MAX_ROWS = 50  # of long tables

# Terms of the loss without a chart of their own beside chance and floor.
OTHER_TERMS = tuple(t for t in ALL_TERMS if t not in ("dino_local", "dino_global", "ibot"))
# Title -> what it says, columns of metrics.jsonl, unit, logarithmic.
CHARTS: dict[str, tuple[str, Sequence[str], str, bool]] = {
    "Other losses": ("KoLeo falls while images spread.", OTHER_TERMS, "", False),
    "Entropy": (
        "Share of the maximum. A teacher at 1 says nothing, one at 0 shouts.",
        ("teacher_entropy/dino", "teacher_entropy/ibot")
        + ("student_entropy/dino", "student_entropy/ibot"),
        "",
        False,
    ),
    "Prototypes": (
        "Share of prototypes that come first for some row, and the mean largest target.",
        ("prototypes_used/dino", "prototypes_used/ibot", "teacher_max/dino", "teacher_max/ibot"),
        "",
        False,
    ),
    "Effective rank of cls": ("Near 1 means collapse.", ("effective_rank",), "", False),
    "Spread and neighbours": (
        "Distance to the most similar other image; share with a twin.",
        ("cls_spread", "neighbor_distance", "neighbor_distance_p05", "duplicates"),
        "",
        False,
    ),
    "Gradient norms": (
        "Before clipping, logarithmic.",
        ("grad_norm/backbone", "grad_norm/dino_head", "grad_norm/ibot_head"),
        "",
        True,
    ),
    "Patches": (
        "cls_patch_cosine rising while locality falls means that dense features degrade.",
        ("cls_patch_cosine", "patch_cosine", "locality", "probe/drift"),
        "",
        False,
    ),
    "Token lengths": (
        "Before the final norm.",
        ("cls_norm", "patch_norm", "patch_norm_max"),
        "",
        False,
    ),
    "Throughput": (
        "Images per second, with saving and evaluation.",
        ("images_per_second",),
        "",
        False,
    ),
    "Waiting for data": ("Share of the time; below 0.05 is normal.", ("data_wait",), "", False),
    "Change of the ema per step": ("Relative length.", ("ema_change",), "", True),
    "Learning rate": ("", ("lr",), "", False),
}


def refresh(run_dir: str | Path) -> None:
    """Write the report of a run that is under way; what goes wrong is logged, not raised."""
    try:
        write(run_dir)
    except Exception:  # training is worth more than its report
        log.exception("report.html could not be written; later: dinojax report %s", run_dir)


def write(run_dir: str | Path) -> Path:
    """Write RUN/report.html from the files of a run; raises as `runs.read_run`."""
    run = read_run(run_dir)
    path = run.directory / "report.html"
    write_text(path, page(run))
    return path


def main(run_dir: str | Path) -> None:
    print(write(run_dir))


def page(run: RunFiles) -> str:
    """The whole page."""
    name = html.escape(run.directory.resolve().name)
    whole = read_whole(run.directory) if len(run.stages) > 1 else run
    body = "".join(
        [
            f"<h1>{name}</h1>",
            _summary(run),
            _section("Verdict", _verdict(run, diagnose(run))),
            _section("Curves", f'<div class="charts">{"".join(_charts(whole))}</div>'),
            _section("What the networks see", "".join(_crops(run))),
            _section("Patches over time", f'<div class="looks">{"".join(_looks(run))}</div>'),
            _section("Steps that were not finite", _autopsies(run)),
            _section("Bad images", _table(run.bad_images)),
            _section("Images left out of k-NN", _table(run.skipped_images)),
            _section("Starts and stops", _table(run.resumes)),
            _section("Energy", _energy(run.energy, shared=run.home != run.directory)),
            _section("Environment", _pairs(run.environment)),
            _section("Config", _config(run)),
        ]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def _summary(run: RunFiles) -> str:
    step = run.rows[-1]["step"] if run.rows else 0
    num_steps = run.values["num_steps"]
    tiles = {
        "step": f"{step:,} of {num_steps:,}",
        "recipe": f"{run.recipe}, {run.values['stage']}",
        "images seen": short(step * run.values["batch_size"]),
    }
    if run.rows:
        tiles["loss"] = (
            "not finite" if run.rows[-1]["total"] is None else short(run.rows[-1]["total"])
        )
    for evaluation in SUITE.values():
        main = evaluation.main_column(run.values)
        if found := [row[main] for row in run.evaluations if row.get(main) is not None]:
            tiles[evaluation.title] = evaluation.shown(found[-1])
    items = "".join(
        f"<div><b>{html.escape(str(value))}</b><span>{name}</span></div>"
        for name, value in tiles.items()
    )
    share = min(100.0, 100.0 * step / num_steps)
    return (
        f'<div class="tiles">{items}</div><div class="bar"><i style="width:{share:.1f}%"></i></div>'
    )


def _verdict(run: RunFiles, findings: Sequence[Finding]) -> str:
    """The doctor's findings; good news is said as well."""
    items = [
        f'<li class="{f.severity}"><b>{html.escape(f.name)}</b> {html.escape(f.evidence)}<br>'
        f"{html.escape(f.meaning)} {html.escape(f.advice)}</li>"
        for f in findings
    ]
    if not any(finding.severity != "note" for finding in findings):
        items.insert(0, f'<li class="fine"><b>{verdict(run)}</b></li>')
    return f'<ul class="verdict">{"".join(items)}</ul>'


def _charts(run: RunFiles) -> Iterator[str]:
    draw = functools.partial(line_chart, starts=run.starts)
    ranges = loss_ranges(run.values)
    for title, terms in (("DINO loss", ("dino_local", "dino_global")), ("iBOT loss", ("ibot",))):
        marks = {"chance": ranges[terms[0]].chance, "floor": ranges[terms[0]].floor}
        chart = draw({term: run.column(term) for term in terms}, marks=marks)
        yield _chart(title, "Chance: a student that says nothing.", chart)
    rows = run.evaluations
    for evaluation in SUITE.values():
        curves = {
            name.removeprefix(evaluation.prefix): [
                (row["step"], row[name]) for row in rows if row.get(name) is not None
            ]
            for name in evaluation.columns(rows)
        }
        title = evaluation.title[:1].upper() + evaluation.title[1:]
        yield _chart(title, evaluation.note, draw(curves, unit=evaluation.unit))
    for title, (note, columns, unit, log_scale) in CHARTS.items():
        lines = {name: run.column(name) for name in columns if name != "probe/drift"}
        if "probe/drift" in columns:
            drift = [(row["step"], row["probe/drift"]) for row in rows if "probe/drift" in row]
            lines["probe/drift"] = drift
        yield _chart(title, note, draw(lines, unit=unit, log=log_scale))


def _chart(title: str, note: str, chart: str) -> str:
    if not chart:
        return ""
    caption = f"<b>{html.escape(title)}</b> {html.escape(note)}"
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _crops(run: RunFiles) -> Iterator[str]:
    for stage in run.stages:
        name = "crops.png" if stage == run.stages[0] else f"crops-{stage}.png"
        where = "" if len(run.stages) == 1 else f"Stage {stage}. "
        yield _picture(run, name, f"{where}Global, then local.")


def _looks(run: RunFiles) -> Iterator[str]:
    """Sheets of the probe, from first to last."""
    names = sorted(path.name for path in (run.directory / "pictures").glob("patches-*.png"))
    if len(names) > MAX_PICTURES:
        places = [round(n * (len(names) - 1) / (MAX_PICTURES - 1)) for n in range(MAX_PICTURES)]
        names = [names[place] for place in places]
    for name in names:
        step = int(Path(name).stem.split("-")[1])
        yield _picture(run, name, f"Step {step:,}: image, PCA, similarity to the marked patch.")


def _picture(run: RunFiles, name: str, caption: str) -> str:
    path = run.directory / "pictures" / name
    if not path.exists():
        return ""
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big")  # where a PNG tells it
    width *= max(1, 360 // max(width, 1))  # small pictures are hard to see
    data = base64.b64encode(content).decode()
    source = f'width="{width}" src="data:image/png;base64,{data}"'
    image = f'<img alt="{html.escape(caption)}" {source}>'
    return (
        f'<figure class="picture">{image}<figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _autopsies(run: RunFiles) -> str:
    rows = [{"step": a["step"], "culprit": a["culprit"]} for a in run.autopsies]
    return _table(rows)


def _energy(energy: dict[str, Any], *, shared: bool) -> str:
    """energy.json in words; what is not known is said with the reason.

    shared: a student's, whose teacher and devices are those of all students."""
    if not energy:
        return ""
    kwh, tonnes, sessions = energy["energy_kwh"], energy["tonnes_co2e"], energy["sessions"]
    factors = f"facility factor {energy['pue']}, {energy['tonnes_per_mwh']} t per MWh"
    notes = dict.fromkeys(note for session in sessions for note in session["notes"])
    return _pairs(
        {
            **({"of": "all students and their teacher"} if shared else {}),
            "device hours": f"{energy['device_hours']:.3g}, {len(sessions)} sessions",
            "energy": "not known" if kwh is None else f"{kwh:.4g} kWh, {energy['method']}",
            "CO2 equivalent": "not known" if tonnes is None else f"{tonnes:.3g} t ({factors})",
            **({"notes": "; ".join(notes)} if notes else {}),
        }
    )


def _config(run: RunFiles) -> str:
    """Every key; those that the recipe or --set gave are open, the rest is folded."""
    rows = [
        {"key": key, "value": value, "from": run.sources[key]} for key, value in run.values.items()
    ]
    changed = [row for row in rows if row["from"] != "base"]
    everything = (
        f"<details><summary>all {len(rows)} keys</summary>{_table(rows, limit=None)}</details>"
    )
    return _table(changed, limit=None) + everything


def _table(rows: Sequence[dict[str, Any]], limit: int | None = MAX_ROWS) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = [_cells(row[name] if name in row else "" for name in names) for row in rows[:limit]]
    more = "" if limit is None or len(rows) <= limit else f"<p>and {len(rows) - limit} more</p>"
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>{more}'


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(_cells((name, value)) for name, value in values.items())
    return f'<div class="wide"><table>{rows}</table></div>' if rows else ""


def _cells(values: Iterable[Any]) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(_said(value))}</td>' for value in values)}</tr>"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
