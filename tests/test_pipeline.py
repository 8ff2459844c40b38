"""From settings to a generator, in a tiny ready environment."""

import dataclasses

import numpy as np
import pytest

from tests import prepared_environment as ready
from tf_twostage import environment, pipeline
from tf_twostage.config import Config, EncoderConfig, LossConfig
from tf_twostage.data import sets
from tf_twostage.errors import InputError
from tf_twostage.training import loop
from tf_twostage.workspace import Workspace


@pytest.fixture
def config(monkeypatch, tmp_path):
  monkeypatch.setitem(sets.DATASETS, "synthetic", lambda data_dir: ready.DATA)
  config = ready.config(ready.contents().write(tmp_path / "environment"))
  return dataclasses.replace(config, loss=LossConfig(loss="cross_entropy"))


def changed(config, section, **values):
  return dataclasses.replace(
    config, **{section: dataclasses.replace(getattr(config, section), **values)}
  )


def logged(config, directory, monkeypatch):
  """The log that a generator learns from."""
  seen = []
  train = loop.train_generator

  def spy(model, log, *arguments, **options):
    seen.append(log)
    return train(model, log, *arguments, **options)

  monkeypatch.setattr(loop, "train_generator", spy)
  world = environment.make(config, Workspace(directory / "stages"))
  pipeline.fit_generator(config, world, directory, progress=False)
  (log,) = seen
  return log


def test_a_generator_learns_from_rewarded_rows_alone(config, tmp_path, monkeypatch):
  rewarded = ready.contents().log.query("reward > 0")
  log = logged(config, tmp_path, monkeypatch)
  np.testing.assert_array_equal(log.action, rewarded["item_index"])
  np.testing.assert_array_equal(log.reward, rewarded["reward"])


def test_or_from_all_rows_where_asked(config, tmp_path, monkeypatch):
  log = logged(changed(config, "generator", positives_only=False), tmp_path, monkeypatch)
  np.testing.assert_array_equal(log.action, ready.contents().log["item_index"])


def test_a_log_without_rewards_is_refused_before_training(config, tmp_path):
  files = ready.contents()
  files.log["reward"] = 0
  files.write(tmp_path / "environment")
  world = environment.make(config, Workspace(tmp_path / "stages"))
  with pytest.raises(InputError, match="no rows to train on"):
    pipeline.fit_generator(config, world, tmp_path, progress=False)


@pytest.mark.parametrize("item_bias", [False, True])
def test_item_bias_widens_the_vectors_by_one(config, tmp_path, item_bias):
  config = changed(config, "generator", item_bias=item_bias)
  world = environment.make(config, Workspace(tmp_path / "stages"))
  towers, _ = pipeline.fit_generator(config, world, tmp_path, progress=False)
  encoder = EncoderConfig()
  width = encoder.id_width + 2 * encoder.feature_width  # item_id, decade, topics
  assert towers.candidates().shape == (ready.ITEMS, width + item_bias)
  if item_bias:
    assert np.ptp(towers.candidates()[:, -1]) > 0  # learned
    np.testing.assert_array_equal(towers.query(world.tables.users)[:, -1], np.ones(ready.USERS))


def test_a_generator_learns_against_a_support(config, tmp_path):
  settings = {"support_size": 24, "support_draws": "popularity", "hard_candidates": 4}
  config = changed(changed(config, "support", **settings), "generator", epochs=12)
  world = environment.make(config, Workspace(tmp_path / "stages"))
  towers, history = pipeline.fit_generator(config, world, tmp_path, progress=False)
  losses = [epoch["training"]["mean_loss"] for epoch in history]
  assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
  assert len(towers.losses) == 2  # no table is penalised as a whole


@pytest.mark.parametrize(("size", "hard", "fits"), [(16, 0, False), (20, 4, False), (21, 4, True)])
def test_a_support_needs_room_for_draws(config, size, hard, fits):
  config = changed(config, "support", support_size=size, hard_candidates=hard)
  if fits:
    pipeline.check(config)
  else:
    with pytest.raises(InputError, match=f"support_size is {size}, but a batch of 16 rows and"):
      pipeline.check(config)


def test_more_hard_candidates_than_items_are_refused(config, tmp_path):
  config = changed(config, "support", support_size=64, hard_candidates=16)
  world = environment.make(config, Workspace(tmp_path / "stages"))
  with pytest.raises(InputError, match="but the catalogue has 15 items"):
    pipeline.fit_generator(config, world, tmp_path, progress=False)


@pytest.mark.parametrize(("size", "warned"), [(ready.ITEMS, False), (ready.ITEMS + 1, True)])
def test_a_support_that_outgrows_the_catalogue_is_warned_of(config, tmp_path, caplog, size, warned):
  config = changed(changed(config, "support", support_size=size), "generator", batch_size=8)
  world = environment.make(config, Workspace(tmp_path / "stages"))
  pipeline.fresh_generator(config, world)
  assert (f"more than the {ready.ITEMS} items" in caplog.text) == warned


CHANGES = [
  {"seed": 1},
  {"slate_size": 11},
  ("loss", {"alpha": 0.5}),
  ("loss", {"loss": "ips"}),
  ("generator", {"epochs": 3}),
  ("generator", {"positives_only": False}),
  ("generator", {"item_bias": True}),
  ("generator", {"sparse_l2": True}),
  ("support", {"support_size": 512}),
  ("support", {"support_draws": "popularity"}),
  ("support", {"hard_candidates": 8}),
  ("support", {"hard_refresh_steps": 8}),
  ("encoder", {"id_width": 11}),
  ("encoder", {"id_buckets": 100}),
  ("generator", {"precision": "mixed_bfloat16"}),
  ("data", {"validation_users": 9}),
]


def test_different_settings_never_share_a_directory(tmp_path):
  config = Config()
  variants = [
    dataclasses.replace(config, **c) if isinstance(c, dict) else changed(config, c[0], **c[1])
    for c in CHANGES
  ]
  directories = {
    pipeline.generator_directory(c, name, tmp_path)
    for c in [config, *variants]
    for name in ("here", "there")
  }
  assert len(directories) == 2 * (1 + len(CHANGES))


def test_a_directory_is_named_after_loss_and_seed(tmp_path):
  config = dataclasses.replace(Config(), seed=7)
  directory = pipeline.generator_directory(config, "here", tmp_path)
  assert directory.parent == tmp_path / "generators"
  assert directory.name.startswith("two_stage_ips-seed7-")


def test_an_objective_takes_its_settings():
  config = changed(
    Config(slate_size=12, seed=3),
    "loss",
    loss="two_stage_ips",
    weight_cap=5.0,
    weight_floor=0.5,
    self_normalize=False,
    alpha=0.25,
    num_slates=7,
    sampling="systematic",
    sampling_temperature=1.5,
  )
  objective = pipeline.make_objective(config)
  assert (objective.importance.cap, objective.importance.floor) == (5.0, 0.5)
  assert not objective.importance.self_normalize
  assert (objective.alpha, objective.num_slates, objective.slate_size) == (0.25, 7, 12)
  assert (objective.sampling, objective.sampling_temperature) == ("systematic", 1.5)
  assert objective.seed == 3
