"""Vectors of other models as features of users and items: where they are read from."""

import numpy as np
import pandas as pd
import pytest

from tf_twostage.data.draft import draft
from tf_twostage.data.log import BanditLog
from tf_twostage.data.log_schema import LogSchema
from tf_twostage.data.schema import Embedding
from tf_twostage.errors import InputError

VECTORS = np.array([[3.0, -4.0], [0.0, 5.0], [5.0, 0.0]])  # mean square 25 / 2
FEATURE = Embedding("image", 2, scale=12.5**0.5)


def log_of(directory, items, column="image", separator="|", name="items.parquet"):
  """A log with these items, in files."""
  log = pd.DataFrame({"user_id": list("aab"), "item_id": list("xyz"), "reward": [1, 0, 1]})
  log.to_csv(directory / "log.csv", index=False)
  if name.endswith(".csv"):
    items.to_csv(directory / name, index=False)
  else:
    items.to_parquet(directory / name)
  spec = {"kind": "embedding", "column": column, "separator": separator}
  schema = {"propensity": None, "item_features": {"image": spec}}
  return BanditLog.from_files(
    directory / "log.csv", items=directory / name, schema=LogSchema.from_dict(schema)
  )


def check(log):
  assert log.schema.item[1] == FEATURE
  assert log.items["image"].dtype == np.float32
  np.testing.assert_array_equal(log.items["image"], VECTORS)


@pytest.mark.parametrize("dtype", [int, np.float32, np.float64])
def test_a_column_of_lists_in_parquet(tmp_path, dtype):
  items = pd.DataFrame({"item_id": list("xyz"), "image": list(VECTORS.astype(dtype))})
  check(log_of(tmp_path, items))


CELLS = [("|", "{}|{}"), (",", "[{}, {}]"), (" ", "{} {}")]


@pytest.mark.parametrize(("separator", "cell"), CELLS)
def test_numbers_in_cells_of_text(tmp_path, separator, cell):
  cells = [cell.format(*vector) for vector in VECTORS]
  items = pd.DataFrame({"item_id": list("xyz"), "image": cells})
  check(log_of(tmp_path, items, separator=separator, name="items.csv"))


def test_a_numpy_file_beside_the_items(tmp_path):
  np.save(tmp_path / "pictures.npy", VECTORS.astype(np.float32))
  check(log_of(tmp_path, pd.DataFrame({"item_id": list("xyz")}), column="pictures.npy"))


def test_a_numpy_file_has_a_row_for_each_item(tmp_path):
  np.save(tmp_path / "pictures.npy", VECTORS[:2])
  with pytest.raises(InputError, match=r"pictures.npy: the array is \(2, 2\), but .* has 3 rows"):
    log_of(tmp_path, pd.DataFrame({"item_id": list("xyz")}), column="pictures.npy")


def test_arrays_in_the_cells_of_a_frame_are_recognised():
  frame = pd.DataFrame({"user": list("aab"), "item": list("xyz"), "click": [1, 0, 1]})
  items = pd.DataFrame({"item": list("xyz"), "image": list(VECTORS)})
  users = pd.DataFrame({"user": list("ab"), "taste": [[0.5, 0.5, 0.5], [1.5, -1.5, 0.5]]})
  log = BanditLog.from_pandas(
    frame, user="user", item="item", reward="click", items=items, users=users
  )
  check(log)
  assert log.schema.user[1].width == 3


@pytest.mark.parametrize(
  ("cells", "reason"),
  [
    ([[1.0, 2.0], [1.0], [1.0, 2.0]], "'image' must hold 2 numbers"),
    ([[1.0, 2.0], None, [1.0, 2.0]], "'image' must hold 2 numbers"),
    ([[1.0, 2.0], [np.nan, 1.0], [1.0, 2.0]], "'image' must be finite"),
    ([[1.0, 2.0], [np.inf, 1.0], [1.0, 2.0]], "'image' must be finite"),
    ([[1.0, 2.0], [1e300, 1.0], [1.0, 2.0]], "'image' must be finite"),
  ],
)
@pytest.mark.filterwarnings("error")
def test_ragged_and_infinite_vectors_are_refused(tmp_path, cells, reason):
  with pytest.raises(InputError, match=rf"row 1.*{reason}|{reason}.*row 1"):
    log_of(tmp_path, pd.DataFrame({"item_id": list("xyz"), "image": cells}))


def test_user_vectors_need_a_users_file(tmp_path):
  pd.DataFrame({"user_id": ["a"], "item_id": ["x"], "reward": [1]}).to_csv(tmp_path / "log.csv")
  schema = LogSchema.from_dict({"propensity": None, "user_features": {"taste": "embedding"}})
  with pytest.raises(InputError, match="'taste' is an embedding, a column of a users file"):
    BanditLog.from_files(tmp_path / "log.csv", schema=schema)


def test_a_draft_proposes_them(tmp_path):
  log_of(tmp_path, pd.DataFrame({"item_id": list("xyz"), "image": list(VECTORS)}))
  found = draft(tmp_path / "log.csv", tmp_path / "items.parquet")
  assert "  image: embedding" in found
