"""Serves a trained run over HTTP.

pip install -e '.[serve]'
python experiments/serve/app.py --workdir=runs/mine --port=8000

| request | answer |
|---|---|
| `GET /recommend/USER?k=10` | the list of a known user |
| `POST /recommend` with `{"history": [ITEM, ...], "k": 10}` | the list of a new user |
| `GET /similar/ITEM?k=10` | similar items |
| `GET /explain/USER?item=ITEM&most=3` | past items that speak for an item |
| `GET /health` | what is served, and since when |
| `GET /metrics` | counts and times of requests, for Prometheus |

Unknown ids get 404, arguments that cannot be right 422, and who comes when too many wait 503.
Answers are computed by one thread, for up to eight known users together, if so many wait. With
`--index` an index of nearest neighbours (`index.py`) retrieves candidates, which the model ranks:
for large catalogues.

On SIGHUP the run at --workdir is loaded anew, which may be a link that points elsewhere by now.
Until it is ready, and if it cannot be loaded, the present one answers.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import datetime
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import fastapi
import polars as pl
import prometheus_client
import pydantic
import uvicorn
from absl import app as absl_app
from absl import flags, logging

import hlrcml_jax as hlr
from hlrcml_jax.errors import UserError, warn

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained run, or a link to one.", required=True)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen at; 0 chooses a free one.")
_LONGEST = flags.DEFINE_integer("longest", 100, "Longest list that may be asked for.")
_INDEX = flags.DEFINE_integer("index", 0, "Candidates to retrieve by an index; 0 ranks all items.")

TOGETHER = 8  # users for whom one program answers as fast as for few
MOST_WAITING = 1000  # requests
LONGEST_HISTORY = 512  # of a new user; for longer ones programs would be compiled

Length = Annotated[int, fastapi.Query(ge=1)]
Id = pydantic.StrictInt | pydantic.StrictStr


class UnknownUser(Exception):
    """There is no such user in the run that answers."""


class Overloaded(Exception):
    """Too many requests wait."""


class History(pydantic.BaseModel):
    """A new user."""

    history: list[Id] = pydantic.Field(max_length=LONGEST_HISTORY)
    k: int = pydantic.Field(10, ge=1)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A run that is ready to answer.

    Attributes:
      recommender: warmed up.
      path: of its workdir, with links resolved.
      since: when it was loaded.
      users: all ids, as text.
      index: of its items, or None.
    """

    recommender: hlr.Recommender
    path: str
    since: str
    users: frozenset[str]
    index: Any = None

    @classmethod
    def of(cls, workdir: str, longest: int, n_candidates: int) -> "Loaded":
        path = pathlib.Path(workdir).resolve()
        recommender = hlr.load(path)
        recommender.warm_up(longest)
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        users = frozenset(recommender.users.cast(pl.String))
        index = None
        if n_candidates:
            from index import Index  # beside this file; faiss is not needed without

            index = Index(recommender, n_candidates)
            for n in (1, TOGETHER):
                index.recommend(recommender.users[:n].to_list(), longest)
        return cls(recommender, str(path), since, users, index)

    def lists(self, users: list[str], k: int) -> dict[str, list[dict]]:
        """The list of each user."""
        found = self.index if self.index is not None else self.recommender
        return by_user(found.recommend(users, k))


def by_user(table: pl.DataFrame) -> dict[str, list[dict]]:
    """Rows by user, whose ids become text."""
    lists: dict[str, list[dict]] = {}
    for row in table.iter_rows(named=True):
        lists.setdefault(str(row.pop("user_id")), []).append(row)
    return lists


class Service:
    """Answers by one thread, and swaps what it serves.

    Args:
      load: makes what is served.
      longest: list that is computed.
    """

    def __init__(self, load: Callable[[], Loaded], longest: int):
        self._load, self.longest = load, longest
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._loader = concurrent.futures.ThreadPoolExecutor(1)
        self._waiting: list[tuple[str, asyncio.Future]] = []
        self._busy: asyncio.Task | None = None
        self._n_waiting = 0
        self.served = load()

    async def reload(self) -> None:
        """Loads anew; keeps the present run if that fails."""
        loop = asyncio.get_running_loop()
        try:
            self.served = await loop.run_in_executor(self._loader, self._load)
            logging.warning("serving %s", self.served.path)
        except UserError as error:
            logging.error("still serving %s: %s", self.served.path, error)
        except Exception:
            logging.exception("still serving %s", self.served.path)

    async def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The result of a function in the thread that computes.

        Raises:
          Overloaded: when too many wait.
        """
        if self._n_waiting >= MOST_WAITING:
            raise Overloaded
        self._n_waiting += 1
        try:
            return await self._compute(function, *args, **options)
        finally:
            self._n_waiting -= 1

    async def _compute(self, function, *args, **options):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **options))

    async def list_of(self, user: str) -> list[dict]:
        """The list of a known user, computed together with those of others who wait.

        Raises:
          UnknownUser: when there is no such user.
          Overloaded: when too many wait.
        """
        if user not in self.served.users:
            raise UnknownUser
        if len(self._waiting) >= MOST_WAITING:
            raise Overloaded
        found = asyncio.get_running_loop().create_future()
        self._waiting.append((user, found))
        if self._busy is None:
            self._busy = asyncio.create_task(self._answer())
        return await found

    async def _answer(self) -> None:
        """Answers until nobody waits."""
        try:
            while self._waiting:
                asked, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
                asked = [(user, found) for user, found in asked if not found.done()]  # or left
                try:
                    await self._answer_together(asked)
                except Exception:  # may be due to one of them
                    for each in asked:
                        try:
                            await self._answer_together([each])
                        except Exception as error:
                            _settle(each[1], error)
        finally:
            self._busy = None

    async def _answer_together(self, asked: list[tuple[str, asyncio.Future]]) -> None:
        served = self.served
        # A run that was loaded meanwhile may not have the user.
        users = list(dict.fromkeys(user for user, _ in asked if user in served.users))
        lists = await self._compute(served.lists, users, self.longest) if users else {}
        for user, found in asked:
            _settle(found, lists.get(user, []) if user in served.users else UnknownUser())


def _settle(future: asyncio.Future, outcome: Any) -> None:
    """Ends the waiting of a request, unless it went away."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def make_app(service: Service) -> fastapi.FastAPI:
    """The application."""
    registry = prometheus_client.CollectorRegistry()
    seconds = prometheus_client.Histogram(
        "hlrcml_request_seconds",
        "Seconds from request to answer.",
        ["path", "status"],
        buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0),
        registry=registry,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_):
        loop, tasks = asyncio.get_running_loop(), set()

        def reload():
            task = loop.create_task(service.reload())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        loop.add_signal_handler(signal.SIGHUP, reload)
        yield

    api = fastapi.FastAPI(title="hlrcml_jax", version=hlr.__version__, lifespan=lifespan)

    @api.middleware("http")
    async def measure(request: fastapi.Request, answer):
        started, status = time.perf_counter(), 500
        try:
            response = await answer(request)
            status = response.status_code
            return response
        finally:
            route = request.scope.get("route")
            path = route.path if route else "other"
            seconds.labels(path, status).observe(time.perf_counter() - started)

    def refuse(status: int, detail: str):
        return fastapi.responses.JSONResponse({"detail": detail}, status)

    @api.exception_handler(UserError)
    async def of_user(_, error: UserError):
        return refuse(404 if str(error).startswith("there is no") else 422, str(error))

    @api.exception_handler(fastapi.exceptions.RequestValidationError)
    async def of_arguments(_, error: fastapi.exceptions.RequestValidationError):
        # Without the values, which may have no form in JSON.
        wrong = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        return refuse(422, "; ".join(f"{place}: {why}" for place, why in wrong))

    @api.exception_handler(UnknownUser)
    async def of_unknown(request: fastapi.Request, _):
        return refuse(404, f"there is no user '{request.path_params['user']}' in the data.")

    @api.exception_handler(Overloaded)
    async def of_load(*_):
        return refuse(503, "too many requests wait; try again later.")

    def length(k: int) -> int:
        if k > service.longest:
            raise UserError(f"k={k}: lists have at most {service.longest} items.")
        return k

    @api.get("/recommend/{user:path}")
    async def recommend(user: str, k: Length = 10):
        k = length(k)
        items = await service.list_of(user.strip())
        return {"user_id": user, "items": items[:k]}

    @api.post("/recommend")
    async def recommend_new(new: History):
        k = length(new.k)
        known = service.served.recommender
        lists = by_user(await service.call(known.recommend_new, {0: new.history}, service.longest))
        return {"items": lists.get("0", [])[:k]}

    @api.get("/similar/{item:path}")
    async def similar(item: str, k: Length = 10):
        found = await service.call(service.served.recommender.similar_items, item, length(k))
        return {"item_id": item, "items": found.drop("to_item_id").to_dicts()}

    @api.get("/explain/{user:path}")
    async def explain(user: str, item: str, most: Length = 3):
        found = await service.call(service.served.recommender.explain, user, item, most=most)
        return {"user_id": user, "item_id": item, "reasons": found.to_dicts()}

    @api.get("/health")
    async def health():
        served = service.served
        return {"workdir": served.path, "since": served.since, "users": len(served.users)}

    @api.get("/metrics")
    async def metrics():
        text = prometheus_client.generate_latest(registry)
        return fastapi.Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return api


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    settings = (_WORKDIR.value, _LONGEST.value, _INDEX.value)
    try:
        service = Service(lambda: Loaded.of(*settings), _LONGEST.value)
    except UserError as error:
        warn(str(error))
        sys.exit(2)
    config = uvicorn.Config(
        make_app(service), _HOST.value, _PORT.value, log_level="warning", access_log=False
    )
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    socket.listen(config.backlog)  # from here on requests wait instead of being refused
    print(f"listening at http://{_HOST.value}:{socket.getsockname()[1]}", flush=True)
    server.run([socket])


if __name__ == "__main__":
    absl_app.run(main)
