"""Progress of a fit: a bar with the time left, and the share of time spent waiting for input."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterator

import tensorflow as tf
from tqdm.auto import tqdm

_shown = contextvars.ContextVar("shown", default=True)


@contextlib.contextmanager
def bars(shown: bool) -> Iterator[None]:
  """Whether the progress bars of this block are shown."""
  before = _shown.set(shown and _shown.get())
  try:
    yield
  finally:
    _shown.reset(before)


def progress_bar(
  name: str, steps: int, *, done: int = 0, unit: str = "step", shown: bool = True
) -> tqdm:
  """Returns a bar over all steps of a task; off a terminal it prints at most every ten seconds."""
  return tqdm(
    desc=name,
    total=steps,
    initial=done,
    unit=unit,
    unit_scale=unit != "step",
    mininterval=0.2 if sys.stderr.isatty() else 10,
    dynamic_ncols=True,
    disable=not (shown and _shown.get()),
  )


class InputWait:
  """Share of step time spent waiting for input.

  The clock is read before and after each element of the dataset; steps stay as they are.
  """

  def __init__(self):
    self._seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
    self.reset()

  def reset(self) -> None:
    """Starts to count anew."""
    self._seconds.assign(0.0)
    self._since = time.perf_counter()

  def share(self) -> float:
    """Returns the share of the time since the last reset, in [0, 1]."""
    return float(self._seconds) / max(time.perf_counter() - self._since, 1e-9)

  def watched(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset of the same elements that counts the waiting time."""
    clock = tf.data.Dataset.counter().map(lambda _: tf.timestamp())

    def count(asked, element):
      self._seconds.assign_add(tf.timestamp() - asked)
      return element

    # A zip fetches its elements one after the other, and only on demand.
    watched = tf.data.Dataset.zip((clock, dataset)).map(count)
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # its waiting would be counted
    return watched.with_options(options)
