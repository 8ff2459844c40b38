"""SavedModels of fitted recommenders, for TensorFlow Serving.

`ServableRecommender` is the exported module. `export` writes it as the next version of a directory,
once a process that has nothing but TensorFlow has repeated its answers. `client` calls a server and
`local_server` stands in for one in tests; both need the extra [serving].
"""

from tf_twostage.serving.catalogue import NewItems, Pair, change
from tf_twostage.serving.exporting import EXTRA, KEEP, export, latest, publish, save
from tf_twostage.serving.servable import ServableRecommender

__all__ = [
  "EXTRA",
  "KEEP",
  "NewItems",
  "Pair",
  "ServableRecommender",
  "change",
  "export",
  "latest",
  "publish",
  "save",
]
