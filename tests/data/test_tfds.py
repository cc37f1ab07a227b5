"""TFDS data sets stored as ArrayRecord, without TensorFlow."""

import subprocess
import sys

import pytest

from dinojax.data.tfds import tfds
from tests.support.stored_data import png, tfds_split


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    images = {f"{'cat' if i % 3 else 'ant'}/{i}.png": png(i) for i in range(5)}
    return str(tfds_split(tmp_path_factory.mktemp("tfds"), images))


def test_labels_are_read_when_asked_for(data_dir):
    source = tfds(path=data_dir, channels=3)
    assert "labels" not in vars(source.files)
    first = [int(source[i].pixels[0, 0, 0]) // 7 for i in range(5)]
    assert sorted(first) == list(range(5))
    assert source.labels.tolist() == [int(i % 3 > 0) for i in first]
    assert source.labels.tolist() == [source.encoded(i).label for i in range(5)]
    assert source.class_names == ("ant", "cat")


def test_splits_have_names_and_fingerprints_of_their_own(data_dir):
    train, val = (tfds(path=data_dir, channels=3, split=split) for split in ("train", "val"))
    assert len(val) == 5 and val[2].name == "val 2" and train.fingerprint != val.fingerprint


def test_a_folder_above_the_version_is_answered_with_the_right_one(data_dir, tmp_path):
    above = data_dir.rsplit("/", 1)[0]
    with pytest.raises(ValueError, match=rf"has no dataset_info\.json; give {data_dir}"):
        tfds(path=above, channels=3)
    with pytest.raises(ValueError, match="give the folder NAME/VERSION"):
        tfds(path=str(tmp_path), channels=3)


def test_tensorflow_is_never_imported(data_dir):
    code = (
        "import sys; from dinojax.data.tfds import tfds; "
        f"tfds(path={data_dir!r}, channels=3)[0]; print({{'tensorflow', 'jax'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
