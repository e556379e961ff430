"""Command line. Kept short, so that everything else can be imported, tested and used in Colab.

python -m hlrcml_jax.main --config=configs/quickstart.py
"""

import pathlib
import re
import traceback

import rich
from absl import flags, logging
from ml_collections import config_flags

from hlrcml_jax import config as config_lib
from hlrcml_jax import devices
from hlrcml_jax.data.prepare import prepare
from hlrcml_jax.errors import UserError, run_program
from hlrcml_jax.reporting import console as report
from hlrcml_jax.runs import experiment
from hlrcml_jax.runs.workdir import best_checkpoint, open_run
from hlrcml_jax.schema import all_keys, unknown_key

MODES = ("train", "evaluate", "recommend", "explain", "export", "analyse", "prepare")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; may be left out for a workdir that has its own."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config name>.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of the first process, when several work together."
)
_N_PROCESSES = flags.DEFINE_integer("num_processes", 1, "How many there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", 0, "Which of them this is.", lower_bound=0)
_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for them.", lower_bound=1)
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")


def main(argv: list[str]) -> None:
    """Does what `--mode` says with the config and the workdir of the flags."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is not a flag; flags look like --workdir=DIR.")
    logging.set_verbosity(logging.FATAL)  # orbax and jax say a lot; what matters is raised
    config, workdir = _CONFIG.value, _WORKDIR.value
    if workdir is None:
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        workdir = pathlib.Path("runs") / pathlib.Path(path).stem
    config_lib.validate(config)
    devices.join(_COORDINATOR.value, _N_PROCESSES.value, _PROCESS.value, _TIMEOUT.value)
    rich.get_console().quiet = not devices.is_first_process()
    with devices.together():
        if _MODE.value == "prepare":
            devices.in_first_process(
                lambda: rich.print(f"Ready: {report.describe(prepare(config.data.to_dict()))}.")
            )
        elif _MODE.value == "train":
            experiment.train_and_evaluate(config, workdir)
        else:
            best = best_checkpoint(open_run(config, workdir))
            finish = {
                "evaluate": experiment.test,
                "recommend": experiment.write_recommendations,
                "explain": experiment.write_reasons,
                "export": experiment.export,
                "analyse": experiment.analyse,
            }
            finish[_MODE.value](best)


def run() -> None:
    """Runs the program; a mistake of the user's is one sentence on stderr and exit status 2."""
    run_program(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; without --config, the workdir's own config stands in."""
    # `--flag value` is `--flag=value` too.
    argv = re.sub(r"\0(--(?:config|workdir|mode))\0", r"\0\1=", "\0".join(argv)).split("\0")
    given = dict(flag.partition("=")[::2] for flag in argv[1:])
    for name in given:
        if name.startswith("--config.") and name[9:] not in dict(all_keys()):
            raise unknown_key(name[9:])
    path = re.sub(r"(?<=\.py):.*", "", given.get("--config", ""))
    if path and not pathlib.Path(path).is_file():
        raise UserError(f"--config={path}: no such file.")
    if not path and "--workdir" in given:
        argv.insert(1, f"--config={config_lib.__file__}:{given['--workdir']}")
    elif not path and not {"--help", "--helpfull", "--helpshort"} & set(given):
        raise UserError("give --config=FILE, or --workdir=DIR of a run that exists.")
    try:
        return flags.FLAGS(argv)
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}.") from None
    except UserError:
        raise
    except Exception as error:  # a config file is a program, and can raise anything
        raise UserError(_sentence(error, path)) from None


def _sentence(error: Exception, path: str) -> str:
    """What a flag or a config file did wrong, in one line."""
    text = str(error).strip()
    if unknown := re.search(r'Key "(\w+)" does not exist', text):
        return str(unknown_key(unknown[1]))
    if isinstance(error, flags.Error) and "Traceback" not in text:
        return " ".join(text.split())
    # Flags wrap some errors of a config file and its traceback into one text.
    places = re.findall(rf'File "{re.escape(path)}", line (\d+)', text + traceback.format_exc())
    where = f"{path}, line {places[-1]}" if places else f"--config={path}"
    what = text.splitlines()[-1] if "Traceback" in text else f"{type(error).__name__}: {text}"
    return f"{where}: {' '.join(what.split())}"


if __name__ == "__main__":
    run()
