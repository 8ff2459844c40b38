"""Finished generators evaluated off-policy: by the package, and by the command."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from launch import evaluate as command
from tests import commands
from tf_twostage import TwoStageRecommender
from tf_twostage import environment as environments
from tf_twostage.config import (
  Config,
  DataConfig,
  EncoderConfig,
  FitConfig,
  GeneratorConfig,
  SimulationConfig,
)
from tf_twostage.errors import InputError
from tf_twostage.evaluation.values import REPORTED as ESTIMATORS
from tf_twostage.experiment import finished
from tf_twostage.metrics import STAGES, TWO_STAGES
from tf_twostage.workspace import Workspace, write_record

# The embedded default, only shorter: as a command has it, and as the package does.
FLAGS = (
  "--flagfile=launch/synthetic.flags",
  "--epochs=2",
  "--simulator_epochs=1",
  "--behavior_epochs=2",
  "--ranker_epochs=2",
  "--ranker_batch_size=512",
)
CONFIG = Config(
  slate_size=20,
  data=DataConfig(dataset="synthetic", validation_users=130),
  encoder=EncoderConfig(embedding_stddev=1.0),
  simulation=SimulationConfig(behavior_pairs=1000, items_per_user=20),
  simulator=FitConfig(epochs=1, batch_size=256, l2=1e-6),
  behavior=FitConfig(epochs=2),
  ranker=FitConfig(epochs=2, batch_size=512),
  generator=GeneratorConfig(epochs=2, item_bias=False),
  loss="two_stage_ips:num_slates=50",
)
LOSSES = ("cross_entropy", "ips:baseline=-0.2")
GENERATORS = [(loss, dataclasses.replace(CONFIG, loss=loss, loss_options={})) for loss in LOSSES]
ITEMS, USERS, ROWS = 300, 400, 8000


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def environment(workdir):
  """The environment of two finished generators."""
  made = environments.make(CONFIG, Workspace(workdir / "stages"))
  for _, config in GENERATORS:
    model = TwoStageRecommender.from_config(config)
    model.fit(made, workdir=workdir, progress=False)
  return made


@pytest.fixture(scope="module")
def evaluation(environment, workdir):
  return environment.evaluation_log(Workspace(workdir / "stages"))


def test_the_evaluation_log_is_another_of_the_same_policy_and_users(environment, evaluation):
  log, trained = evaluation.rows, environment.log
  assert len(log) == len(trained) == ROWS
  np.testing.assert_array_equal(log.user_index, trained.user_index)
  assert (log.action != trained.action).mean() > 0.5
  rows = np.arange(ROWS)
  beta = evaluation.logging_probabilities(rows)
  np.testing.assert_allclose(beta.sum(axis=1), 1, atol=1e-5)
  np.testing.assert_allclose(log.propensity, beta[rows, log.action], rtol=1e-5)
  expected = evaluation.expected_rewards(rows)
  np.testing.assert_array_equal(log.reward, expected[rows, log.action])


def test_a_policy_sees_what_evaluation_shows_it_whatever_was_drawn(environment, evaluation):
  users, context = evaluation.rows.user_index, evaluation.rows.context
  shown = environment.evaluator.inputs["context"]
  assert context.keys() == shown.keys()
  for name, values in context.items():
    np.testing.assert_allclose(values, shown[name][users], rtol=1e-12)
  assert len(evaluation.distinct_contexts[0]) == USERS


def test_both_policies_of_a_generator_are_distributions_and_differ(
  environment, evaluation, workdir
):
  model = TwoStageRecommender.from_config(GENERATORS[0][1])
  assert model.restore(environment, workdir)
  alone, two_stages = (model.policy(stage).on(evaluation) for stage in STAGES)
  assert [alone.kind, two_stages.kind] == list(STAGES.values())
  rows = evaluation.distinct_contexts[0]
  probabilities = [policy.probabilities(rows) for policy in (alone, two_stages)]
  for table in probabilities:
    assert table.shape == (USERS, ITEMS)
    assert table.min() >= 0
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=6e-4)  # the quadrature's error
  assert np.abs(probabilities[0] - probabilities[1]).sum(axis=1).mean() > 0.1


def test_the_stage_of_both_is_what_the_loss_trained(environment, evaluation, workdir):
  model = TwoStageRecommender.from_config(GENERATORS[0][1])
  assert model.restore(environment, workdir)
  rows = evaluation.distinct_contexts[0][:20]
  default, repeats, distinct = (
    model.policy(stage).on(evaluation) for stage in (None, "two_stage", "distinct")
  )
  found = distinct.probabilities(rows)
  np.testing.assert_array_equal(default.probabilities(rows), repeats.probabilities(rows))
  assert distinct.kind == TWO_STAGES["distinct"]
  np.testing.assert_allclose(found.sum(axis=1), 1, atol=5e-3)
  assert np.abs(found - repeats.probabilities(rows)).sum(axis=1).mean() > 0.01
  trained = {"ips": "two_stage", "ips:policy=distinct": "distinct", "two_stage_ltr": "distinct"}
  assert {loss: TwoStageRecommender(loss).stage for loss in trained} == trained


def test_a_finished_generator_is_the_one_of_its_best_epoch(environment, workdir):
  config = GENERATORS[0][1]
  model = TwoStageRecommender.from_config(config)
  assert model.restore(environment, workdir)
  towers, history = model.towers, model.epochs
  scores = environment.evaluation(lambda batch: towers(batch["user"]), config.slate_size)()
  best = max(history, key=lambda epoch: epoch["selected"])
  for stage, metrics in best["scores"]["test"].items():
    for metric, value in metrics.items():
      assert scores["test"][stage][metric] == pytest.approx(value, abs=1e-6)


def test_all_finished_generators_are_found_and_called_by_what_is_theirs(environment, workdir):
  strangers = workdir / "generators" / "ips-seed0-another"
  (strangers / "checkpoints").mkdir(parents=True)
  write_record(strangers / "config.json", {"loss": {"of another version": 1}})
  other = dataclasses.replace(GENERATORS[1][1], environment_seed=7)
  another = dataclasses.replace(environment, name="another environment")
  elsewhere = TwoStageRecommender.from_config(other).directory(another, workdir)
  (elsewhere / "checkpoints").mkdir(parents=True)
  write_record(elsewhere / "config.json", dataclasses.asdict(other))
  found = finished(CONFIG, environment, workdir)
  assert [(variant.label, variant.config) for variant in found] == GENERATORS
  (like_ips, _) = reversed(finished(GENERATORS[1][1], environment, workdir))
  assert like_ips.label == "ips"


@pytest.fixture(scope="module")
def given(environment, evaluation, tmp_path_factory):
  """The logging policy as an array, and showing anything as a list."""
  directory = tmp_path_factory.mktemp("given")
  np.save(directory / "logging.npy", evaluation.logging_probabilities(np.arange(ROWS)))
  ids = environment.tables.schema.item_id.vocabulary
  anything = pd.DataFrame({"item_id": ids, "probability": 1 / ITEMS})
  anything.to_csv(directory / "anything.csv", index=False)
  return directory


@pytest.fixture(scope="module")
def evaluated(environment, workdir, given):
  """The command, on all that was trained and two files."""
  done = commands.run(
    *FLAGS,
    f"--workdir={workdir}",
    "--losses=cross_entropy,ips:baseline=-0.2",
    f"--policy_file={given / 'logging.npy'}",
    f"--policy_file={given / 'anything.csv'}",
    "--select",
    name="evaluate",
  )
  assert done.returncode == 0, done.stderr
  return done, pd.read_csv(workdir / "evaluation" / "estimates.csv")


def test_the_command_prints_values_truths_and_how_they_agree(evaluated, workdir):
  done, _ = evaluated
  for words in (
    "8000 rows of 400 users, 95% intervals by user.",
    "The logging policy earned",
    "Generator alone\n",
    "Generator + ranker\n",
    "As served, top 1\n",
    "ips:baseline=-0.2, seed 0 ",
    "anything.csv ",
    "Generators with the ranker, by dr less the burden of thin support",
    *ESTIMATORS,
    "The log was drawn from the logging policy",
    "The reward model explains",
    f"Estimates and plot: {workdir / 'evaluation'}",
  ):
    assert words in done.stdout


def test_the_command_leaves_its_files(evaluated, workdir):
  directory = workdir / "evaluation"
  assert {file.name for file in directory.iterdir()} == {
    *("estimates.csv", "estimates.json", "estimates.png", "differences.csv", "selection.csv"),
    "plan.json",
  }
  assert (directory / "estimates.png").stat().st_size > 10_000
  stored = json.loads((directory / "estimates.json").read_text())
  assert (stored["rows"], stored["independent_units"]) == (ROWS, USERS)
  assert len(stored["estimates"]) == 1 + 8 * len(ESTIMATORS)
  assert stored["estimates"][1]["max_weight"] is None  # of dm; NaN is no JSON


def test_the_truth_lies_in_the_intervals_of_what_weights_rows(evaluated):
  _, frame = evaluated
  fair = frame[frame["estimator"].isin(["on_policy", "ips", "dr"])]
  for bound in ("interval", "bootstrap_interval"):
    held = fair["truth"].between(fair[f"{bound}_low"], fair[f"{bound}_high"])
    assert held.mean() > 0.8
  assert (np.abs(fair["value"] - fair["truth"]) < 4 * fair["standard_error"]).all()


def test_the_logging_policy_in_a_file_is_worth_what_it_earned(evaluated):
  _, frame = evaluated
  by = frame.set_index(["policy", "estimator"])
  earned, given = by.loc["logging policy", "on_policy"], by.loc["logging.npy"]
  for name in ("ips", "snips"):
    assert given.loc[name, "value"] == pytest.approx(earned["value"], rel=1e-5)
    assert given.loc[name, "effective_sample_size"] == pytest.approx(USERS, rel=1e-4)
  assert given.loc["dr", "value"] == pytest.approx(earned["value"], abs=0.01)
  assert given.loc["dr", "truth"] == pytest.approx(earned["truth"], rel=1e-6)


def test_showing_anything_is_worth_the_mean_of_all_rewards(evaluated, evaluation):
  _, frame = evaluated
  truth = frame.set_index("policy").loc["anything.csv", "truth"]
  np.testing.assert_allclose(truth, evaluation.expected_rewards(np.arange(ROWS)).mean(), rtol=1e-6)


def test_a_generator_whose_settings_are_damaged_is_left_out_with_a_warning(
  environment, workdir, tmp_path, caplog
):
  shutil.copytree(workdir / "generators", tmp_path / "generators")
  labels = [variant.label for variant in finished(CONFIG, environment, tmp_path)]
  model = TwoStageRecommender.from_config(GENERATORS[1][1])
  damaged = model.directory(environment, tmp_path) / "config.json"
  damaged.write_text(damaged.read_text().replace("1", "2", 1))
  left = [variant.label for variant in finished(CONFIG, environment, tmp_path)]
  assert len(left) == len(labels) - 1
  assert f"{damaged} was changed after it was written; its generator is left out" in caplog.text


def test_what_has_not_finished_is_named_with_the_command_that_trains_it(environment, workdir):
  longer = dataclasses.replace(CONFIG, generator=GeneratorConfig(epochs=3, item_bias=False))
  generators = [*GENERATORS, ("longer", longer), ("again", longer)]
  with pytest.raises(InputError) as error:
    command.run(CONFIG, generators, workdir, training_command="the command")
  assert str(error.value) == (
    f"{workdir} has no finished generator of longer, seed 0; again, seed 0; train with\n"
    "  the command\nand evaluate again"
  )


def test_nothing_is_built_where_nothing_was_trained(tmp_path):
  with pytest.raises(InputError, match="holds no generator; train with\n  the command"):
    command.run(CONFIG, GENERATORS, tmp_path, training_command="the command")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"estimators": ["best"]}, "no estimator 'best'"),
    ({"estimators": ["snips"], "select": True}, "--select needs the estimator dr"),
  ],
)
def test_options_are_checked_before_anything_is_built(tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    command.run(CONFIG, GENERATORS, tmp_path, training_command="the command", **options)


def test_help_shows_its_own_flags_first():
  done = commands.run("--help", name="evaluate")
  assert done.returncode == 0
  own = [done.stdout.index(f"\n  --{name} ") for name in ("losses", "seeds", "all", "policy_file")]
  assert own == sorted(own)
  assert done.stdout.index("This command:") < own[0] < done.stdout.index("The run:")
  assert "--overwrite" not in done.stdout
