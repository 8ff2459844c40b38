"""What benchmarks share: taking turns, memory, the machine's own peaks, growth.

Contenders take turns within one process, so that a busy machine slows all of them alike. Beside
the clock stands processor time, of all threads of this process: what a run costs by itself.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import gc
import math
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_twostage import plotting  # before tensorflow: selects Keras 2

import tensorflow as tf  # isort: skip

MB = 2.0**20
_STATUS = pathlib.Path("/proc/self/status")
_CLEAR_REFS = pathlib.Path("/proc/self/clear_refs")
_PEAK_WIDTH = 2048  # of the square product that stands for the peak
_PEAK_EXPONENTIALS = 2**18  # 1 MB: stays in a core's own cache
_REPEATS = 16  # lest the call count
_PEAK_BYTES = 2**26
_DASHES = ("--", ":")


class Seconds(NamedTuple):
  """What a run takes: by the clock, and of all processors together."""

  clock: Any
  processor: Any


def take_turns(
  runs: Mapping[str, Callable[[], Any]],
  turns: int,
  *,
  warm_up: int,
  at_most: float = math.inf,
  at_least: int = 5,
) -> dict[str, Seconds]:
  """Seconds of every turn by name, [turns] each.

  Args:
    runs: contenders by name; the tensors that they return are waited for.
    turns: how many are counted.
    warm_up: how many go before and are not counted.
    at_most: seconds after which no turn begins any more.
    at_least: turns that are counted even so.
  """
  times: dict[str, list[Seconds]] = {name: [] for name in runs}
  end = math.inf
  for turn in range(warm_up + turns):
    if turn == warm_up:
      end = time.perf_counter() + at_most
    if turn >= warm_up + at_least and time.perf_counter() > end:
      break
    for name, run in runs.items():
      start = time.perf_counter(), time.process_time()
      for tensor in tf.nest.flatten(run()):
        np.asarray(tensor)
      taken = Seconds(time.perf_counter() - start[0], time.process_time() - start[1])
      if turn >= warm_up:
        times[name].append(taken)
  return {name: Seconds(*np.array(of_run).T) for name, of_run in times.items()}


def peak_growth(run: Callable[[], Any]) -> float:
  """By how much a run's peak lies above the memory that was resident before it, in MB (Linux).

  TensorFlow keeps what it once had for the next array: only the first run of its size in a process
  shows its peak.
  """
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  before = _status("VmRSS")
  _CLEAR_REFS.write_text("5")  # sets the peak back to what is resident
  run()
  return _status("VmHWM") - before


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
  """What a module's function returns, in a fresh process that has imported the module.

  It is forked from a process that has done no more than that, so that it starts at once.
  """
  context = multiprocessing.get_context("forkserver")
  # By its own name, where it runs as __main__, which Python before 3.13 would not import.
  context.set_forkserver_preload([sys.modules[function.__module__].__spec__.name])
  with context.Pool(1) as pool:
    return pool.apply(function, arguments)


def _status(name: str) -> float:
  return int(_STATUS.read_text().split(f"{name}:")[1].split()[0]) / 1024


@dataclasses.dataclass(frozen=True)
class Work:
  """What a computation cannot do without.

  Attributes:
    operations: additions and multiplications of matrix products.
    exponentials: of single numbers.
    bytes: read and written.
  """

  operations: float
  exponentials: float
  bytes: float

  def __add__(self, other: Work) -> Work:
    mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
    return Work(*(a + b for a, b in zip(mine, theirs, strict=True)))


class Peaks(NamedTuple):
  """What this machine does at best, on as many threads as TensorFlow takes; a second each."""

  operations: float
  exponentials: float
  bytes: float

  def text(self) -> str:
    return ", ".join(f"{number / 1e9:.3g}" for number in self)

  def floor(self, work: Work) -> tuple[float, str]:
    """Seconds that `work` takes at least, and which of "operations" and "bytes" sets them.

    Products and exponentials need the same units and add up; memory moves meanwhile.
    """
    computing = work.operations / self.operations + work.exponentials / self.exponentials
    moving = work.bytes / self.bytes
    return max((computing, "operations"), (moving, "bytes"))


def peak_runs(moved: float) -> tuple[dict[str, Callable[[], Any]], Work]:
  """Contenders that show the machine's peaks, by the fields of `Peaks`, and the work of each.

  Args:
    moved: bytes of each of the two arrays that are added, one onto the other: near those of the
      computation in question, whose arrays stay in the same caches.
  """
  threads = os.cpu_count() or 1
  pool = concurrent.futures.ThreadPoolExecutor(threads)  # NumPy lets go of the interpreter
  square = tf.random.stateless_normal([_PEAK_WIDTH, _PEAK_WIDTH], (0, 0))
  product = tf.function(lambda: tf.matmul(square, square)[0, 0], autograph=False)
  numbers, powers = np.zeros([2, threads, _PEAK_EXPONENTIALS], np.float32)
  addend, total = np.zeros([2, threads, max(1, int(moved / 4 / threads))], np.float32)
  additions = max(1, int(_PEAK_BYTES / (3 * total.nbytes)))

  def exponentiate(thread: int) -> None:
    for _ in range(_REPEATS):
      np.exp(numbers[thread], out=powers[thread])

  def add(thread: int) -> None:
    for _ in range(additions):
      np.add(total[thread], addend[thread], out=total[thread])

  runs = {
    "operations": product,
    "exponentials": lambda: list(pool.map(exponentiate, range(threads))),
    "bytes": lambda: list(pool.map(add, range(threads))),
  }
  return runs, Work(
    operations=2.0 * _PEAK_WIDTH**3,
    exponentials=float(_REPEATS * numbers.size),
    bytes=3.0 * total.nbytes * additions,
  )


def peaks(times: Mapping[str, Any], work: Work) -> Peaks:
  """Work a second from the seconds of each of `peak_runs`."""
  return Peaks(*(getattr(work, name) / times[name] for name in Peaks._fields))


def exponent(x: Any, y: Any) -> float:
  """b of the power a x^b that fits y best, least squares on logarithms; NaN for one point."""
  return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else math.nan


class Panel(NamedTuple):
  """A plot on logarithmic axes.

  Attributes:
    title, xlabel, ylabel: in words.
    lines: x and y by name.
    floors: as lines; drawn dashed.
  """

  title: str
  xlabel: str
  ylabel: str
  lines: Mapping[str, tuple[Any, Any]]
  floors: Mapping[str, tuple[Any, Any]]


def picture(path: pathlib.Path, panels: Sequence[Panel]) -> None:
  """Panels side by side; a name looks alike in all of them, and stands once in the legend."""
  names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
  looks = {name: plotting.look(i) for i, name in enumerate(names)}

  def plot():
    figure, shown = plotting.figure(4.8 * len(panels), 3.6), {}
    for axis, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
      for name, (x, y) in panel.lines.items():
        (shown[name],) = axis.loglog(x, y, **looks[name], markersize=4, linewidth=1.2)
      for (name, (x, y)), dashes in zip(panel.floors.items(), _DASHES, strict=False):
        (shown[name],) = axis.loglog(x, y, linestyle=dashes, color="0.4", linewidth=1.5)
      axis.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
      for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_minor_formatter("")
      axis.grid(alpha=0.3)
    columns = 4 if len(panels) > 1 else 2
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=columns, fontsize=8)
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(shown) // columns))
    return figure

  plotting.save({path: plot})
  if path.exists():
    from PIL import Image  # comes with matplotlib

    palette = Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    palette.save(path, optimize=True)  # a third of the bytes
