"""Which arguments of commands are paths of this host, where a URL is refused before any work."""

import argparse

from dinojax.config import ConfigError
from dinojax.files.local import is_url, refuse_url

# Attribute of the arguments -> the option as users give it. Images may lie behind URLs, and so
# `path` is one only where its command says so (path_option).
OPTIONS = {
    "run": "--run",
    "out": "--out",
    "weights": "--weights",
    "config": "--config",
    "words": "--words",
    "recipe": "RECIPE",
    "folder": "the folder",
    "file": "the file",
    "a": "the first config",
    "b": "the second config",
}
KEYS = ("distill.teacher", "gram.anchor", "start.source")  # of recipes


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError for a URL where only a path works."""
    given = vars(args)
    named = {OPTIONS[name]: value for name, value in given.items() if name in OPTIONS}
    if "path_option" in given:
        named[given["path_option"]] = given["path"]
    for setting in given.get("set") or ():
        key, _, value = setting.partition("=")
        if key.rpartition(":")[2] in KEYS:
            named[f"--set {key}="] = value
    for option, value in named.items():
        if value is not None and is_url(value):
            try:
                refuse_url(value, option)
            except ValueError as error:
                raise ConfigError(str(error)) from None
