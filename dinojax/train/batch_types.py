"""What goes in and out of a step: inputs, the teacher's outputs, targets."""

import jax
from flax import struct

from dinojax.augment.views import Views
from dinojax.losses.blockwise import Columns, Rows


@struct.dataclass
class Inputs:
    """What one step, or one micro-batch of it, works on. Leading axes: images B or groups U."""

    views: Views
    drop_keys_U: jax.Array
    rope_keys_U: jax.Array
    guides: dict = struct.field(default_factory=dict)  # name -> {"values" [B], "weights" [B]}


@struct.dataclass
class TeacherOutputs:
    """What the teacher makes of the global crops, before targets are assigned."""

    dino_BGZ: jax.Array  # bottleneck of cls
    ibot_UMZ: jax.Array  # bottleneck of the patches the student does not see
    gram_BGPD: jax.Array | None  # patches of the gram network, at the student's resolution
    cls_BGD: jax.Array
    health: dict  # of each crop, [B, G]


@struct.dataclass
class TeacherFeatures:
    """What a student needs of a frozen teacher's forward pass, which was another program."""

    dino_BGZ: jax.Array
    ibot_UMZ: jax.Array
    health: dict  # scalars
    heads: dict  # the parameters of the prototypes; empty for features
    gram_BGPD: None = None


@struct.dataclass
class Targets:
    """Rows that sum to 1, as factors, and the patches to be similar to; no gradient."""

    dino: Rows | jax.Array  # [B, G], of features [B, G, D]
    ibot: Rows | jax.Array  # [U, M], of features [U, M, D]
    gram_BGPD: jax.Array | None
    columns: dict[str, Columns] | None  # of dino and ibot
    # What every micro-batch needs of the whole batch; all but this and columns leads with images
    # or groups: "directions" of SIGReg, "prototypes" of guides, and "statistics" with "num_parts"
    # where there are several micro-batches.
    whole: dict = struct.field(default_factory=dict)
