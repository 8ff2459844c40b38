"""Runs a command by its name: `twostage NAME --flag=value`, or `python -m launch NAME`."""

import ast
import pathlib
import pkgutil
import runpy
import sys

from launch import output

_FOLDER = pathlib.Path(__file__).parent
_SHARED = {"__main__", "config", "output"}
_NAMES = sorted({m.name for m in pkgutil.iter_modules([str(_FOLDER)])} - _SHARED)


def main() -> None:
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in _NAMES:
    sys.argv = [f"twostage {name}", *sys.argv[2:]]
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
    return
  output.finish(_list)


def _list() -> int:
  print("usage: twostage COMMAND [--flag=value ...]; COMMAND --help lists its flags\n")
  for command in _NAMES:
    text = ast.get_docstring(ast.parse((_FOLDER / f"{command}.py").read_text(encoding="utf-8")))
    print(f"  {command:14} {(text or '').splitlines()[0]}")
  return 0 if sys.argv[1:2] in ([], ["--help"], ["-h"], ["help"]) else 2


if __name__ == "__main__":
  main()
