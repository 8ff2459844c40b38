"""Experiments: variants by logs and seeds, trained in several processes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import logging
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pandas as pd
import tensorflow as tf
from tqdm.auto import tqdm

from tf_twostage import environment as environments
from tf_twostage import losses
from tf_twostage.config import GENERATOR_FIELDS, Config
from tf_twostage.environment import Environment
from tf_twostage.environment.user_log import DATASET
from tf_twostage.errors import InputError, RunError
from tf_twostage.metrics import STAGES, Metrics, Scores
from tf_twostage.recommender import TwoStageRecommender, positives_only
from tf_twostage.reports import plots, tables
from tf_twostage.reports.tables import Cell
from tf_twostage.training import loop
from tf_twostage.training.distribution import only_here
from tf_twostage.training.loop import History
from tf_twostage.training.signals import Stopped
from tf_twostage.workspace import (
  Damaged,
  Workspace,
  read_record,
  results_directory,
  write_json,
  write_text,
)

_log = logging.getLogger(__name__)

_MEMORY_PER_PROCESS = 2 * 1024**3
_SEEDS_PER_LOG = 1000  # apart, so that two logs share no training seed


@dataclasses.dataclass(frozen=True)
class Variant:
  """One row of the table.

  Attributes:
    label: name of the row.
    config: its settings; all variants share one environment. `run` sets the seed.
    family: of the variants of one family, validation data choose one for the table.
  """

  label: str
  config: Config
  family: str


def run(
  config: Config,
  variants: Sequence[Variant],
  *,
  seeds: int,
  workdir: pathlib.Path,
  logs: int = 1,
  processes: int = 0,
) -> str:
  """Trains all cells that are not finished, writes tables and figures, and returns a summary.

  With several logs, the logging policy, its log and the ranker are made anew for each log, from the
  same labels. Means and errors are then over logs, of the mean over a log's seeds. All variants
  train on the same logs with the same seeds.

  Args:
    config: makes the environment that all variants share.
    variants: what to compare; the first is the reference.
    seeds: training seeds of each variant and log: from 0 on with one log, others for each log
      otherwise.
    workdir: gets stages/, generators/, tensorboard/ and experiment/; experiment-2/, ... if it holds
      another experiment.
    logs: how many logs.
    processes: how many generators to fit at a time; 0: as many as cores and memory allow.

  Raises:
    InputError: the variants are not different, or there are several logs of a user's own log.
    RunError: a cell failed; the same call resumes the experiment.
  """
  labels = [v.label for v in variants]
  if not variants or len(set(labels)) < len(labels) or min(seeds, logs) < 1:
    raise InputError(
      f"an experiment needs different variants, a seed and a log; got {labels}, seeds={seeds},"
      f" logs={logs}"
    )
  models = [TwoStageRecommender.from_config(variant.config) for variant in variants]
  label_of: dict[Config, str] = {}
  for variant, model in zip(variants, models, strict=True):  # with every option written out
    options = losses.resolve(variant.config.loss, variant.config.loss_options)
    rows = positives_only(variant.config, model.objective())
    generator = dataclasses.replace(variant.config.generator, positives_only=rows)
    resolved = dataclasses.replace(variant.config, loss_options=options, generator=generator)
    twin = label_of.setdefault(resolved, variant.label)
    if twin != variant.label:
      raise InputError(f"{twin} and {variant.label} are the same settings; leave one out")
  only_here(config, "launch.experiment")
  cells = _cells(config, variants, logs, seeds)
  workspace = Workspace(workdir / "stages")
  stages = {model.stage for model in models}
  of_baselines = stages.pop() if len(stages) == 1 else "two_stage"
  baselines: dict[int, dict[str, Scores]] = {}
  histories: dict[Cell, History] = {}
  for log, keys in itertools.groupby(cells, lambda cell: cell.log):
    environment = environments.make(_with_log(config, log), workspace)
    for model in models:
      model.check_catalogue(environment.tables.schema.num_items)
    baselines[log] = environment.baselines(workspace, config.slate_size, of_baselines)
    for key in keys:
      model = TwoStageRecommender.from_config(cells[key])
      history = model.finished_history(environment, workdir)
      if history is not None:
        histories[key] = history
  metrics = environment.evaluator.metrics
  _fit_missing(config, cells, histories, metrics, workdir, processes)
  histories = {key: histories[key] for key in cells}
  plan = {v.label: {"family": v.family, **dataclasses.asdict(v.config)} for v in variants}
  directory = results_directory(workdir / "experiment", [plan, logs, seeds])
  write_json(directory / "experiment.json", plan)
  summary = _report(variants, histories, baselines, metrics, directory)
  return "\n\n".join([summary, *environment.notes])


def _cells(
  config: Config, variants: Sequence[Variant], logs: int, seeds: int
) -> dict[Cell, Config]:
  """All cells, logs outside and variants inside: an interrupted experiment is a smaller one."""
  first = config.simulation.log_number
  if logs > 1:
    is_log = config.user_log.log is not None or config.data.dataset == DATASET
    if is_log or config.ratings_are_the_log:
      raise InputError(
        f"logs is {logs}, but your own log is one sample, which cannot be drawn again: leave logs"
        " out; seeds repeat the training, and launch.evaluate gives intervals of held-out values"
      )
    if config.data.environment and not first:
      first = 1  # log 0 is the one in the files, drawn by another policy than the others
  cells = {}
  for log in range(first, first + logs):
    start = _SEEDS_PER_LOG * log if logs > 1 else 0
    for seed, variant in itertools.product(range(start, start + seeds), variants):
      own = dataclasses.replace(_with_log(variant.config, log), seed=seed)
      cells[Cell(variant.label, log, seed)] = own
  return cells


def _with_log(config: Config, log: int) -> Config:
  simulation = dataclasses.replace(config.simulation, log_number=log)
  return dataclasses.replace(config, simulation=simulation)


def finished(config: Config, environment: Environment, workdir: pathlib.Path) -> list[Variant]:
  """All finished generators of an environment, by label and seed.

  The label is the loss, and "name=value" for each setting that differs from `config`.
  """
  found, others = [], 0
  for checkpoints in sorted((workdir / "generators").glob("*/checkpoints")):
    file = checkpoints.with_name("config.json")
    stored = stored_config(file)
    if stored is None:
      others += 1
      continue
    own = {name: getattr(stored, name) for name in (*GENERATOR_FIELDS, "slate_size", "seed")}
    model = TwoStageRecommender.from_config(dataclasses.replace(config, **own))
    if model.directory(environment, workdir).name != file.parent.name:
      others += 1
    elif model.finished_history(environment, workdir) is not None:
      label = _label(model.config, config)
      found.append(Variant(label, model.config, label))
  if others:
    _log.info("%d generators of other environments or versions are left out", others)
  return sorted(found, key=lambda variant: (variant.label, variant.config.seed))


def stored_config(file: pathlib.Path) -> Config | None:
  """The settings of a run; None: another version of the package wrote them, or they are damaged."""
  defaults = Config()
  try:
    values = read_record(file)
    config = Config(
      **{
        name: type(getattr(defaults, name))(**value) if isinstance(value, dict) else value
        for name, value in values.items()
      }
    )
    losses.resolve(config.loss, config.loss_options)
    return config
  except Damaged as error:
    _log.warning("%s; its generator is left out: train with its settings again", error)
  except (ValueError, TypeError, AttributeError, InputError):
    pass
  return None


def _label(config: Config, usual: Config) -> str:
  """The loss, and "name=value" of every setting that differs from the usual one."""
  own, theirs = _flat(config), _flat(usual)
  if config.loss != usual.loss:
    theirs |= losses.resolve(config.loss, {})
  pairs = [f"{name}={value}" for name, value in own.items() if theirs[name] != value]
  return ":".join([config.loss, *pairs])


def _flat(config: Config) -> dict[str, Any]:
  """Every setting that generators of one environment may differ in, except loss and seed."""
  flat = {"slate_size": config.slate_size, **losses.resolve(config.loss, config.loss_options)}
  for name in GENERATOR_FIELDS:
    if name not in ("loss", "loss_options"):
      flat |= dataclasses.asdict(getattr(config, name))
  return flat


def _fit_missing(
  config: Config,
  cells: Mapping[Cell, Config],
  histories: dict[Cell, History],
  metrics: Metrics,
  workdir: pathlib.Path,
  processes: int,
) -> None:
  """Fits the cells that have no history, and adds theirs."""
  missing = {key: own for key, own in cells.items() if key not in histories}
  processes = min(processes or _affordable_processes(), max(1, len(missing)))
  _log.info("%d cells, %d finished before; %d process(es)", len(cells), len(histories), processes)
  with tqdm(total=len(cells), initial=len(histories), unit="cell") as progress:
    for key, history, seconds in _fitted(config, missing, workdir, processes):
      histories[key] = history
      progress.write(_line(key, history, seconds, metrics))
      progress.update()


def _fitted(
  config: Config, cells: Mapping[Cell, Config], workdir: pathlib.Path, processes: int
) -> Iterator[tuple[Cell, History, float]]:
  """Yields cells as they finish, with their seconds."""
  if not cells:
    return
  pool = concurrent.futures.ProcessPoolExecutor(
    processes,
    mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not survive a fork
    initializer=_start_worker,
    initargs=(max(1, _cores() // processes),),
  )
  with pool:
    try:
      futures = {
        pool.submit(_fit_cell, key, own, _with_log(config, key.log), workdir): key
        for key, own in cells.items()
      }
      for future in concurrent.futures.as_completed(futures):
        history, seconds = future.result()
        yield futures[future], history, seconds
    except BrokenProcessPool as error:
      raise RunError(
        "a process of the experiment was killed, perhaps because memory ran out; the same call"
        " resumes the experiment, and needs the least memory with processes=1"
      ) from error
    except (Stopped, GeneratorExit):
      for process in multiprocessing.active_children():
        process.terminate()  # each saves its state
      raise
    finally:
      pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
  threading.Thread(target=_die_with_parent, daemon=True).start()
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes it on, once
  logging.getLogger("tf_twostage").setLevel(logging.ERROR)
  tf.get_logger().setLevel("ERROR")
  tf.config.threading.set_intra_op_parallelism_threads(threads)
  tf.config.threading.set_inter_op_parallelism_threads(threads)


@functools.lru_cache(maxsize=1)  # cells of one log follow each other
def _environment(config: Config, workdir: pathlib.Path) -> Environment:
  return environments.make(config, Workspace(workdir / "stages"))


def _die_with_parent() -> None:
  """Ends this process when the parent is killed."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


def _fit_cell(
  key: Cell, config: Config, shared: Config, workdir: pathlib.Path
) -> tuple[History, float]:
  start = time.perf_counter()
  tf.keras.backend.clear_session()
  try:
    model = TwoStageRecommender.from_config(config)
    model.fit(_environment(shared, workdir), workdir=workdir, progress=False)
  except Stopped as stopped:
    os._exit(stopped.exit_code)  # otherwise the pool would give it the next cell
  except RunError as error:
    raise RunError(f"{_name(key)}: {error}") from error
  return model.epochs, time.perf_counter() - start


def _name(key: Cell) -> str:
  log = f", log {key.log}" if key.log else ""
  return f"{key.variant}{log}, seed {key.seed}"


def _line(key: Cell, history: History, seconds: float, metrics: Metrics) -> str:
  best = loop.best_epoch(history)
  one, two = (
    metrics.head.text(metrics.shown(best["scores"]["test"][stage], metrics.headline))
    for stage in STAGES
  )
  return (
    f"{_name(key)}: test {metrics.headline} {one} one stage, {two} two stages"
    f" (epoch {best['epoch']} of {len(history)}, {seconds:.0f} s)"
  )


def _report(
  variants: Sequence[Variant],
  histories: tables.Histories,
  baselines: Mapping[int, Mapping[str, Scores]],
  metrics: Metrics,
  directory: pathlib.Path,
) -> str:
  cells = tables.every_cell(histories, metrics)
  found = tables.results(cells, baselines, metrics)
  chosen = tables.choose({v.label: v.family for v in variants}, found)
  reference = chosen[0]
  blocks = tables.summaries(found, chosen, metrics)
  tests = {
    metric: tables.paired_tests(found, chosen, ["popularity"], metrics, metric)
    for metric in metrics.compared
  }
  write_text(directory / "table.csv", cells.to_csv(index=False, float_format="%.6f"))
  write_text(directory / "table.md", tables.to_markdown(blocks, reference, metrics))
  write_text(directory / "table.tex", tables.to_latex(blocks, reference, metrics))
  every_test = pd.concat(tests, names=["metric"]).reset_index("metric")
  write_text(directory / "significance.csv", every_test.to_csv(index=False, float_format="%.6g"))
  parts = [
    tables.to_text(blocks, found.repeated, metrics),
    tables.tests_to_text(tests[metrics.headline], found.repeated, metrics),
  ]
  if len(chosen) < len(variants):
    sweep = tables.sweep([v.label for v in variants], found, chosen, metrics)
    write_text(directory / "sweep.csv", sweep.to_csv(index=False, float_format="%.4f"))
    parts.insert(0, f"Validation {metrics.population} choose (*):\n" + sweep.to_string(index=False))
  curves = tables.curves({k: h for k, h in histories.items() if k.variant in chosen}, metrics)
  plots.Experiment(found, curves, chosen, metrics).save(directory)
  return "\n\n".join([*parts, f"Tables and figures: {directory}"])


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _affordable_processes() -> int:
  return max(1, min(_cores(), _available_memory() // _MEMORY_PER_PROCESS))


def _available_memory() -> int:
  """Bytes available without swapping; 0 if unknown."""
  try:
    lines = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
  except (OSError, StopIteration):
    return 0
