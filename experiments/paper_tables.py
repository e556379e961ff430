"""The paper's tables: models compared on one data set over several seeds.

python experiments/paper_tables.py --configs=configs/compare.py:data=ml-100k,loss=hinge \\
  --folder=runs/ml-100k
python experiments/paper_tables.py --configs=configs/paper.py:data=yelp \\
  --set=data.path=review.json --folder=runs/yelp \\
  --models=cml,lrml,transcf,adacml,als,hlr,hlr++

Every model is trained and tested with every seed in a workdir of its own; finished runs of the same
config are not repeated, and stopped ones are resumed. Then writes `table.md`, `table.tex` and
`table.csv`: mean ± standard deviation over cohorts and seeds, the median popularity rank of the
recommendations, seconds of training, parameters, and for each of --ours the difference from the
best baseline, which is chosen by early_stopping.metric on validation, with the p-value of a paired
t-test over the users that both have, after Holm's correction. With --against=MODEL, all others are
compared with that one instead.
"""

import json
import pathlib

import numpy as np
import polars as pl
import scipy.stats
from absl import flags, logging

from hlrcml_jax import config as config_lib
from hlrcml_jax import config_files, devices
from hlrcml_jax.errors import UserError, run_program
from hlrcml_jax.registry import MODELS
from hlrcml_jax.reporting.log import read_log
from hlrcml_jax.runs import experiment

_CONFIGS = flags.DEFINE_string(
    "configs", None, "FILE:ARGUMENTS; model=MODEL is appended.", required=True
)
_FOLDER = flags.DEFINE_string("folder", None, "Folder for runs and tables.", required=True)
_MODELS = flags.DEFINE_list("models", list(MODELS), "Models to compare.")
_OURS = flags.DEFINE_list(
    "ours", ["hlr", "hlr++", "hlr-r"], "Models that are tested against the baselines."
)
_AGAINST = flags.DEFINE_enum(
    "against", None, [*MODELS], "The model that all others are tested against."
)
_SEEDS = flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds of the runs.")
_METRICS = flags.DEFINE_list(
    "metrics",
    ["ndcg", "map", "mrr", "recall"],
    "Columns, also with cut-offs of their own; the first is tested.",
)
_K = flags.DEFINE_integer("k", 10, "Cut-off of columns without their own.")
_SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of a config, for all runs.")


def load_config(source: str, model: str, changes: dict[str, object]):
    """The config of a model from FILE:ARGUMENTS, with some keys changed."""
    path, _, arguments = source.partition(":")
    arguments = ",".join(filter(None, [arguments, f"model={model}"]))
    return config_files.read(f"{path}:{arguments}", changes)


def run_all(source: str, models, seeds, folder: pathlib.Path, changes) -> None:
    """Trains and tests what is not finished yet; on a GPU, seeds side by side."""
    for model in models:
        configs = {
            folder / f"{model}-{seed}": load_config(source, model, changes | {"seed": seed})
            for seed in seeds
        }
        configs = {path: config for path, config in configs.items() if not is_tested(path, config)}
        if devices.side_by_side() > 1:
            experiment.fit_all([*configs.values()], [*configs])
        for workdir, config in configs.items():
            experiment.train_and_evaluate(config, workdir)


def is_tested(workdir: pathlib.Path, config) -> bool:
    """Whether a workdir has the test metrics of this config."""
    if not (workdir / "test_users.parquet").exists():
        return False
    saved = config_files.read_workdir(workdir)
    now = json.dumps(config_lib.flatten(config), sort_keys=True)
    return saved is not None and json.dumps(saved["config"], sort_keys=True) == now


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjustment: the k-th smallest of n times n - k + 1, never falling."""
    order = np.argsort(p_values)
    scaled = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


class Results:
    """The results of the runs of one model.

    Args:
      workdirs: one a seed.
      metrics: names with cut-off; the first is tested.
      stopping: metric of early stopping.
    """

    def __init__(self, workdirs: list[pathlib.Path], metrics: list[str], stopping: str):
        self.stopping = stopping
        summaries = [json.loads((path / "test_metrics.json").read_text()) for path in workdirs]
        for path, found in zip(workdirs, summaries, strict=True):
            if absent := [name for name in metrics if name not in found["metrics"]]:
                raise UserError(
                    f"{path}: no test user has enough items for {absent[0]}; leave it out."
                )
        logs = [read_log(path / "metrics.jsonl") for path in workdirs]
        users = [pl.read_parquet(path / "test_users.parquet") for path in workdirs]
        n_cohorts = summaries[0]["protocol"]["n_cohorts"]
        # Users are in the order of their cohorts.
        self.cohorts = {
            name: [
                np.nanmean(part)
                for table in users
                for part in np.array_split(table[name].to_numpy(), n_cohorts)
                if len(part)
            ]
            for name in metrics
        }
        self.mean = {
            name: np.mean([found["metrics"][name]["mean"] for found in summaries])
            for name in (*metrics, f"median_rank@{metrics[0].split('@')[1]}")
        }
        # The mean of a user over all seeds.
        seeds = pl.concat([table.select("user_id", value=metrics[0]) for table in users])
        self.by_user = seeds.group_by("user_id").agg(pl.col("value").mean())
        self.seconds = np.mean([sum(line["train_s"] for line in log) for log in logs])
        self.parameters = summaries[0]["parameters"]
        best = [max(line.get(self.stopping, -np.inf) for line in log) for log in logs]
        self.validation = float(np.mean(best))

    def differences(self, rival: "Results") -> np.ndarray:
        """What each user has more than with the rival, of the users that both have."""
        both = self.by_user.join(rival.by_user, on="user_id", suffix="_rival")
        return (both["value"] - both["value_rival"]).drop_nans().to_numpy()


def load_results(source: str, models, seeds, folder, changes, metrics) -> dict[str, Results]:
    """The results of each model's finished runs, see `run_all`."""
    return {
        model: Results(
            [folder / f"{model}-{seed}" for seed in seeds],
            metrics,
            load_config(source, model, changes).early_stopping.metric,
        )
        for model in models
    }


def tabulate(
    results: dict[str, Results], metrics: list[str], ours: list[str], against: str | None = None
) -> pl.DataFrame:
    """One row per model; metrics in percent.

    Args:
      results: by model.
      metrics: names with cut-off; the first is tested.
      ours: models that are tested against the best of the others.
      against: the model that all others are tested against instead.
    """
    rival = against or _best_baseline(results, ours)
    if against:
        compared = [model for model in results if model != against]
    else:
        compared = [model for model in results if model in ours] if rival else []
    p_values = holm(
        [
            scipy.stats.ttest_1samp(results[model].differences(results[rival]), 0.0).pvalue
            for model in compared
        ]
    )
    by_model = dict(zip(compared, p_values, strict=True))
    rows = []
    for model, found in results.items():
        row = {"model": model}
        for name in metrics:
            row[name] = 100 * found.mean[name]
            row[f"{name} sd"] = 100 * np.std(found.cohorts[name], ddof=1)
        rank = f"median_rank@{metrics[0].split('@')[1]}"
        row |= {"MMR": found.mean[rank], "train s": found.seconds, "parameters": found.parameters}
        row["valid " + found.stopping] = 100 * found.validation
        if rival:
            row["difference"] = 100 * np.mean(found.differences(results[rival]))
            row[f"p against {rival}"] = by_model.get(model)
        rows.append(row)
    return pl.DataFrame(rows)


def _best_baseline(results: dict[str, Results], ours: list[str]) -> str | None:
    others = [model for model in results if model not in ours]
    stopping = {found.stopping for found in results.values()}
    if others and (len(stopping) > 1 or "loss" in stopping):
        raise UserError(
            "the best baseline is chosen on validation, by one metric@k in early_stopping.metric; "
            f"these runs have {', '.join(sorted(stopping))}."
        )
    return max(others, key=lambda model: results[model].validation) if others else None


def cells(table: pl.DataFrame, metrics: list[str], plus_minus: str) -> list[list[str]]:
    """The table as text, with its head."""
    last = table.columns[-1]
    against = [last.removeprefix("p ")] if last.startswith("p against") else []
    rows = [["model", *metrics, "MMR", "training", "parameters", *against]]
    for row in table.iter_rows(named=True):
        line = [row["model"]]
        line += [f"{row[name]:.2f} {plus_minus} {row[f'{name} sd']:.2f}" for name in metrics]
        line += [f"{row['MMR']:.0f}", f"{row['train s']:.1f} s", f"{row['parameters']:,}"]
        if against:
            tested = row[last] is not None
            p = f"= {row[last]:.2g}" if row[last] else "< 1e-300"  # a float is 0 below
            line.append(f"{row['difference']:+.2f}, p {p}" if tested else "")
        rows.append(line)
    return rows


def markdown(table: pl.DataFrame, metrics: list[str]) -> str:
    head, *rows = cells(table, metrics, "±")
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(table: pl.DataFrame, metrics: list[str]) -> str:
    head, *rows = cells(table, metrics, r"$\pm$")
    lines = [" & ".join(line).replace("%", r"\%") + r" \\" for line in (head, *rows)]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    columns = "l" + "r" * (len(head) - 1)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # orbax and jax say a lot
    folder, seeds = pathlib.Path(_FOLDER.value), [int(seed) for seed in _SEEDS.value]
    metrics = [name if "@" in name else f"{name}@{_K.value}" for name in _METRICS.value]
    changes = dict(map(config_files.parse_change, _SET.value))
    if _AGAINST.value and _AGAINST.value not in _MODELS.value:
        raise UserError(f"--against={_AGAINST.value}: it is not one of --models.")
    run_all(_CONFIGS.value, _MODELS.value, seeds, folder, changes)
    results = load_results(_CONFIGS.value, _MODELS.value, seeds, folder, changes, metrics)
    table = tabulate(results, metrics, _OURS.value, _AGAINST.value)
    table.write_csv(folder / "table.csv")
    (folder / "table.tex").write_text(latex(table, metrics))
    (folder / "table.md").write_text(markdown(table, metrics))
    print(markdown(table, metrics))


if __name__ == "__main__":
    run_program(main)
