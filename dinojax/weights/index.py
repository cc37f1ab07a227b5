"""The index of weights in several files: which tensor lies in which file of its folder."""

from pathlib import Path

from dinojax.weights import jsons

SUFFIX = ".index.json"


def read(path: Path) -> dict[Path, list[str]]:
    """Shards of an index and the names that it says lie in each.

    Raises ValueError for an index that is none, and for a file outside its folder, be it by its
    name or by a link; FileNotFoundError for one that is missing.
    """
    table = jsons.read(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path} has no weight_map, a table from tensors to files.")
    shards: dict[Path, list[str]] = {}
    for tensor, file in table.items():
        if not isinstance(file, str) or not file or "\0" in file or file.endswith(SUFFIX):
            raise ValueError(f"{path} says that {tensor} lies in {file!r}, which names no file.")
        shards.setdefault(path.parent / file, []).append(tensor)
    for shard, names in shards.items():
        _check_inside(path, shard, names[0])
    return shards


def _check_inside(index: Path, shard: Path, tensor: str) -> None:
    folder = index.parent.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":  # the cache of Hugging Face: links to its own blobs
        allowed.append(folder.parent.parent / "blobs")
    if index.parent.joinpath(shard.name) != shard:
        raise ValueError(
            f"{index} says that {tensor} lies in {str(shard)!r}, which is no file of its folder."
        )
    if not shard.exists():
        raise FileNotFoundError(f"{shard} does not exist, but {index} says that {tensor} is in it.")
    if not any(shard.resolve().is_relative_to(place) for place in allowed):
        raise ValueError(
            f"{shard} is a link to {shard.resolve()}, outside the folder of {index.name}; put the "
            "file itself there."
        )


def check(index: Path, held: dict[Path, list[str]], told: dict[Path, list[str]]) -> None:
    """Raise ValueError unless each file holds the tensors that the index says, and no others."""
    home = {name: shard for shard, names in told.items() for name in names}
    for shard, names in held.items():
        for name in names:
            if name not in home:
                raise ValueError(f"{shard} holds {name}, of which {index} says nothing.")
            if home[name] != shard:
                raise ValueError(
                    f"{name} lies in {shard.name} and, as {index} says, in {home[name].name}: "
                    "one of the two is not meant."
                )
        if lacking := sorted(set(told[shard]) - set(names)):
            raise ValueError(f"{shard} does not hold {lacking[0]}, as {index} says.")
