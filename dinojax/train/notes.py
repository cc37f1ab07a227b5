"""What a run says before it begins of its metadata and of what its recipe computed."""

import json
import logging
from pathlib import Path

from dinojax.config import Config, ConfigError
from dinojax.config.computed import reasons
from dinojax.data.metadata import Column
from dinojax.distributed import process_group
from dinojax.files.drafts import write_text

log = logging.getLogger(__name__)


def keep_metadata(directory: Path, columns: dict[str, Column], *, began: bool) -> None:
    """Write down what the columns hold; raises ConfigError where a run goes on with others.

    began: the stage has a checkpoint.
    """
    if not columns:
        return
    found = {
        name: {"classes": list(column.classes)} if column.classes else {"range": column.range}
        for name, column in columns.items()
    }
    now, path = json.loads(json.dumps(found)), directory / "metadata.json"
    if began and path.exists():
        before = json.loads(path.read_text())
        if changed := [name for name in now if now[name] != before.get(name)]:
            raise ConfigError(
                f"the column {changed[0]!r} of metadata has other classes or another range than "
                f"when this run began ({path}); restore the data, or start another --run."
            )
    if process_group.current().is_main:
        write_text(path, json.dumps(now, indent=1) + "\n")
    for column in columns.values():
        log.info("metadata: %s", column.told())


def tell_computed(config: Config) -> None:
    """What the recipe worked out itself, each value with its reason."""
    length = (config.epochs, config.auto.images, config.auto.memory)
    values, found = config.values(), reasons(config.sources)
    if found:
        log.info("%s computes %d values; --set KEY=VALUE sets others:", config.recipe, len(found))
    for key, reason in found.items():
        log.info("  %s = %r: %s", key, values[key], reason)
    if any(value is not None for value in length):
        log.info("  of epochs=%s, auto.images=%s, auto.memory=%s", *length)
