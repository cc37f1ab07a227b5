"""A source of named image files of one folder, without labels."""

from collections.abc import Sequence
from pathlib import Path

from dinojax.config import ConfigError
from dinojax.data.encoded import EncodedSource, fingerprint
from dinojax.data.folder import FolderFiles


def listed(folder: Path, files: Sequence[str], channels: int) -> EncodedSource:
    """In the order given. Raises ConfigError naming the first file that is not there."""
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(files)} images are not there, the first: "
            f"{folder / missing[0]}."
        )
    own = FolderFiles(root=str(folder), names=tuple(files), labels=None)
    mark = fingerprint((name, (folder / name).stat().st_size) for name in files)
    return EncodedSource(own, channels, (), mark)
