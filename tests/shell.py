"""The commands that bash makes of a block of text, and what those would do that are only read."""

import json
import pathlib
import shutil
import subprocess
import sys

from absl import app, flags

from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files
from hlrcml_jax.registry import METRICS

# One write, since a command in the background has its own.
RECORDER = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" END >> "$COMMANDS"
"""
PROGRAMS = ("python", "python3", "pip", "curl", "ruff", "pyright", "mkdocs", "bash")


def commands(block: str, folder: pathlib.Path) -> list[list[str]]:
    """The commands of a block, after loops and expansions, none of which is run.

    There are no other programs than PROGRAMS for it, and a variable that is not set ends it.
    """
    record = folder / "commands"
    record.unlink(missing_ok=True)
    for place in (folder / "bin", folder / ".venv" / "bin"):
        place.mkdir(parents=True, exist_ok=True)
        for name in PROGRAMS:
            (place / name).write_text(RECORDER)
            (place / name).chmod(0o755)
    environment = {"PATH": str(folder / "bin"), "COMMANDS": str(record)}
    shell = [shutil.which("bash"), "-euo", "pipefail", "-c", f"{block}\nwait"]
    subprocess.run(shell, cwd=folder, env=environment, check=True)
    found = [[]]
    for word in record.read_text().split("\0")[:-1]:
        if word == "END":
            found.append([])
        else:
            found[-1].append(word)
    return found[:-1]


def only_read() -> None:
    """Lets this process read the flags of its program, and what they name, and do nothing."""
    app.run = _read


def _read(main, flags_parser=app.parse_flags_with_usage):
    arguments, names = flags_parser(sys.argv), main.__globals__
    if names["__name__"] == "hlrcml_jax.main":
        names["_run"] = _leave_config
        main(arguments)
        return
    assert arguments[1:] == []
    given = {name: flags.FLAGS[name].value for name in flags.FLAGS if flags.FLAGS[name].present}
    changes = dict(map(config_files.parse_change, given.get("set", [])))
    if "workdir" in given:
        config_files.from_workdir(given["workdir"])
    if "data" in given:
        config_lib.make_config({"data.name": given["data"]})
    if "config" in given:
        values = config_lib.flatten(config_files.read(given["config"], changes))
        space = config_files.call(given["space"], "get_space") if "space" in given else {}
        for name, (value, *_) in space.items():
            config_lib.make_config(config_lib.changed(values, {name: value}))
    for model in given.get("models", []):
        config_files.read(f"{given['configs']},model={model}", changes)
    assert set(given.get("ours", [])) <= set(given.get("models", []))
    assert {name.partition("@")[0] for name in given.get("metrics", [])} <= set(METRICS)
    assert set(given.get("size", [])) <= set(names.get("SIZES", []))
    if "cases" in given:
        cases = {name for _, name in names["chosen_cases"]()}
        assert cases <= {"", "recipe", *names["MODELS"]}


def _leave_config(config, workdir):
    """Leaves of a run what the next command reads of it, if it is in the reader's folder."""
    path = pathlib.Path(workdir)
    if not path.is_absolute():
        path.mkdir(parents=True, exist_ok=True)
        saved = {"config": config_lib.flatten(config), "data": ""}
        (path / "config.json").write_text(json.dumps(saved))
