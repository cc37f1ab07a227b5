"""The teacher's half of a distillation step: one forward pass, on devices as it needs them.

The step of a student is another program, which gets bottleneck features of cls and of masked
patches, scalars, and the batch of images; it holds the teacher's prototypes itself. The crops are
made twice, from the same keys, for they are cheaper to make than to move.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout
from dinojax.sharding.view import view_on
from dinojax.train.batch_types import TeacherFeatures
from dinojax.train.step import Forward, abstract_batch
from dinojax.train.teacher import Teacher, prototypes

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TeacherForward:
    """A teacher, its forward pass and its devices, of which a student has all or a part."""

    teacher: Teacher
    forward: Forward
    layout: Layout
    batch_shape: tuple[int, int, int, int]  # B, S, S, C of the global batch
    seed: int
    # Whether images are spread over the student's devices already; else each has the whole batch.
    is_spread: bool = True

    def abstract_inputs(self) -> tuple[Any, ...]:
        """What the forward pass takes, as shapes and shardings."""
        params = self.teacher.abstract(self.layout)
        images, scalar = self.layout.sharding("image"), self.layout.sharding()
        key = jax.eval_shape(lambda: jax.random.key(0))
        return (
            params,
            jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=scalar),
            jax.ShapeDtypeStruct((), jnp.int32, sharding=scalar),
            abstract_batch(self.batch_shape, images),
        )

    def lower(self, place: Any):
        """The forward pass traced, from shapes alone. place: shardings of what comes out."""
        with self._active():
            return jax.jit(self.forward, out_shardings=place).lower(*self.abstract_inputs())

    def shapes(self) -> TeacherFeatures:
        with self._active():
            return jax.eval_shape(self.forward, *self.abstract_inputs())

    @contextlib.contextmanager
    def _active(self):
        with mesh.off(), mesh.use(self.layout):
            yield

    def places(self, images: Any, whole: Any) -> TeacherFeatures:
        """Their shardings: `images` for what leads with images, `whole` for scalars."""
        return jax.tree.map(lambda x: images if x.ndim else whole, self.shapes())

    def student_sharding(self, layout: Layout):
        """Of images and all that leads with them, where a student's step takes it."""
        return layout.sharding("image") if self.is_spread else layout.sharding()

    def abstract_teacher_features(self, layout: Layout) -> TeacherFeatures:
        """What a student's step takes of it, on the student's devices."""
        place = self.places(self.student_sharding(layout), layout.sharding())

        def with_place(x, sharding):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        teacher_features = jax.tree.map(with_place, self.shapes(), place)
        heads = prototypes(self.teacher.abstract(layout))
        return dataclasses.replace(teacher_features, heads=heads)


class SharedTeacher:
    """A teacher whose parameters are on its devices, and its compiled forward passes.

    Of one student or of several.
    """

    def __init__(self, teacher_forwards: Sequence[TeacherForward], place_images: Any):
        """place_images: the sharding of what leads with images when it comes out."""
        first = teacher_forwards[0]
        began = time.monotonic()
        self._teacher, self._layout = first.teacher, first.layout
        self.fingerprint = first.teacher.fingerprint
        self.params, scalar = first.teacher.load(first.layout), first.layout.sharding()
        self._key = jax.jit(jax.random.key, out_shardings=scalar)(np.uint32(first.seed))
        places = [
            teacher_forward.places(place_images, scalar) for teacher_forward in teacher_forwards
        ]
        pairs = zip(teacher_forwards, places, strict=True)
        self._forwards = [
            teacher_forward.lower(place).compile() for teacher_forward, place in pairs
        ]
        self._copies = place_images != first.layout.sharding("image")
        self._hand_out = jax.jit(lambda batch: batch, out_shardings=place_images)
        name, seconds = first.teacher.name, time.monotonic() - began
        log.info(
            "teacher %s, SHA-256 %s, loaded and compiled in %.0f s",
            *(name, self.fingerprint[:16], seconds),
        )

    def __call__(self, which: int, number: int, batch: dict) -> TeacherFeatures:
        """The forward pass of a step, dispatched; batch: on any mesh of the same devices."""
        batch = view_on(batch, self._layout.sharding("image"))
        return self._forwards[which](self.params, self._key, np.int32(number), batch)

    def hand_out(self, batch: dict) -> dict:
        """The batch where outputs go, so that students have its images on their devices."""
        return self._hand_out(batch) if self._copies else batch

    def heads(self, layout: Layout) -> dict:
        """The prototypes on a student's devices."""
        like = prototypes(self._teacher.abstract(layout))
        if set(layout.mesh.devices.flat) == set(self._layout.mesh.devices.flat):
            place = jax.tree.map(lambda leaf: leaf.sharding, like)
            return jax.device_put(prototypes(self.params), place)
        return self._teacher.load_prototypes(layout)


def for_student(
    teacher_features: TeacherFeatures, heads: dict, layout: Layout, *, is_spread: bool
) -> TeacherFeatures:
    """What came out of the forward pass, with its labels on the student's mesh."""
    whole = layout.sharding()
    images = layout.sharding("image") if is_spread else whole
    return TeacherFeatures(
        dino_BGZ=view_on(teacher_features.dino_BGZ, images),
        ibot_UMZ=view_on(teacher_features.ibot_UMZ, images),
        health=view_on(teacher_features.health, whole),
        heads=heads,
    )
