"""Losses, estimators, data sets and towers from outside the package, through public names."""

import dataclasses
import pathlib
import runpy

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.serving import small
from tests.test_recommender import ITEMS, QUICK, make_log
from tf_twostage import TwoStageRecommender, environment, evaluate, losses
from tf_twostage.config import Config, DataConfig, FitConfig, GeneratorConfig, SimulationConfig
from tf_twostage.data import sets
from tf_twostage.evaluation.estimators import Terms
from tf_twostage.workspace import Workspace


class Focal(losses.OffPolicyLoss):
  """-r (1 - p)^gamma log p."""

  def __init__(self, gamma: float = 1.0, **kwargs):
    super().__init__(**kwargs)
    self.gamma = gamma

  def evaluate(self, x):
    log_p = -tf.nn.sparse_softmax_cross_entropy_with_logits(x.actions, x.logits)
    return losses.LossTerms(-x.rewards * (1 - tf.exp(log_p)) ** self.gamma * log_p)


@pytest.fixture(scope="module")
def parts():
  return make_log().split("time")


def test_a_loss_is_passed_as_an_object(parts, tmp_path):
  model = TwoStageRecommender(Focal(gamma=2.0), **QUICK)
  model.fit(parts[0], validation=parts[1], workdir=tmp_path, progress=False)
  assert model.loss_name == "Focal"
  assert model.objective().gamma == 2.0
  (directory,) = (tmp_path / "generators").iterdir()
  assert directory.name.startswith("Focal-seed0-")


def test_or_registered_under_a_name(monkeypatch):
  monkeypatch.setattr(losses, "LOSSES", {**losses.LOSSES})
  losses.register("focal")(Focal)
  assert isinstance(TwoStageRecommender("focal").objective(), Focal)


@dataclasses.dataclass(frozen=True)
class Median:
  """IPS with weights cut at their median."""

  needs_model = False

  def __call__(self, rows):
    weights = np.minimum(rows.weights, np.median(rows.weights))
    return Terms(weights * rows.rewards, np.ones(len(rows)), weights)


def test_an_estimator_is_a_class_with_two_members(parts):
  uniform = np.full(ITEMS, 1 / ITEMS)
  found = evaluate(parts[2], {"uniform": uniform}, {"median": Median()}, progress=False)
  frame = found.to_frame().set_index("estimator")
  assert frame.loc["median", "value"] == pytest.approx(frame.loc["on_policy", "value"])
  assert len(found.plot().axes) >= 1


def test_a_data_set_is_a_loader_of_ratings(monkeypatch, tmp_path):
  ratings = sets.make_synthetic(num_users=30, num_items=15, num_ratings=400)
  monkeypatch.setitem(sets.DATASETS, "mine", lambda data_dir: ratings)
  quick = FitConfig(epochs=1)
  config = Config(
    slate_size=10,
    data=DataConfig(dataset="mine", validation_users=10),
    simulation=SimulationConfig(behavior_pairs=100),
    **dict.fromkeys(("simulator", "behavior", "ranker"), quick),
    generator=GeneratorConfig(epochs=1),
  )
  world = environment.make(config, Workspace(tmp_path / "stages"))
  model = TwoStageRecommender.from_config(config).fit(world, workdir=tmp_path, progress=False)
  asked = pd.DataFrame({"user_id": world.users["user_id"][:2], "timestamp": 1e9})
  assert len(model.recommend(asked, k=3)) == 6


def test_the_first_program_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
  root = pathlib.Path(__file__).parent.parent
  program = root / "examples" / "quickstart.py"
  _, text = program.read_text().split('"""\n\n', 1)
  assert f"```python\n{text}```" in (root / "README.md").read_text()
  small.skip_replay(monkeypatch.setattr)
  monkeypatch.chdir(tmp_path)
  found = runpy.run_path(str(program))
  frame = found["result"].to_frame().set_index(["policy", "estimator"])
  assert frame.loc[("ours", "snips"), "value"] > 1.3 * frame.loc[("uniform", "snips"), "value"]
  assert (tmp_path / "values.png").stat().st_size > 1000
  assert len(found["model"].recommend(["42"], k=5)) == 5
