"""Command line. Kept short, so that everything else can be imported, tested and used in Colab.

python -m hlrcml_jax.main --config=configs/quickstart.py
"""

import sys

from absl import flags, logging

from hlrcml_jax import command_line
from hlrcml_jax import config as config_lib
from hlrcml_jax.errors import UserError, run_program

MODES = ("train", "update", "evaluate", "recommend", "explain", "export", "analyse", "prepare")

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "FILE.py, FILE.py:KEY=VALUE,…, the name of one of the package's own (quickstart, best, …), or "
    "the workdir of a run whose config to use; default: that of --workdir. --config.KEY=VALUE "
    "overrides a key (configs/README.md has all keys).",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config name>.")
_ALLOW_CODE = flags.DEFINE_bool(
    "allow_code", False, "Import the custom code named in the config of a workdir you trust."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of the first process, for several processes."
)
_N_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", 0, "Index of this process.", lower_bound=0)
_TIMEOUT = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for all.", lower_bound=1)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "What to do; update: train on from the run of --config=WORKDIR, with the interactions of "
    "--config.data.path on top, into --workdir.",
)


def main(argv: list[str]) -> None:
    """Runs `--mode` with the config and workdir of the flags."""
    changes, others = command_line.split(argv[1:])
    if others:
        raise UserError(f"{others[0]!r} is not a flag; flags look like --workdir=DIR.")
    logging.set_verbosity(logging.FATAL)  # orbax and jax log a lot; errors are raised
    where, updates = (_CONFIG.value, _WORKDIR.value), _MODE.value == "update"
    made, workdir = command_line.read(changes, *where, _ALLOW_CODE.value, updates)
    config = config_lib.validate(made)
    _run(config, workdir)


def _run(config: config_lib.Config, workdir: str) -> None:
    # Imported here, because --help and config errors need no jax.
    import rich

    try:
        import jax  # noqa: F401
    except ValueError as error:  # an environment variable of jax has a wrong value
        raise UserError(f"jax: {error}.") from None

    from hlrcml_jax import processes, settings
    from hlrcml_jax.data.prepare import prepare
    from hlrcml_jax.reporting import console as report
    from hlrcml_jax.runs import experiment, lists
    from hlrcml_jax.runs.build import best_checkpoint
    from hlrcml_jax.runs.workdir import open_run

    processes.join(_COORDINATOR.value, _N_PROCESSES.value, _PROCESS.value, _TIMEOUT.value)
    processes.check_devices()
    rich.get_console().quiet = not processes.is_first_process()
    with settings.own_settings(), processes.together():
        if _MODE.value == "prepare":
            if config.train.continues:
                raise UserError("--mode=prepare: train.continues names a run; leave it empty.")
            processes.in_first_process(lambda: report.print_prepared(prepare(config.data)))
        elif _MODE.value in ("train", "update"):
            experiment.train_and_evaluate(config, workdir)
        else:
            finish = {
                "evaluate": experiment.test,
                "recommend": lists.write_recommendations,
                "explain": lists.write_reasons,
                "export": experiment.export,
                "analyse": experiment.analyse,
            }
            finish[_MODE.value](best_checkpoint(open_run(config, workdir)))


def run() -> None:
    """Runs the program; a user error is one sentence on stderr and exit status 2."""
    run_program(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; returns the arguments that are not flags, and the config overrides."""
    changes, others = command_line.split(argv[1:])
    asked = {"--help", "--helpfull", "--helpshort"} & set(others)
    try:
        rest = flags.FLAGS([argv[0], *(each for each in others if each not in asked)])
        if asked:
            flags_of_config = _CONFIG.value, _WORKDIR.value, _ALLOW_CODE.value
            try:
                options = command_line.describe_options(changes, *flags_of_config)
            except UserError as error:  # the help is what was asked for
                options = f"{error}\n\n"
            sys.stdout.write(options)
            sys.stdout.flush()
            flags.FLAGS([argv[0], *asked])
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    return [*rest, *changes]


if __name__ == "__main__":
    run()
