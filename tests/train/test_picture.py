import math

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.image import imread

from composer_edba import EDBA
from composer_edba.train.picture import plot_run
from composer_edba.train.series import ACCURACY, TARGET, Series, read_log
from composer_edba.train.summary import summarize
from tests.train.tiny_runs import SAMPLES, trained

pytestmark = pytest.mark.filterwarnings("ignore:Cannot split tensor of length")

PANEL = 2.0 * 130  # pixels


def inked_rows(path):
    image = imread(path)[..., :3]
    return (image < 0.9).any(axis=(1, 2)).mean()


def test_a_plot_has_as_many_panels_as_the_run_has_things_to_show(plain, edba, tmp_path):
    heights = {}
    for name, trainer in (("plain", plain), ("edba", edba)):
        path = plot_run(summarize(trainer, SAMPLES).title, read_log(trainer), tmp_path / f"{name}.png")
        heights[name] = imread(path).shape[0]
        assert inked_rows(path) > 0.5
    assert heights["edba"] - heights["plain"] == pytest.approx(2 * PANEL, abs=2)


@pytest.mark.parametrize(
    "margins",
    [[math.inf] * 4, [math.nan] * 4, [0.0] * 4, [0.0, math.inf, math.nan, 1e-12], [1.0, 2.0, math.inf, 3.0]],
    ids=["infinite", "undefined", "zero", "all-kinds", "mostly-finite"],
)
@pytest.mark.filterwarnings("error")
def test_a_plot_stands_any_margin(edba, tmp_path, margins):
    log = dict(read_log(edba))
    updates = np.arange(1, 5)
    log["edba/margin"] = Series(updates, np.array(margins))
    log["edba/model_metric"] = Series(updates, np.array([1.0, math.nan, math.inf, 2.0]))
    log["edba/gradient_average"] = Series(updates, np.full(4, math.nan))
    assert inked_rows(plot_run(summarize(edba, SAMPLES).title, log, tmp_path / "run.png")) > 0.5


def test_a_plot_stands_a_run_of_one_step(tmp_path):
    trainer = trained([EDBA.paper()], max_duration="1ba", eval_interval=0)
    assert plot_run(summarize(trainer, SAMPLES).title, read_log(trainer), tmp_path / "run.png").exists()


def drawn(monkeypatch, trainer, log, path):
    """The lines and points of a picture by label, and its height in pixels."""
    shown = {}

    def record(kind):
        draw = getattr(matplotlib.axes.Axes, kind)

        def recording(self, x, y, **style):
            shown[style.get("label")] = {"x": list(x), "y": list(y), **style}
            return draw(self, x, y, **style)

        return recording

    with monkeypatch.context() as patch:
        for kind in ("plot", "scatter"):
            patch.setattr(matplotlib.axes.Axes, kind, record(kind))
        plot_run(summarize(trainer, SAMPLES).title, log, path)
    return shown, imread(path).shape[0]


def test_the_batch_size_is_drawn_as_steps_beside_the_size_aimed_at(monkeypatch, edba, tmp_path):
    log = dict(read_log(edba))
    updates = log["batch_size"].updates
    log[TARGET] = Series(updates, np.where(updates < 4, 32.0, 640.0))
    shown, _ = drawn(monkeypatch, edba, log, tmp_path / "run.png")
    assert shown["batch size"]["drawstyle"] == shown["size aimed at"]["drawstyle"] == "steps-post"
    assert shown["size aimed at"]["y"] == list(log[TARGET].values)
    assert shown["size aimed at"]["linewidth"] < shown["batch size"]["linewidth"]
    del log[TARGET]
    assert "size aimed at" not in drawn(monkeypatch, edba, log, tmp_path / "run.png")[0]


def test_a_size_that_was_always_reached_is_drawn_once(monkeypatch, tmp_path):
    trainer = trained([EDBA(criterion="margin", interval=10, min_subset_size=4)], batch_size=25)
    log = read_log(trainer)
    assert set(log[TARGET].values) == {25}
    assert "size aimed at" not in drawn(monkeypatch, trainer, log, tmp_path / "run.png")[0]


def test_only_chosen_subsets_are_points(monkeypatch, tmp_path):
    trainer = trained([EDBA(criterion="margin", interval=3, min_subset_size=4)])
    points = []
    monkeypatch.setattr("composer_edba.train.picture._draw_points", lambda axis, series, *style: points.append(series))
    plot_run(summarize(trainer, SAMPLES).title, read_log(trainer), tmp_path / "run.png")
    assert list(points[0].updates) == [1, 4, 7]


def test_what_was_not_scored_or_evaluated_has_no_panel(monkeypatch, edba, tmp_path):
    _, whole = drawn(monkeypatch, edba, read_log(edba), tmp_path / "run.png")
    trainer = trained([EDBA(start=0.5, min_subset_size=4)], max_duration="1ep")
    shown, height = drawn(monkeypatch, trainer, read_log(trainer), tmp_path / "run.png")
    assert "edba/margin" not in read_log(trainer)
    assert whole - height == pytest.approx(2 * PANEL, abs=2)  # three panels less, the loss more
    assert "subset size" not in shown
    log = {name: series for name, series in read_log(edba).items() if name != ACCURACY}
    for name in ("edba/gradient_metric", "edba/gradient_average"):
        log[name] = Series(log[name].updates, np.full(len(log[name]), math.nan))
    _, height = drawn(monkeypatch, edba, log, tmp_path / "run.png")
    assert whole - height == pytest.approx(2 * PANEL, abs=2)


def test_by_gradient_mass_what_was_drawn_stands_above_what_was_trained_on(monkeypatch, tmp_path):
    trainer = trained([EDBA(left_out=0.4, min_subset_size=4)], max_duration="4ep")
    log = read_log(trainer)
    shown, _ = drawn(monkeypatch, trainer, log, tmp_path / "run.png")
    assert shown["drawn"]["y"] == list(log["batch_size"].values)
    assert shown["trained on"]["y"] == list(log["subset_size"].values)
    assert sum(shown["drawn"]["y"]) == 4 * SAMPLES > sum(shown["trained on"]["y"])
