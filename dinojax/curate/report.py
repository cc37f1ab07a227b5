"""report.html of a curation: what was dropped, and what became of the rest, on one page."""

import html
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dinojax.curate.allocate import Tree
from dinojax.curate.duplicates import read_edges
from dinojax.curate.embed import ids_of
from dinojax.curate.line_charts import line_chart
from dinojax.curate.montage import montage
from dinojax.curate.pool import Pool, open_pool
from dinojax.curate.report_style import STYLE
from dinojax.curate.work import STEP, Work, backbone_of, read_levels, result_of, source_at, tree_of
from dinojax.data import fields
from dinojax.data.example import Source
from dinojax.files.drafts import write_text
from dinojax.viz.charts import short

NUM_GROUPS, NUM_CLUSTERS, NUM_DROPPED = 24, 30, 96  # that are shown
GROUP_IMAGES, CLUSTER_IMAGES = 8, 12
BINS = 24
MORE = """
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 10px; }
.picture img { image-rendering: auto; }
rect.c0 { fill: var(--c0); } rect.c1 { fill: var(--c1); }
"""


class Page:
    """What the parts of the page are made of: the pool, its images, and the results of steps."""

    def __init__(self, work: Work):
        self.work, self.out = work, work.out
        self.pool: Pool = open_pool(work.embeddings, check=False)
        self.source: Source = source_at(
            work, work.recipe.pool, backbone_of(work).spec.channels, "pool"
        )
        self._index_of = {name: index for index, name in enumerate(ids_of(self.source))}

    def done(self, name: str) -> bool:
        """Whether a step was finished."""
        path = self.out / name / STEP
        return path.exists() and fields.read(path).get("result") is not None

    def pictures(
        self, rows: Sequence[int] | np.ndarray, caption: str = "", *, marked: Sequence[int] = ()
    ) -> str:
        """A figure of rows of the pool, in their order."""
        rows = np.asarray(rows, np.int64)
        rising = np.unique(rows)
        names = dict(zip(rising.tolist(), self.pool.ids(rising), strict=True))
        indexes = [self._index_of[names[row]] for row in rows.tolist()]
        image = montage(self.source, indexes, marked=marked)
        return f'<figure class="picture">{image}<figcaption>{caption}</figcaption></figure>'


def write_report(work: Work) -> Path:
    """Write `out`/report.html of the steps that are finished; its path."""
    page = Page(work)
    parts = [
        *_summary(page),
        *_calibration(page),
        *_duplicates(page),
        *_benchmarks(page),
        *_levels(page),
        *_balance(page),
        *_retrieved(page),
    ]
    title = html.escape(f"Curation of {work.recipe.pool}")
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{MORE}</style><main><h1>{title}</h1>{''.join(parts)}</main></html>\n"
    )
    path = work.out / "report.html"
    write_text(path, text)
    return path


def _summary(page: Page) -> Iterator[str]:
    tiles = {"images of the pool": len(page.pool)}
    if page.done("dedup"):
        told = result_of(page.out / "dedup", "dedup")
        tiles |= {"copies dropped": told["duplicates"], "like benchmarks": told["like_benchmarks"]}
        tiles["left"] = told["kept"]
    if page.done("sample"):
        tiles["balanced set"] = result_of(page.out / "sample", "sample")["images"]
    if page.done("retrieve"):
        for name, told in result_of(page.out / "retrieve", "retrieve").items():
            tiles[f"like {name}"] = told["images"]
    cells = [
        f"<div><b>{n:,}</b><span>{html.escape(name)}</span></div>" for name, n in tiles.items()
    ]
    yield f'<div class="tiles">{"".join(cells)}</div>'


def _calibration(page: Page) -> Iterator[str]:
    path = page.out / "dedup" / "calibration.json"
    if not path.exists():
        return
    told = fields.read(path)
    yield "<h2>Threshold, on altered copies of images of the pool</h2>"
    lines = {
        kind: [(100 * m["value"], m[kind]) for m in told["cosine"]]
        for kind in ("precision", "recall")
    }
    chart = line_chart(lines, starts={"threshold": 100 * told["threshold"]})
    about = (
        "Cosine in hundredths above which two images are the same. Precision is a lower bound: "
        "other images of the pool that are really the same count against it."
    )
    yield f'<div class="charts"><figure>{chart}<figcaption>{about}</figcaption></figure>'
    rows = [
        f"<tr><td>{html.escape(k)}</td><td>{v:.1%}</td></tr>"
        for k, v in told["recall_by_copy"].items()
    ]
    yield f"<figure><table><tr><th>copy</th><th>found</th></tr>{''.join(rows)}</table>"
    rows = [
        f"<tr><td>{m['value']:.0f} bits</td><td>{m['precision']:.1%}</td>"
        f"<td>{m['recall']:.1%}</td></tr>"
        for m in told["hash"]
    ]
    head = "<tr><th>hashes within</th><th>precision</th><th>recall</th></tr>"
    yield f"<table>{head}{''.join(rows)}</table></figure></div>"


def _duplicates(page: Page) -> Iterator[str]:
    if not page.done("dedup"):
        return
    survivor = np.load(page.out / "dedup" / "survivor.npy")
    rows = np.flatnonzero((survivor >= 0) & (survivor != np.arange(len(survivor))))
    if not len(rows):
        return
    yield (
        "<h2>Groups of copies</h2><p>Framed: who stays. First those with the least similar pair."
    )
    least = _least_cosines(page, survivor)
    stays, sizes = np.unique(survivor[rows], return_counts=True)
    order = np.argsort([least.get(int(s), 1.0) for s in stays], kind="stable")
    yield '<div class="groups">'
    for at in order[:NUM_GROUPS]:
        stay = int(stays[at])
        others = rows[survivor[rows] == stay][: GROUP_IMAGES - 1]
        cosine = f", cosine from {least[stay]:.3f}" if stay in least else ", by their hashes"
        yield page.pictures([stay, *others], f"{sizes[at] + 1:,} images{cosine}", marked=[0])
    yield "</div><h2>Dropped, drawn from all</h2>"
    some = np.random.default_rng(0).permutation(rows)[:NUM_DROPPED]
    yield page.pictures(some, f"{len(some):,} of {len(rows):,}")


def _least_cosines(page: Page, survivor: np.ndarray) -> dict[int, float]:
    """Of every group the least cosine of the pairs that joined it."""
    least: dict[int, float] = {}
    for edges in read_edges(page.out / "dedup" / "edges"):
        for stay, cosine in zip(
            survivor[edges["row"]].tolist(), edges["cosine"].tolist(), strict=True
        ):
            least[stay] = min(cosine, least.get(stay, 1.0))
    return least


def _benchmarks(page: Page) -> Iterator[str]:
    if not page.done("dedup") or not page.work.recipe.dedup.benchmarks:
        return
    yield "<h2>Overlap with benchmarks</h2>"
    hits = result_of(page.out / "dedup", "dedup")["hits"]
    rows = [f"<tr><td>{html.escape(n)}</td><td>{v:,}</td></tr>" for n, v in hits.items()]
    head = "<tr><th>benchmark</th><th>images of the pool like it</th></tr>"
    yield f"<table>{head}{''.join(rows)}</table>"
    gone = np.flatnonzero(np.load(page.out / "dedup" / "survivor.npy") < 0)
    if len(gone):
        yield page.pictures(gone[:NUM_DROPPED], f"dropped: {len(gone):,}")


def _tree(page: Page) -> tuple[Tree, np.ndarray] | None:
    if not page.done("kmeans"):
        return None
    return tree_of(read_levels(page.work)), np.load(page.out / "dedup" / "kept.npy")


def _levels(page: Page) -> Iterator[str]:
    found = _tree(page)
    if found is None:
        return
    tree, kept = found
    yield '<h2>Clusters</h2><div class="charts">'
    for number, sizes in enumerate(tree.sizes, start=1):
        filled = sizes[sizes > 0]
        about = (
            f"<b>Level {number}</b>: {len(sizes):,} clusters, {len(sizes) - len(filled):,} empty; "
            f"as uneven as {effective(sizes):,.0f} equal ones; images of each from "
            f"{filled.min():,} to {filled.max():,}, half below {np.median(filled):,.0f}"
        )
        yield f"<figure>{histogram(filled)}<figcaption>{about}</figcaption></figure>"
    top = tree.sizes[tree.top]
    yield "</div><h2>The largest clusters of the highest level</h2>"
    for cluster in np.argsort(-top, kind="stable")[:NUM_CLUSTERS]:
        if top[cluster]:
            rows = kept[_images(tree, tree.top, int(cluster), CLUSTER_IMAGES)]
            yield page.pictures(rows, f"cluster {cluster}: {top[cluster]:,} images")


def _images(tree: Tree, level: int, cluster: int, most: int) -> np.ndarray:
    """Some images of a cluster, the same number of each of its children as far as they go."""
    members = tree.members(level, cluster)
    if not level:
        return members[:most]
    share = max(1, most // max(1, len(members)))
    found = [_images(tree, level - 1, int(m), share) for m in members[:most]]
    return np.concatenate(found)[:most] if found else np.zeros(0, np.int64)


def _balance(page: Page) -> Iterator[str]:
    found = _tree(page)
    if found is None or not page.done("sample"):
        return
    tree, kept = found
    chosen = np.load(page.out / "sample" / "chosen.npy")
    cluster = np.zeros(len(page.pool), np.int64)
    for number in range(len(tree.sizes[tree.top])):
        cluster[kept[_images(tree, tree.top, number, len(kept))]] = number
    pairs = {"clusters of the highest level": (cluster[kept], cluster[chosen])}
    labels = _labels(page)
    if labels is not None:
        pairs["classes of the pool"] = labels, labels[chosen]
    yield '<h2>Balance, before and after</h2><div class="charts">'
    for what, (before, after) in pairs.items():
        counts = [np.bincount(x, minlength=int(before.max()) + 1) for x in (before, after)]
        about = (
            f"<b>Shares of the {what}</b>, largest first: before as uneven as "
            f"{effective(counts[0]):,.1f} equal ones, after {effective(counts[1]):,.1f}."
        )
        order = np.argsort(-counts[0], kind="stable")
        lines = {
            name: [(rank, float(c)) for rank, c in enumerate((count / count.sum())[order])]
            for name, count in zip(("before", "after"), counts, strict=True)
        }
        yield f"<figure>{line_chart(lines)}<figcaption>{about}</figcaption></figure>"
    yield "</div><h2>The balanced set, drawn from all</h2>"
    some = np.random.default_rng(0).permutation(chosen)[:NUM_DROPPED]
    yield page.pictures(some, f"{len(some):,} of {len(chosen):,}")


def _labels(page: Page) -> np.ndarray | None:
    """The number of the class of every row; None where the pool has none."""
    if page.source.labels is None:
        return None
    names = [name for part in page.pool.column("label") for name in part]
    return np.unique(names, return_inverse=True)[1]


def _retrieved(page: Page) -> Iterator[str]:
    if not page.done("retrieve"):
        return
    for name in page.work.recipe.retrieve:
        rows = np.load(page.out / "retrieve" / f"{name}.npy")
        yield f"<h2>Like {html.escape(name)}</h2>"
        some = np.random.default_rng(0).permutation(rows)[:NUM_DROPPED]
        yield page.pictures(some, f"{len(some):,} of {len(rows):,}")


def effective(sizes: Iterable[int] | np.ndarray) -> float:
    """How many equally large clusters are as uneven: the exponential of the entropy of shares."""
    counts = np.asarray(sizes, np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def histogram(sizes: np.ndarray) -> str:
    """Bars of how many clusters have how many images, on a logarithmic axis."""
    low, high = np.log10(sizes.min()), np.log10(sizes.max() + 1)
    counts, edges = np.histogram(np.log10(sizes), BINS, (low, max(high, low + 0.01)))
    width, height = 420 / BINS, 130
    bars = []
    for number, count in enumerate(counts):
        tall = height * count / counts.max()
        place = f'x="{number * width + 1:.1f}" y="{height + 14 - tall:.1f}"'
        bars.append(f'<rect class="c0" {place} width="{width - 2:.1f}" height="{tall:.1f}"/>')
    ends = [
        f'<text x="{x}" y="{height + 32}" text-anchor="{anchor}">{short(10**edge)}</text>'
        for x, anchor, edge in ((0, "start", edges[0]), (420, "end", edges[-1]))
    ]
    most = f'<text x="0" y="11">{counts.max():,} clusters</text>'
    return f'<svg viewBox="0 0 420 170" role="img">{"".join([*bars, *ends, most])}</svg>'
