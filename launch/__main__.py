"""Runs a command by its name: `twostage NAME --flag=value`, or `python -m launch NAME`."""

import ast
import pathlib
import pkgutil
import runpy
import sys

_FOLDER = pathlib.Path(__file__).parent
_NAMES = sorted({m.name for m in pkgutil.iter_modules([str(_FOLDER)])} - {"__main__", "config"})


def main() -> None:
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in _NAMES:
    sys.argv = [f"twostage {name}", *sys.argv[2:]]
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
    return
  print("usage: twostage COMMAND [--flag=value ...]; COMMAND --help lists its flags\n")
  for command in _NAMES:
    text = ast.get_docstring(ast.parse((_FOLDER / f"{command}.py").read_text(encoding="utf-8")))
    print(f"  {command:14} {(text or '').splitlines()[0]}")
  sys.exit(0 if name in ("--help", "-h", "help") else 2)


if __name__ == "__main__":
  main()
