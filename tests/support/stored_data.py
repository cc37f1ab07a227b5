"""The same few images stored in every way that a source reads."""

import csv
import io
import tarfile

import numpy as np
from PIL import Image

from dinojax.data.arrayrecord import pack
from dinojax.data.example import Encoded

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


def every_kind(root):
    """Kind of source -> path, of two images with one class each."""
    images = {f"{name}/{number}.png": png(number) for number, name in enumerate(CLASSES)}
    return {
        "folder": str(folder(root / "folder", images)),
        "manifest": str(manifest(root / "manifest", images)),
        "tar": str(tar_shard(root / "tar" / "a.tar", samples(images))),
        "arrayrecord": str(records(root / "records", images)),
        "tfds": str(tfds_split(root / "tfds", images)),
        "tiles": "",
    }


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
