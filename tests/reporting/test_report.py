"""The page of a run: what it shows is true, stays text, and needs nothing beside it."""

import html
import re
from xml.etree import ElementTree

import hypothesis
import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

import hlrcml_jax as hlr
from hlrcml_jax import storage
from hlrcml_jax.data import saved
from hlrcml_jax.errors import printable
from hlrcml_jax.reporting import plots
from hlrcml_jax.runs import experiment
from hlrcml_jax.runs.build import best_checkpoint
from hlrcml_jax.runs.tested import on_test
from hlrcml_jax.runs.workdir import open_run

HOSTILE = '<script>alert({item})</script> $x$ & "{item}" <!-- ]]> \'T, The'
SVG = "{http://www.w3.org/2000/svg}"
NARROW = 400 - 2 * 16  # CSS pixels of a phone, without the margins
PIXELS_PER_POINT = 96 / 72


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """A finished run, whose titles are hostile."""
    folder = tmp_path_factory.mktemp("report")
    titles = [HOSTILE.format(item=item) for item in range(40)]
    pl.DataFrame({"item": range(40), "title": titles}).write_csv(folder / "titles.csv")
    config = hlr.make_config(small | {"data.titles.path": str(folder / "titles.csv")})
    hlr.train_and_evaluate(config, folder / "run")
    return open_run(config, folder / "run")


@pytest.fixture(scope="module")
def page(run):
    return (run.workdir / "report.html").read_text()


@pytest.fixture(scope="module")
def pictures(page):
    """The page's SVG elements."""
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def cells(text, tag):
    return [html.unescape(cell) for cell in re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", text)]


def test_an_example_shows_what_its_user_had_and_recommends_none_of_it(run, page):
    data = saved.load(run.workdir / "data")
    examples = re.findall(r"<h3>User (\d+)</h3>\n<div class=example>(.*?)</table>", page, re.DOTALL)
    assert len(examples) == 3
    for user, text in examples:
        row = data.user_ids.to_list().index(int(user))
        had = {
            item
            for part in (data.train, data.valid, data.history, data.test)
            for item in data.titles.gather(part[[row]].indices)
        }
        *past, last = cells(text, "li")
        assert len(past) == len(set(past)) == 10
        assert set(past) <= had
        assert last == f"and {len(had) - 10} more"
        recommended = set(cells(text, "td")[::3])
        assert len(recommended) == 10
        assert recommended <= set(data.titles) - had


def bars(run, monkeypatch):
    """(heights, ends of the intervals) of each panel's models, as drawn."""
    drawn, plot_groups = [], plots.plot_groups
    monkeypatch.setattr(plots, "plot_groups", lambda panels: drawn.append(plot_groups(panels)))
    monkeypatch.setattr(plots, "svg", lambda *_: "")
    monkeypatch.setattr(storage, "write_text", lambda *_: None)
    experiment.train_and_evaluate(run.config, run.workdir)
    [figure] = drawn
    for axes in figure.axes:
        models = [bars for bars in axes.containers if isinstance(bars, BarContainer)]
        lines = [bars.errorbar.lines[2][0].get_segments() for bars in models]
        heights = [np.array([bar.get_height() for bar in bars]) for bars in models]
        yield list(zip(heights, (np.array(ends)[:, :, 1].T for ends in lines), strict=True))


def test_bars_are_means_over_users(run, monkeypatch):
    by_user, by_item = bars(run, monkeypatch)
    data = run.dataset
    measured = pl.read_parquet(run.workdir / "test_users.parquet")
    user_B = [data.user_ids.to_list().index(user) for user in measured["user_id"]]
    count_B = np.diff(data.train.indptr)[user_B]
    rows = on_test(best_checkpoint(run)).rows
    ndcgs = measured["ndcg@10"].to_numpy(), rows["popularity"].values["ndcg@10"]
    cuts = np.quantile(count_B, [0.25, 0.5, 0.75]).astype(int)
    quarter_B = np.sum(count_B[:, None] >= np.unique(cuts)[None], axis=1)
    for (mean_G, interval_2xG), value_B in zip(by_user, ndcgs, strict=True):
        quarters = [value_B[quarter_B == quarter] for quarter in np.unique(quarter_B)]
        np.testing.assert_allclose(mean_G, [np.nanmean(of_group) for of_group in quarters])
        assert (interval_2xG[0] <= mean_G).all()
        assert (mean_G <= interval_2xG[1]).all()

    order = sorted(range(40), key=lambda item: (-data.train[:, [item]].nnz, item))
    for (mean_G, _), row in zip(by_item, rows.values(), strict=True):
        shares = {}
        for user, listed in zip(user_B, row.item_BxK[:, :10], strict=True):
            wanted = set(data.test[[user]].indices)
            for group, (low, high) in enumerate(((0, 1), (1, 4), (4, 20), (20, 40))):
                of_group = wanted & set(order[low:high])
                if of_group:
                    share = len(of_group & set(listed)) / len(of_group)
                    shares.setdefault(group, []).append(share)
        np.testing.assert_allclose(mean_G, [np.mean(shares[group]) for group in sorted(shares)])


def test_tables_have_headings_and_can_be_scrolled_by_keyboard(page):
    assert '<html lang="en">' in page
    assert 'name="viewport"' in page
    assert page.count("<main>") == page.count("</main>") == page.count("<h1>") == 1
    regions = re.findall(
        r'<div class=scroll role=region tabindex=0 aria-label="(.*?)"><table>\n<caption>', page
    )
    assert len(regions) == len(set(regions)) == page.count("<table") == 4
    assert cells(page, "th")[:4] == ["metric", "hlr", "popularity", "p"]
    for row in re.findall(r"<tr>(.*?)</tr>", page):
        heads = re.findall(r"<th scope=(\w+)", row)
        assert heads == ["row"] or (set(heads) == {"col"} and "<td" not in row)


def test_the_page_and_its_pictures_refer_to_nothing_outside(page, pictures):
    assert len(pictures) == 4
    assert not re.search(r"<script|<link|<img|<iframe|@import|src=", page)
    assert not re.search(r"https?://", page.replace(' xmlns="http://www.w3.org/2000/svg"', ""))
    ids = []
    for picture in pictures:
        own = [element.get("id") for element in picture.iter() if "id" in element.attrib]
        for element in picture.iter():
            references = re.findall(r"url\((.*?)\)", " ".join(element.attrib.values()))
            for reference in [*references, *filter(None, [element.get("href")])]:
                assert reference.removeprefix("#") in own
        ids += own
    assert len(ids) == len(set(ids)) > 8


def test_the_page_shows_the_pictures_of_the_folder(run, page):
    files = sorted((run.workdir / "plots").iterdir())
    assert {path.suffix for path in files} == {".svg"}
    assert sorted(re.findall(r"<svg.*?</svg>", page, re.DOTALL)) == sorted(
        path.read_text() for path in files
    )


def test_text_in_pictures_is_readable_on_a_phone_and_has_the_colour_of_the_page(pictures):
    for picture in pictures:
        width = float(picture.get("viewBox").split()[2])
        scale = min(PIXELS_PER_POINT, NARROW / width)
        texts = list(picture.iter(f"{SVG}text"))
        assert len(texts) > 5
        for text in texts:
            assert float(re.search(r"font-size: ([\d.]+)px", text.get("style"))[1]) * scale >= 11
            assert "fill" not in text.get("style")
        assert picture.get("fill") == "currentColor"
        assert "#000" not in ElementTree.tostring(picture, encoding="unicode")


def test_the_same_run_gives_the_same_page(run, page):
    experiment.train_and_evaluate(run.config, run.workdir)
    assert (run.workdir / "report.html").read_text() == page


@hypothesis.given(st.text(min_size=1))
@hypothesis.example("日本語")
@hypothesis.example("<script>alert(1)</script>")
@hypothesis.example("$\\frac$ & ]]> -->")
@hypothesis.example("\x00\x1b\u202e\ufffe\uffff\ud800")
@hypothesis.example("_")
@hypothesis.settings(max_examples=20, deadline=None)
def test_a_category_is_text_in_a_picture(kind):
    points = np.arange(4.0).reshape(2, 2)
    figure = plots.plot_relations(points, np.array([0.75, 0.25]), [frozenset([kind])] * 2)
    root = ElementTree.fromstring(plots.svg(figure, "relations", kind))
    expected = re.sub("[\ufffe\uffff]", "\ufffd", printable(kind))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert any(expected.split() == text.split() for text in texts)
    assert {element.tag for element in root.iter()}.isdisjoint({f"{SVG}script", f"{SVG}a"})


def ticks(figure: Figure) -> list[float]:
    """Those that are seen on the lowest axis of epochs or slots."""
    figure.draw_without_rendering()
    axis = figure.axes[-1].xaxis
    low, high = sorted(axis.get_view_interval())
    return [float(tick) for tick in axis.get_majorticklocs() if low <= tick <= high]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
def test_epochs_and_slots_are_whole_numbers(n):
    log = [{"epoch": epoch, "loss": 1 / epoch, "ndcg@10": epoch / n} for epoch in range(1, 1 + n)]
    curve = plots.plot_learning_curve(log, "ndcg@10", n)
    assert [axes.get_ylabel() for axes in curve.axes] == ["training loss", "validation ndcg@10"]
    for figure in (curve, plots.plot_memory(np.full(n, 1 / n))):
        seen = ticks(figure)
        assert seen
        assert all(tick.is_integer() for tick in seen)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model.name": "popularity"}, {"groups", "popularity"}),
        ({"early_stopping.metric": "loss"}, {"groups", "popularity", "memory", "learning_curve"}),
        ({"data.split.test": 0.0}, {"learning_curve"}),
    ],
    ids=["no training", "loss", "no test"],
)
def test_a_page_has_the_plots_that_its_run_has(small, tmp_path, changes, names):
    hlr.train_and_evaluate(hlr.make_config(small | {"train.epochs": 1} | changes), tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == names
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == len(names)
    assert ("validation loss_valid" in page) == ("early_stopping.metric" in changes)
