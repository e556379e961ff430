"""Command line. Kept short, so that everything else can be imported, tested and used in Colab.

python -m hlrcml_jax.main --config=configs/quickstart.py
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from hlrcml_jax import config as config_lib
from hlrcml_jax import experiment
from hlrcml_jax.data.prepare import prepare
from hlrcml_jax.errors import UserError

MODES = ("train", "evaluate", "recommend", "prepare")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; may be left out for a workdir that has its own."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config name>.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is not a flag; flags look like --workdir=DIR.")
    logging.set_verbosity(logging.WARNING)  # orbax and jax say a lot
    config, workdir = _resolve()
    if _MODE.value == "prepare":
        config_lib.validate(config)
        prepare(config.data.to_dict())
        return
    if _MODE.value == "train":
        experiment.train_and_evaluate(config, workdir)
        return
    run = experiment.open_run(config, workdir)
    if _MODE.value == "evaluate":
        experiment.test(run)
    else:
        experiment.write_recommendations(run)


def _resolve():
    """(config, workdir) from the flags; each may come from the other."""
    if _CONFIG.value is not None:
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        return _CONFIG.value, _WORKDIR.value or pathlib.Path("runs") / pathlib.Path(path).stem
    if _WORKDIR.value is None:
        raise UserError("give --config=FILE, or --workdir=DIR of a run that exists.")
    found = experiment.read_config_file(pathlib.Path(_WORKDIR.value))
    if found is None:
        raise UserError(f"{_WORKDIR.value}: there is no config.json here; give --config=FILE.")
    return config_lib.from_flat(found["config"]), _WORKDIR.value


def run() -> None:
    """Runs the program; a mistake of the user's is one sentence on stderr and exit status 2."""
    try:
        app.run(main, flags_parser=_parse)
    except UserError as error:
        print(f"hlrcml_jax: {error}", file=sys.stderr)
        sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from None


if __name__ == "__main__":
    run()
