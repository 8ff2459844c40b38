"""What a large log of impressions costs: drafting its schema and reporting on it.

  python -m benchmarks.impressions --directory=DIR

writes an invented log once (200,000 slates of 10 slots, 2,000,000 rows of CSV), then runs
`launch.infer_schema` and `launch.validate_log` on it, each in a process of its own, as a user does.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import time

from tf_twostage.data.sets import make_slates

TABLES = ("log", "items", "users")


def write(directory: pathlib.Path, slates: int) -> None:
  """The files of the log, unless they are there."""
  if (directory / "log.csv").exists():
    return
  directory.mkdir(parents=True, exist_ok=True)
  world = make_slates()
  world.items.to_csv(directory / "items.csv", index=False)
  world.users.to_csv(directory / "users.csv", index=False)
  world.frame(slates).to_csv(directory / "log.csv", index=False)


def run(name: str, directory: pathlib.Path, *flags: str) -> tuple[str, str]:
  """What a command prints, and what it took."""
  files = [f"--{table}={directory / table}.csv" for table in TABLES]
  command = [sys.executable, "-m", f"launch.{name}", *files, *flags]
  start = time.perf_counter()
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  said = process.stdout.read()
  _, status, used = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"{name} failed")
  return said, (
    f"{name:14s}{time.perf_counter() - start:6.1f} s, {used.ru_utime + used.ru_stime:6.1f} s of a"
    f" processor, {used.ru_maxrss / 2**20:5.2f} GiB"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--directory", type=pathlib.Path, required=True)
  parser.add_argument("--slates", type=int, default=200_000)
  args = parser.parse_args()
  write(args.directory, args.slates)
  schema, drafted = run("infer_schema", args.directory)
  (args.directory / "schema.yaml").write_text(schema)
  print(drafted, flush=True)
  flags = f"--schema={args.directory / 'schema.yaml'}", f"--output={args.directory / 'report'}"
  print(run("validate_log", args.directory, *flags)[1])


if __name__ == "__main__":
  main()
