"""Thinner training gives a table and a plot of its own."""

import forked
import polars as pl
from conftest import ROOT

from hlrcml_jax.data import synthetic

PROGRAM = ROOT / "experiments" / "density.py"


def test_each_share_is_compared(tmp_path):
    synthetic.generate(60, 40, 2400, seed=1).write_csv(tmp_path / "own.csv")
    flags = [
        f"--configs={ROOT}/configs/best.py", "--models=cml,popularity",
        "--ours=cml", "--shares=1,0.1", f"--folder={tmp_path / 'runs'}", "--seeds=1",
        f"--set=data.path={tmp_path / 'own.csv'}", f"--set=data.cache_dir={tmp_path / 'cache'}",
        "--set=model.dim=8", "--set=train.epochs=2",
    ]  # fmt: skip
    status, _, err = forked.run(flags, {}, PROGRAM)
    assert status == 0, err
    table = pl.read_csv(tmp_path / "runs" / "density.csv")
    assert table["share"].to_list() == [1.0, 1.0, 0.1, 0.1]
    assert table["model"].to_list() == ["cml", "popularity"] * 2
    assert table.filter(pl.col("model") == "cml")["p against popularity"].is_between(0, 1).all()
    whole, thin = table["ndcg@10"][1], table["ndcg@10"][3]
    assert whole != thin  # popularity counts fewer interactions
    assert (tmp_path / "runs" / "density.png").read_bytes().startswith(b"\x89PNG")
