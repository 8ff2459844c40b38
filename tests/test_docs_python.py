"""The programs of docs/python.md run, one after the other."""

import pathlib
import re

import numpy as np
import pytest

from tests.serving import small
from tf_twostage import losses
from tf_twostage.data import sets

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "python.md"


def test_all_blocks_run_in_order(tmp_path, monkeypatch, capsys):
  text = PAGE.read_text(encoding="utf-8")
  small.skip_replay(monkeypatch.setattr)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(losses, "LOSSES", {**losses.LOSSES})
  monkeypatch.setattr(sets, "DATASETS", {**sets.DATASETS})
  names = {"__name__": "docs_python"}
  for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
    line = text.count("\n", 0, block.start(1))
    exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
  printed = capsys.readouterr().out
  assert printed.startswith("600 20 12\n")
  assert "propensities are ESTIMATED" in printed
  assert "(2, 8)" in printed
  ours = names["result"].to_frame().set_index(["policy", "estimator"])["value"]
  assert ours["uniform", "IPS(cap=5.0)"] == pytest.approx(ours["uniform", "snips"])
  assert len(names["scores"]) == 4
  assert np.isfinite([*names["scores"].values()]).all()
