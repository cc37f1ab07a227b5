"""Plain-DETR: a detector on one map of a frozen backbone.

Lin et al., arXiv:2308.01904; on DINOv3 with windows in arXiv:2508.10104, D.9. Boxes are middles
and sides in pixels of the image, refined layer after layer.
"""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.models.layers import wide
from dinojax.tasks import boxes, sines
from dinojax.tasks.deformable import level_embedding
from dinojax.tasks.detection_losses import Found
from dinojax.tasks.layers import (
    Attention,
    Conv,
    GroupNorm,
    LayerNorm,
    Linear,
    Mlp,
    feed_forward,
)
from dinojax.tasks.mask2former import Embedding
from dinojax.tasks.proposals import Enlarge, propose

_RARE = 0.01  # probability of every class at the start, Lin et al., arXiv:1708.02002, 4.1


@dataclasses.dataclass(frozen=True)
class DetrSpec:
    """Static choices; as in the released detector."""

    classes: int = 91
    width: int = 768
    heads: int = 8
    encoder_ffn: int = 2048
    encoder_depth: int = 6
    ffn: int = 2048
    depth: int = 6
    one_to_one: int = 1500  # queries
    one_to_many: int = 1500  # more queries in training, many for each object
    bias_hidden: int = 512  # channels of the networks of the position bias
    patch_size: int = 16
    smallest: float = 50.0  # pixels of a side of a proposal on the finest level


class Detections(NamedTuple):
    """What a detector says of B images; `layers` are its decoder's, the last one last."""

    layers: tuple[Found, ...]
    many: tuple[Found, ...]  # of the queries of which many answer for an object; () without these
    proposals: Found


class EncoderLayer(nn.Module):
    spec: DetrSpec

    @nn.compact
    def __call__(self, x_BPD, positions_BPD, hidden_BP) -> jax.Array:
        query = x_BPD + positions_BPD
        attention = Attention(self.spec.heads, name="self_attn")
        x_BPD = x_BPD + attention(query, query, x_BPD, hidden_BP[:, None, None])
        x_BPD = LayerNorm(name="norm1")(x_BPD)
        return LayerNorm(name="norm2")(x_BPD + feed_forward(x_BPD, self.spec.encoder_ffn))


class Encoder(nn.Module):
    spec: DetrSpec

    @nn.compact
    def __call__(self, x_BPD, positions_BPD, hidden_BP) -> jax.Array:
        for number in range(self.spec.encoder_depth):
            x_BPD = EncoderLayer(self.spec, name=f"layers_{number}")(
                x_BPD, positions_BPD, hidden_BP
            )
        return x_BPD


class BoxAttention(nn.Module):
    """Queries look at a map; how far a place is from their box's edges is a bias."""

    spec: DetrSpec

    @nn.compact
    def __call__(self, query_BQD, boxes_BQ4, key, value, hidden_Bhw) -> jax.Array:
        """key, value: [B, P, D]. hidden: true beyond the image, where a query hardly looks."""
        spec, width = self.spec, query_BQD.shape[-1]
        q, k, v = (
            Linear(width, name=name)(x).reshape(*x.shape[:2], spec.heads, -1)
            for name, x in (("q", query_BQD), ("k", key), ("v", value))
        )
        scores = jnp.einsum("bqae,bkae->baqk", q * (width // spec.heads) ** -0.5, k)
        edges = boxes.corners(boxes_BQ4)
        sizes = hidden_Bhw.shape[1:]
        down = self._bias("cpb_mlp2", edges[..., 1::2], sizes[0])
        right = self._bias("cpb_mlp1", edges[..., 0::2], sizes[1])
        bias = down[:, :, :, :, None] + right[:, :, :, None]
        scores += bias.reshape(scores.shape)
        hidden = hidden_Bhw.reshape(len(hidden_Bhw), 1, 1, -1)
        scores += jnp.where(hidden, -100.0, 0.0).astype(scores.dtype)
        y = jnp.einsum("baqk,bkae->bqae", jax.nn.softmax(scores), v)
        return Linear(width, name="proj")(y.reshape(*y.shape[:2], width))

    def _bias(self, name: str, edges_BQ2: jax.Array, size: int) -> jax.Array:
        """[B, A, Q, size] of the distances in pixels of both edges from each row or column."""
        places = (jnp.arange(size, dtype=edges_BQ2.dtype) + 0.5) * self.spec.patch_size
        x = edges_BQ2[:, :, None] - places[None, None, :, None]
        x = jax.nn.relu(Linear(self.spec.bias_hidden, name=f"{name}_0")(x))
        return jnp.moveaxis(Linear(self.spec.heads, bias=False, name=f"{name}_2")(x), -1, 1)


class DecoderLayer(nn.Module):
    spec: DetrSpec

    @nn.compact
    def __call__(self, x_BQD, positions_BQD, boxes_BQ4, apart_QQ, memory) -> jax.Array:
        """apart: true where two queries do not see each other. memory: key, value, hidden."""
        y = LayerNorm(name="norm2")(x_BQD)
        query = y + positions_BQD
        x_BQD = x_BQD + Attention(self.spec.heads, name="self_attn")(query, query, y, apart_QQ)
        y = LayerNorm(name="norm1")(x_BQD) + positions_BQD
        x_BQD = x_BQD + BoxAttention(self.spec, name="cross_attn")(y, boxes_BQ4, *memory)
        return x_BQD + feed_forward(LayerNorm(name="norm3")(x_BQD), self.spec.ffn)


class Decoder(nn.Module):
    spec: DetrSpec

    def setup(self):
        self.layers = [DecoderLayer(self.spec) for _ in range(self.spec.depth)]
        self.final_layer_norm = LayerNorm()

    def step(self, number: int, x_BQD: jax.Array, *inputs) -> tuple[jax.Array, jax.Array]:
        """(the queries after a layer, what is read of them)."""
        x_BQD = self.layers[number](x_BQD, *inputs)
        return x_BQD, self.final_layer_norm(x_BQD)


class Transformer(nn.Module):
    spec: DetrSpec

    def setup(self):
        width = self.spec.width
        self.level_embed = level_embedding(self, "level_embed", 1, width)
        self.encoder, self.decoder = Encoder(self.spec), Decoder(self.spec)
        self.enc_output_proj = Enlarge(width)
        self.enc_output, self.enc_output_norm = Linear(width), LayerNorm()
        self.pos_trans, self.pos_trans_norm = Linear(2 * width), LayerNorm()

    def encode(self, x_BhwD, hidden_Bhw) -> tuple[jax.Array, jax.Array]:
        """(memory, its positions) [B, P, D]."""
        width = self.spec.width
        embed = self.level_embed.astype(x_BhwD.dtype)[None, None]
        positions = sines.of_padded(hidden_Bhw, width, x_BhwD.dtype) + embed
        positions = positions.reshape(len(x_BhwD), -1, width)
        hidden_BP = hidden_Bhw.reshape(len(x_BhwD), -1)
        return self.encoder(x_BhwD.reshape(positions.shape), positions, hidden_BP), positions

    def propose(self, memory_BhwD, hidden_Bhw):
        """(features [B, N, D], boxes [B, N, 4], sizes [B, 2]) of proposals of all levels."""
        levels = self.enc_output_proj(memory_BhwD)
        found = propose(levels, hidden_Bhw, self.spec.patch_size, self.spec.smallest)
        memory, places, sizes = found
        return self.enc_output_norm(self.enc_output(memory)), places, sizes

    def position(self, boxes_BQ4) -> jax.Array:
        """What queries know of the box they begin with, [B, Q, D]."""
        width = self.spec.width
        x = self.pos_trans(sines.of_boxes(boxes_BQ4, width // 2))
        return self.pos_trans_norm(x)[..., :width]


class Detector(nn.Module):
    """A map [B, h, w, C] of a backbone, and where it lies beyond the image -> Detections."""

    spec: DetrSpec

    def setup(self):
        spec = self.spec
        self.input_proj_0_0, self.input_proj_0_1 = Conv(spec.width), GroupNorm()
        self.transformer = Transformer(spec)
        # One more than layers: the last is that of proposals.
        rare = nn.initializers.constant(-math.log(1 / _RARE - 1))
        widths, zeros = (spec.width, spec.width, 4), nn.initializers.zeros
        every = range(spec.depth + 1)
        self.class_embed = [Linear(spec.classes, bias_init=rare) for _ in every]
        self.bbox_embed = [Mlp(widths, last_init=zeros) for _ in every]
        self.query_embed = Embedding((spec.one_to_one + spec.one_to_many, spec.width))

    def __call__(self, map_BhwC: jax.Array, hidden_Bhw: jax.Array, *, train: bool) -> Detections:
        """train: with the queries of which many answer for one object."""
        spec = self.spec
        x = self.input_proj_0_1(self.input_proj_0_0(map_BhwC))
        memory_BPD, positions_BPD = self.transformer.encode(x, hidden_Bhw)
        features, places, sizes_B2 = self.transformer.propose(
            memory_BPD.reshape(x.shape), hidden_Bhw
        )
        proposals = self._found(spec.depth, features, places, sizes_B2)
        num = spec.one_to_one + (spec.one_to_many if train else 0)
        _, chosen_BQ = jax.lax.top_k(proposals.classes_BQK[..., 0], num)
        chosen = jnp.take_along_axis(proposals.boxes_BQ4, chosen_BQ[..., None], axis=1)
        before = jax.lax.stop_gradient(chosen)
        query = wide(self.query_embed())[:num].astype(x.dtype)
        query = jnp.repeat(query[None], len(x), axis=0)
        memory = memory_BPD + positions_BPD, memory_BPD, hidden_Bhw
        position, apart = self.transformer.position(before), _apart(num, spec.one_to_one)
        layers = []
        for number in range(spec.depth):
            seen = jax.lax.stop_gradient(before), apart, memory
            query, told = self.transformer.decoder.step(number, query, position, *seen)
            layers.append(self._found(number, told, before, sizes_B2))
            before = layers[-1].boxes_BQ4
        one, many = (
            tuple(jax.tree.map(lambda x, part=part: x[:, part], found) for found in layers)
            for part in (slice(spec.one_to_one), slice(spec.one_to_one, None))
        )
        return Detections(one, many if train else (), proposals)

    def _found(self, number: int, told_BQD, before_BQ4, sizes_B2) -> Found:
        """Classes, and the boxes after a change that the layer makes."""
        deltas = self.bbox_embed[number](told_BQD)
        after = boxes.moved(before_BQ4, deltas, sizes_B2[:, None])
        return Found(self.class_embed[number](told_BQD), after, before_BQ4, deltas)


def _apart(num: int, one_to_one: int) -> jax.Array:
    """True [1, 1, Q, Q] where a query is of the other group."""
    many = jnp.arange(num) >= one_to_one
    return (many[:, None] != many[None])[None, None]


def detected(found: Found, sizes_B2: jax.Array, originals_B2: jax.Array, *, count: int):
    """(scores [B, N], classes [B, N], boxes as corners [B, N, 4]) of the `count` surest pairs.

    sizes: (height, width) of the images that the detector saw, originals: as they were, in whose
    pixels boxes are told.
    """
    scores_BQK = jax.nn.sigmoid(wide(found.classes_BQK))
    num_classes = scores_BQK.shape[-1]
    scores, index = jax.lax.top_k(scores_BQK.reshape(len(scores_BQK), -1), count)
    chosen = jnp.take_along_axis(found.boxes_BQ4, (index // num_classes)[..., None], axis=1)
    size, whole = (
        jnp.tile(given_B2[:, None, ::-1].astype(chosen.dtype), (1, 1, 2))
        for given_B2 in (sizes_B2, originals_B2)
    )
    edges = jnp.clip(boxes.corners(chosen) * (whole / size), 0, whole)
    return scores, index % num_classes, edges


# The released detector: COCO's 91 ids, features of four blocks of the 7B model in 3 x 3 windows.
DETECTOR_7B = DetrSpec()
