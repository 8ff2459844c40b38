"""The job: environment -> evaluation log -> reward model -> value of every policy -> report."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from tf_twostage import environment as environments
from tf_twostage.config import Config
from tf_twostage.errors import InputError
from tf_twostage.evaluation import policy_file, values
from tf_twostage.evaluation.reward_model import fit_reward_model
from tf_twostage.generators import Generator, finished
from tf_twostage.reports import policy_report
from tf_twostage.workspace import Workspace


def run(
  config: Config,
  generators: Sequence[Generator] | None,
  workdir: pathlib.Path,
  *,
  policy_files: Sequence[pathlib.Path] = (),
  training_command: str,
) -> str:
  """Evaluates the logging policy, generators with and without the ranker, and policies in files.

  Args:
    config: makes the environment that all generators share.
    generators: what to evaluate; None: every finished generator of the environment in `workdir`.
    workdir: where they were trained; gets evaluation/ and stages.
    policy_files: see `policy_file.read`.
    training_command: what trains them, said where one is missing.

  Returns:
    what to print.

  Raises:
    InputError: a generator has not finished, or a file does not fit; nothing has been evaluated.
  """
  remedy = f"train with\n  {training_command}\nand evaluate again"
  if not any((workdir / "generators").glob("*/history.json")):  # before anything is built
    raise InputError(f"{workdir} holds no generator; {remedy}")
  workspace = Workspace(workdir / "stages")
  environment = environments.make(config, workspace)
  if generators is None:
    generators = finished(config, environment, workdir)
  unfinished = [g.name for g in generators if not g.is_finished(environment, workdir)]
  if unfinished or not generators:
    which = f" of {'; '.join(unfinished)}" if unfinished else ""
    raise InputError(f"{workdir} has no finished generator{which}; {remedy}")
  evaluation = environment.evaluation_log(workspace)
  item_ids = np.asarray(environment.tables.schema.item_id.vocabulary)
  given = [policy_file.read(path, evaluation, item_ids) for path in policy_files]
  seed = config.environment_seed
  model = fit_reward_model(
    evaluation, environment.tables, config.encoder, config.ranker, workspace, seed=seed
  )
  policies = itertools.chain(
    *(generator.policies(environment, evaluation, workdir) for generator in generators), given
  )
  progress = tqdm(policies, total=2 * len(generators) + len(given), unit="policy", desc="policies")
  estimates = values.evaluate(evaluation, progress, reward_model=model, seed=seed)
  explained = model.explained(evaluation.log)
  return policy_report.write(estimates, evaluation, explained, workdir / "evaluation")
