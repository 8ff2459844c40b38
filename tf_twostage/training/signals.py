"""SIGTERM and SIGINT: work stops where it can go on later."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
  """A signal stopped the work; what was saved before it is where the work goes on.

  Attributes:
    exit_code: what a shell reports of a process that died of the signal.
  """

  def __init__(self, number: int, where: str = ""):
    super().__init__(f"stopped by {signal.Signals(number).name}{where and ' ' + where}")
    self.exit_code = 128 + number


def raise_stopped() -> None:
  """From now on a signal raises `Stopped`, whatever the main thread is doing."""

  def stop(number: int, frame: Any) -> None:
    raise Stopped(number)

  for number in _SIGNALS:
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, stop)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
  """Signals wait; the function tells which came. A second one acts at once, as without this.

  Signals that are ignored stay so. Outside the main thread, which alone may handle signals,
  none is told.
  """
  if threading.current_thread() is not threading.main_thread():
    yield lambda: None
    return
  handlers = {number: signal.getsignal(number) for number in _SIGNALS}
  handlers = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}
  came: list[int] = []

  def restore() -> None:
    for number, handler in handlers.items():
      signal.signal(number, handler)

  def note(number: int, frame: Any) -> None:
    came.append(number)
    restore()

  for number in handlers:
    signal.signal(number, note)
  try:
    yield lambda: came[0] if came else None
  finally:
    restore()
  if came:  # after the last time that anybody asked
    signal.raise_signal(came[0])
