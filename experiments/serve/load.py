"""How long requests wait at the service, under a load that does not wait for it.

python experiments/serve/load.py --workdir=runs/mine --rate=100 --seconds=60

Starts `app.py` with the arguments after `--`, asks for the lists of random known users at a
constant rate, whether earlier requests are answered or not, and prints the waiting times, the
errors, and the memory of the service. `--reload_every=10` has it load the run anew meanwhile.
"""

import asyncio
import json
import pathlib
import random
import signal
import subprocess
import sys
import time
import urllib.parse

import aiohttp
import numpy as np
from absl import flags, logging

import hlrcml_jax as hlr
from hlrcml_jax.errors import run_program

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained run.", required=True)
_RATE = flags.DEFINE_float("rate", 100.0, "Requests per second.", lower_bound=0.1)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Seconds of load.", lower_bound=0.1)
_RELOAD = flags.DEFINE_float("reload_every", 0.0, "Seconds between reloads; 0: none.")

APP = pathlib.Path(__file__).with_name("app.py")


def memory_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


async def load(address: str, users: list[str], server: subprocess.Popen) -> dict[str, object]:
    """The waiting times of requests, in milliseconds from when they were due."""
    waited, failed, memory = [], [], []
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(address, timeout=timeout, connector=connector) as session:

        async def ask(due: float) -> None:
            try:
                user = urllib.parse.quote(random.choice(users), safe="")
                async with session.get(f"/recommend/{user}") as response:
                    body = await response.json()
                if response.status != 200 or not body["items"]:
                    failed.append(f"{response.status}: {body}")
            except (aiohttp.ClientError, TimeoutError) as error:
                failed.append(f"{type(error).__name__}: {error}")
            waited.append(1e3 * (time.perf_counter() - due))

        started, next_reload = time.perf_counter(), _RELOAD.value
        async with asyncio.TaskGroup() as group:
            for number in range(round(_RATE.value * _SECONDS.value)):
                due = started + number / _RATE.value
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(ask(due))
                if number % max(1, round(_RATE.value)) == 0:
                    memory.append(memory_mb(server.pid))
                if _RELOAD.value and due - started >= next_reload:
                    server.send_signal(signal.SIGHUP)
                    next_reload += _RELOAD.value
        seconds = time.perf_counter() - started
    return {
        "requests": len(waited),
        "requests/s": len(waited) / seconds,
        "p50_ms": float(np.percentile(waited, 50)),
        "p95_ms": float(np.percentile(waited, 95)),
        "p99_ms": float(np.percentile(waited, 99)),
        "worst_ms": max(waited),
        "errors": len(failed),
        "first_error": failed[0] if failed else None,
        "memory_mb_after_tenth": memory[len(memory) // 10],
        "memory_mb_at_end": memory[-1],
    }


def main(argv) -> None:
    logging.set_verbosity(logging.WARNING)
    users = [str(user) for user in hlr.load(_WORKDIR.value).users]
    command = [sys.executable, str(APP), f"--workdir={_WORKDIR.value}", "--port=0", *argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                sys.exit("the service did not start.")
            address = line.split()[-1]
            found = asyncio.run(load(address, users, server))
        finally:
            server.terminate()
    rounded = {key: round(x, 1) if isinstance(x, float) else x for key, x in found.items()}
    print(json.dumps(rounded, indent=2))


if __name__ == "__main__":
    run_program(main)
