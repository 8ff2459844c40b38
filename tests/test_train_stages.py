"""Which stages learn: the generator, the ranker behind it, or both."""

import dataclasses

import numpy as np
import pytest

from tf_twostage import BanditLog, TwoStageRecommender
from tf_twostage.config import Config, EncoderConfig, FitConfig, GeneratorConfig
from tf_twostage.data.sets import make_slates
from tf_twostage.environment import log_environment
from tf_twostage.errors import InputError
from tf_twostage.workspace import Workspace

WORLD = make_slates(num_users=30, num_items=12, slate_size=4)
QUICK = {
  "slate_size": 6,
  "training": GeneratorConfig(epochs=2, batch_size=128),
  "ranker_training": FitConfig(epochs=1, batch_size=256),
  "encoder": EncoderConfig(id_width=4, feature_width=2),
}


def make_log(slates):
  frame = WORLD.frame(slates)
  return BanditLog.from_pandas(
    frame.assign(examined=WORLD.examination[frame["slot"]] / 2),
    user="user_id",
    item="item_id",
    reward="click",
    propensity="propensity",
    slate="request_id",
    position="slot",
    examination="examined",
    items=WORLD.items,
    users=WORLD.users,
  )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  stages = tmp_path_factory.mktemp("stages")
  model = TwoStageRecommender("two_stage_ltr", **QUICK)
  return log_environment(model.config, make_log(600), None, Workspace(stages))


def fitted(world, train, workdir=None, **settings):
  model = TwoStageRecommender("two_stage_ltr", train=train, **{**QUICK, **settings})
  return model.fit(world, workdir=workdir, progress=False)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def both(world, workdir):
  return fitted(world, "both", workdir)


def ranker_scores(environment):
  """Of the first users, by what evaluation reads and by what is exported, [5, N] each."""
  inputs = {"user": {n: v[:5] for n, v in environment.tables.users.items()}, "context": {}}
  return environment.ranker_logits(inputs).numpy(), environment.slate_ranker.products(
    inputs["user"]
  ).numpy()


def spread(scores):
  return scores - scores.mean(axis=1, keepdims=True)


def test_both_stages_learn_and_the_trained_ranker_is_used_from_then_on(world, both):
  before, (after, exported) = ranker_scores(world)[0], ranker_scores(both.environment)
  assert np.abs(spread(after) - spread(before)).max() > 0.05
  np.testing.assert_allclose(spread(exported), spread(after), atol=1e-5)


def test_the_trained_ranker_orders_what_is_recommended(both):
  shown = both.recommend(WORLD.users["user_id"][:5].tolist(), k=3)
  place = {item: at for at, item in enumerate(WORLD.items["item_id"])}
  items = shown["item"].map(place).to_numpy().reshape(5, 3)
  scores = np.take_along_axis(ranker_scores(both.environment)[1], items, axis=1)
  np.testing.assert_allclose(shown["score"].to_numpy().reshape(5, 3), scores, atol=1e-5)


def test_a_finished_run_is_found_with_its_ranker(world, both, workdir):
  again = TwoStageRecommender("two_stage_ltr", train="both", **QUICK)
  assert again.restore(world, workdir)
  found, expected = (ranker_scores(model.environment)[0] for model in (again, both))
  np.testing.assert_array_equal(found, expected)


def test_the_ranker_alone_learns_behind_the_generator_of_its_settings(world, workdir):
  alone, first = fitted(world, "ranker", workdir), fitted(world, "generator", workdir)
  np.testing.assert_array_equal(alone.towers.candidates(), first.towers.candidates())
  unchanged = ranker_scores(world)[0]
  np.testing.assert_array_equal(ranker_scores(first.environment)[0], unchanged)
  assert np.abs(spread(ranker_scores(alone.environment)[0]) - spread(unchanged)).max() > 0.05


def test_both_stages_learn_against_a_support(world):
  model = TwoStageRecommender.from_config(
    dataclasses.replace(
      Config(loss="two_stage_ltr", slate_size=6, encoder=QUICK["encoder"]),
      generator=GeneratorConfig(train="both", epochs=2, batch_size=16),
      support=dataclasses.replace(Config.support, support_size=24),
    )
  ).fit(world, progress=False)
  before, after = ranker_scores(world)[0], ranker_scores(model.environment)[0]
  assert np.abs(spread(after) - spread(before)).max() > 0.01


def test_ranks_may_weigh_what_the_slots_of_the_log_are_examined(world):
  model = TwoStageRecommender("two_stage_ltr:rank_weights=examination", **QUICK)
  objective = model.fresh_generator(world).objective
  np.testing.assert_allclose(objective.examination, [1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-6)


@pytest.mark.parametrize("train", ["ranker", "both"])
def test_a_loss_that_does_not_teach_the_ranker_is_refused(train):
  message = f"train={train}: IPS teaches the generator alone; choose the loss two_stage_ltr"
  with pytest.raises(InputError, match=message):
    TwoStageRecommender("ips:policy=two_stage", train=train)


@pytest.mark.parametrize("train", ["ranker", "both"])
def test_a_ranker_that_was_made_elsewhere_cannot_learn(world, train):
  elsewhere = dataclasses.replace(world, trainable_ranker=None)
  with pytest.raises(InputError, match=f"train={train}: this ranker was not fitted to the rewards"):
    fitted(elsewhere, train)


def test_an_unknown_stage_is_refused():
  with pytest.raises(InputError, match="train must be one of generator, ranker, both, got 'all'"):
    TwoStageRecommender("two_stage_ltr", train="all")


@pytest.fixture(scope="module")
def turns(world):
  """Ranker scores after so many epochs, the first two of which are the generator's turn."""

  def after(epochs, **settings):
    training = GeneratorConfig(
      train="both", turn_epochs=2, epochs=epochs, batch_size=128, **settings
    )
    model = TwoStageRecommender("two_stage_ltr", **{**QUICK, "training": training})
    return spread(ranker_scores(model.fit_rows(world, world.log).environment)[0])

  return {2: after(2), 3: after(3), "faster": after(3, ranker_rate=0.05, sparse_l2=True)}


def test_the_stages_take_turns_and_the_generator_begins(world, turns):
  """In its first turn the ranker learns nothing, in the next epoch it does."""
  np.testing.assert_array_equal(turns[2], spread(ranker_scores(world)[0]))
  assert np.abs(turns[3] - turns[2]).max() > 0.02


def test_a_ranker_learns_at_its_own_rate(turns):
  usual, faster = (np.abs(turns[name] - turns[2]).mean() for name in (3, "faster"))
  assert faster > 2 * usual


def test_no_penalty_draws_a_fitted_ranker_to_zero(world):
  assert world.trainable_ranker().losses == []


def test_a_fitted_ranker_learns_at_a_fifth_of_the_rate_unless_told_otherwise():
  assert GeneratorConfig(train="both", learning_rate=0.2).of_ranker.learning_rate == 0.04
  assert GeneratorConfig(train="ranker", ranker_rate=0.5).of_ranker.learning_rate == 0.5
