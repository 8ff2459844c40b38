"""Plots: proper files, in which nothing is cut off or covered."""

import builtins
import itertools
import struct
import warnings

import numpy as np
import pytest

from tests.histories import STAGES, history, scores
from tf_twostage import plotting
from tf_twostage.errors import InputError
from tf_twostage.reports import plots, tables

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.image import imread  # noqa: E402

PICTURES = {"curves.png", "losses.png", "stages.png", "seeds.png"}
BASELINES = {
  name: scores(value)
  for name, value in {
    "logging policy": 0.73,
    "popularity": 0.93,
    "ranker, all items": 0.94,
    "random": 0.14,
  }.items()
}
LONG_NAMES = (
  "cross_entropy",
  "ips:policy=two_stage",
  "two_stage_ips:sampling=systematic:normalize_shares=true",
)


def made_up(variants, seeds, epochs):
  """Histories that rise towards a level of the variant's own, in two stages higher than in one."""
  rng = np.random.default_rng(0)
  histories = {}
  for (place, variant), seed in itertools.product(enumerate(variants), range(seeds)):
    runs = []
    for epoch in range(1, epochs + 1):
      level = 0.95 - 0.02 * place - 0.2 / epoch + rng.normal(scale=0.005)
      given = scores(level)
      for split in given:
        given[split]["two_stage"] = dict.fromkeys(given[split]["two_stage"], level + 0.03)
      runs.append(given)
    histories[tables.Cell(variant, 0, seed)] = history(*runs)
  return histories


def experiment(variants, seeds=3, epochs=5, baselines=BASELINES):
  return shown(made_up(variants, seeds, epochs), variants, {0: baselines})


def shown(histories, variants, baselines):
  results = tables.results(tables.every_cell(histories), baselines)
  return plots.Experiment(results, tables.curves(histories), variants)


def figures(of):
  """All figures of an experiment, without a warning."""
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    drawn = of.by_epoch(), of.by_loss(), of.by_stage(), of.by_seed()
    for figure in drawn:
      figure.draw(FigureCanvasAgg(figure).get_renderer())
  return dict(zip(("curves", "losses", "stages", "seeds"), drawn, strict=True))


def check_png(path):
  """A whole PNG, from signature to last chunk, that is not all of one color; its size."""
  content = path.read_bytes()
  assert content.startswith(b"\x89PNG\r\n\x1a\n")
  assert content[-12:] == b"\x00\x00\x00\x00IEND\xaeB`\x82"
  width, height = struct.unpack(">II", content[16:24])
  pixels = imread(path)
  assert pixels.shape[:2] == (height, width)
  assert pixels[..., :3].std() > 0.01
  return width, height


def test_an_experiment_leaves_four_files_in_one_step_each_and_replaces_old_ones(tmp_path):
  experiment(["cross_entropy"]).save(tmp_path)
  before = {name: (tmp_path / name).read_bytes() for name in PICTURES}
  experiment(["cross_entropy", "ips"]).save(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == PICTURES
  for name in PICTURES:
    width, _ = check_png(tmp_path / name)
    assert width >= 1400  # seven inches of 200 dots: fit for print
    assert (tmp_path / name).read_bytes() != before[name]


@pytest.mark.parametrize(
  ("variants", "seeds", "epochs"), [(1, 1, 1), (1, 3, 4), (3, 1, 4), (3, 3, 1), (10, 2, 25)]
)
def test_experiments_of_any_size_are_drawn(variants, seeds, epochs):
  names = [f"loss_{i}" for i in range(variants)]
  for figure in figures(experiment(names, seeds, epochs)).values():
    assert all(axis.has_data() for axis in figure.axes)


def test_no_baselines_are_needed():
  assert len(figures(experiment(["cross_entropy"], baselines={}))) == 4


@pytest.mark.parametrize("variants", [LONG_NAMES, LONG_NAMES[:1], [f"loss_{i}" for i in range(10)]])
def test_nothing_is_cut_off_or_covered(variants):
  for name, figure in figures(experiment(variants)).items():
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    axes = [axis.get_tightbbox(renderer) for axis in figure.axes]
    boxes = [
      *axes,
      *(legend.get_window_extent(renderer) for legend in figure.legends),
      *(title.get_window_extent(renderer) for title in figure.texts),
    ]
    for box in boxes:
      assert box.x0 >= 0, name
      assert box.y0 >= 0, name
      assert box.x1 <= figure.bbox.x1, name
      assert box.y1 <= figure.bbox.y1, name
    for first, second in itertools.combinations(boxes, 2):
      assert not first.overlaps(second), name
    for axis, box in zip(figure.axes, axes, strict=True):
      frame = axis.get_window_extent(renderer)
      # The panel is the picture, not its labels.
      assert frame.width > 0.5 * box.width, name
      assert frame.height > 0.35 * box.height, name


def test_legends_name_variants_and_baselines_but_not_random():
  baselines = [name for name in BASELINES if name != "random"]
  for name, figure in figures(experiment(LONG_NAMES)).items():
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    # Where every variant has a row of its own, the row is named.
    assert names == ([*LONG_NAMES, *baselines] if name in ("curves", "stages") else baselines)


def test_all_that_is_drawn_lies_within_the_axes():
  drawn = experiment(LONG_NAMES)
  for figure in (drawn.by_loss(), drawn.by_seed()):
    for axis in figure.axes:
      low, high = axis.get_xlim()
      room = 0.01 * (high - low)
      for line in axis.get_lines():
        for x in line.get_xdata():
          assert low + room < x < high - room


def test_axes_of_percentages_end_at_none_and_all():
  histories = {
    tables.Cell(name, 0, seed): history(scores(value))
    for name, values in {"low": (0.0, 0.1), "high": (0.9, 1.0)}.items()
    for seed, value in enumerate(values)
  }
  for axis in shown(histories, ["low", "high"], {0: {}}).by_loss().axes:
    assert axis.get_xlim() == (0, 100)


def test_intervals_are_those_of_student():
  # 50, 60, 70: mean 60, standard error 10 / sqrt(3); the 97.5% point of Student's distribution
  # with 2 degrees of freedom is t with t / sqrt(2 + t^2) = 0.95.
  t = np.sqrt(2 * 0.95**2 / (1 - 0.95**2))
  histories = {
    tables.Cell("v", 0, seed): history(scores(value)) for seed, value in enumerate((0.5, 0.6, 0.7))
  }
  for axis in shown(histories, ["v"], {0: {}}).by_loss().axes:
    (container,) = axis.containers
    (segment,) = container.lines[2][0].get_segments()
    half = t * 10 / np.sqrt(3)
    np.testing.assert_allclose(segment[:, 0], [60 - half, 60 + half])


def test_the_line_of_no_change_is_the_diagonal():
  (axis,) = experiment(LONG_NAMES).by_stage().axes
  (line,) = axis.get_lines()
  (x, y), slope = line.get_xy1(), line.get_slope()
  assert x == y
  assert slope == 1


def test_points_alone_set_the_limits_of_stages():
  histories = {}
  for seed in range(3):
    given = scores(0.30 + 0.01 * seed)
    given["test"]["two_stage"] = scores(0.80 + 0.01 * seed)["test"]["two_stage"]
    histories[tables.Cell("v", 0, seed)] = history(given)
  (axis,) = shown(histories, ["v"], {0: {}}).by_stage().axes
  for (low, high), first in ((axis.get_xlim(), 30), (axis.get_ylim(), 80)):
    assert first - 1 < low < first
    assert first + 2 < high < first + 3


def test_no_two_variants_look_alike():
  looks = [tuple(plotting.look(i).values()) for i in range(50)]
  assert len(set(looks)) == 50


def save_run(run, baselines, path):
  plotting.save({path: lambda: plots.run_curves(run, baselines, "a run")})


def test_the_curves_of_a_run_are_written_in_one_step(tmp_path):
  path = tmp_path / "curves.png"
  save_run(history(scores(0.1), scores(0.2), scores(0.3)), {"popularity": scores(0.2)}, path)
  check_png(path)
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("epochs", [1, 25])
def test_the_curves_of_a_run_show_every_epoch(epochs):
  run = made_up(["v"], 1, epochs)["v", 0, 0]
  loss, selected, *panels = plots.run_curves(run, BASELINES, "a run").axes
  np.testing.assert_array_equal(
    loss.get_lines()[0].get_ydata(), [1 / e for e in range(1, epochs + 1)]
  )
  np.testing.assert_array_equal(
    selected.get_lines()[0].get_ydata(), [100 * e["selected"] for e in run]
  )
  for axis, stage in zip(panels, STAGES, strict=True):
    expected = [100 * e["scores"]["validation"][stage]["precision@10"] for e in run]
    np.testing.assert_array_equal(axis.get_lines()[0].get_ydata(), expected)
    low, high = axis.get_xlim()
    assert all(t % 1 == 0 for t in axis.get_xticks() if low <= t <= high)


def test_the_curves_of_a_run_mark_the_epoch_that_their_score_chose():
  given = scores(0.1, 0.9), scores(0.3, 0.1), scores(0.2, 0.5)
  figure = plots.run_curves(history(*given), BASELINES, "a run")
  for axis in figure.axes:
    (mark,) = [line for line in axis.get_lines() if line.get_label() == "chosen epoch"]
    assert list(mark.get_xdata()) == [2, 2]
  assert figure.axes[1].get_title() == "score that chose epoch 2"
  assert figure.axes[1].get_ylabel() == "precision@10, validation users"


@pytest.mark.parametrize(("turn", "of_ranker"), [(0, []), (1, [2, 4]), (2, [3, 4])])
def test_the_loss_has_other_marks_where_the_ranker_learns(turn, of_ranker):
  run = made_up(["v"], 1, 4)["v", 0, 0]
  loss = plots.run_curves(run, BASELINES, "a run", turn_epochs=turn).axes[0]
  marks = [line for line in loss.get_lines() if line.get_label() == "the ranker learns"]
  assert [x for line in marks for x in line.get_xdata()] == of_ranker


def test_points_are_logs_where_there_are_several():
  # Two seeds of each log; the points are the means 50, 60 and 70.
  histories = {
    tables.Cell("v", log, seed): history(scores(0.5 + 0.1 * log + 0.02 * (seed - 0.5)))
    for log in range(3)
    for seed in range(2)
  }
  drawn = shown(histories, ["v"], {log: {"popularity": scores(0.1 * log)} for log in range(3)})
  for axis in drawn.by_seed().axes:
    points = axis.collections[0].get_offsets()[:, 0]
    np.testing.assert_allclose(points, [50, 60, 70])
    (baseline,) = [line for line in axis.get_lines() if line.get_label() == "popularity"]
    np.testing.assert_allclose(baseline.get_xdata(), 10)  # the mean of 0, 10 and 20
  assert "logs" in drawn.by_loss().get_suptitle()


def test_without_matplotlib_one_warning_names_the_remedy(tmp_path, monkeypatch, caplog):
  real_import = builtins.__import__

  def without_matplotlib(name, *arguments, **options):
    if name.startswith("matplotlib"):
      raise ImportError(name)
    return real_import(name, *arguments, **options)

  monkeypatch.setattr(builtins, "__import__", without_matplotlib)
  experiment(["cross_entropy"]).save(tmp_path)
  (record,) = caplog.records
  message = record.getMessage()
  assert "tf_twostage[plot]" in message
  assert all(name in message for name in PICTURES)
  save_run(history(scores(0.1)), {}, tmp_path / "curves.png")
  assert len(caplog.records) == 2
  assert not list(tmp_path.iterdir())
  with pytest.raises(InputError, match=r"tf_twostage\[plot\]"):
    plots.run_curves(history(scores(0.1)), {}, "a run")
