"""Mutated data sets of every kind: opened with all they hold, or refused by name; nothing silent.

Each case stores eight small images of two classes in one kind, lets one to three accidents happen
to its files, opens it as the commands do and reads every image. A fault is: an error that is no
refusal or does not name a file or key, more than 20 s or 1 GB, fewer images than were stored
without an error, a note or an unreadable image, or an image with another class than it had.
"""

import contextlib
import csv
import faulthandler
import gzip
import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from dinojax.cli.main import _is_refusal
from dinojax.data.decode import DecodeError, ReadOptions
from dinojax.data.ranges import range_notes
from dinojax.data.sources import SOURCES, kind_of
from tests.programs.fuzz_images import mutated
from tests.support import peak_memory, stored_data

NUM, SECONDS, BYTES = 8, 20, 2**30
KINDS = ("folder", "manifest", "tar", "arrayrecord", "parquet", "tiff")
# Labels in these stand beside a digest or twice, so that any change of one can be seen.
CHECKED_LABELS = ("folder", "arrayrecord")


def stored(root: Path, kind: str) -> tuple[Path, dict[str, str], int]:
    """(path of a data set, digest of each image file -> its class, channels)."""
    channels = 5 if kind == "tiff" else 3
    images = {}
    for number in range(NUM):
        name = f"{stored_data.CLASSES[number % 2]}/{number}"
        if kind == "tiff":
            how = ("contig", "separate", "pages")[number % 3]
            values = stored_data.bands(number, size=(6, 8))
            images[f"{name}.tif"] = stored_data.tiff(values, how)
        else:
            images[f"{name}.png"] = stored_data.png(number)
    truth = {digest(data): name.split("/")[0] for name, data in images.items()}
    make = {
        "manifest": lambda: stored_data.manifest(root / "x", images),
        "tar": lambda: tar_shards(root / "x", images),
        "arrayrecord": lambda: stored_data.records(root / "x", images),
        "parquet": lambda: stored_data.parquet(root / "x" / "a.parquet", images).parent,
    }
    path = make.get(kind, lambda: stored_data.folder(root / "x", images))()
    shutil.rmtree(root / "plain", ignore_errors=True)
    return path, truth, channels


def tar_shards(root: Path, images: dict[str, bytes]) -> Path:
    items = list(images.items())
    for number in range(2):
        half = dict(items[number::2])
        stored_data.tar_shard(root / f"{number}.tar", stored_data.samples(half))
    return root


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- accidents: each takes (folder, generator) ---------------------------------------------------


def a_file(root: Path, rng) -> Path | None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    shards = [path for path in files if path.parent == root]  # of manifests: the table itself
    pool = shards if shards and rng.random() < 0.7 else files
    return pool[rng.integers(len(pool))] if pool else None


def bytes_change(root: Path, rng) -> None:
    if (path := a_file(root, rng)) is not None:
        path.write_bytes(mutated(path.read_bytes(), rng))


def is_cut(root: Path, rng) -> None:
    if (path := a_file(root, rng)) is not None:
        data = path.read_bytes()
        path.write_bytes(data[: int(rng.integers(0, len(data)))])


def is_doubled(root: Path, rng) -> None:
    if (path := a_file(root, rng)) is not None:
        path.write_bytes(path.read_bytes() * 2)


def is_lost(root: Path, rng) -> None:
    """A file that a list beside it names; of others nobody could know it."""
    listed = any((root / name).exists() for name in ("images.csv", "dataset.json"))
    if listed and (path := a_file(root, rng)) is not None:
        path.unlink()


def is_swapped(root: Path, rng) -> None:
    one, other = a_file(root, rng), a_file(root, rng)
    if one is not None and other is not None and one != other and one.suffix == other.suffix:
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second), other.write_bytes(first)


def is_compressed(root: Path, rng) -> None:
    if (path := a_file(root, rng)) is not None:
        path.write_bytes(gzip.compress(path.read_bytes()))


def is_special(root: Path, rng) -> None:
    """A pipe, a device, a folder or a link in the place of a file, or beside it."""
    path = a_file(root, rng)
    if path is None:
        return
    kind = rng.integers(0, 5)
    if rng.random() < 0.5 or kind == 2:
        path = path.with_name("0" + path.name)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        return
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(path)
    else:
        path.symlink_to(root.parent)  # a loop


def gets_links(root: Path, rng) -> None:
    for number in range(int(rng.integers(1, 6))):
        with contextlib.suppress(FileExistsError):
            (root / f"link{number}").symlink_to(root, target_is_directory=True)


def gets_other_names(root: Path, rng) -> None:
    names = [b"\xff\xfe.png", b"a\nb.png", b" .png", b".png", "é".encode() + b".PNG", b"-r.png"]
    path = os.fsencode(root) + b"/" + names[rng.integers(len(names))]
    with contextlib.suppress(FileExistsError), open(path, "xb") as file:
        file.write(stored_data.png(int(rng.integers(0, NUM))))


def table_changes(root: Path, rng) -> None:
    """A line of a manifest, a field of dataset.json, or an array of labels."""
    if (path := root / "images.csv").is_file():
        lines = path.read_text("utf-8", "replace").splitlines()
        rows = [
            "path,label,path",
            "/dev/zero,ant,x",
            "../x,ant,x",
            "ant,ant,x",
            "",
            ',"',
            "a\0b,ant,",
        ]
        rows += ["file:///dev/zero,ant,x", "nope://x,ant,x", "ant/0.png", '"ant/0.png,ant', "path"]
        place = int(rng.integers(0, len(lines) + 1))
        lines[place : place + int(rng.integers(0, 2))] = [rows[rng.integers(len(rows))]]
        text = "\n".join(lines) + "\n"
        code = ["utf-8", "utf-8-sig", "utf-16", "latin-1"][rng.choice(4, p=[0.7, 0.1, 0.1, 0.1])]
        path.write_bytes(text.encode(code, "replace"))
    elif (path := root / "dataset.json").is_file() and rng.random() < 0.5:
        with contextlib.suppress(ValueError, AttributeError):
            content = json.loads(path.read_text("utf-8", "replace"))
            values = [None, 0, -1, [], {}, "x", True, ["ant", "ant"], [0, 1], {"a": "b"}, 1e400]
            key = list(content)[rng.integers(len(content))]
            content[key] = values[rng.integers(len(values))]
            path.write_text(json.dumps(content))
    elif (path := root / "labels.npy").is_file():
        arrays = [np.zeros(NUM), np.zeros((NUM, 1), int), np.zeros(3, int), np.full(NUM, 9)]
        arrays += [np.array(["ant"] * NUM), np.array([None] * NUM), np.ones(NUM, int), np.int32(1)]
        np.save(path, arrays[rng.integers(len(arrays))], allow_pickle=True)


ACCIDENTS = (
    *(bytes_change, is_cut, is_doubled, is_lost, is_swapped, is_compressed, is_special),
    *(gets_links, gets_other_names, table_changes),
)


# -- the judgement --------------------------------------------------------------------------------


def read_all(path: Path, channels: int) -> tuple[list[tuple[str, str | None]], int, int]:
    """((digest, class) of each image that can be read, unreadable images, notes)."""
    kind = kind_of(str(path))
    options = ReadOptions(value_range=(0.0, 3500.0) if channels == 5 else ())
    source = SOURCES[kind](path=str(path), channels=channels, key="PATH", options=options)
    found, bad = [], 0
    for index in range(len(source)):
        try:
            pixels = source.read(index, 64).pixels
            assert pixels.dtype == np.uint8 and pixels.shape[2] == channels and pixels.size
            data = source.encoded(index).data
        except (DecodeError, OSError) as error:
            assert len(str(error)) > 10, f"no reason: {error!r}"
            bad += 1
            continue
        labels = source.labels
        found.append((digest(data), None if labels is None else source.class_names[labels[index]]))
    range_notes(source)
    return found, bad, len(source.notes)


def fault_of(path: Path, kind: str, truth: dict[str, str], channels: int) -> tuple[str, str]:
    """("opened" or "refused", what is wrong with it; empty if nothing)."""
    try:
        found, bad, notes = read_all(path, channels)
    except TimeoutError:
        return "refused", f"more than {SECONDS} s"
    except Exception as error:
        named = any(word in str(error) for word in (path.name, "PATH", str(path.parent)))
        if not _is_refusal(error) and not isinstance(error, ModuleNotFoundError):
            return "refused", f"uncaught {type(error).__name__}: {error}"
        return "refused", "" if named else f"a message without a name: {error}"
    if kind == "manifest" and path.is_file():  # a table that ends after a row may be all of it
        with path.open(newline="", encoding="utf-8-sig") as file:
            expected = min(NUM, sum(map(bool, csv.reader(file))) - 1)
    else:
        expected = NUM
    if len(found) < expected and not bad and not notes:
        return "opened", f"{expected - len(found)} of {expected} images are gone without a word"
    wrong = [
        label for key, label in found if key in truth and label is not None and label != truth[key]
    ]
    if wrong and kind in CHECKED_LABELS:
        return "opened", f"{len(wrong)} images have another class without a word"
    return "opened", ""


def _too_long(signum, frame):
    raise TimeoutError


def fuzz(seed: int, count: int, progress=lambda done, faults: None) -> dict:
    """{"opened", "refused", "seconds", "megabytes", "faults"} of `count` mutated data sets."""
    rng, faults, longest, peak = np.random.default_rng(seed), [], 0.0, 0
    counts = {"opened": 0, "refused": 0}
    before = signal.signal(signal.SIGALRM, _too_long)
    try:
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            with tempfile.TemporaryDirectory() as folder:
                path, truth, channels = stored(Path(folder), kind)
                root = path if path.is_dir() else path.parent
                happened = []
                for _ in range(int(rng.integers(1, 4))):
                    accident = ACCIDENTS[rng.integers(len(ACCIDENTS))]
                    accident(root, rng)
                    happened.append(accident.__name__)
                if is_swapped in map(globals().get, happened) and kind in ("folder", "tiff"):
                    truth = {}  # nobody could know
                began, held = time.monotonic(), peak_memory.begin()
                signal.alarm(SECONDS)
                faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # no library waits longer
                outcome, wrong = fault_of(path, kind, truth, channels)
                signal.alarm(0)
                faulthandler.cancel_dump_traceback_later()
                longest = max(longest, time.monotonic() - began)
                grown = peak_memory.grown(held)
            counts[outcome] += 1
            peak = max(peak, grown)
            if grown > BYTES and not wrong:
                wrong = f"{grown / 2**20:.0f} MiB"
            if wrong:
                faults.append(f"files {number} of seed {seed}, {kind} ({happened}): {wrong}")
            progress(number + 1, faults)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    megabytes = peak // 2**20
    return {**counts, "seconds": round(longest, 2), "megabytes": megabytes, "faults": faults}
