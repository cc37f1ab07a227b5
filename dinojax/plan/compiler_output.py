"""What a compiler says of a program: memory and collectives, kept in files if asked."""

import hashlib
import importlib.metadata
import json
import re
import time
from pathlib import Path

import jax

from dinojax.files.drafts import write_text
from dinojax.ops.flops import compiled_memory
from dinojax.plan.hlo import collectives
from dinojax.plan.targets import OPTIONS, Target
from dinojax.sharding import compiler_options, mesh

READERS = ("ops/flops.py", "plan/hlo.py", "plan/compiler_output.py")


def kept(lowered, machine: Target, layout: mesh.Layout, folder: str | None) -> dict:
    """What `_compiled` finds, or has found of the very same program: a file per program.

    The same are the target, its devices' places, the compiler with its options, and the code that
    reads what it made (READERS). So a table of many hours goes on where it was killed.
    """
    if folder is None:
        return _compiled(lowered, machine)
    devices = list(layout.mesh.devices.flat)
    told = [machine.name, [device.id for device in devices], versions(), lowered.as_text()]
    told += [compiler_options.options(devices[0]), OPTIONS[machine.chip.platform]]
    told += [(Path(__file__).parent.parent / reader).read_text() for reader in READERS]
    name = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
    path = Path(folder) / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    found = _compiled(lowered, machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found))
    return found


def _compiled(lowered, machine: Target) -> dict:
    """Memory and collectives of a program and processor seconds of the compiler, or by how much it
    is too large."""
    start = time.process_time()
    try:
        compiled = lowered.compile(compiler_options=OPTIONS[machine.chip.platform])
    except jax.errors.JaxRuntimeError as error:
        return {"out_of_memory": _needed(error)}
    memory = compiled_memory(compiled)
    if machine.chip.platform == "cpu":  # its compiler leaves temporary arrays out
        memory["peak"] = memory["argument"] + memory["temp"]
    text = compiled.as_text() or ""
    seconds = round(time.process_time() - start, 1)
    sent = [vars(one) for one in collectives(text)]
    return {"memory": memory, "collectives": sent, "processor_seconds": seconds}


def _needed(error: Exception) -> str:
    """What the compiler says about memory; any other error goes on."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message and "exceeds available" not in message:
        raise error
    sizes = re.search(r"\(?([\d.]+[KMG])\)? exceeds available HBM \(([\d.]+[KMG])\)", message)
    return "{} exceeds {}".format(*sizes.groups()) if sizes else message.splitlines()[0][:300]


def versions() -> dict[str, str]:
    found = {"jax": jax.__version__}
    for name in ("libtpu", "jax-cuda12-pjrt"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
