"""From a recipe, or from a run that resolved one, to the checked configs of its stages."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinojax.config import computed, rules, saved, stage_rules
from dinojax.config import recipe as recipe_files
from dinojax.config.config import Config, check
from dinojax.config.overrides import parse, typed
from dinojax.config.recipe import ConfigError, flat, unknown
from dinojax.configs import base
from dinojax.eval import suite
from dinojax.files.local import refuse_url


class _Draft(NamedTuple):
    """A stage before overrides and checks."""

    values: dict[str, Any]  # of every declared key
    sources: dict[str, str]  # key -> base, recipe or --set
    recipe: str


def load(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
    stage: str | None = None,
    measure: computed.Measure = computed.assumed,
) -> Config:
    """The checked config of one stage of a recipe, by default its first. See `load_stages`."""
    return pick(load_stages(recipe, overrides, smoke=smoke, measure=measure), stage)


def load_students(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
    measure: computed.Measure = computed.assumed,
) -> dict[str, list[Config]]:
    """Student -> the checked configs of its stages, of a recipe with STUDENTS or of a run of it.

    overrides: as for `load_stages`, or `STUDENT:key=value` for one student. Raises as that does,
    and ConfigError for a recipe without students.
    """
    names = student_names(recipe)
    if not names:
        raise ConfigError(f"{recipe} has no STUDENTS; `dinojax train` is the command for it.")
    folder, found = saved.folder_of(recipe), {}
    for student in names:
        others = [f"{name}:" for name in names if name != student]
        kept = [o for o in overrides if not o.strip().startswith(tuple(others))]
        own = [o.strip().removeprefix(f"{student}:") for o in kept if o.startswith(f"{student}:")]
        given = {o.partition("=")[0].strip() for o in own}
        rest = [o for o in kept if not o.startswith(f"{student}:")]
        plain = [o for o in rest if o.partition("=")[0].strip() not in given]
        if folder is None:
            found[student] = load_stages(
                recipe, plain + own, smoke=smoke, student=student, measure=measure
            )
        else:
            found[student] = load_stages(folder / student, plain + own, smoke=smoke)
    return found


def load_stages(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
    student: str | None = None,
    measure: computed.Measure = computed.assumed,
) -> list[Config]:
    """The checked configs of all stages of a recipe.

    recipe: a file, the name of a packaged one such as `tiny`, or a run directory, whose resolved
    config is taken (a packaged name goes first; ./tiny is a folder). overrides: `key=value` for
    every stage or `STAGE:key=value` for one, applied last. smoke: shrink each by the recipe's own
    `smoke`. student: of a recipe that has STUDENTS. measure: what recipes that compute their values
    are told (computed.py). Raises ConfigError for unknown or duplicate keys, wrong types, and all
    broken rules at once.
    """
    if student is None and (many := student_names(recipe)):
        raise ConfigError(
            f"{recipe} is for several students ({', '.join(many)}): use `dinojax distill` or "
            "`dinojax plan`, with --student NAME for one of them."
        )
    folder, function = saved.folder_of(recipe), None
    if folder is None:
        function = None if smoke else recipe_files.computed(recipe_files.find(recipe))
        drafts = _of_recipe(recipe_files.find(recipe), str(recipe), smoke=smoke, student=student)
    elif smoke:
        raise ConfigError(f"{recipe} is a run, which has no smoke; give its recipe.")
    else:
        drafts = _of_run(folder)
    default, names = flat(base.get_config()), [draft.values["stage"] for draft in drafts]
    found: list[Config] = []
    facts: computed.Facts | None = None
    before = 0
    for values, sources, origin in drafts:
        own = _of_stage(overrides, values["stage"], names)
        given = parse(own, default)
        for key, value in given.items():
            values[key], sources[key] = value, "--set"
        # A run's own epochs have long become its number of steps.
        has_epochs = values["epochs"] is not None and (folder is None or "epochs" in given)
        if function is not None or has_epochs:
            facts = measure(values) if facts is None else facts
            place = f"{recipe}: "
            for note in computed.fill(
                function, values, sources, facts=facts, default=default, place=place
            ):
                logging.getLogger(__name__).warning("%s: %s", recipe, note)
        if before and sources["start.steps_before"] == "base":
            values["start.steps_before"], sources["start.steps_before"] = before, "recipe"
        before = values["start.steps_before"] + values["num_steps"]
        found.append(Config(values, sources, origin))
        check(found[-1])
    if broken := stage_rules.problems([config.values() for config in found]):
        raise ConfigError(f"{recipe}: " + "\n  ".join(broken))
    return found


def _of_recipe(path: Path, name: str, *, smoke: bool, student: str | None) -> list[_Draft]:
    """The stages that a recipe file declares; name: what it was called."""
    default, drafts = flat(base.get_config()), []
    for stage in recipe_files.stages(path) or (None,):
        values, sources = dict(default), dict.fromkeys(default, "base")
        for key, value in recipe_files.run(path, smoke=smoke, stage=stage, student=student).items():
            values[key] = typed(key, value, default, place=f"{path}: ")
            if values[key] != default[key]:
                sources[key] = "recipe"
        drafts.append(_Draft(values, sources, name))
    return drafts


def _of_run(folder: Path) -> list[_Draft]:
    """The stages of a run directory, as it resolved them."""
    names, before, drafts = saved.read(folder / saved.FILE).stages, 0, []
    for name in names:
        draft = _draft(
            folder / "stages" / f"{name}.json" if len(names) > 1 else folder / saved.FILE
        )
        if draft.values["start.steps_before"] == before:  # counted, and to be counted again
            draft.values["start.steps_before"] = 0
            draft.sources["start.steps_before"] = "base"
        before += draft.values["num_steps"]
        drafts.append(draft)
    return drafts


def _draft(path: Path) -> _Draft:
    """What a config.json, or the file of a stage, says of every declared key."""
    found, default = saved.read(path), flat(base.get_config())
    if found.strange:
        raise ConfigError(f"{path}: {unknown(min(found.strange), default)}")
    log, lacking = logging.getLogger(__name__), {*found.lacking}
    new = [s for s, keys in suite.defaults().items() if {f"{s}.{key}" for key in keys} <= lacking]
    if new:  # evaluations, which are off unless asked for
        log.info("%s lacks the sections %s, declared since", path, ", ".join(new))
    for key in (key for key in found.lacking if key.split(".")[0] not in new):
        log.warning("%s lacks %s, declared since; using %r", path, key, default[key])
    return _Draft(dict(found.values), dict(found.sources), found.recipe)


def of_run(run: str | Path) -> Path:
    """What to load of a run directory to go on with it: its path, which no recipe's name hides.

    Raises ConfigError if there is no run.
    """
    refuse_url(run, "--run")
    folder = Path(run).absolute()
    if saved.folder_of(folder) is None:
        raise ConfigError(
            f"{run} holds no run to continue (no {saved.FILE}); give the --config to begin with."
        )
    return folder


def student_names(recipe: str | Path) -> tuple[str, ...]:
    """Of a recipe with STUDENTS, or a run of it; empty for any other."""
    folder = saved.folder_of(recipe)
    if folder is None:
        return recipe_files.students(recipe_files.find(recipe))
    return saved.family(folder)


def stage_names(recipe: str | Path) -> tuple[str, ...]:
    """Of a recipe with STAGES, or of a run, or of a run's first student."""
    folder = saved.folder_of(recipe)
    if folder is None:
        return recipe_files.stages(recipe_files.find(recipe))
    return tuple(saved_stages(folder.joinpath(*saved.family(folder)[:1])))


def of_values(values: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """The values in the types of configs/keys/, if a recipe of one stage may set them.

    recipe: what messages call it. Raises ConfigError as `load_stages`.
    """
    default = flat(base.get_config())
    given = {key: typed(key, v, default, place=f"{recipe}: ") for key, v in values.items()}
    config = Config(default | given, dict.fromkeys(default, "base"), recipe)
    check(config)
    if broken := stage_rules.problems([config.values()]):
        raise ConfigError(f"{recipe}: " + "\n  ".join(broken))
    return given


def pick(found: Sequence[Config], stage: str | None) -> Config:
    """The config of the stage of that name; of the first for None."""
    names = [config.values()["stage"] for config in found]  # not a read
    if stage is not None and stage not in names:
        only = "its only stage is" if len(names) == 1 else "its stages are"
        raise ConfigError(f"{found[0].recipe} has no stage {stage}; {only} {', '.join(names)}")
    return found[0 if stage is None else names.index(stage)]


def pick_students(
    found: Mapping[str, Sequence[Config]], names: Collection[str] | None
) -> dict[str, Sequence[Config]]:
    """Of `load_students` those of these names, as the recipe orders them; all for none."""
    if unknown := [name for name in names or () if name not in found]:
        recipe = next(iter(found.values()))[0].recipe
        raise ConfigError(f"no student {unknown[0]} in {recipe}: it has {', '.join(found)}")
    return {name: found[name] for name in found if not names or name in names}


def _of_stage(overrides: Sequence[str], stage: str, names: Sequence[str]) -> list[str]:
    """The overrides that a stage gets; `STAGE:key=value` goes before `key=value`."""
    plain, own = [], []
    for override in overrides:
        key, equals, text = override.partition("=")
        wanted, colon, inner = key.partition(":")
        if not (colon and equals):
            plain.append(override)
        elif wanted.strip() not in names:
            raise ConfigError(f"--set {override}: no stage {wanted}; stages: {', '.join(names)}")
        elif wanted.strip() == stage:
            own.append(f"{inner}={text}")
    given = {override.partition("=")[0].strip() for override in own}
    return [o for o in plain if o.partition("=")[0].strip() not in given] + own


def saved_stages(run_dir: str | Path) -> list[str]:
    """Names of the stages of a run directory, in their order."""
    return saved.read(Path(run_dir) / saved.FILE).stages


def read(path: str | Path, overrides: Sequence[str] = (), *, stage: str | None = None) -> Config:
    """The config of a saved config.json, or of the run directory that holds one.

    overrides: `key=value` strings. stage: of a run directory, None = the one it is at. A key
    declared after the run was saved takes its default, with a warning; a key that is no longer
    declared is an error.
    """
    path = Path(path)
    directory, path = path, path / saved.FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"no {path}: not a run directory of `dinojax train`")
    found = saved.read(path)
    if stage is not None and stage != found.values["stage"]:
        if stage not in found.stages:
            raise ConfigError(f"{directory} has no stage {stage}; it has {', '.join(found.stages)}")
        path = directory / "stages" / f"{stage}.json"
    values, sources, recipe = _draft(path)
    for key, value in parse(overrides, flat(base.get_config())).items():
        values[key], sources[key] = value, "--set"
    if broken := rules.of_single_keys(values):
        raise ConfigError(f"{path}: " + "\n  ".join(broken))
    return Config(values, sources, recipe)
