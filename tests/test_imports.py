"""The rooms of the package form a line: imports point one way."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

import tf_twostage

ROOT = pathlib.Path(tf_twostage.__file__).parent
# A module may import from rooms before its own (and from its own room).
ORDER = [
  ("errors",),
  ("workspace",),
  ("metrics", "plotting", "config"),
  ("data",),
  ("top_k", "rewards"),
  ("policies",),
  ("distinct",),
  ("losses",),
  ("training",),
  ("models",),
  ("evaluation",),
  ("environment",),
  ("casmos",),
  ("reports", "serving"),
  ("recommender",),
  ("experiment", "online_loop", "policy_evaluation"),
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
# These know arrays and tensors only.
PURE = {
  "data.splits": {"errors"},
  "top_k": set(),
  "policies": {"errors", "top_k"},
  "distinct": {"policies"},
  "rewards": set(),
  "losses": {"errors", "policies", "distinct", "rewards", "losses"},
  "evaluation.ranking": {"errors"},
  "evaluation.rows": {"errors"},
  "evaluation.estimators": {"errors", "evaluation"},
  "evaluation.slates": {"errors", "evaluation"},
  "evaluation.slate_estimators": {"errors", "evaluation"},
  "evaluation.intervals": {"errors"},
  "evaluation.overlap": {"evaluation", "metrics"},
  "evaluation.off_policy": {"errors", "evaluation", "metrics"},
  "evaluation.cross_fitting": {"errors", "evaluation"},
}
MODULES = sorted(
  ".".join(path.relative_to(ROOT).with_suffix("").parts)
  for path in ROOT.rglob("*.py")
  if path.name != "__init__.py" or path.parent != ROOT
)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
  """All nodes but those under `if TYPE_CHECKING`, which never run."""
  yield node
  for child in ast.iter_child_nodes(node):
    if not (isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"):
      yield from _executed(child)


def imported_rooms(module: str) -> set[str]:
  tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
  rooms = set()
  for node in _executed(tree):
    if isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    parts = [name.split(".") for name in names]
    rooms |= {p[1] for p in parts if p[0] == "tf_twostage" and len(p) > 1}
    assert not any(p[0] == "launch" for p in parts), f"{module} imports a command"
    assert not any(p[:2] == ["absl", "flags"] for p in parts), f"{module} reads flags"
  return rooms


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
  room = module.split(".")[0]
  later = {r for r in imported_rooms(module) if r != room and RANK[r] >= RANK[room]}
  assert not later, f"{module} imports {later}, which come after it"


@pytest.mark.parametrize("module", [m for m in MODULES if m in PURE or m.split(".")[0] in PURE])
def test_pure_modules_know_tensors_only(module):
  allowed = PURE.get(module, PURE.get(module.split(".")[0], set()))
  assert imported_rooms(module) <= allowed
