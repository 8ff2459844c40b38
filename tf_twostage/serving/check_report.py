"""What a version says of itself when it is tried, in words."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from tf_twostage.errors import RunError
from tf_twostage.serving import calls, replay, versions
from tf_twostage.serving.calls import Call

_PERCENTILES = (50, 99)


def check(path: pathlib.Path, *, repeats: int) -> tuple[str, bool]:
  """Replays the calls that a version holds.

  Args:
    path: a version, or a directory of versions, whose newest is meant.
    repeats: how often each call is timed.

  Returns:
    What to print, and whether the version loads and answers as it did when it was exported.

  Raises:
    InputError: there is no version, or it holds no calls.
  """
  version = versions.latest(path)
  recorded = calls.read(version)
  try:
    tried = replay.replay(version, recorded, repeats=repeats)
  except RunError as error:
    return str(error), False
  different = replay.differences(recorded, tried.answers)
  return "\n".join(_lines(version, recorded, tried, different)), not different


def _lines(
  version: pathlib.Path, recorded: Sequence[Call], tried: replay.Replay, different: Sequence[str]
) -> Iterator[str]:
  size = sum(file.stat().st_size for file in version.rglob("*") if file.is_file())
  yield f"{version}: {size / 1e6:,.1f} MB"
  yield (
    f"loads without this package: in {tried.native_load_seconds:.2f} s by the C++ loader, in"
    f" {tried.load_seconds:.2f} s into a session"
  )
  yield f"{len(tried.operations)} kinds of operations, all of them TensorFlow's own"
  for name, sides in tried.signatures.items():
    yield f"\n{name}"
    for side, tensors in sides.items():
      for tensor, kind in tensors.items():
        yield f"  {side.removesuffix('s'):7s} {tensor:20s} {kind}"
  yield "\nlatency, ms  users " + "".join(f"{f'p{p}':>9s}" for p in _PERCENTILES)
  times = collections.defaultdict(list)
  for call, seconds in zip(recorded, tried.seconds, strict=True):
    rows = len(next(iter(call.answer.values())))
    times[call.signature, rows].append(seconds)
  for (signature, rows), measured in sorted(times.items()):
    shown = np.percentile(np.concatenate(measured), _PERCENTILES) * 1e3
    yield f"{signature:12s} {rows:5d} " + "".join(f"{value:9.2f}" for value in shown)
  yield (
    f"\nDIFFERENT from the exporting process: {', '.join(different)}"
    if different
    else f"\n{len(recorded)} calls answered as in the exporting process"
  )
