"""What a stage checks and tells before its first step."""

import logging
from collections.abc import Collection

import jax

from dinojax.config import ConfigError, distill_rules, text_rules
from dinojax.data.example import Source
from dinojax.data.ranges import batch_notes, range_notes
from dinojax.eval import suite
from dinojax.runs.directory import ACCEPT_DATA
from dinojax.train import initialize, notes
from dinojax.train.stage import Run

log = logging.getLogger(__name__)


def check_teacher(meta: dict, fingerprint: str) -> None:
    """Raise ConfigError if a checkpoint was taught by other weights."""
    if meta.get("teacher") != fingerprint:
        raise ConfigError(
            "distill.teacher is not the one that this run began with: SHA-256 "
            f"{str(meta.get('teacher'))[:16]} then, {fingerprint[:16]} now. A run whose teacher "
            "still trains changes; name a step of it (RUN/checkpoints/STAGE/STEP), or start "
            "another --run."
        )


def check_data(meta: dict, source: Source, accept: Collection[str] = ()) -> None:
    """Raise ConfigError if a checkpoint's images are not those of the source."""
    if meta["fingerprint"] == source.fingerprint:
        return
    counts = f"{meta['num_images']:,} images then, {len(source):,} now"
    if ACCEPT_DATA not in accept:
        raise ConfigError(
            f"The images changed since the checkpoint was saved ({counts}), so their order "
            "would differ. Restore them, start another --run, or pass --accept-new-data."
        )
    log.warning("continuing on changed images (%s): from here on their order differs", counts)


def check_start(run: Run) -> None:
    """Refuse what cannot start, and settings that nothing has read."""
    began = run.checkpoints.latest() is not None
    initialize.check(run.config, run.directory, began=began)
    # A recipe may hold settings of evaluations that this run does not make.
    unmade = [f"{name}." for name in suite.sections() if name not in run.evaluations]
    is_watched = any(suite.SUITE[name].is_watched for name in run.evaluations)
    if not is_watched and run.config.knn.alarm is not None:
        raise ConfigError(
            f"knn.alarm={run.config.knn.alarm} has nothing to watch, for want of labels; set "
            "knn.query (and knn.bank), or knn.mosaics (128, for example), which needs no labels."
        )
    values = run.config.values()
    besides = (*unmade, *distill_rules.in_vain(values), *text_rules.in_vain(values))
    notes.tell_computed(run.config)
    notes.keep_metadata(run.directory, run.metadata, began=began)
    run.config.check_all_read(besides=besides)
    layout = run.program.layout
    log.info(
        "%s: %d images, %d devices (%s), strategy %s",
        run.directory,
        len(run.source),
        layout.mesh.size,
        jax.default_backend(),
        layout.strategy,
    )


def tell_of(source: Source, batch_size: int, *others: Source) -> None:
    """Say what is left out of the images, and what is lost of their values.

    others: of evaluations.
    """
    notes = [*source.notes, *range_notes(source), *batch_notes(source, batch_size)]
    for other in others:
        notes += [note for note in [*other.notes, *range_notes(other)] if note not in notes]
    for note in notes:
        log.warning("images: %s", note)
