"""Many clients of a local server at once: errors, latencies, and the memory of its process.

  python -m benchmarks.load                     # 64 clients for a minute
  python -m benchmarks.load --large 8           # beside 8 clients with requests of 1,000 users
  python -m benchmarks.load --model saved_models/ml1m/1

Without --model the export is made here, of an untrained pair with MovieLens-like features. Clients
draw items for 1 to 8 users a call, one call after the other. Answers with RESOURCE_EXHAUSTED to
large requests are counted apart.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import pathlib
import re
import tempfile
import threading
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.serving import request, untrained
from tf_twostage import serving
from tf_twostage.serving import local_server
from tf_twostage.serving.client import RecommenderClient, ServingError
from tf_twostage.serving.exporting import load

ITEMS, WIDTH = 3883, 20
READINGS = 6
TIMEOUT = 60.0


def serve(version: pathlib.Path, connection) -> None:
  """Serves until the other end of the connection says so."""
  with local_server.serve(version) as address:
    connection.send(address)
    connection.recv()


def memory(process: int, name: str = "VmRSS") -> float:
  """Resident memory of a process in MB; "VmHWM": its peak."""
  status = pathlib.Path(f"/proc/{process}/status").read_text()
  return int(re.findall(rf"{name}:\s+(\d+)", status)[0]) / 1024


class Clients:
  """Threads that call until a deadline; `seconds` of answered calls, `errors` by name."""

  def __init__(self, address: str, model: str, specs, sizes: Sequence[int], seconds: float):
    self.seconds: list[float] = []
    self.errors: collections.Counter[str] = collections.Counter()
    self._deadline = time.monotonic() + seconds
    self._address, self._model, self._specs = address, model, specs
    self._threads = [threading.Thread(target=self._run, args=(rows,)) for rows in sizes]
    for thread in self._threads:
      thread.start()

  def _run(self, rows: int) -> None:
    inputs = {name: tensor.numpy() for name, tensor in request(self._specs, rows, 50).items()}
    exclude = inputs.pop("exclude").astype(str).tolist()
    settings = {name: inputs.pop(name) for name in ("seed", "temperature")}
    with RecommenderClient(self._address, self._model, timeout=TIMEOUT) as client:
      while (start := time.monotonic()) < self._deadline:
        try:
          client.sample(inputs, exclude=exclude, **settings)
          self.seconds.append(time.monotonic() - start)
        except ServingError as error:
          self.errors[error.code.name] += 1
          time.sleep(0.1)

  def join(self) -> None:
    for thread in self._threads:
      thread.join()

  def report(self, name: str) -> str:
    p50, p99 = np.percentile(self.seconds or [np.nan], (50, 99)) * 1e3
    return (
      f"{name}: {len(self.seconds):,} calls answered, p50 {p50:.0f} ms, p99 {p99:.0f} ms;"
      f" errors: {dict(self.errors) or 'none'}"
    )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", type=pathlib.Path, help="one version of an export")
  parser.add_argument("--clients", type=int, default=64)
  parser.add_argument("--large", type=int, default=0, help="clients with large requests")
  parser.add_argument("--large_users", type=int, default=1000, help="of a large request")
  parser.add_argument("--seconds", type=float, default=60.0)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    version = args.model or pathlib.Path(scratch) / "model" / "1"
    if not args.model:
      serving.save(untrained(ITEMS, WIDTH), version)
    specs = load(version).signatures["sample"].structured_input_signature[1]
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    server = processes.Process(target=serve, args=(version, theirs))
    server.start()
    to = (ours.recv(), version.resolve().parent.name, specs)
    small = Clients(*to, [1 + number % 8 for number in range(args.clients)], args.seconds)
    large = Clients(*to, [args.large_users] * args.large, args.seconds)
    for reading in range(READINGS):
      time.sleep(args.seconds / READINGS)
      after = args.seconds * (reading + 1) / READINGS
      print(f"{after:5.0f} s: the server holds {memory(server.pid):,.0f} MB", flush=True)
    small.join()
    large.join()
    print(small.report(f"{args.clients} clients"))
    if args.large:
      print(large.report(f"{args.large} clients of {args.large_users} users"))
    print(f"peak {memory(server.pid, 'VmHWM'):,.0f} MB")
    ours.send("stop")
    server.join()


if __name__ == "__main__":
  main()
