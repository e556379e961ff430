"""How the cost of training and scoring grows, as plots: each point is a run of `benchmark.py`.

python experiments/growth.py --folder=runs/growth
python experiments/growth.py --folder=runs/growth --axes=prefs,slots --model=hlr++

Leaves `growth.jsonl` with every measurement, and `growth.png` with a panel for each axis: time of
an example and of a scored user, relative to the first point. Measurements are not repeated.
"""

import json
import pathlib
import subprocess
import sys

import matplotlib
from absl import app, flags

matplotlib.use("Agg")
import matplotlib.pyplot as plt

AXES = {
    "users": (2_000, 6_000, 18_000),
    "items": (1_000, 3_000, 9_000),
    "prefs": (10, 25, 50, 100),
    "slots": (5, 10, 20, 40),
    "dim": (25, 50, 100, 200),
    "batch": (250, 1_000, 4_000),
    "negatives": (1, 4, 16),
    "devices": (1, 2, 4),
}
UNSCORED = ("batch", "negatives")  # scoring does not depend on these

_FOLDER = flags.DEFINE_string("folder", "runs/growth", "Folder for the results.")
_AXES = flags.DEFINE_list("axes", list(AXES), f"Axes, of {', '.join(AXES)}.")
_MODEL = flags.DEFINE_string("model", "hlr", "model.name.")

BENCHMARK = pathlib.Path(__file__).with_name("benchmark.py")


def measure(axis: str, value: int, model: str) -> dict[str, float]:
    """Microseconds per training example and, where it matters, per scored user."""
    kinds = ["train"] if axis in UNSCORED else ["train", "score"]
    cases = ",".join(f"{kind}:{model}" for kind in kinds)
    command = [sys.executable, str(BENCHMARK), f"--{axis}={value}", f"--cases={cases}"]
    command += ["--steps=20", "--repeats=3", "--ranked=2000"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {line["case"].partition(":")[0]: line for line in lines}
    measured = {"train_us": 1e6 / found["train"]["examples_per_s"]}
    if "score" in found:
        measured["score_us"] = 1e3 * found["score"]["ms_per_user"]
    return measured


def plot(points: list[dict], path: pathlib.Path, model: str) -> None:
    """A panel for each axis, logarithmic both ways; a slope of 1 is dotted."""
    axes = [axis for axis in AXES if any(point["axis"] == axis for point in points)]
    columns = min(len(axes), 4)
    rows = -(-len(axes) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 3 * rows), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(axes) :]:
        panel.axis("off")
    for panel, axis in zip(panels.flat, axes, strict=False):
        mine = sorted((p for p in points if p["axis"] == axis), key=lambda p: p["value"])
        values = [point["value"] for point in mine]
        for name, label in (("train_us", "a training example"), ("score_us", "a scored user")):
            costs = [point[name] for point in mine if name in point]
            if costs:
                relative = [cost / costs[0] for cost in costs]
                panel.plot(
                    values, relative, marker="o", label=f"{label}, {costs[0]:.3g} µs at first"
                )
        panel.plot(values, [value / values[0] for value in values], ":", color="grey")
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="time, relative")
        panel.set_xticks(values, [f"{value:,}" for value in values], rotation=30)
        panel.minorticks_off()
        panel.legend(fontsize=7)
    figure.suptitle(f"{model}: cost along each axis (dotted: proportional)")
    figure.savefig(path, dpi=150)


def main(_) -> None:
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "growth.jsonl"
    points = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    points = [point for point in points if point["model"] == _MODEL.value]
    measured = {(point["axis"], point["value"]) for point in points}
    for axis in _AXES.value:
        for value in AXES[axis]:
            if (axis, value) in measured:
                continue
            point = {"model": _MODEL.value, "axis": axis, "value": value}
            point |= measure(axis, value, _MODEL.value)
            points.append(point)
            with log.open("a") as file:
                print(json.dumps(point), file=file)
            print(json.dumps(point), flush=True)
    plot(points, folder / "growth.png", _MODEL.value)
    print(f"The plots are {folder / 'growth.png'}.")


if __name__ == "__main__":
    sys.exit(app.run(main))
