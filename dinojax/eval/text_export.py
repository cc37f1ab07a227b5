"""A text stage's networks in the released names of dino.txt: `dinojax export --format dinotxt`."""

from pathlib import Path

import numpy as np

from dinojax import config as configs
from dinojax.eval.text_model import VOCABULARY, load, params_of_run, told
from dinojax.files.drafts import draft_folder, write_json
from dinojax.weights import dinotxt as released
from dinojax.weights import specs
from dinojax.weights.tensors import Tensor, held, open_tensors, write_safetensors
from dinojax.weights.writers import reference_buffers

FILE = "dinotxt.safetensors"


def export(
    run: str | Path, out: str | Path, *, stage: str | None = None, step: int | None = None
) -> dict[str, int]:
    """Write the networks of a run, backbone included, and its vocabulary, to a new folder.

    What was written is read again and compared, tensor by tensor. Returns {"step", "tensors",
    "elements"}. Raises ConfigError for a run without a text stage, ValueError for a folder that is
    not empty and where reading back gives other values; then there is no folder.
    """
    directory, out = Path(run), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; give another --out.")
    config = configs.read(directory, stage=stage)
    params, number = params_of_run(directory, config, step)
    tensors: dict[str, Tensor] = {n: held(x) for n, x in released.from_ours(params).items()}
    model = load(directory, stage=stage, step=number)
    spec = model.networks.backbone.spec
    tensors |= {released.BACKBONE + n: t for n, t in reference_buffers(spec).items()}
    with draft_folder(out) as draft:
        write_safetensors(draft / FILE, tensors, {"format": "pt"})
        model.tokenizer.vocabulary.write(draft / VOCABULARY)
        own = {
            "format": "meta",
            "backbone": specs.to_json(spec),
            "preprocessing": model.preprocessing.to_json(),
            "text": told(model.networks),
        }
        write_json(draft / "config.json", own)
        again = open_tensors(draft / FILE)
        for name, tensor in tensors.items():
            if not np.array_equal(again[name].read(), tensor.read()):
                raise ValueError(f"{out}: {name} reads back with other values.")
    elements = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    return {"step": number, "tensors": len(tensors), "elements": elements}


def export_command(run: str, out: str, *, stage: str | None, step: int | None) -> None:
    """The same, and says what was written."""
    found = export(run, out, stage=stage, step=step)
    print(
        f"{out}: step {found['step']}, {found['tensors']} tensors, {found['elements']:,} elements, "
        "each read back"
    )
