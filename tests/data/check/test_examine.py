"""The report: what right propensities add up to, what wrong ones do, and what else is noticed."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tf_twostage.data.check import examine, plots
from tf_twostage.data.log import BanditLog
from tf_twostage.data.policy_table import PolicyTable
from tf_twostage.data.rows import LogRows
from tf_twostage.data.schema import Id, Schema
from tf_twostage.errors import InputError

ITEMS = 5
POLICY = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
RARE = np.array([0.9, 0.05, 0.04, 0.006, 0.004])


def logged(n=4000, *, items=ITEMS, policy=POLICY, scale=1.0, reward=None, **columns):
  """A log of `policy` whose propensities are off by `scale`."""
  rng = np.random.default_rng(0)
  action = rng.choice(len(policy), n, p=policy)
  ids = tuple(f"i{i}" for i in range(items))
  log = LogRows(
    user_index=rng.integers(0, 3, n),
    action=action,
    propensity=columns.pop("propensity", policy[action] * scale),
    reward=rng.random(n) < 0.3 if reward is None else np.full(n, reward),
    position=columns.pop("position", None),
  )
  return BanditLog(
    name="log",
    schema=Schema(user=(Id("user_id", ("a", "b", "c")),), item=(Id("item_id", ids),)),
    users={"user_id": np.array(["a", "b", "c"])},
    items={"item_id": np.array(ids)},
    titles=np.array(ids),
    rows=log,
    **columns,
  )


def report(data, **options):
  return examine.check(data, split="random", **options)


def facts(found):
  return {fact.name: fact.value for fact in found.facts}


def texts(found, *severities):
  return " ".join(f.text for f in found.findings if f.severity in severities)


def test_right_propensities_add_up_to_the_items():
  found = report(logged())
  assert facts(found)["mean of 1/propensity"] == pytest.approx(ITEMS, rel=0.1)
  assert facts(found)["items with too much weight"] == 0
  assert facts(found)["largest sum of propensities"] == pytest.approx(1, abs=1e-6)
  assert found.usable
  assert not texts(found, "problem", "warning")


def test_propensities_that_are_too_small_make_a_log_unusable():
  found = report(logged(scale=0.5))
  assert not found.usable
  assert "cannot exceed the 5 items" in texts(found, "problem")
  assert "shown more often than their propensities allow" in texts(found, "warning")
  assert facts(found)["items with too much weight"] == ITEMS


def test_a_catalogue_of_logged_items_only_is_the_likelier_reason():
  found = report(dataclasses.replace(logged(scale=0.5), items_listed=False))
  assert found.usable
  assert "only 5 items were logged: either items that were never shown are" in texts(
    found, "warning"
  )


def test_one_item_with_wrong_propensities_is_named():
  data = logged()
  propensity = np.where(data.rows.action == 2, 0.05, data.rows.propensity)
  found = report(data.with_propensities(propensity))
  assert facts(found)["items with too much weight"] == 1
  assert "(worst: i2, 3" in texts(found, "warning")  # 0.15 / 0.05


def test_propensities_of_a_slate_sum_to_more_than_one():
  found = report(logged(scale=2.0))
  assert facts(found)["largest sum of propensities"] == pytest.approx(2)
  assert "in 3 of 3 situations" in texts(found, "warning")
  assert "below the 5 items" in texts(found, "note")


def test_percentages_that_could_be_probabilities_are_warned_of():
  uniform = np.full(200, 1 / 200)
  found = report(logged(items=200, policy=uniform, scale=100))
  assert "if the propensities are percentages, divide them by 100" in texts(found, "warning")
  assert "never shows some items" not in texts(found, "note")


def test_items_outside_the_support_are_noted():
  found = report(logged(items=ITEMS + 3))
  assert facts(found)["items never shown"] == 3
  assert "3 of 8 items were never shown (i5, i6, i7)" in texts(found, "warning")
  assert "below the 8 items there are" in texts(found, "note")


def test_effective_sample_sizes_are_those_of_the_weights():
  data = logged()
  policy = PolicyTable(None, np.array([[0.1, 0.1, 0.2, 0.3, 0.3]]))
  found = report(data, policy=policy)
  weights = policy.probabilities[0, data.rows.action] / POLICY[data.rows.action]
  by_section = {(f.section, f.name): f.value for f in found.facts}
  size = by_section["Given policy on this log", "effective sample size"]
  assert size == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), abs=0.1)
  assert by_section["Given policy on this log", "mean weight"] == pytest.approx(1, abs=0.1)
  uniform = 1 / ITEMS / POLICY[data.rows.action]
  size = by_section["Uniform policy on this log", "effective sample size"]
  assert size == pytest.approx(uniform.sum() ** 2 / (uniform**2).sum(), abs=0.1)


def test_a_policy_that_wants_what_was_never_shown_is_warned_of():
  policy = PolicyTable(None, np.array([[0, 0, 0, 0, 0, 0.6, 0.4]]))
  found = report(logged(items=7), policy=policy)
  assert "puts 100.0% of its probability on items" in texts(found, "warning")
  assert "worth 0.0 of its 4000 rows" in texts(found, "warning")


def test_a_policy_may_differ_by_position():
  position = np.arange(4000) % 2
  policy = PolicyTable(np.array([0, 1]), np.stack([POLICY, POLICY[::-1]]))
  data = logged(position=position)
  weights = plots.weights(data, policy)
  np.testing.assert_allclose(weights[::2], 1, rtol=1e-6)
  expected = POLICY[::-1][data.rows.action[1::2]] / POLICY[data.rows.action[1::2]]
  np.testing.assert_allclose(weights[1::2], expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "severity", "words"),
  [
    ({"reward": 0.0}, "problem", "no row has a reward above 0"),
    ({"reward": 1.0}, "warning", "every row has a reward above 0"),
    ({"time": np.zeros(4000)}, "warning", "all rows have one time"),
    ({"time": np.full(4000, 1.7e12)}, "warning", "divide milliseconds by 1000"),
    ({"time": np.arange(4000) // 2000}, "warning", "rows with the user, item, time of an earlier"),
    ({"time": np.arange(4000)}, "warning", "training rows are later than the first row"),
    ({"propensity": None, "notes": ("none logged",)}, "note", "none logged"),
  ],
)
def test_what_else_is_noticed(options, severity, words):
  assert words in texts(report(logged(**options)), severity)


def test_the_report_reads_as_a_table_and_as_json():
  found = report(logged(items=6))
  text = str(found)
  assert max(map(len, text.splitlines())) <= 100
  for words in ("Log log", "mean of 1/propensity", "effective sample size", "Usable."):
    assert words in text
  content = found.to_dict()
  assert content["usable"] is True
  assert content["facts"]["Rows"]["items"] == 6
  assert content["findings"][0].keys() == {"severity", "text"}

  frame = found.to_frame()
  assert list(frame.columns) == ["section", "name", "value", "meaning"]
  assert len(frame) == len(found.facts)


@pytest.mark.parametrize(
  ("policy", "step"), [(POLICY, 60), (np.full(ITEMS, 1 / ITEMS), 86400), (RARE, 3e4)]
)
def test_no_labels_of_the_figure_overlap(policy, step):
  data = logged(600, policy=policy, time=1.77e9 + step * np.arange(600.0))
  figure = report(data).plot()
  renderer = FigureCanvasAgg(figure).get_renderer()
  figure.draw(renderer)
  for axes in figure.axes:
    frame = axes.get_window_extent(renderer).expanded(1.01, 1.01)
    for axis, low, high in (
      (axes.xaxis, frame.x0, frame.x1),
      (axes.yaxis, frame.y0, frame.y1),
    ):
      boxes = [
        label.get_window_extent(renderer)
        for label in axis.get_ticklabels(which="both")
        if label.get_text()
      ]
      along = [(b.x0, b.x1) if axis is axes.xaxis else (b.y0, b.y1) for b in boxes]
      shown = sorted(ends for ends in along if low <= sum(ends) / 2 <= high)
      assert len(shown) > 1
      assert all(left[1] <= right[0] for left, right in itertools.pairwise(shown))


def test_rows_of_one_time_are_reported_and_split_at_random():
  found = examine.check(logged(time=np.full(4000, 5.0)))
  assert "all rows have one time" in texts(found, "warning")
  assert facts(found)["train rows"] == 2800
  by_time = examine.check(logged(time=np.full(4000, 5.0)), split="time")
  assert "split by user or at random" in texts(by_time, "problem")
  assert not by_time.usable


@pytest.mark.parametrize(
  ("chosen", "options", "words"),
  [
    (slice(1), {}, "validation and test have no rows, of 1; log more: there is 1 row"),
    ("one user", {}, "all rows are of one user: policies cannot be evaluated; log more users"),
    ("one user", {"split": "user"}, "log more: there is 1 user"),
    (slice(40), {"shares": {"test": 0.01}}, "test has no rows, of 40; change the shares"),
    ("late rewards", {"split": "time"}, "none of the 280 training rows has a reward above 0"),
  ],
)
def test_a_log_that_cannot_be_split_is_not_usable(chosen, options, words):
  log = logged(400, time=np.arange(400.0))
  if chosen == "one user":
    log = log.select(log.rows.user_index == 1)
  elif chosen == "late rewards":
    log = dataclasses.replace(log, rows=dataclasses.replace(log.rows, reward=log.time > 300))
  else:
    log = log.select(chosen)
  found = examine.check(log, **{"split": "random", **options})
  assert words in texts(found, "problem")
  assert not found.usable


def test_held_out_rows_of_one_user_are_warned_of():
  log = logged(400, time=np.arange(400.0))
  rows = dataclasses.replace(log.rows, user_index=np.where(log.time > 330, 0, log.rows.user_index))
  found = examine.check(dataclasses.replace(log, rows=rows), split="time")
  assert "all test rows are of one user" in texts(found, "warning")
  assert found.usable


def test_the_report_shows_in_a_notebook_and_as_a_figure(tmp_path):
  found = logged(items=6, time=np.arange(4000)).check(PolicyTable(None, np.full((1, 6), 1 / 6)))
  assert "mean of 1/propensity" in found._repr_html_()
  titles = [axis.get_title() for axis in found.plot().axes]
  assert "Share of all weight in the heaviest rows" in titles
  found.save(tmp_path)
  assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_policy_is_refused():
  with pytest.raises(InputError, match="policy must be a PolicyTable or its file, got list"):
    logged().check(policy=[0.5])


def test_histories_and_kinds_of_events_are_counted():
  columns = {
    "user": [*"aaab"],
    "item": [*"xyxy"],
    "day": range(4),
    "did": ["view", "buy", "view", None],
  }
  frame = pd.DataFrame({**columns, "click": 1.0})
  past = {"past": {"kind": "sequence", "column": "item", "events": "did"}}
  roles = {"user": "user", "item": "item", "reward": "click", "time": "day"}
  found = facts(report(BanditLog.from_pandas(frame, sequences=past, **roles)))
  assert found["events before a row"] == (0 + 1 + 2 + 0) / 4
  assert found["events 'view'"] == pytest.approx(2 / 3)
