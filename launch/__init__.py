"""Commands: `python -m launch.NAME` or `twostage NAME`, with `--help`. Presets are beside this."""

import importlib.abc
import importlib.util
import os
import re
import sys
import tempfile

# TensorFlow logs through C++ while it is imported, before it reads any log level.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_NOISE = re.compile(r"WARNING: All log messages before|[IWE]\d{4} |To enable the following instr")


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
  """Drops the start-up lines of TensorFlow when it is imported; other output passes."""

  def find_spec(self, name, path, target=None):
    if name != "tensorflow":
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.loader is not None:
      load = spec.loader.exec_module
      spec.loader.exec_module = lambda module: _quiet(load, module)  # type: ignore[method-assign]
    return spec


def _quiet(load, module) -> None:
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as said:
    os.dup2(said.fileno(), 2)
    try:
      load(module)
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
      said.seek(0)
      for line in said.read().decode(errors="replace").splitlines():
        if not _NOISE.match(line):
          print(line, file=sys.stderr)


if "tensorflow" not in sys.modules:
  sys.meta_path.insert(0, _QuietTensorFlow())
