"""Writes extreme multi-label data in the text format that the loader reads."""

import gzip


def write(data, path):
  """Writes all documents to one file, compressed if its name ends in .gz."""
  lines = [f"{data.num_documents} {data.features.shape[1]} {data.num_labels}"]
  for row in range(data.num_documents):
    labels, features = data.labels[[row]].indices, data.features[[row]]
    pairs = zip(features.indices.tolist(), features.data.tolist(), strict=True)
    words = "".join(f" {feature}:{value:.9g}" for feature, value in pairs)
    lines.append(",".join(map(str, labels.tolist())) + (words or " "))
  content = ("\n".join(lines) + "\n").encode()
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
