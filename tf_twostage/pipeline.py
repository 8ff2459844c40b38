"""The main job: ratings -> simulated log -> ranker -> generator -> evaluation -> export."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from typing import Any

import numpy as np
import tensorflow as tf

from tf_twostage import bandit_log, datasets, losses, reporting, serving, training
from tf_twostage.config import Config
from tf_twostage.datasets.ratings import RatingsData
from tf_twostage.errors import InputError
from tf_twostage.evaluation import protocol
from tf_twostage.evaluation.protocol import EvaluationSet, Scorer, Scores
from tf_twostage.fitting import fit
from tf_twostage.models.candidate_generator import CandidateGenerator
from tf_twostage.models.encoders import EncodedTables, TwoTower
from tf_twostage.models.ranker import Ranker
from tf_twostage.simulation.environment import Environment, simulate
from tf_twostage.stages import (
  Stages,
  fingerprint,
  restore_weights,
  save_weights,
  write_json,
  write_text,
)

_log = logging.getLogger(__name__)

_CHECKED_USERS = 5  # whose recommendations the fresh process must repeat


@dataclasses.dataclass(frozen=True)
class Result:
  """One run: where it is, what it scored, what to print."""

  directory: pathlib.Path
  metrics: dict[str, Any]
  summary: str


def run(config: Config, workdir: pathlib.Path, export_dir: pathlib.Path) -> Result:
  """Walks the whole way; stages whose inputs did not change are reused.

  Args:
    config: all settings.
    workdir: holds stages/, generators/, tensorboard/, and of the last run config.json,
      metrics.json, table.csv and curves.png.
    export_dir: gets the next version of the SavedModel.

  Raises:
    InputError: the data or the settings do not fit; nothing has been trained.
  """
  start = time.perf_counter()
  objective = _objective(config)
  data = datasets.load(config.data.dataset, config.data.data_dir)
  _check_sizes(config, data)
  stages = Stages(workdir / "stages")
  stages.timings["data"] = {"seconds": round(time.perf_counter() - start, 2), "reused": False}

  tables = EncodedTables.encode(data.schema, data.users, data.items)
  environment = simulate(config, data, tables, stages)
  ranker, ranker_stage = _fitted_ranker(config, tables, environment, stages)
  users = EvaluationSet(
    inputs={
      "user": tables.users,
      "context": environment.information.evaluation_context,
      "user_index": np.arange(data.num_users, dtype=np.int32),
    },
    relevance=environment.information.relevance,
    excluded=protocol.logged_positives(environment.log, data.num_users, data.num_items),
    num_validation=config.data.validation_users,
  )
  with stages.timed("baselines"):
    baselines = _score_baselines(config, environment, ranker, users)

  depends_on = {
    "ranker": ranker_stage,
    "generator": dataclasses.asdict(config.generator),
    "loss": dataclasses.asdict(config.loss),
    "slate_size": config.slate_size,
    "validation_users": config.data.validation_users,
    "seed": config.seed,
  }
  run_name = f"{config.loss.loss}-seed{config.seed}-{fingerprint(depends_on)}"
  directory = workdir / "generators" / run_name
  directory.mkdir(parents=True, exist_ok=True)

  tf.keras.utils.set_random_seed(config.seed)
  towers = TwoTower(tables, config.encoder, l2=config.generator.l2)
  model = CandidateGenerator(towers, objective, ranker_logits=ranker.frozen())
  with stages.timed("generator"):
    history = training.train_generator(
      model,
      environment.log.positives(),
      tables.users,
      protocol.make_evaluation(
        lambda batch: model(batch["user"]), ranker.frozen(), users, config.slate_size
      ),
      config.generator,
      directory,
      seed=config.seed,
      hyper_parameters=_hyper_parameters(config),
      tensorboard=workdir / "tensorboard" / run_name,
    )
  with stages.timed("export"):
    recommender = serving.Recommender(
      data.schema, towers, ranker.towers, data.titles, config.slate_size
    )
    exported = serving.export(recommender, export_dir)
    serving.check(exported, recommender, _some_requests(data, users))
  stages.timings["total"] = {"seconds": round(time.perf_counter() - start, 2), "reused": False}

  best = training.best_epoch(history)
  metrics = {
    "loss": config.loss.loss,
    "best_epoch": best["epoch"],
    **best["scores"],
    "baselines": baselines,
    "simulator_auc": environment.simulator_auc,
    "export": str(exported),
    "timings": stages.timings,
  }
  summary = _report(config, metrics, history, (directory, workdir))
  return Result(directory, metrics, summary)


def _objective(config: Config) -> losses.OffPolicyLoss:
  """The configured loss, with those settings that it takes."""
  settings = config.loss
  options = {
    "importance": losses.ImportanceWeights(
      cap=settings.weight_cap,
      floor=settings.weight_floor,
      self_normalize=settings.self_normalize,
    ),
    "alpha": settings.alpha,
    "num_slates": settings.num_slates,
    "slate_size": config.slate_size,
    "sampling_temperature": settings.sampling_temperature,
    "seed": config.seed,
  }
  taken = losses.options(settings.loss)
  return losses.get(settings.loss, **{k: v for k, v in options.items() if k in taken})


def _check_sizes(config: Config, data: RatingsData) -> None:
  if not 0 < config.data.validation_users < data.num_users:
    raise InputError(
      f"validation_users is {config.data.validation_users}, but {data.name} has"
      f" {data.num_users} users: pick a number between, so that some validate and some test"
    )
  if not max(protocol.CUTOFFS) <= config.slate_size <= data.num_items:
    raise InputError(
      f"slate_size is {config.slate_size}; it must reach the evaluation's cut-off"
      f" {max(protocol.CUTOFFS)} and not exceed the {data.num_items} items of {data.name}"
    )


def _fitted_ranker(
  config: Config, tables: EncodedTables, environment: Environment, stages: Stages
) -> tuple[Ranker, str]:
  """The ranker and the name of its stage."""
  seed = config.environment_seed
  tf.keras.utils.set_random_seed(seed)
  towers = TwoTower(tables, config.encoder, l2=config.ranker.l2, use_context=True)
  ranker = Ranker(towers, tables.context_lookup)

  def build(directory: pathlib.Path) -> None:
    log = environment.log
    batches = bandit_log.train_dataset(
      log, tables.users, batch_size=config.ranker.batch_size, seed=seed
    )
    fit(ranker, batches, config.ranker, len(log), "ranker")
    save_weights(towers, directory)

  stage = stages.get(
    "ranker",
    {
      "log": environment.log_stage,
      "encoder": dataclasses.asdict(config.encoder),
      "fit": dataclasses.asdict(config.ranker),
      "seed": seed,
    },
    build,
  )
  restore_weights(towers, stage)
  return ranker, stage.name


def _score_baselines(
  config: Config, environment: Environment, ranker: Ranker, users: EvaluationSet
) -> dict[str, Scores]:
  """What every table carries beside the trained generator."""
  num_items = users.relevance.shape[1]
  scorers: dict[str, Scorer] = {
    "popularity": protocol.list_scorer(protocol.popularity(environment.log, num_items)),
    "logging policy": protocol.vector_scorer(*environment.behavior),
    "ranker, all items": ranker.frozen(),
    "random": protocol.random_scorer(num_items, config.environment_seed),
  }
  return {
    name: protocol.make_evaluation(scorer, ranker.frozen(), users, config.slate_size)()
    for name, scorer in scorers.items()
  }


def _some_requests(data: RatingsData, users: EvaluationSet) -> dict[str, np.ndarray]:
  """Raw requests of the first users in their mean context, their logged positives excluded."""
  rows = slice(0, _CHECKED_USERS)
  excluded = users.excluded[rows]
  ids = np.asarray(data.schema.item_id.vocabulary)
  width = max(1, excluded.sum(axis=1).max())
  best = np.argsort(~excluded, axis=1, kind="stable")[:, :width]
  return {
    **{f.name: np.asarray(data.users[f.name])[rows] for f in data.schema.user},
    **{f.name: users.inputs["context"][f.name][rows] for f in data.schema.context},
    "exclude": np.where(np.take_along_axis(excluded, best, axis=1), ids[best], ""),
  }


def _report(
  config: Config,
  metrics: dict[str, Any],
  history: training.History,
  directories: tuple[pathlib.Path, ...],
) -> str:
  """Writes the run's files into every directory; returns what the run says at its end."""
  baselines = metrics["baselines"]
  scores = {split: metrics[split] for split in ("validation", "test")}
  table = reporting.score_table({config.loss.loss: scores, **baselines})
  warnings = reporting.health_warnings(history[-1]["training"], config.loss.loss)
  for warning in warnings:
    _log.warning("%s", warning)
  for directory in directories:
    write_json(directory / "config.json", dataclasses.asdict(config))
    write_json(directory / "metrics.json", metrics)
    write_text(directory / "table.csv", reporting.flat_csv(table))
    reporting.plot_curves(
      history, baselines, f"{config.name}: {config.loss.loss}", directory / "curves.png"
    )
  return "\n\n".join(
    [
      reporting.format_table(table),
      reporting.format_timings(metrics["timings"]),
      f"Best epoch {metrics['best_epoch']} of {len(history)}. Results: {directories[0]}\n"
      f"SavedModel: {metrics['export']}",
    ]
  )


def _hyper_parameters(config: Config) -> dict[str, Any]:
  """What a generator's results depend on, apart from its environment."""
  return {
    "loss": config.loss.loss,
    "slate_size": config.slate_size,
    "seed": config.seed,
    **dataclasses.asdict(config.loss),
    **dataclasses.asdict(config.generator),
  }
