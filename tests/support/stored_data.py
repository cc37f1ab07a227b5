"""The same few images stored in every way that a source reads."""

import csv
import io
import json
import struct
import tarfile
import zlib
from importlib.util import find_spec

import numpy as np
from PIL import Image

from dinojax.data.arrayrecord import pack
from dinojax.data.example import Encoded
from tests.support.scenes import scene

CLASSES = ("ant", "cat")


def pixels(number, size=(5, 4)):
    """Different for every number and in every channel: uint8 [height, width, 3]."""
    return (np.arange(size[0] * size[1] * 3).reshape(*size, 3) * 4 + 7 * number).astype(np.uint8)


def png(number, **options):
    return saved(Image.fromarray(pixels(number)), "PNG", **options)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bands(number, size=(40, 48), num=5, largest=3500, dtype=np.uint16):
    """Whole numbers 0..largest, different in every band: [height, width, num]."""
    rng = np.random.default_rng(number)
    return rng.integers(0, largest, (*size, num), dtype=np.int64, endpoint=True).astype(dtype)


def tiff(values_HWC, how="contig", **options):
    """A TIFF of bands side by side (contig), one after the other (separate), or a page each."""
    import tifffile

    file, planes = io.BytesIO(), np.moveaxis(values_HWC, 2, 0)
    options = {"photometric": "minisblack", "metadata": None} | options
    if how == "pages":
        with tifffile.TiffWriter(file) as writer:
            for plane in planes:
                writer.write(plane, contiguous=False, **options)
    elif len(planes) == 1:
        tifffile.imwrite(file, planes[0], **options)
    elif how == "contig":
        tifffile.imwrite(file, values_HWC, planarconfig="contig", **options)
    else:
        tifffile.imwrite(file, planes, planarconfig="separate", **options)
    return file.getvalue()


def png16(values_HWC):
    """A PNG of 16 bit grey, grey and alpha, RGB or RGBA: Pillow writes only the first."""
    height, width, num = values_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[num]

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def every_kind(root):
    """Kind of source -> path, of two images with one class each."""
    images = {f"{name}/{number}.png": png(number) for number, name in enumerate(CLASSES)}
    return {
        "folder": str(folder(root / "folder", images)),
        "manifest": str(manifest(root / "manifest", images)),
        "tar": str(tar_shard(root / "tar" / "a.tar", samples(images))),
        "arrayrecord": str(records(root / "records", images)),
        "tfds": str(tfds_split(root / "tfds", images)),
        "parquet": str(parquet(root / "parquet" / "train.parquet", images)),
        "coco": str(coco(root / "coco", images)),
        "tiles": "",
        **({"scenes": str(scenes(root / "scenes"))} if find_spec("rasterio") else {}),
    }


def scenes(root):
    """A GeoTIFF of each class."""
    for number, name in enumerate(CLASSES):
        scene(root / name / f"{number}.tif", pixels(number), nodata=None, photometric="rgb")
    return root


def folder(root, images):
    for name, data in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def manifest(root, images):
    folder(root, images)
    with (root / "images.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "note"])
        rows.writerows([name, name.split("/")[0], "x,y"] for name in images)
    return root / "images.csv"


def parquet(path, images, names=CLASSES):
    """Images inside a Parquet file as Hugging Face writes them, in row groups of two."""
    import pyarrow
    from pyarrow import parquet

    cells = [{"bytes": data, "path": name} for name, data in images.items()]
    labels = [names.index(name.split("/")[0]) for name in images]
    kinds = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    table = pyarrow.table({"image": cells, "label": labels}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": kinds}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)
    return path


def coco(root, images):
    """captions_train.json in `annotations`, images in `train`; each with one caption."""
    folder(root / "train", images)
    listed = [{"id": number, "file_name": name} for number, name in enumerate(images)]
    told = [{"image_id": row["id"], "caption": f"a {row['file_name']}"} for row in listed]
    path = root / "annotations" / "captions_train.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": listed, "annotations": told}))
    return path


def samples(images):
    """Files of a WebDataset shard, each image with a class."""
    files = {}
    for number, (name, data) in enumerate(images.items()):
        files[f"{number:04}.png"] = data
        files[f"{number:04}.cls"] = name.split("/")[0].encode()
    return files


def tar_shard(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def records(root, images):
    """A finished conversion of one shard."""
    from dinojax.data.convert import convert
    from dinojax.data.folder import folder as open_folder

    source = open_folder(path=str(folder(root.with_name("plain"), images)), channels=3)
    convert(source, root, num_shards=1)
    return root


def record_file(path, items):
    """An ArrayRecord file of Encoded (in the envelope) and bytes (as they are)."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for item in items:
        writer.write(pack(item) if isinstance(item, Encoded) else item)
    writer.close()
    return path


def tfds_split(root, images):
    """A TFDS data set with the splits train and val, written without TensorFlow."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # finding it needs a package that reading does not

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=CLASSES)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples(), "val": self._generate_examples()}

        def _generate_examples(self):
            for name, data in images.items():
                yield name, {"image": io.BytesIO(data), "label": name.split("/")[0]}

    builder = Tiny(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir
