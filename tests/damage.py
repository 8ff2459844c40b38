"""Damages files of work directories, one at a time, and runs again: the numbers must be the same.

python -m tests.damage --mutations=60     # of each kind of run; prints what went wrong
"""

import argparse
import dataclasses
import pathlib
import shutil
import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tqdm

from launch import evaluate
from tests import external_rankers, prepared_environment, user_logs
from tests.serving import small
from tf_twostage import TwoStageRecommender, environment, experiment, online_loop
from tf_twostage.config import Config, DataConfig, FitConfig, GeneratorConfig, SimulationConfig
from tf_twostage.data import sets
from tf_twostage.errors import InputError, RunError
from tf_twostage.workspace import Workspace, to_json

DAMAGES = ("cut", "empty", "flipped", "digit", "missing")
_FIT = FitConfig(epochs=1, batch_size=64)
_GENERATOR = GeneratorConfig(epochs=2, batch_size=64, positives_only=None)


def _usual(**settings):
  return Config(
    slate_size=12,
    loss="two_stage_ips",
    loss_options={"num_slates": 3, "sampling": "systematic"},  # resumes bit for bit
    generator=_GENERATOR,
    ranker=_FIT,
    behavior=_FIT,
    simulator=_FIT,
    **settings,
  )


def _simulated(root):
  sets.DATASETS["damage"] = lambda data_dir: prepared_environment.DATA
  return _usual(
    data=DataConfig("damage", validation_users=8), simulation=SimulationConfig(behavior_pairs=100)
  )


def _prepared(root):
  sets.DATASETS["damage"] = lambda data_dir: prepared_environment.DATA
  given = prepared_environment.contents().write(root / "environment")
  return _usual(data=DataConfig("damage", environment=str(given), validation_users=8))


def _labelled(root):
  sets.DATASETS["damage"] = lambda data_dir: sets.make_xmc(
    60, 30, 50, 20, labels_per_document=3, features_per_document=9
  )
  return _usual(
    data=DataConfig("damage", validation_users=10),
    simulation=SimulationConfig(supervised_documents=20),
  )


def _log(root, *, propensities=True, ranker_score=False, **settings):
  world = user_logs.make(400, ranker_score=ranker_score)
  if not propensities:
    world.schema["propensity"] = None
  files = world.write(root / "log")
  names = {name: str(files / f"{name}.csv") for name in ("log", "items", "users")}
  schema = str(files / "schema.yaml")
  log = dataclasses.replace(Config().user_log, **names, schema=schema, **settings)
  return _usual(user_log=log)


def _external(root):
  return _log(root, ranker=str(external_rankers.Ranker().save(root / "ranker")))


def _looped(root):
  usual = _simulated(root)
  return dataclasses.replace(usual, loss="ips", loss_options={})  # not resumed: any draws do


def _trained(config, workdir):
  tf.keras.backend.clear_session()
  workspace = Workspace(workdir / "stages")
  world = environment.make(config, workspace)
  baselines = world.baselines(workspace, config.slate_size)
  model = TwoStageRecommender.from_config(config).fit(world, workdir=workdir, progress=False)
  history = [{"selected": e["selected"], "scores": e["scores"]} for e in model.epochs]
  log = world.evaluation_log(workspace).rows
  rows = {name: values.tolist() for name, values in log.columns().items()}
  weights = [variable.numpy().tolist() for variable in model.towers.variables]
  return [baselines, history, rows, weights, world.facts]


def _evaluated(config, workdir):
  trained = _trained(config, workdir)
  generators = [("trained", config)]
  report = evaluate.run(config, generators, workdir, training_command="")
  return [trained, report, _texts(workdir / "evaluation")]


def _compared(config, workdir):
  """An experiment; a process trains what is missing."""
  other = dataclasses.replace(config, loss="ips", loss_options={})
  variants = [experiment.Variant(one.loss, one, one.loss) for one in (config, other)]
  summary = experiment.run(config, variants, seeds=1, workdir=workdir, processes=1)
  return [summary, _texts(workdir / "experiment")]


def _rounds(config, workdir):
  with pytest.MonkeyPatch.context() as patch:
    small.skip_replay(patch.setattr)
    loop = online_loop.Loop(config, workdir, draws=2, temperature=1.0)
    rounds = list(loop.run(workdir / "exports", 2, keep=3))
  return [online_loop.table(loop.logging_policy, rounds), *map(str, rounds)]


def _texts(directory):
  files = sorted(file for file in directory.iterdir() if file.suffix != ".png")
  return {file.name: file.read_text() for file in files}


KINDS = {  # the settings, and what a run says
  "simulated": (_simulated, _trained),
  "prepared": (_prepared, _trained),
  "labelled": (_labelled, _trained),
  "user log": (_log, _trained),
  "without propensities": (lambda root: _log(root, propensities=False), _trained),
  "with ranker scores": (lambda root: _log(root, ranker_score=True), _trained),
  "streamed": (lambda root: _log(root, stream=True), _trained),
  "external ranker": (_external, _trained),
  "evaluation": (_log, _evaluated),
  "experiment": (_log, _compared),
  "loop": (_looped, _rounds),
}


def outcome(kind, config, workdir):
  """All numbers of a run, as text."""
  return to_json(KINDS[kind][1](config, workdir)).replace(str(workdir), "")


def damage(file, how, rng):
  """Damages a file; returns whether it is different now."""
  content = file.read_bytes()
  digits = np.flatnonzero(np.isin(np.frombuffer(content, np.uint8), list(b"0123456789")))
  if how == "missing":
    file.unlink()
    return True
  if not content or (how == "digit" and not digits.size):
    return False
  changed = bytearray(content)
  if how == "flipped":
    changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
  elif how == "digit":
    place = rng.choice(digits)
    changed[place] = ord("0") + (changed[place] - ord("0") + rng.integers(1, 10)) % 10
  file.write_bytes({"cut": content[: rng.integers(len(content))], "empty": b""}.get(how, changed))
  return True


def trials(kind, root, mutations, seed=0):
  """Yields file, damage and what went wrong, or "", of as many runs."""
  rng = np.random.default_rng(seed)
  config = KINDS[kind][0](root)
  whole, scratch = root / "whole", root / "run"
  expected = outcome(kind, config, whole)
  files = sorted(p for p in whole.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
  for _ in range(mutations):
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(whole, scratch)
    file, how = files[rng.integers(len(files))], DAMAGES[rng.integers(len(DAMAGES))]
    if not damage(scratch / file.relative_to(whole), how, rng):
      continue
    try:
      problem = "" if outcome(kind, config, scratch) == expected else "other numbers"
    except (InputError, RunError):
      problem = ""  # refused, in one message
    except Exception as error:
      problem = f"{type(error).__name__}: {error}"
    yield file.relative_to(whole), how, problem


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--mutations", type=int, default=60, help="of each kind of run")
  parser.add_argument("--kinds", nargs="*", default=[*KINDS])
  arguments = parser.parse_args()
  for kind in arguments.kinds:
    with tempfile.TemporaryDirectory() as root:
      found = list(
        tqdm.tqdm(trials(kind, pathlib.Path(root), arguments.mutations), desc=kind, mininterval=10)
      )
    wrong = [trial for trial in found if trial[-1]]
    print(f"{kind}: {len(found)} damaged files, {len(wrong)} wrong", flush=True)
    for file, how, problem in wrong:
      print(f"  {file} {how}: {problem}", flush=True)


if __name__ == "__main__":
  main()
