"""Rows a second that a generator learns from: one process against several on this machine.

  python -m benchmarks.workers
  python -m benchmarks.workers --items=30000 --batch=4096 --losses ips

Each contender is a set of processes over loopback, one set after the other, as often as --turns
says; the number is the median. "on 1 core" pins every worker to a core of its own, which is what
several machines would be to each other.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from tf_twostage.config import Config, DistributionConfig
from tf_twostage.training.distribution import Job

WARM_UP, STEPS, USERS, ROWS = 20, 60, 6000, 100_000
# What runs: distribution, devices of a process, tasks, whether each is pinned to a core.
CONTENDERS = {
  "1 process": ("none", 0, {}, False),
  "1 process on 1 core": ("none", 0, {}, True),
  "mirrored, CPU in 2": ("mirrored", 2, {}, False),
  "2 workers": ("multi_worker", 0, {"worker": 2}, False),
  "2 workers on 1 core each": ("multi_worker", 0, {"worker": 2}, True),
}


def measure(job: Job, batch: int, items: int, losses: list[str]) -> dict[str, float]:
  """Rows a second by loss."""
  workers = job.join(batch)

  from tf_twostage import losses as objectives
  from tf_twostage.config import EncoderConfig, FitConfig
  from tf_twostage.data.rows import LogRows
  from tf_twostage.data.sets import make_synthetic
  from tf_twostage.models.encoders import EncodedTables, TwoTower
  from tf_twostage.models.generator import CandidateGenerator
  from tf_twostage.training.loop import make_optimizer

  data = make_synthetic(num_users=USERS, num_items=items, num_ratings=USERS)
  tables = EncodedTables.encode(data.schema, data.users, data.items)
  rng = np.random.default_rng(0)
  log = LogRows(
    user_index=rng.integers(USERS, size=ROWS).astype(np.int32),
    action=rng.integers(items, size=ROWS).astype(np.int32),
    propensity=rng.uniform(1e-4, 1e-2, ROWS).astype(np.float32),
    reward=rng.integers(2, size=ROWS).astype(np.float32),
  )
  rates = {}
  for loss in losses:
    with workers.scope():
      model = CandidateGenerator(TwoTower(tables, EncoderConfig(), l2=1e-4), objectives.get(loss))
      model.compile(optimizer=make_optimizer(FitConfig()))
      model.optimizer.build(model.trainable_variables)
    step = workers.step(model)
    source = functools.partial(log.batches, tables.users, seed=0)
    batches = workers.batches(source, batch_size=batch, start_step=0)

    def steps(count: int, step=step, batches=batches) -> float:
      start = time.perf_counter()
      for _ in range(count):
        step(batches)
        workers.any(False)  # as training asks
      return time.perf_counter() - start

    steps(WARM_UP)
    rates[loss] = batch * STEPS / steps(STEPS)
  workers.wait()
  return rates


def contend(name: str, arguments: list[str]) -> dict[str, float]:
  distribution, replicas, tasks, pinned = CONTENDERS[name]
  command = [sys.executable, "-m", "benchmarks.workers", f"--distribution={distribution}"]
  command += [f"--replicas={replicas}", *arguments]
  sockets = {
    kind: [socket.create_server(("localhost", 0)) for _ in range(n)] for kind, n in tasks.items()
  }
  cluster = {k: [f"localhost:{s.getsockname()[1]}" for s in kind] for k, kind in sockets.items()}
  for s in itertools.chain(*sockets.values()):
    s.close()
  started = []
  for kind, index in [(k, i) for k, n in (tasks or {"worker": 1}).items() for i in range(n)]:
    config = {"cluster": cluster, "task": {"type": kind, "index": index}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
    own = [*command, *([f"--core={index}"] if pinned else [])]
    pipe = subprocess.PIPE
    started.append(subprocess.Popen(own, env=environment, stdout=pipe, stderr=pipe, text=True))
  outputs = [process.communicate() for process in started]
  for process, (_, said) in zip(started, outputs, strict=True):
    if process.returncode:
      raise RuntimeError(said)
  return json.loads(outputs[0][0].splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch", type=int, default=1024)
  parser.add_argument("--items", type=int, default=4000)
  parser.add_argument("--losses", nargs="+", default=["cross_entropy", "ips"])
  parser.add_argument("--turns", type=int, default=3)
  for one_contender in ("distribution", "replicas", "core"):
    parser.add_argument(f"--{one_contender}", help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.distribution is None:
    size = [f"--batch={given.batch}", f"--items={given.items}", "--losses", *given.losses]
    turns = [{name: contend(name, size) for name in CONTENDERS} for _ in range(given.turns)]
    print(f"batch {given.batch}, {given.items} items, rows a second: {', '.join(given.losses)}")
    for name in CONTENDERS:
      medians = [statistics.median(turn[name][loss] for turn in turns) for loss in given.losses]
      print(f"{name:28s}" + "".join(f"{rate:12,.0f}" for rate in medians))
    return
  if given.core is not None:
    os.sched_setaffinity(0, {int(given.core)})
  settings = DistributionConfig(given.distribution, int(given.replicas))
  generator = dataclasses.replace(Config().generator, batch_size=given.batch)
  job = Job.of(dataclasses.replace(Config(), distribution=settings, generator=generator))
  print(json.dumps(measure(job, given.batch, given.items, given.losses)))


if __name__ == "__main__":
  main()
