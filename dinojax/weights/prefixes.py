"""What stands before the names of a backbone: wrappers, which are taken off, and prefixes.

A file may hold several networks (student and teacher, a backbone in a larger model); which of
them is meant is asked, with the prefixes to choose of.
"""

import re

from dinojax.weights.tensors import Tensors

# Parts of a name that PyTorch's wrappers add anywhere in it.
WRAPPERS = {
    "module",  # DataParallel, DistributedDataParallel
    "_orig_mod",  # torch.compile
    "_checkpoint_wrapped_module",  # activation checkpointing
    "_fsdp_wrapped_module",
    "_forward_module",  # DeepSpeed, through Lightning
}
# Parts of names that adapters add (LoRA, IA3, LoHa, LoKr, OFT, VeRA, and peft's own wrappers).
ADAPTERS = re.compile(
    r"base_layer|original_module|modules_to_save"
    r"|(lora|ia3|hada|lokr|oft|boft|vera|randlora|loha|fourierft)_\w+"
)
# Names of the first kernel, of which each backbone has one, in all formats.
FIRST = re.compile(
    r"(?P<prefix>(.*\.)?)("
    r"patch_embed\.proj\.weight|downsample_layers\.0\.0\.weight|stem\.0\.weight"
    r"|embeddings\.patch_embeddings\.(projection\.)?weight"
    r"|(?<!model\.)stages\.0\.downsample_layers\.0\.weight"
    r"|model\.stages\.0\.downsample_layers\.0\.weight)"
)


def bare(name: str) -> str:
    """A name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def under(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with a prefix, which is taken off."""
    prefix = bare(prefix)
    found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if found and all(name.startswith(".") for name in found):  # the dot was left out
        return {name[1:]: tensor for name, tensor in found.items()}
    return found


def candidates(tensors: Tensors) -> list[str]:
    """The prefixes under which a backbone begins, without the empty one."""
    found = [FIRST.fullmatch(name) for name in tensors]
    return sorted({match["prefix"] for match in found if match and match["prefix"]})


def check_plain(tensors: Tensors, source: str) -> None:
    """Raise ValueError for weights that are not those of the network: adapters, flattened parts."""
    if flat := [name for name in tensors if name.endswith("_flat_param")]:
        raise ValueError(
            f"{source} holds {flat[0]}, a part of FSDP's flattened parameters: save them with "
            "StateDictType.FULL_STATE_DICT."
        )
    adapted = [name for name in tensors if any(ADAPTERS.fullmatch(x) for x in name.split("."))]
    if adapted:
        raise ValueError(
            f"{source} holds adapters that are not merged, such as {adapted[0]}; how much they "
            "count (lora_alpha) is not in it. Merge them where they were trained, with "
            "model.merge_and_unload() of peft, and save the state_dict() of what that returns."
        )


def is_backbone(tensors: Tensors) -> bool:
    """Whether a backbone begins without a prefix."""
    return any((match := FIRST.fullmatch(name)) and not match["prefix"] for name in tensors)


def proposal(found: list[str]) -> str:
    """What to do with a file that holds backbones under these prefixes."""
    if len(found) == 1:
        return (
            f"A backbone begins under the prefix {found[0]!r}: give prefix={found[0]!r} "
            f"(--prefix {found[0]}) if it is the one you mean."
        )
    told = ", ".join(map(repr, found))
    return f"Backbones begin under the prefixes {told}: give the one you mean with --prefix."
