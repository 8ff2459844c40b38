"""Experiments: variants by seeds in one environment, trained in several processes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
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

import tensorflow as tf
from tqdm.auto import tqdm

from tf_twostage import environment as environments
from tf_twostage import losses
from tf_twostage.config import GENERATOR_FIELDS, Config
from tf_twostage.environment import Environment
from tf_twostage.errors import InputError, RunError
from tf_twostage.metrics import STAGES, Metrics
from tf_twostage.recommender import TwoStageRecommender, positives_only
from tf_twostage.reports import plots, tables
from tf_twostage.training import loop
from tf_twostage.training.distribution import only_here
from tf_twostage.training.loop import History
from tf_twostage.training.signals import Stopped
from tf_twostage.workspace import Workspace, write_json, write_text

_log = logging.getLogger(__name__)

_MEMORY_PER_PROCESS = 2 * 1024**3


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
  processes: int = 0,
) -> str:
  """Trains all cells that are not finished, writes tables and figures, and returns a summary.

  Args:
    config: makes the environment that all variants share.
    variants: what to compare; the first is the reference.
    seeds: seeds 0 to this, exclusive, for each variant.
    workdir: gets stages/, generators/, tensorboard/ and experiment/.
    processes: how many generators to fit at a time; 0: as many as cores and memory allow.
  """
  labels = [v.label for v in variants]
  if not variants or len(set(labels)) < len(labels) or seeds < 1:
    raise InputError(f"an experiment needs different variants and a seed, got {labels}, {seeds}")
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
  workspace = Workspace(workdir / "stages")
  environment = environments.make(config, workspace)
  for model in models:
    model.check_catalogue(environment.tables.schema.num_items)
  baselines = environment.baselines(workspace, config.slate_size)
  cells = [
    dataclasses.replace(v, config=dataclasses.replace(v.config, seed=seed))
    for seed in range(seeds)  # seeds outside: an interrupted experiment is a smaller one
    for v in variants
  ]
  histories = _fit_cells(config, cells, environment, workdir, processes)
  metrics = environment.evaluator.metrics
  summary = _report(variants, histories, baselines, metrics, workdir / "experiment")
  return "\n\n".join([summary, *environment.notes])


def finished(config: Config, environment: Environment, workdir: pathlib.Path) -> list[Variant]:
  """All finished generators of an environment, by label and seed.

  The label is the loss, and "name=value" for each setting that differs from `config`.
  """
  found, others = [], 0
  for file in sorted((workdir / "generators").glob("*/config.json")):
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
  """The settings of a run; None: another version of the package wrote them."""
  defaults = Config()
  try:
    values = json.loads(file.read_text(encoding="utf-8"))
    config = Config(
      **{
        name: type(getattr(defaults, name))(**value) if isinstance(value, dict) else value
        for name, value in values.items()
      }
    )
    losses.resolve(config.loss, config.loss_options)
    return config
  except (ValueError, TypeError, AttributeError, InputError):
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


def _fit_cells(
  config: Config,
  cells: Sequence[Variant],
  environment: Environment,
  workdir: pathlib.Path,
  processes: int,
) -> dict[tuple[str, int], History]:
  """Histories by (variant, seed)."""
  histories = {}
  for cell in cells:
    model = TwoStageRecommender.from_config(cell.config)
    history = model.finished_history(environment, workdir)
    if history is not None:
      histories[cell.label, cell.config.seed] = history
  missing = [cell for cell in cells if (cell.label, cell.config.seed) not in histories]
  processes = min(processes or _affordable_processes(), max(1, len(missing)))
  _log.info("%d cells, %d finished before; %d process(es)", len(cells), len(histories), processes)
  with tqdm(total=len(cells), initial=len(histories), unit="cell") as progress:
    for cell, history, seconds in _fitted(config, missing, workdir, processes):
      histories[cell.label, cell.config.seed] = history
      progress.write(_line(cell, history, seconds, environment.evaluator.metrics))
      progress.update()
  return {key: histories[key] for key in ((cell.label, cell.config.seed) for cell in cells)}


def _fitted(
  config: Config, cells: Sequence[Variant], workdir: pathlib.Path, processes: int
) -> Iterator[tuple[Variant, History, float]]:
  """Yields cells as they finish."""
  if not cells:
    return
  threads = max(1, _cores() // processes)
  pool = concurrent.futures.ProcessPoolExecutor(
    processes,
    mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not survive a fork
    initializer=_start_worker,
    initargs=(config, workdir, threads),
  )
  with pool:
    try:
      futures = {pool.submit(_fit_cell, cell, workdir): cell for cell in cells}
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


_worker_environment: Environment | None = None  # of a worker process, made once


def _start_worker(config: Config, workdir: pathlib.Path, threads: int) -> None:
  global _worker_environment
  threading.Thread(target=_die_with_parent, daemon=True).start()
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes it on, once
  logging.getLogger("tf_twostage").setLevel(logging.ERROR)
  tf.get_logger().setLevel("ERROR")
  tf.config.threading.set_intra_op_parallelism_threads(threads)
  tf.config.threading.set_inter_op_parallelism_threads(threads)
  _worker_environment = environments.make(config, Workspace(workdir / "stages"))


def _die_with_parent() -> None:
  """Ends this process when the parent is killed."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


def _fit_cell(cell: Variant, workdir: pathlib.Path) -> tuple[History, float]:
  assert _worker_environment is not None
  start = time.perf_counter()
  tf.keras.backend.clear_session()
  try:
    model = TwoStageRecommender.from_config(cell.config)
    model.fit(_worker_environment, workdir=workdir, progress=False)
  except Stopped as stopped:
    os._exit(stopped.exit_code)  # otherwise the pool would give it the next cell
  except RunError as error:
    raise RunError(f"{cell.label}, seed {cell.config.seed}: {error}") from error
  return model.epochs, time.perf_counter() - start


def _line(cell: Variant, history: History, seconds: float, metrics: Metrics) -> str:
  best = loop.best_epoch(history)
  one, two = (
    metrics.head.text(metrics.shown(best["scores"]["test"][stage], metrics.headline))
    for stage in STAGES
  )
  return (
    f"{cell.label}, seed {cell.config.seed}: test {metrics.headline} {one} one stage, {two} two"
    f" stages (epoch {best['epoch']} of {len(history)}, {seconds:.0f} s)"
  )


def _report(
  variants: Sequence[Variant],
  histories: Mapping[tuple[str, int], History],
  baselines: Mapping[str, Any],
  metrics: Metrics,
  directory: pathlib.Path,
) -> str:
  directory.mkdir(parents=True, exist_ok=True)
  every_seed = tables.every_seed(histories, metrics)
  chosen = tables.choose({v.label: v.family for v in variants}, every_seed)
  reference = chosen[0]
  shown = every_seed[every_seed["variant"].isin(chosen)]
  blocks = tables.summaries(shown, chosen, baselines, metrics)
  popularity = {"popularity": baselines["popularity"]}
  tests = tables.paired_tests(shown, chosen, popularity, metrics)
  write_json(
    directory / "experiment.json",
    {v.label: {"family": v.family, **dataclasses.asdict(v.config)} for v in variants},
  )
  write_text(directory / "table.csv", every_seed.to_csv(index=False, float_format="%.6f"))
  write_text(directory / "table.md", tables.to_markdown(blocks, reference, metrics))
  write_text(directory / "table.tex", tables.to_latex(blocks, reference, metrics))
  write_text(directory / "significance.csv", tests.to_csv(index=False, float_format="%.6g"))
  parts = [tables.to_text(blocks, reference, metrics), tables.tests_to_text(tests, metrics)]
  if len(chosen) < len(variants):
    sweep = tables.sweep(every_seed, chosen, metrics)
    write_text(directory / "sweep.csv", sweep.to_csv(index=False, float_format="%.4f"))
    parts.insert(0, f"Validation {metrics.population} choose (*):\n" + sweep.to_string(index=False))
  curves = tables.curves({k: h for k, h in histories.items() if k[0] in chosen}, metrics)
  plots.Experiment(shown, curves, chosen, baselines, metrics).save(directory)
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
