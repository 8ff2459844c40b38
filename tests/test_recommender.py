"""The public recommender: what it trains on, recommends, exports and loads."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests import prepared_environment as prepared
from tests.losses.outside import Scaled
from tests.serving import small
from tf_twostage import BanditLog, TwoStageRecommender, environment, evaluate, losses
from tf_twostage.config import Config, EncoderConfig, FitConfig, GeneratorConfig
from tf_twostage.data import sets
from tf_twostage.errors import InputError
from tf_twostage.evaluation import propensities
from tf_twostage.training import loop
from tf_twostage.workspace import Workspace

USERS, ITEMS, ROWS = 40, 12, 800
QUICK = {
  "training": GeneratorConfig(epochs=2, batch_size=64, item_bias=True),
  "ranker_training": FitConfig(epochs=2, batch_size=64),
  "encoder": EncoderConfig(embedding_stddev=0.1),
}


def frames():
  """A log of random shows, where users like the items of their own group."""
  rng = np.random.default_rng(0)
  user, item = rng.integers(USERS, size=ROWS), rng.integers(ITEMS, size=ROWS)
  liked = user % 3 == item % 3
  log = pd.DataFrame(
    {
      "user": [f"u{i}" for i in user],
      "item": [f"i{i}" for i in item],
      "propensity": 1 / ITEMS,
      "click": (rng.random(ROWS) < np.where(liked, 0.6, 0.1)).astype(int),
      "day": np.arange(ROWS),
      "hour": rng.integers(24, size=ROWS).astype(float),
      "score": liked + 0.1 * rng.random(ROWS),
    }
  )
  items = pd.DataFrame(
    {
      "item": [f"i{i}" for i in range(ITEMS)],
      "title": [f"Item {i}" for i in range(ITEMS)],
      "group": [f"g{i % 3}" for i in range(ITEMS)],
      "price": np.linspace(1, 2, ITEMS),
      "tags": ["a|b" if i % 2 else "b" for i in range(ITEMS)],
    }
  )
  users = pd.DataFrame({"user": [f"u{i}" for i in range(USERS)], "age": 20.0 + np.arange(USERS)})
  users["taste"] = [f"t{i % 3}" for i in range(USERS)]
  return log, items, users


def make_log(log=None, items=None, **columns):
  frame, own_items, users = frames()
  given = {"propensity": "propensity", "time": "day", "users": users, **columns}
  return BanditLog.from_pandas(
    frame if log is None else log,
    user="user",
    item="item",
    reward="click",
    items=own_items if items is None else items,
    **given,
  )


@pytest.fixture(scope="module")
def parts():
  return make_log().split("time")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def model(parts, workdir):
  train, valid, _ = parts
  made = TwoStageRecommender(losses.IPS(policy="two_stage"), slate_size=6, **QUICK)
  return made.fit(train, validation=valid, workdir=workdir, progress=False)


def assert_same_answers(one, other, log, asked=("u3", "u7")):
  """Recommendations and policies of both."""
  rows = np.arange(20)
  given, expected = (m.recommend(list(asked), k=4) for m in (one, other))
  pd.testing.assert_frame_equal(given, expected, rtol=1e-4, atol=1e-5)
  for stage in ("one_stage", "two_stage", "distinct"):
    given, expected = (m.policy(stage).on(log).probabilities(rows) for m in (one, other))
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6)


# Fitting


def test_a_history_has_a_row_for_each_epoch(model):
  assert list(model.history.index) == [1, 2]
  assert model.history["best"].sum() == 1
  assert {"mean_loss", "validation/two_stage/snips"} <= set(model.history)
  assert "best epoch" in repr(model)
  assert "<table" in model._repr_html_()


def test_a_finished_model_is_found_again(model, parts, workdir, monkeypatch):
  monkeypatch.setattr(loop._Run, "train", lambda *_: pytest.fail("trained again"))
  again = TwoStageRecommender(losses.IPS(policy="two_stage"), slate_size=6, **QUICK)
  again.fit(parts[0], validation=parts[1], workdir=workdir, progress=False)
  assert_same_answers(again, model, parts[2])


def test_without_validation_rows_the_latest_choose_the_epoch(parts, capsys):
  model = TwoStageRecommender("cross_entropy", **QUICK).fit(parts[0], progress=False)
  assert "step" not in capsys.readouterr().err  # no progress bar of any model
  assert model.slate_size == min(Config().slate_size, ITEMS)
  assert not any(name.startswith("test/") for name in model.history)


def test_validation_rows_of_other_items_are_refused(parts):
  other = make_log(items=frames()[1][["item", "group"]])
  with pytest.raises(InputError, match="make one BanditLog of all rows and split it"):
    TwoStageRecommender(**QUICK).fit(parts[0], validation=other)


def test_missing_propensities_are_estimated(monkeypatch):
  monkeypatch.setattr(propensities, "fit", lambda *_, **__: None)  # of the models of the estimate
  train, valid, _ = make_log(propensity=None).split("time")
  model = TwoStageRecommender(**QUICK).fit(train, validation=valid, progress=False)
  assert model.environment.facts["propensities"]["estimated"]


def test_logged_scores_make_the_ranker():
  train, valid, _ = make_log(ranker_score="score").split("time")
  model = TwoStageRecommender(**QUICK).fit(train, validation=valid, progress=False)
  assert model.environment.facts["ranker"] == "fitted to the log's ranker scores"


@pytest.mark.parametrize("call", ["recommend", "policy", "export"])
def test_what_is_not_fitted_says_so(call, tmp_path):
  arguments = {"recommend": (["u1"],), "policy": (), "export": (tmp_path,)}[call]
  with pytest.raises(InputError, match=r"not fitted; call fit\(\)"):
    getattr(TwoStageRecommender(), call)(*arguments)


# Recommending


def test_recommendations_are_ranked_and_leave_excluded_items_out(model):
  shown = model.recommend(["u3", "u7"], k=5, exclude={"u3": ["i0", "i3"]})
  assert list(shown) == ["user", "rank", "item", "title", "score", "generator_score"]
  assert list(shown["rank"]) == [1, 2, 3, 4, 5] * 2
  assert list(shown["user"].unique()) == ["u3", "u7"]
  assert not {"i0", "i3"} & set(shown.loc[shown["user"] == "u3", "item"])
  assert (shown["title"] == "Item " + shown["item"].str[1:]).all()
  assert (np.diff(shown["score"].to_numpy().reshape(2, 5)) <= 0).all()
  lists = model.recommend(["u3", "u7"], k=5, exclude=[["i0", "i3"], []])
  pd.testing.assert_frame_equal(shown, lists)
  assert len(model.recommend("u3", k=50)) == ITEMS


def test_excluded_items_that_are_unknown_are_named(model, caplog):
  model.recommend(["u3", "u7"], k=1, exclude=[["i1", "x9", "y"], ["x9"]])
  assert "2 of the items to exclude are not in the catalogue (first: 'x9')" in caplog.text


def test_excluded_items_are_lists_of_ids(model):
  first = list(model.recommend(["u3"], k=2)["item"])
  kept = model.recommend(["u3"], k=2, exclude={"u3": first[:1]})
  assert first[0] not in set(kept["item"])
  for exclude in ("i1", {"u3": "i10"}, ["i10"]):
    with pytest.raises(InputError, match=r"exclude .* the text 'i10?'"):
      model.recommend(["u3"], exclude=exclude)


def test_wrong_kinds_of_arguments_are_refused(model, parts):
  with pytest.raises(InputError, match="fit takes a BanditLog or an Environment, got DataFrame"):
    TwoStageRecommender().fit(pd.DataFrame())
  with pytest.raises(InputError, match="evaluate takes a BanditLog, got DataFrame"):
    evaluate(pd.DataFrame(), {})
  with pytest.raises(InputError, match="policies by name"):
    evaluate(parts[2], model.policy())
  with pytest.raises(InputError, match=r"call fit\(\) first"):
    TwoStageRecommender().plot()
  with pytest.raises(InputError, match="there are no users"):
    model.recommend([])


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("slate_size", 0, "slate_size must be at least 1, got 0"),
    ("loss", 5, "loss must be a name or a losses.OffPolicyLoss, got 5"),
    ("encoder", 5, "encoder must be a config.EncoderConfig, got 5"),
    ("training", {}, "training must be a config.GeneratorConfig, got {}"),
    ("ranker_training", {}, "ranker_training must be a config.FitConfig, got {}"),
    ("support", 64, "support must be a config.SupportConfig, got 64"),
    ("user_tower", 8, "user_tower must be a tf.keras.Model of Keras 2, or a function"),
    ("item_tower", "mine", "item_tower must be a tf.keras.Model of Keras 2, or a function"),
  ],
)
def test_wrong_settings_are_refused(name, value, message):
  with pytest.raises(InputError, match=message):
    TwoStageRecommender(**{name: value})


def test_a_file_is_no_directory_to_work_in_or_export_to(model, parts, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(InputError, match="file: File exists; name a writable directory as workdir"):
    TwoStageRecommender(**QUICK).fit(parts[0], workdir=tmp_path / "file")
  with pytest.raises(InputError, match="file: File exists; name a writable directory as the exp"):
    model.export(tmp_path / "file")


def test_propensities_that_make_a_log_unusable_are_warned_of(parts, monkeypatch, caplog):
  monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("training begins"))
  small = parts[0].with_propensities(np.full(len(parts[0]), 1e-12))
  with pytest.raises(pytest.fail.Exception, match="training begins"):
    TwoStageRecommender(**QUICK).fit(small)
  (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
  assert "the propensities are too small" in warning


def test_curves_have_the_baselines_and_those_of_a_loaded_model_do_not(model, workdir):
  def lines(drawn):
    return {line.get_label() for axis in drawn.plot().axes for line in axis.get_lines()}

  assert {"popularity", "ranker, all items", "this run", "chosen epoch"} <= lines(model)
  assert "popularity" not in lines(TwoStageRecommender.load(workdir))


def test_unknown_users_are_recommended_for_by_their_features(model):
  frame = pd.DataFrame({"user_id": ["new"], "age": [33], "taste": ["t1"]})
  assert list(model.recommend(frame, k=2)["user"]) == ["new", "new"]
  with pytest.raises(InputError, match=r"1 of 2 users are not known .first: 'new'"):
    model.recommend(["u1", "new"])
  with pytest.raises(InputError, match="'age' has no value in 1 of 1 rows"):
    model.recommend(frame.assign(age=[None]))
  with pytest.raises(InputError, match="exclude has 1 lists for 2 users"):
    model.recommend(["u1", "u2"], exclude=[["i1"]])
  with pytest.raises(InputError, match="k must be a whole number of at least 1"):
    model.recommend(["u1"], k=0)


def test_ids_must_be_known_where_they_are_all_that_the_model_reads(tmp_path):
  model = TwoStageRecommender(**QUICK).fit(make_log(users=None), progress=False)
  with pytest.raises(InputError, match=r"1 of 2 users are not known .first: 'new'"):
    model.recommend(["u1", "new"], k=1)
  assert list(model.recommend(pd.DataFrame({"user_id": ["new"]}), k=1)["user"]) == ["new"]


def test_context_is_a_column(tmp_path):
  log = make_log(context=["hour"])
  model = TwoStageRecommender(**QUICK).fit(log, workdir=tmp_path, progress=False)
  with pytest.raises(InputError, match="the model reads hour; pass a DataFrame"):
    model.recommend(["u1"])
  asked = pd.DataFrame({"user_id": ["u1", "u2"], "hour": [3.0, 4.0]})
  assert len(model.recommend(asked, k=3)) == 6
  loaded = TwoStageRecommender.load(tmp_path)
  pd.testing.assert_frame_equal(loaded.recommend(asked), model.recommend(asked), rtol=1e-4)


# Policies


def test_a_policy_is_a_distribution_on_any_log_of_the_same_items(model, parts):
  test = parts[2]
  rows = np.arange(len(test))
  here = model.policy().on(test).probabilities(rows)
  np.testing.assert_allclose(here.sum(axis=1), 1, atol=1e-3)
  order = np.random.default_rng(1).permutation(ITEMS)
  frame, items, _ = frames()
  other = make_log(frame[-len(test) :], items=items.iloc[order])
  there = model.policy().on(other).probabilities(rows)
  ids = [list(log.schema.item_id.vocabulary) for log in (test, other)]
  np.testing.assert_allclose(there, here[:, [ids[0].index(i) for i in ids[1]]], atol=1e-6)


def test_a_higher_temperature_explores_more(model, parts):
  rows = np.arange(20)
  cold, hot = (
    model.policy("one_stage", temperature=t).on(parts[2]).probabilities(rows) for t in (1.0, 5.0)
  )
  assert hot.max(axis=1).mean() < cold.max(axis=1).mean()
  with pytest.raises(InputError, match="temperature must be above 0"):
    model.policy(temperature=0.0)
  with pytest.raises(InputError, match="stage must be one of"):
    model.policy("three_stage")


@pytest.mark.parametrize("length", [1, 3])
def test_what_is_served_is_valued_as_a_policy(model, parts, length):
  test = parts[2]
  rows = np.arange(20)
  found = model.policy("served", length=length).on(test)
  probabilities = found.probabilities(rows)
  users = pd.DataFrame({"user": np.asarray(test.schema.user_id.vocabulary)})
  users = users["user"][test.rows.user_index[rows]]
  shown = model.recommend(list(users), k=length)["item"].to_numpy().reshape(20, length)
  ids = list(test.schema.item_id.vocabulary)
  expected = np.zeros_like(probabilities)
  for row, items in enumerate(shown):
    expected[row, [ids.index(item) for item in items]] = 1 / length
  np.testing.assert_allclose(probabilities, expected)
  assert found.kind == f"as served, top {length}"


def slate_log(slots):
  """The rows of each user as slates of so many slots, by day."""
  frame = frames()[0].sort_values(["user", "day"], kind="stable")
  number = frame.groupby("user").cumcount()
  frame["slate"] = frame["user"] + "-" + (number // slots).astype(str)
  return make_log(frame.assign(slot=number % slots), slate="slate", position="slot")


def test_what_is_served_is_a_list_on_slates(model):
  log = slate_log(3)
  policy = model.policy("served").on(log)
  rows = np.arange(60)
  shown = np.asarray(log.schema.item_id.vocabulary)[policy.probabilities(rows).argmax(axis=1)]
  users = np.asarray(log.schema.user_id.vocabulary)[log.rows.user_index[rows]]
  served = model.recommend(sorted(set(users)), k=3).groupby("user")["item"].apply(list)
  assert list(shown) == [served[u][k] for u, k in zip(users, log.rows.position[rows], strict=True)]
  assert policy.kind == "as served, top 3"
  assert (policy.probabilities(rows).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
  ("slots", "length", "message"),
  [(3, 2, "length is 2, but the log's slates have 3 slots"), (7, None, "at most its slate_size")],
)
def test_lists_that_do_not_fit_slates_are_refused(model, slots, length, message):
  with pytest.raises(InputError, match=message):
    model.policy("served", length=length).on(slate_log(slots))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"stage": "served", "temperature": 2.0}, "the same at every temperature"),
    ({"stage": "two_stage", "length": 3}, "length is of stage 'served' alone"),
    ({"stage": "served", "length": 7}, "between 1 and the slate size 6, got 7"),
  ],
)
def test_options_that_change_nothing_of_a_policy_are_refused(model, options, message):
  with pytest.raises(InputError, match=message):
    model.policy(**options)


def test_a_log_of_other_items_is_refused(model):
  frame, items, _ = frames()
  items["item"] = items["item"].replace("i2", "i99")
  frame = frame[frame["item"] != "i2"]
  with pytest.raises(InputError, match=r"1 items of log are not in the model's catalogue .*'i99'"):
    model.policy().on(make_log(frame, items=items))


# Exporting and loading


def test_a_loaded_model_answers_as_the_fitted_one(model, parts, workdir, tmp_path, monkeypatch):
  small.skip_replay(monkeypatch.setattr)
  version = model.export(tmp_path / "shop")
  for path in (tmp_path / "shop", version, workdir):
    loaded = TwoStageRecommender.load(path)
    assert_same_answers(loaded, model, parts[2])
  assert loaded.slate_size == 6
  assert loaded.stage == model.stage
  pd.testing.assert_frame_equal(loaded.history, model.history, rtol=1e-6)
  with pytest.raises(InputError, match="loaded from an export"):
    loaded.export(tmp_path / "again")
  with pytest.raises(InputError, match="cannot be trained further"):
    loaded.fit(parts[0])


def test_an_export_may_leave_users_out(model, tmp_path, monkeypatch):
  small.skip_replay(monkeypatch.setattr)
  model.export(tmp_path / "shop", users=False)
  loaded = TwoStageRecommender.load(tmp_path / "shop")
  with pytest.raises(InputError, match="the model reads age, taste; pass a DataFrame"):
    loaded.recommend(["u3"])
  features = pd.DataFrame({"user_id": ["u3"], "age": [23.0], "taste": ["t0"]})
  ours = model.recommend(["u3"])
  pd.testing.assert_frame_equal(loaded.recommend(features), ours, rtol=1e-4)


def test_what_is_no_export_is_not_loaded(tmp_path):
  with pytest.raises(InputError, match="no version of a SavedModel"):
    TwoStageRecommender.load(tmp_path)


# Rankers and towers of one's own


def score(user, item):
  same = tf.strings.substr(user["taste"], 1, 1) == tf.strings.substr(item["group"], 1, 1)
  return tf.cast(same, tf.float32) + 0.1 * item["price"]


def keras_ranker():
  tf.keras.utils.set_random_seed(1)
  age, price = (tf.keras.Input((1,), name=name) for name in ("age", "price"))
  hidden = tf.keras.layers.Concatenate()([age / 40, price])
  return tf.keras.Model([age, price], tf.keras.layers.Dense(1)(hidden))


@pytest.mark.parametrize("kind", ["function", "keras", "path"])
def test_a_custom_ranker_orders_candidates_and_is_exported(parts, tmp_path, kind):
  train, valid, test = parts
  ranker = score if kind == "function" else keras_ranker()
  if kind == "path":
    ranker.save(tmp_path / "ranker.keras")
    ranker = tmp_path / "ranker.keras"
  model = TwoStageRecommender(ranker=ranker, slate_size=ITEMS, **QUICK)
  model.fit(train, validation=valid, workdir=tmp_path / "run", progress=False)
  if kind == "function":
    shown = model.recommend(["u3"], k=4)  # taste t0
    assert set(shown["item"]) == {"i0", "i3", "i6", "i9"}
    np.testing.assert_allclose(shown["score"].max(), 1 + 0.1 * (1 + 9 / 11), rtol=1e-5)
  assert_same_answers(TwoStageRecommender.load(tmp_path / "run"), model, test)


@pytest.mark.parametrize(
  ("ranker", "message"),
  [
    (
      lambda user, item: user["shoe_size"],
      r"the function fails on tensors \(KeyError: 'shoe_size'\); write it with TensorFlow",
    ),
    (lambda user, item: 1 / (item["price"] - 1), "scores must be finite"),
    (lambda user, item: item["price"][:1], "return one number a pair"),
    ("nowhere", "ranker nowhere: there is no such file"),
  ],
)
def test_rankers_that_do_not_fit_are_refused(parts, ranker, message):
  with pytest.raises(InputError, match=message):
    TwoStageRecommender(ranker=ranker, **QUICK).fit(parts[0])


def user_tower(width=7):
  def make():
    inputs = {
      "user_id": tf.keras.Input((), dtype=tf.int64, name="user_id"),
      "age": tf.keras.Input((1,), name="age"),
    }
    vector = tf.keras.layers.Embedding(USERS + 1, 8)(inputs["user_id"])
    hidden = tf.keras.layers.Concatenate()([vector, inputs["age"]])
    hidden = tf.keras.layers.Dropout(0.1)(hidden)
    return tf.keras.Model(inputs, tf.keras.layers.Dense(width)(hidden))

  return make


class ItemTower(tf.keras.Model):
  def __init__(self):
    super().__init__()
    self.embedding, self.dense = tf.keras.layers.Embedding(ITEMS + 1, 8), tf.keras.layers.Dense(7)

  def call(self, codes):
    return self.dense(tf.nn.relu(self.embedding(codes["item_id"])))


@pytest.mark.parametrize("sides", ["both", "item"])
def test_custom_towers_are_trained_exported_and_found_again(parts, tmp_path, monkeypatch, sides):
  train, valid, test = parts
  towers = {"item_tower": ItemTower}
  if sides == "both":
    towers["user_tower"] = user_tower()
  model = TwoStageRecommender(**towers, **QUICK)
  model.fit(train, validation=valid, workdir=tmp_path, progress=False)
  assert model.towers.candidates().shape == (ITEMS, 7 + 1)  # and the item's bias
  assert_same_answers(TwoStageRecommender.load(tmp_path), model, test)
  monkeypatch.setattr(loop._Run, "train", lambda *_: pytest.fail("trained again"))
  again = TwoStageRecommender(**towers, **QUICK)
  again.fit(train, validation=valid, workdir=tmp_path, progress=False)
  assert_same_answers(again, model, test)


def test_towers_that_do_not_fit_are_refused(parts):
  with pytest.raises(InputError, match=r"width 5, but the item tower's have 21.*Dense.21. as the"):
    TwoStageRecommender(user_tower=user_tower(5), **QUICK).fit(parts[0])
  with pytest.raises(
    InputError, match=r"item_tower fails on codes of two rows .*its input is a dict"
  ):
    TwoStageRecommender(item_tower=user_tower(5), **QUICK).fit(parts[0])


# With all settings of a command, in a tiny prepared environment


@pytest.fixture
def config(monkeypatch, tmp_path):
  monkeypatch.setitem(sets.DATASETS, "synthetic", lambda data_dir: prepared.DATA)
  config = prepared.config(prepared.contents().write(tmp_path / "environment"))
  return dataclasses.replace(config, loss="cross_entropy")


def changed(config, section, **values):
  return dataclasses.replace(
    config, **{section: dataclasses.replace(getattr(config, section), **values)}
  )


def world_of(config, directory):
  return environment.make(config, Workspace(directory / "stages"))


def fitted(config, directory):
  model = TwoStageRecommender.from_config(config)
  return model.fit(world_of(config, directory), workdir=directory, progress=False)


@pytest.mark.parametrize(
  ("loss", "asked", "rewarded"),
  [
    ("cross_entropy", None, True),
    ("cross_entropy", True, True),
    ("cross_entropy", False, False),
    ("snips", None, False),
  ],
)
def test_a_generator_learns_from_the_rows_that_its_loss_needs_unless_asked(
  config, tmp_path, monkeypatch, loss, asked, rewarded
):
  seen = []
  fit = loop.fit

  def spy(model, batches, *arguments, **options):
    seen.append(batches.func.__self__)
    return fit(model, batches, *arguments, **options)

  monkeypatch.setattr(loop, "fit", spy)
  config = dataclasses.replace(config, loss=loss)
  fitted(changed(config, "generator", positives_only=asked), tmp_path)
  rows = prepared.contents().log
  rows = rows.query("reward > 0") if rewarded else rows
  np.testing.assert_array_equal(seen[0].action, rows["item_index"])
  np.testing.assert_array_equal(seen[0].reward, rows["reward"])


@pytest.mark.parametrize(
  "loss",
  [
    losses.SNIPS(),
    losses.POEM(),
    losses.DoublyRobust(),
    losses.IPS(baseline=-0.1),
    losses.BinaryCrossEntropy(),
    Scaled(),
  ],
)
def test_rewarded_rows_alone_are_refused_where_they_mislead(loss):
  message = f"positives_only is wrong for {type(loss).__name__}: .*; leave it out"
  with pytest.raises(InputError, match=message):
    TwoStageRecommender(loss, training=GeneratorConfig(positives_only=True))


def test_the_rows_that_a_loss_needs_are_no_other_setting(config, tmp_path):
  world = world_of(config, tmp_path)
  unset, asked = (
    TwoStageRecommender.from_config(changed(config, "generator", positives_only=value))
    for value in (None, True)
  )
  assert unset.directory(world, tmp_path) == asked.directory(world, tmp_path)


def test_the_largest_training_reward_is_the_label_1(config, tmp_path):
  files = prepared.contents()
  files.log["reward"] *= 30.0
  files.write(tmp_path / "environment")
  world = world_of(config, tmp_path)
  for loss in ("binary_cross_entropy", "doubly_robust", losses.BinaryCrossEntropy()):
    objective = TwoStageRecommender(loss).fresh_generator(world).objective
    assert objective.reward_scale == 30.0


def test_a_log_without_rewards_is_refused_before_training(config, tmp_path):
  files = prepared.contents()
  files.log["reward"] = 0
  files.write(tmp_path / "environment")
  with pytest.raises(InputError, match="no rows to train on"):
    fitted(config, tmp_path)


@pytest.mark.parametrize("item_bias", [False, True])
def test_item_bias_widens_the_vectors_by_one(config, tmp_path, item_bias):
  model = fitted(changed(config, "generator", item_bias=item_bias), tmp_path)
  encoder = EncoderConfig()
  width = encoder.id_width + 2 * encoder.feature_width  # item_id, decade, topics
  items = model.towers.candidates()
  assert items.shape == (prepared.ITEMS, width + item_bias)
  if item_bias:
    assert np.ptp(items[:, -1]) > 0  # learned
    users = model.towers.query(model.environment.tables.users)
    np.testing.assert_array_equal(users[:, -1], np.ones(prepared.USERS))


def test_a_generator_learns_against_a_support(config, tmp_path):
  settings = {"support_size": 24, "support_draws": "popularity", "hard_candidates": 4}
  model = fitted(changed(changed(config, "support", **settings), "generator", epochs=12), tmp_path)
  mean_loss = model.history["mean_loss"].to_numpy()
  assert mean_loss[-3:].mean() < 0.7 * mean_loss[:3].mean()
  assert len(model.towers.losses) == 2  # no table is penalised as a whole


@pytest.mark.parametrize(("size", "hard", "fits"), [(16, 0, False), (20, 4, False), (21, 4, True)])
def test_a_support_needs_room_for_draws(config, size, hard, fits):
  config = changed(config, "support", support_size=size, hard_candidates=hard)
  if fits:
    TwoStageRecommender.from_config(config)
  else:
    with pytest.raises(InputError, match=f"support_size is {size}, but a batch of 16 rows and"):
      TwoStageRecommender.from_config(config)


def test_more_hard_candidates_than_items_are_refused(config, tmp_path):
  with pytest.raises(InputError, match="but the catalogue has 15 items"):
    fitted(changed(config, "support", support_size=64, hard_candidates=16), tmp_path)


@pytest.mark.parametrize("more", [0, 1])
def test_a_support_that_outgrows_the_catalogue_is_warned_of(config, tmp_path, caplog, more):
  config = changed(config, "support", support_size=prepared.ITEMS + more)
  config = changed(config, "generator", batch_size=8)
  model = TwoStageRecommender.from_config(config)
  model.fresh_generator(world_of(config, tmp_path))
  assert (f"more than the {prepared.ITEMS} items" in caplog.text) == bool(more)


def test_a_ranker_beside_an_environment_is_refused(config, tmp_path):
  with pytest.raises(InputError, match="an environment has its ranker and validation rows"):
    TwoStageRecommender(ranker=score).fit(world_of(config, tmp_path))


CHANGES = [
  {"seed": 1},
  {"slate_size": 11},
  {"loss_options": {"alpha": 0.5}},
  {"loss": "ips"},
  ("generator", {"epochs": 3}),
  ("generator", {"positives_only": False}),
  ("generator", {"item_bias": True}),
  ("generator", {"sparse_l2": True}),
  ("support", {"support_size": 512}),
  ("support", {"support_size": 512, "support_draws": "popularity"}),
  ("support", {"support_size": 512, "hard_candidates": 8}),
  ("support", {"support_size": 512, "hard_refresh_steps": 8}),
  ("encoder", {"id_width": 11}),
  ("encoder", {"id_buckets": 100}),
  ("generator", {"precision": "mixed_bfloat16"}),
  ("data", {"validation_users": 9}),
]


def test_different_settings_never_share_a_directory(config, tmp_path):
  config = changed(config, "generator", item_bias=False, epochs=2)
  config = dataclasses.replace(config, loss="two_stage_ips")
  variants = [
    dataclasses.replace(config, **c) if isinstance(c, dict) else changed(config, c[0], **c[1])
    for c in CHANGES
  ]
  world = world_of(config, tmp_path)
  directories = {
    TwoStageRecommender.from_config(c).directory(here, tmp_path)
    for c in [config, *variants]
    for here in (world, dataclasses.replace(world, name="elsewhere"))
  }
  assert len(directories) == 2 * (1 + len(CHANGES))
  first = TwoStageRecommender.from_config(config).directory(world, tmp_path)
  assert first.parent == tmp_path / "generators"
  assert first.name.startswith("two_stage_ips-seed0-")


def test_an_objective_takes_its_settings(config):
  config = dataclasses.replace(
    config,
    slate_size=12,
    seed=3,
    loss="two_stage_ips:weight_cap=5:weight_floor=0.5:self_normalize=false:alpha=0.25",
    loss_options={"num_slates": 7, "sampling": "systematic", "sampling_temperature": 1.5},
  )
  objective = TwoStageRecommender.from_config(config).objective()
  assert (objective.importance.cap, objective.importance.floor) == (5.0, 0.5)
  assert not objective.importance.self_normalize
  assert (objective.alpha, objective.num_slates, objective.slate_size) == (0.25, 7, 12)
  assert (objective.sampling, objective.sampling_temperature) == ("systematic", 1.5)
  assert objective.seed == 3


def test_a_loss_object_gets_the_slate_size_of_the_model():
  loss = losses.IPS(policy="two_stage", baseline=-0.1, slate_size=3)
  objective = TwoStageRecommender(loss, slate_size=5).objective()
  assert (objective.slate_size, objective.baseline, objective.policy) == (5, -0.1, "two_stage")
