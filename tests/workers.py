"""Processes that train together over loopback, and their small models."""

import dataclasses
import functools
import json
import pathlib
import socket

import numpy as np

from tests import commands
from tf_twostage.config import Config, DistributionConfig, FitConfig
from tf_twostage.training.distribution import Job, Workers

EPOCHS, BATCH_SIZE = 2, 16
# Losses without random draws: their results do not depend on the number of workers.
LOSSES = {
  "poem": ("poem", {"importance": {"self_normalize": True}}),
  "support": (
    "two_stage_ips",
    {"sampling": "exact", "slate_size": 4, "hard_candidates": 3},  # and a sampled support
  ),
  "streamed": ("ips", {}),  # from files
}


def train(directory: pathlib.Path, name: str, workers: Workers) -> None:
  """Leaves history.json and the weights of the chief, weights.npy, in `directory`."""
  from tests.training import (
    test_loop as small,  # brings TensorFlow, which must meet the others first
  )
  from tf_twostage.data import streamed
  from tf_twostage.losses import ImportanceWeights
  from tf_twostage.training.loop import fit

  loss, options = LOSSES[name]
  if "importance" in options:
    options = {**options, "importance": ImportanceWeights(**options["importance"])}
  log = small.make_log()
  rewards = np.random.default_rng(1).uniform(0.5, 2.0, len(log))  # were they equal, so were risks
  log = dataclasses.replace(log, reward=rewards.astype(np.float32))
  if name == "streamed":
    log = streamed.write([log], directory / f"rows-{workers.rank}", block=10)
  with workers.scope():
    model = small.make_model(loss, **options)
  fit(
    model,
    functools.partial(log.batches, small.TABLES.users, seed=3),
    # From 0, Adagrad's first step has one length whatever the gradient: it would be one of
    # rounding alone wherever a gradient cancels out.
    FitConfig(epochs=EPOCHS, batch_size=BATCH_SIZE, adagrad_accumulator=0.1),
    rows=len(log),
    name="generator",
    evaluate=small.Evaluation(range(EPOCHS)),
    select=small.select,
    directory=directory,
    weights=model.towers,
    workers=workers,
  )
  if workers.is_chief:
    np.save(directory / "weights.npy", small.weights(model))


def start(types: dict[str, int], function, *arguments) -> dict[str, commands.Running]:
  """Calls a function in each process of a cluster; the processes by task, such as "worker 1"."""
  sockets = [socket.create_server(("localhost", 0)) for _ in range(sum(types.values()))]
  free = iter([s.getsockname()[1] for s in sockets])
  for s in sockets:
    s.close()
  cluster = {kind: [f"localhost:{next(free)}" for _ in range(n)] for kind, n in types.items()}

  def process(kind: str, index: int) -> commands.Running:
    task = json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})
    return commands.fork(function, *arguments, TF_CONFIG=task)

  return {f"{kind} {i}": process(kind, i) for kind, n in types.items() for i in range(n)}


def train_all(root: pathlib.Path, distribution: str, replicas: int, names: list[str]) -> None:
  """Trains the models of these names, and prints the settings in which the workers differ."""
  settings = DistributionConfig(distribution, replicas)
  job = Job.of(dataclasses.replace(Config(), distribution=settings))
  workers = job.join(BATCH_SIZE)
  print(workers.differing({"same": 0.1, "rank": job.rank, "last": None}))
  for name in names:
    train(root / name, name, workers)
  workers.wait()
