"""Which file of a folder holds its weights."""

from pathlib import Path

from dinojax.weights import index
from dinojax.weights.tensors import PICKLES


def weights_file(folder: Path) -> Path:
    """The file of weights of a folder, or the index of several.

    Raises FileNotFoundError where there is none or it is not told which, and ValueError for a
    checkpoint of torch.distributed, of which every process wrote a part.
    """
    files = sorted(file for file in folder.iterdir() if not file.is_dir())
    if any(file.suffix == ".distcp" for file in files):
        raise ValueError(
            f"{folder} is a checkpoint of torch.distributed.checkpoint; make one file of it with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth`."
        )
    found = [
        file
        for file in files
        if file.name.endswith(tuple(suffix + index.SUFFIX for suffix in (".safetensors", ".bin")))
        or (file.suffix in (".safetensors", *PICKLES) and not file.name.startswith("heads."))
    ]
    indexes = [file for file in found if file.name.endswith(index.SUFFIX)]
    safe = [file for file in indexes or found if ".safetensors" in file.suffixes]
    best = safe or indexes or found
    if len(best) != 1:
        names = ", ".join(file.name for file in best) or "none"
        raise FileNotFoundError(f"{folder} must hold one file of weights; found {names}.")
    if indexes:
        shards = {shard.name for shard in index.read(best[0])}
        kind = best[0].name.removesuffix(index.SUFFIX).rpartition(".")[2]
        beside = [file for file in found if file.suffix == f".{kind}" and file.name not in shards]
        if beside:
            raise FileNotFoundError(
                f"{folder} holds {beside[0].name} beside the files of {best[0].name}, which says "
                "nothing of it; give the one that is meant."
            )
    return best[0]
