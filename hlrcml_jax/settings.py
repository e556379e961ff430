"""The settings of jax that the program is written for, whatever the caller's are."""

import contextlib
import functools
import os
from collections.abc import Iterator

import jax

from hlrcml_jax.errors import UserError


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """The settings of jax that the program is written for; afterwards the caller's are back.

    They hold for the current thread; also as a decorator, for the public functions.

    Raises:
      UserError: in a process that was forked after the first use, where jax would wait for ever.
    """
    if _first_process() != os.getpid():
        raise UserError(
            "this process was forked from one that had used hlrcml_jax, and jax does not work in "
            "it; start processes by the methods 'spawn' or 'forkserver', or use it only in them."
        )
    with contextlib.ExitStack() as stack:
        for setting in (
            jax.enable_x64(False),
            jax.disable_jit(False),
            jax.numpy_dtype_promotion("standard"),
            jax.transfer_guard("allow"),
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.debug_key_reuse(False),
            jax.check_tracer_leaks(False),
            jax.default_device(None),
            jax.default_prng_impl("threefry2x32"),
            jax.threefry_partitionable(True),
        ):
            stack.enter_context(setting)
        yield


@functools.cache
def _first_process() -> int:
    return os.getpid()
