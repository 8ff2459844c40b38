"""A five-movie MovieLens-1M in every form that the loader reads, with awkward spots:

ids that sort differently as text, rows out of order, a latin-1 title, a movie nobody rated, and
the genre that tensorflow-datasets renames.
"""

import pathlib
import zipfile

USERS = b"10::F::1::10::48067\n2::M::56::16::70072-1234\n3::M::25::0::55117\n"
MOVIES = (
  "9::Misérables, Les (1995)::Drama|Musical\n"
  "10::Toy Story (1995)::Animation|Children's|Comedy\n"
  "1::Metropolis (1926)::Sci-Fi\n"
  "100::2001: A Space Odyssey (1968)::Drama|Mystery|Sci-Fi|Thriller\n"
  '20::"Nobody" Saw It (Never) (2000)::Western\n'
).encode("latin-1")
RATINGS = (
  b"10::9::3::978300900\n"
  b"10::100::5::978300100\n"
  b"10::1::4::978300100\n"
  b"3::10::1::978300500\n"
  b"2::10::2::978300700\n"
  b"2::1::4::978300300\n"
)
FILES = {"users.dat": USERS, "movies.dat": MOVIES, "ratings.dat": RATINGS}


def write_directory(directory: pathlib.Path, **changed: bytes | None) -> pathlib.Path:
  """Writes the three files, with some changed (`users=b"..."`) or left out (`users=None`)."""
  directory.mkdir(parents=True, exist_ok=True)
  for name, content in (FILES | {f"{stem}.dat": data for stem, data in changed.items()}).items():
    if content is not None:
      (directory / name).write_bytes(content)
  return directory


def write_zip(path: pathlib.Path, folder: str = "ml-1m/", leave_out: str = "") -> pathlib.Path:
  """Writes the zip as GroupLens packs it, uncompressed so that tests can damage a known byte."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w") as archive:
    for name in FILES.keys() - {leave_out}:
      archive.writestr(folder + name, FILES[name])
  return path


def offline_builder(builder, directory: pathlib.Path):
  """Makes a tensorflow-datasets MovieLens builder prepare from `directory`, not by a download."""
  builder._split_generators = lambda _: {"train": builder._generate_examples(str(directory))}
  return builder


def prepare_tfds(root: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
  """Prepares both tables of `directory` below the tensorflow-datasets data directory `root`."""
  import tensorflow_datasets as tfds

  for config in ("1m-ratings", "1m-movies"):
    builder = tfds.builder(f"movielens/{config}:0.1.1", data_dir=root)
    offline_builder(builder, directory).download_and_prepare()
  return root


def first_users(source, directory, users):
  """Writes the real files, cut to the first users, and returns the directory."""
  directory.mkdir(parents=True)
  (directory / "movies.dat").write_bytes((source / "movies.dat").read_bytes())
  for name in ("users.dat", "ratings.dat"):
    lines = (source / name).read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if int(line.split(b"::", 1)[0]) <= users]
    (directory / name).write_bytes(b"".join(kept))
  return directory
