"""A fitted pair as a SavedModel that TensorFlow Serving serves.

`Recommender` is what is exported, `export` writes it as the next version of a directory, `replay`
tries a version in a process that knows nothing but TensorFlow. `client` calls a server and
`local_server` stands in for one; both need the extra [serving].
"""

from tf_twostage.serving.catalogue import NewItems, Pair, change
from tf_twostage.serving.exporting import KEEP, export, save
from tf_twostage.serving.recommender import Recommender
from tf_twostage.serving.versions import publish

__all__ = ["KEEP", "NewItems", "Pair", "Recommender", "change", "export", "publish", "save"]
