"""A server that has imported the program, and forks for every run: each import takes seconds."""

import concurrent.futures
import math
import multiprocessing
import os
import pathlib
import re
import resource
import runpy
import sys
import threading
import time

import jax
from absl import flags

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["hlrcml_jax.main", "hlrcml_jax.runs.experiment"])


class Program:
    """The program, or another one, in a process of its own; to be asked as `subprocess.Popen` is.

    Args:
      arguments: of the command line.
      environment: what is changed of it.
      path: of another program.
      first: a function of a module and its arguments, called in the process before the program.

    Attributes:
      returncode: None as long as it goes on.
    """

    def __init__(self, arguments, environment, path=None, first=()):
        pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(2)]
        ends = [writer for _, writer in pipes]
        args = ([*map(str, arguments)], environment, ends, path, first)
        self._process = _CONTEXT.Process(target=_main, args=args)
        self._process.start()
        for end in ends:
            end.close()
        self._said = ["", ""]
        self._readers = [
            threading.Thread(target=self._read, args=(place, reader))
            for place, (reader, _) in enumerate(pipes)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, place, reader):
        with reader, open(reader.fileno(), closefd=False) as stream:
            self._said[place] = stream.read()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def communicate(self) -> tuple[str, str]:
        """(stdout, stderr), when it has ended."""
        for reader in self._readers:
            reader.join()
        self._process.join()
        return tuple(self._said)


def run(arguments, environment, path=None, first=()) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a `Program`."""
    program = Program(arguments, environment, path, first)
    out, err = program.communicate()
    return program.returncode, out, err


def call(environment: dict[str, str], function, *args):
    """What a function of a module returns in a process of its own with a changed environment."""
    with concurrent.futures.ProcessPoolExecutor(1, _CONTEXT, _change, (environment,)) as pool:
        return pool.submit(function, *args).result()


def only_read_programs() -> None:
    """Forbids this process to write compiled programs.

    One that ends in the middle of that leaves half an entry, which fails whoever comes next.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)


def signal_at(number: int, moment: str, n: int = 1, pause: float = 0.0) -> None:
    """Lets this process send itself a signal just before it changes a file.

    Args:
      number: of the signal.
      moment: pattern of an audit event of Python and its arguments, `os.rename FROM TO`.
      n: the how manieth such event it is.
      pause: seconds that other threads have before.
    """
    only_read_programs()
    left = n

    def hook(event, args):
        nonlocal left
        text = " ".join(map(str, (event, *args[:2]))) if event.startswith(("os.", "open")) else ""
        if not left or not re.fullmatch(moment, text):
            return
        left -= 1
        if not left:
            time.sleep(pause)
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def add_path(folder) -> None:
    """Lets this process import what lies in a folder."""
    sys.path.insert(0, str(folder))


def limit_files(n_bytes: int) -> None:
    """Forbids this process larger files."""
    only_read_programs()
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def _change(environment):
    os.environ |= environment


def _main(arguments, environment, ends, path, first):
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    os.environ |= environment
    sys.argv = [str(path or "hlrcml_jax"), *arguments]
    if first:
        first[0](*first[1:])
    if path is not None:
        sys.path.insert(0, str(pathlib.Path(path).parent))
        for flag in flags.FLAGS.flags_by_module_dict().pop("hlrcml_jax.main"):
            delattr(flags.FLAGS, flag.name)  # it may have flags of these names
        runpy.run_path(str(path), run_name="__main__")
        return
    from hlrcml_jax import main

    main.run()
