"""What a plan knows of a text stage's step before the compiler (compile.py)."""

from dinojax.config import Config
from dinojax.losses.pair_blocks import num_blocks
from dinojax.sharding.mesh import Layout


def blocks(config: Config, layout: Layout, outputs: int) -> dict[str, dict]:
    """Of the loss of pairs: a device's images, texts of a block, blocks, bytes of its logits.

    outputs: channels of an embedding. Micro-batches change nothing: the loss is of the whole batch.
    """
    rows = config.batch_size // layout.num_shards
    parts = num_blocks(rows, outputs, layout.num_shards)
    texts = rows // parts * layout.num_shards
    size = {"logits": 4 * rows * texts, "sinkhorn": 0}
    return {"pairs": {"rows": rows, "texts": texts, "blocks": parts, **size}}


def crops(found: dict) -> dict:
    """Sizes of crops, of which a text stage has one."""
    return {**found, "local": None, "gram": None, "reduction": 1}
