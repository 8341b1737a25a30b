"""A folder in which JAX keeps compiled programs between runs."""

import os

import jax

from bertgpt import config as config_lib
from bertgpt import files
from bertgpt.errors import ConfigError, StorageError


def enable(folder: str) -> None:
  """Keeps compiled programs between runs, in a private folder: programs in it are executed.

  The variable JAX_COMPILATION_CACHE_DIR replaces the default folder. Who may write to a bucket is
  not checked, and what cannot be read from it is compiled again.

  Args:
    folder: path of the folder, also gs://; '': no cache.
  Raises:
    ConfigError: other users may write to a local folder, or own it.
    StorageError: the folder cannot be written, or the bucket cannot be read.
  """
  named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  if named and folder == config_lib.base().system.compilation_cache:
    folder = named
  if files.is_remote(folder):
    files.make_path(folder).exists()  # Raises if the bucket cannot be read.
    # XLA would keep its own measurements of kernels in a local folder with the name "gs:".
    jax.config.update("jax_persistent_cache_enable_xla_caches", "")
    jax.config.update("jax_compilation_cache_dir", folder)
  elif folder:
    path = files.expand(folder)
    try:
      path.mkdir(mode=0o700, parents=True, exist_ok=True)
      found = path.stat()
    except OSError as e:
      raise StorageError(f"system.compilation_cache={folder}: cannot be written ({e.strerror}). "
                         "Choose another folder, or '' for no cache") from e
    if found.st_uid not in (os.geteuid(), 0):
      raise ConfigError(f"system.compilation_cache={folder}: belongs to the user with the number "
                        f"{found.st_uid}, who can write to it, and the programs in it are "
                        f"executed. Make it yours (chown {os.geteuid()} {path}), or choose another "
                        "folder, or '' for no cache")
    if found.st_mode & 0o022:
      raise ConfigError(f"system.compilation_cache={folder}: other users can write to it, and the "
                        f"programs in it are executed. Make it private (chmod go-w {path}), or "
                        "choose another folder, or '' for no cache")
    jax.config.update("jax_compilation_cache_dir", str(path))
