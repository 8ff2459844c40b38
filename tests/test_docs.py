"""What the pages name exists: files, modules, commands and their flags."""

import importlib
import pathlib
import re

import pytest

from launch import config as launch_config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PLACEHOLDERS = ("FILE", "NAME", "X")


@pytest.fixture(scope="module")
def known_flags():
  """The flags of all commands."""
  sources = [path.read_text(encoding="utf-8") for path in (ROOT / "launch").glob("*.py")]
  own = {name for text in sources for name in re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', text)}
  settings = {setting.flag for setting in launch_config._settings()}
  return {"flagfile", "help"} | own | settings | set(launch_config._loss_options())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
  text = page.read_text(encoding="utf-8")
  prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
  links = [link for link in re.findall(r"\]\(([^)#\s]+)", prose) if "://" not in link]
  assert not [link for link in links if not (page.parent / link).exists()]
  paths = re.findall(r"\b(?:tf_twostage|launch|tests|benchmarks|examples|docs)/[\w/.]*\w", text)
  assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_exist(page):
  text = page.read_text(encoding="utf-8")
  for name in set(re.findall(r"\b(?:tf_twostage|launch|benchmarks)(?:\.\w+)+", text)):
    parts = name.split(".")
    if parts[-1] in PLACEHOLDERS:
      continue
    module = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], 2):
      if not hasattr(module, part):
        importlib.import_module(".".join(parts[:depth]))
      module = getattr(module, part)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_commands_exist(page, known_flags):
  text = page.read_text(encoding="utf-8").replace("\\\n", " ")
  commands = re.findall(r"python -m launch\..*", text)
  given = {flag for command in commands for flag in re.findall(r" --(\w+)", command)}
  unknown = {flag for flag in given if flag.removeprefix("no") not in known_flags}
  assert not unknown - known_flags
