"""Experiments: what gets fitted, what is chosen, what is written. Commands: test_launch.py."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from tests import prepared_environment as ready
from tests.histories import finished_run, history, scores
from tf_twostage import TwoStageRecommender, environment, experiment
from tf_twostage.config import Config, FitConfig, SimulationConfig, SupportConfig, UserLogConfig
from tf_twostage.data import sets
from tf_twostage.environment import prepared, simulated
from tf_twostage.environment.full_information import FullInformation
from tf_twostage.errors import InputError
from tf_twostage.experiment import Variant
from tf_twostage.workspace import Workspace

FILES = {
  "experiment.json",
  "plan.json",
  "table.csv",
  "table.md",
  "table.tex",
  "significance.csv",
  "curves.png",
  "losses.png",
  "stages.png",
  "seeds.png",
}

DRAW = experiment.plots.Experiment.save


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
  """They have tests of their own, and take their time."""
  monkeypatch.setattr(experiment.plots.Experiment, "save", lambda *arguments: None)


@pytest.fixture
def config(monkeypatch, tmp_path):
  monkeypatch.setitem(sets.DATASETS, "synthetic", lambda data_dir: ready.DATA)
  return ready.config(ready.contents().write(tmp_path / "environment"))


def variant(config, label, family=None, **loss):
  """A variant of the loss that its label starts with."""
  settings = dataclasses.replace(config, loss=label.split(":")[0], loss_options=loss)
  return Variant(label, settings, family or label)


@pytest.fixture
def finish(config, tmp_path):
  """Leaves cells as a finished run would: finish(variant, test, validation), a number a seed."""
  world = environment.make(config, Workspace(tmp_path / "stages"))

  def leave(variant, test, validation=None):
    for seed, (on_test, valid) in enumerate(zip(test, validation or test, strict=True)):
      cell = dataclasses.replace(variant.config, seed=seed)
      directory = TwoStageRecommender.from_config(cell).directory(world, tmp_path)
      epochs = history(scores(0.0), scores(valid, on_test))
      finished_run(directory, epochs)
    return variant

  return leave


@pytest.fixture
def fitted(monkeypatch):
  """Fits nothing, but makes up histories of cells and lists them as (variant, log, seed)."""
  cells = []

  def fit(config, missing, workdir, processes):
    for cell, own in reversed(missing.items()):  # as processes may finish them
      assert (own.simulation.log_number, own.seed) == (cell.log, cell.seed)
      cells.append(tuple(cell))
      yield cell, history(scores(0.0), scores(0.5)), 1.0

  monkeypatch.setattr(experiment, "_fitted", fit)
  return cells


def run(config, variants, tmp_path, seeds=2, **options):
  return experiment.run(config, variants, seeds=seeds, workdir=tmp_path, **options)


def read(tmp_path, name):
  return (tmp_path / "experiment" / name).read_text(encoding="utf-8")


# What is fitted


def test_every_variant_is_fitted_with_every_seed(config, fitted, tmp_path):
  variants = [variant(config, "cross_entropy"), variant(config, "ips")]
  run(config, variants, tmp_path, seeds=3)
  assert sorted(fitted) == [(v, 0, s) for v in ("cross_entropy", "ips") for s in range(3)]


@pytest.mark.parametrize(
  ("policies", "stage"),
  [(["distinct"], "distinct"), (["distinct", "softmax"], "two_stage")],
)
def test_baselines_are_valued_as_all_losses_are(config, monkeypatch, tmp_path, policies, stage):
  asked = []

  def stop(world, workspace, slate_size, valued):
    asked.append(valued)
    raise InterruptedError

  monkeypatch.setattr(environment.Environment, "baselines", stop)
  with pytest.raises(InterruptedError):
    run(config, [variant(config, f"ips:{p}", policy=p) for p in policies], tmp_path)
  assert asked == [stage]


def test_finished_cells_are_not_fitted_again(config, finish, fitted, tmp_path):
  done = finish(variant(config, "cross_entropy"), [0.3, 0.4])
  run(config, [done, variant(config, "ips")], tmp_path, seeds=3)
  assert sorted(fitted) == [("cross_entropy", 0, 2), *(("ips", 0, seed) for seed in range(3))]


def test_a_cell_cut_short_is_fitted(config, finish, fitted, tmp_path):
  done = finish(variant(config, "cross_entropy"), [0.3, 0.4])
  (directory,) = (tmp_path / "generators").glob("cross_entropy-seed1-*")
  shutil.rmtree(directory)
  finished_run(directory, history(scores(0.9)))
  run(config, [done], tmp_path)
  assert fitted == [("cross_entropy", 0, 1)]


def test_cells_of_another_environment_do_not_count(config, finish, fitted, tmp_path):
  done = finish(variant(config, "cross_entropy"), [0.3, 0.4])
  files = ready.contents()
  files.log.loc[0, "reward"] ^= 1
  files.write(tmp_path / "environment")
  run(config, [done], tmp_path)
  assert sorted(fitted) == [("cross_entropy", 0, 0), ("cross_entropy", 0, 1)]


def test_with_nothing_to_fit_no_process_starts(config, finish, tmp_path, monkeypatch):
  monkeypatch.setattr(experiment.concurrent.futures, "ProcessPoolExecutor", None)
  done = finish(variant(config, "cross_entropy"), [0.3, 0.4])
  assert "cross_entropy" in run(config, [done], tmp_path)


def test_another_experiment_leaves_the_results_of_the_first(config, finish, tmp_path):
  first, second = (finish(variant(config, name), [0.3]) for name in ("ips", "cross_entropy"))
  for variants in ([first], [second, first], [first]):
    run(config, variants, tmp_path, seeds=1)
  assert set(pd.read_csv(tmp_path / "experiment" / "table.csv")["variant"]) == {"ips"}
  assert (tmp_path / "experiment-2" / "table.csv").exists()
  assert not (tmp_path / "experiment-3").exists()


def test_the_order_of_finishing_does_not_show(config, fitted, tmp_path):
  variants = [variant(config, "ips"), variant(config, "cross_entropy")]
  run(config, variants, tmp_path)
  table = pd.read_csv(tmp_path / "experiment" / "table.csv")
  assert list(zip(table["variant"], table["seed"], strict=True)) == [
    ("ips", 0),
    ("cross_entropy", 0),
    ("ips", 1),
    ("cross_entropy", 1),
  ]


# Several logs

SHORT = FitConfig(epochs=1, batch_size=64)


def with_log(config, log):
  return dataclasses.replace(config, simulation=SimulationConfig(log_number=log))


def test_every_log_has_its_logging_policy_and_ranker_for_the_same_labels(tmp_path, monkeypatch):
  relevance = ready.contents().relevance
  labelled = FullInformation(relevance, relevance), "labels", 0.7
  seeds = []

  def labels(config, *arguments):
    seeds.append(config.environment_seed)
    return labelled

  monkeypatch.setattr(simulated, "_full_information", labels)
  config = dataclasses.replace(ready.config(""), behavior=SHORT, ranker=SHORT)
  workspace = Workspace(tmp_path / "stages")
  first, second = (
    simulated.simulated(with_log(config, log), ready.DATA, workspace) for log in (0, 1)
  )
  assert seeds == [0, 0]
  for made in (first, second):
    np.testing.assert_array_equal(made.log.reward, relevance[made.log.user_index, made.log.action])
  assert (first.log.action != second.log.action).any()
  assert (first.log.propensity != second.log.propensity).any()
  stages = [path.name.rsplit("-", 1)[0] for path in (tmp_path / "stages").iterdir()]
  assert sorted(stages) == sorted(["behavior_policy", "log", "ranker"] * 2)


def test_logs_of_a_prepared_environment_are_simulated_from_its_labels(
  config, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    prepared, "of_labels", lambda config, data, tables, information, *_, **__: information
  )
  information = environment.make(with_log(config, 1), Workspace(tmp_path / "stages"))
  np.testing.assert_array_equal(information.relevance, ready.contents().relevance)
  np.testing.assert_array_equal(information.labels, information.relevance)


@pytest.fixture
def several(config, monkeypatch, tmp_path):
  """Settings of a simulated environment; every log has its name, but the files' contents."""
  world = environment.make(config, Workspace(tmp_path / "stages"))

  def make(config, workspace):
    return dataclasses.replace(world, name=f"log-{config.simulation.log_number}")

  monkeypatch.setattr(environment, "make", make)
  return dataclasses.replace(config, data=dataclasses.replace(config.data, environment=None))


def test_variants_share_logs_and_seeds_and_logs_share_no_seed(several, fitted, tmp_path):
  variants = [variant(several, "cross_entropy"), variant(several, "ips")]
  told = run(several, variants, tmp_path, seeds=2, logs=3)
  assert len(set(fitted)) == len(fitted) == 12
  ours, theirs = ({cell[1:] for cell in fitted if cell[0] == v.label} for v in variants)
  assert ours == theirs
  assert {log for log, _ in ours} == {0, 1, 2}
  assert len({seed for _, seed in ours}) == 6
  assert "standard error over logs" in told
  assert set(pd.read_csv(tmp_path / "experiment" / "table.csv")["log"]) == {0, 1, 2}
  assert set(pd.read_csv(tmp_path / "experiment" / "significance.csv")["pairs"]) == {3}


def test_a_worker_trains_in_the_environment_of_the_log(several, tmp_path):
  for log in (0, 1):
    own = with_log(variant(several, "ips").config, log)
    cell = experiment.Cell("ips", log, own.seed)
    epochs, _ = experiment._fit_cell(cell, own, with_log(several, log), tmp_path)
    world = environment.make(own, Workspace(tmp_path / "stages"))
    assert TwoStageRecommender.from_config(own).finished_history(world, tmp_path) == epochs
  assert len(list((tmp_path / "generators").iterdir())) == 2


def test_more_logs_add_to_the_finished_ones(several, tmp_path, monkeypatch):
  asked = []

  def fit(config, missing, workdir, processes):
    asked.append(sorted(cell.log for cell in missing))
    for cell, own in missing.items():
      made = environment.make(own, Workspace(workdir / "stages"))
      directory = TwoStageRecommender.from_config(own).directory(made, workdir)
      directory.mkdir(parents=True)
      epochs = history(scores(0.0), scores(0.5))
      finished_run(directory, epochs)
      yield cell, epochs, 1.0

  monkeypatch.setattr(experiment, "_fitted", fit)
  for logs in (2, 3):
    run(several, [variant(several, "ips")], tmp_path, seeds=1, logs=logs)
  assert asked == [[0, 1], [2]]


def test_the_log_in_the_files_is_not_one_of_several(several, config, fitted, tmp_path):
  run(config, [variant(config, "ips")], tmp_path, seeds=1, logs=2)
  assert sorted(log for _, log, _ in fitted) == [1, 2]


def test_a_log_of_ones_own_is_not_repeated(tmp_path):
  own = Config(user_log=UserLogConfig(log="log.csv"))
  with pytest.raises(InputError, match="one sample, which cannot be drawn again"):
    run(own, [Variant("ips", own, "ips")], tmp_path, logs=2)
  assert not list(tmp_path.iterdir())


# What is refused before anything is read or fitted


@pytest.mark.parametrize(
  ("labels", "options", "words"),
  [
    ([], [], "needs different variants"),
    (["nonsense"], [{}], "unknown loss 'nonsense'"),
    (["ips", "ips:weight_cap=-1"], [{}, {"weight_cap": -1}], "need 0 <= floor <= cap"),
    (["ips", "ips"], [{}, {}], "needs different variants"),
    (["ips", "ips:policy=softmax"], [{}, {"policy": "softmax"}], "ips and ips:policy=softmax are"),
    (
      ["ips:baseline=-1", "ips:baseline=-1.0"],
      [{"baseline": -1}, {"baseline": -1.0}],
      "the same settings",
    ),
  ],
)
def test_variants_that_make_no_sense_are_refused(config, tmp_path, labels, options, words):
  variants = [variant(config, label, **o) for label, o in zip(labels, options, strict=True)]
  with pytest.raises(InputError, match=words):
    run(config, variants, tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {"environment"}


def test_hard_candidates_beyond_the_catalogue_are_refused_before_any_cell(config, fitted, tmp_path):
  support = SupportConfig(support_size=64, hard_candidates=16)
  beyond = dataclasses.replace(config, support=support)
  with pytest.raises(InputError, match="but the catalogue has 15 items"):
    run(config, [variant(config, "ips"), variant(beyond, "ips:hard_candidates=16")], tmp_path)
  assert not fitted


@pytest.mark.parametrize("repeats", [{"seeds": 0}, {"logs": 0}])
def test_a_seed_and_a_log_are_needed(config, tmp_path, repeats):
  with pytest.raises(InputError, match="a seed and a log"):
    run(config, [variant(config, "ips")], tmp_path, **repeats)


# What is written


def test_an_experiment_leaves_its_files(config, finish, tmp_path, monkeypatch):
  monkeypatch.setattr(experiment.plots.Experiment, "save", DRAW)
  variants = [
    finish(variant(config, "cross_entropy"), [0.3, 0.4]),
    finish(variant(config, "ips"), [0.5, 0.4]),
  ]
  told = run(config, variants, tmp_path)
  assert {path.name for path in (tmp_path / "experiment").iterdir()} == FILES
  assert str(tmp_path / "experiment") in told
  assert "45.0 ± 5.0" in told  # of ips: 50 and 40; cross-entropy: 30 and 40
  assert "Validation users choose" not in told  # there was nothing to choose
  settings = json.loads(read(tmp_path, "experiment.json"))
  assert list(settings) == ["cross_entropy", "ips"]
  assert settings["ips"]["family"] == "ips"
  assert settings["ips"]["loss"] == "ips"
  assert settings["ips"]["generator"]["epochs"] == 2


def test_the_first_variant_is_the_reference(config, finish, tmp_path):
  variants = [
    finish(variant(config, "ips"), [0.5, 0.5]),
    finish(variant(config, "cross_entropy"), [0.4, 0.4]),
  ]
  run(config, variants, tmp_path)
  assert "40.0 ± 0.0 (-20.0%)" in read(tmp_path, "table.md")
  assert "50.0 ± 0.0 (" not in read(tmp_path, "table.md")


def test_tests_compare_variants_and_popularity(config, finish, tmp_path):
  variants = [
    finish(variant(config, "cross_entropy"), [0.30, 0.40, 0.35]),
    finish(variant(config, "ips"), [0.32, 0.41, 0.38]),
  ]
  run(config, variants, tmp_path, seeds=3)
  table = pd.read_csv(tmp_path / "experiment" / "significance.csv")
  assert {"precision@10", "recall@10"} < set(table["metric"])
  table = table[table["metric"] == "precision@10"]
  assert set(zip(table["first"], table["second"], strict=True)) == {
    ("ips", "cross_entropy"),
    ("cross_entropy", "popularity"),
    ("ips", "popularity"),
  }
  # 2, 1 and 3 points.
  row = table[(table["second"] == "cross_entropy") & (table["stage"] == "two_stage")].iloc[0]
  assert row["difference"] == pytest.approx(2)
  assert row["standard_error"] == pytest.approx(1 / np.sqrt(3))


def test_one_seed_of_one_variant_is_an_experiment(config, finish, tmp_path):
  told = run(config, [finish(variant(config, "ips"), [0.5])], tmp_path, seeds=1)
  assert "50.0" in told
  assert "±" not in told.split("mean ± standard error")[0]


def test_validation_users_choose_of_a_sweep_whatever_the_test_users_say(config, finish, tmp_path):
  family = {"family": "ips"}
  variants = [
    finish(variant(config, "cross_entropy"), [0.2, 0.2]),
    finish(variant(config, "ips:baseline=-1", baseline=-1.0, **family), [0.9, 0.9], [0.3, 0.3]),
    finish(variant(config, "ips:baseline=-2", baseline=-2.0, **family), [0.5, 0.5], [0.4, 0.6]),
    finish(variant(config, "ips:baseline=-3", baseline=-3.0, **family), [0.1, 0.1], [0.6, 0.1]),
  ]
  told = run(config, variants, tmp_path)
  for name in ("table.md", "table.tex", "significance.csv"):
    text = read(tmp_path, name)
    assert "ips:baseline=-2" in text
    assert not any(other in text for other in ("ips:baseline=-1", "ips:baseline=-3"))
  assert "90.0" not in read(tmp_path, "table.md")

  sweep = pd.read_csv(tmp_path / "experiment" / "sweep.csv", keep_default_na=False)
  assert list(sweep["variant"]) == [v.label for v in variants]
  assert list(sweep["validation precision@10"]) == pytest.approx([20, 30, 50, 35])
  assert list(sweep["chosen"]) == ["*", "", "*", ""]
  assert told.startswith("Validation users choose (*):")
  # Nothing is lost: every cell is in the table of cells and in the settings.
  cells = pd.read_csv(tmp_path / "experiment" / "table.csv")
  assert set(cells["variant"]) == set(json.loads(read(tmp_path, "experiment.json")))


def test_the_table_of_cells_reads_back(config, finish, tmp_path):
  run(config, [finish(variant(config, "ips"), [0.123456, 0.5], [0.2, 0.7])], tmp_path)
  table = pd.read_csv(tmp_path / "experiment" / "table.csv")
  assert list(table["test/two_stage/precision@10"]) == pytest.approx([12.3456, 50])
  assert list(table["validation/one_stage/ndcg@5"]) == pytest.approx([20, 70])
  assert list(table["best_epoch"]) == [2, 2]


@pytest.mark.parametrize("free", [0, 3 * 1024**3, 1024**4])
def test_processes_are_no_more_than_cores_and_memory_allow(monkeypatch, free):
  monkeypatch.setattr(experiment, "_available_memory", lambda: free)
  monkeypatch.setattr(experiment, "_cores", lambda: 8)
  expected = {0: 1, 3 * 1024**3: 1, 1024**4: 8}[free]
  assert experiment._affordable_processes() == expected
