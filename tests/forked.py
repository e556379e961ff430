"""A server that has imported the program, and forks for every run: each import takes seconds."""

import concurrent.futures
import multiprocessing
import os
import pathlib
import sys
import tempfile

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["hlrcml_jax.main", "hlrcml_jax.runs.experiment"])


def run(flags: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the program with flags and a changed environment."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder, name) for name in ("out", "err")]
        process = _CONTEXT.Process(target=_main, args=(flags, environment, paths))
        process.start()
        process.join()
        return process.exitcode, *(path.read_text() for path in paths)


def call(environment: dict[str, str], function, *args):
    """What a function of a module returns in a process of its own with a changed environment."""
    with concurrent.futures.ProcessPoolExecutor(1, _CONTEXT, _change, (environment,)) as pool:
        return pool.submit(function, *args).result()


def _change(environment):
    os.environ |= environment


def _main(flags, environment, paths):
    for number, path in enumerate(paths, 1):
        with path.open("w") as stream:
            os.dup2(stream.fileno(), number)
    os.environ |= environment
    sys.argv = ["hlrcml_jax", *flags]
    from hlrcml_jax import main

    main.run()
