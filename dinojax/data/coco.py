"""COCO captions: a JSON file of `images` and `annotations`, beside folders of images.

In the official layout ROOT/annotations/captions_SPLIT.json describes the images of ROOT/SPLIT/;
elsewhere they lie in the folder of the file. Images follow each other as in the file.
"""

import os
import re
from collections import defaultdict

from dinojax.data import fields
from dinojax.data.captions import of_value
from dinojax.data.decode import PLAIN, ReadOptions
from dinojax.data.encoded import EncodedSource, check_one_decodes, checked_path, fingerprint
from dinojax.data.example import Source
from dinojax.data.manifest import ManifestFiles
from dinojax.data.storage import read_file

NAME = re.compile(r"captions_(.+)\.json")


def coco(
    *,
    path: str,
    channels: int,
    split: str = "train",
    key: str = "data.path",
    options: ReadOptions = PLAIN,
) -> Source:
    """The source of one captions_SPLIT.json; `key` is what messages name.

    Raises FileNotFoundError, and ValueError for another kind of file, for a caption of an image
    that is not listed, and for names listed twice.
    """
    if split != "train":
        raise ValueError(f"a file of captions has no split {split!r}: all of it is 'train'.")
    where, found = f"{key}={path}", checked_path(path, key, "a file captions_SPLIT.json of COCO")
    if not os.path.isfile(found):
        raise ValueError(f"{where} is a folder; give the file captions_SPLIT.json in it.")
    content = fields.parse(read_file(found, max_bytes=None), where=where)
    images = fields.field(content, "images", [dict], where=where)
    names = {
        fields.field(image, "id", int, where=where): fields.field(
            image, "file_name", str, where=where
        )
        for image in images
    }
    if len(set(names.values())) < len(images) or not names:
        raise ValueError(f"{where} lists {len(images)} images under {len(names)} ids and names.")
    captions: dict[int, list[str]] = defaultdict(list)
    for row in fields.field(content, "annotations", [dict], where=where):
        image = fields.field(row, "image_id", int, where=where)
        if image not in names:
            raise ValueError(f"{where}: a caption is of image {image}, which is not listed.")
        captions[image] += of_value(fields.field(row, "caption", (str, None), where=where), where)
    paths, told = tuple(names.values()), tuple(tuple(captions[image]) for image in names)
    files = ManifestFiles(folder=_folder(found), paths=paths, labels=None, captions=told)
    source = EncodedSource(
        files=files,
        channels=channels,
        class_names=(),
        fingerprint=fingerprint((name, *texts) for name, texts in zip(paths, told, strict=True)),
        options=options,
    )
    return check_one_decodes(source, where)


def _folder(path: str) -> str:
    """Where the images of a file of captions lie."""
    parent = os.path.dirname(path)
    if match := NAME.fullmatch(os.path.basename(path)):
        for folder in (os.path.join(os.path.dirname(parent), match[1]), f"{parent}/{match[1]}"):
            if os.path.isdir(folder):
                return folder
    return parent
