"""Requests to Google Cloud Storage, repeated if the storage does not answer. Errors are OSErrors.

`open_storage` returns the file system of gcsfs. Orbax uses it too, through etils: for gs:// paths
it asks fsspec for a file system, and gets this one. Errors have errno, reason and place, like those
of a disk:

| the storage says                             | error                                            |
|----------------------------------------------|--------------------------------------------------|
| 408, 429, 5xx, nothing, or too slowly        | OSError(EIO), after `give_up_seconds` of retries |
| 401, 403                                     | PermissionError(EACCES)                          |
| 404                                          | FileNotFoundError(ENOENT)                        |
| 412: the object has changed, or exists       | FileExistsError(EEXIST)                          |
| anything else                                | OSError(EIO)                                     |

The waits between retries double from 0.5 to 16 seconds and are randomized, so that the processes of
a run do not retry together (Google's guide for retries of Cloud Storage).
"""

import asyncio
import errno
import functools
import importlib
import logging
import math
import os
import random
import re
import time
import urllib.parse
from typing import Any, NamedTuple

from bertgpt.errors import ConfigError, one_line

GIVE_UP_VARIABLE = "BERTGPT_BUCKET_SECONDS"
GIVE_UP_SECONDS = 120.0  # Requests that the storage does not answer are repeated for this long.
CONNECT_SECONDS, SILENCE_SECONDS = 15.0, 60.0  # Limits for connecting, and between two packets.
FIRST_WAIT, LONGEST_WAIT = 0.5, 16.0  # Seconds between two tries.
_TRANSIENT = frozenset({408, 429, *range(500, 600)})
_PLACE = re.compile(r"/?b/([^/?]+)/o(?:/([^?]+))?")


def give_up_seconds() -> float:
  """Returns the seconds after which an unanswered request fails; BERTGPT_BUCKET_SECONDS sets them.

  Raises:
    ConfigError: the variable does not hold a number of at least 0.
  """
  text = os.environ.get(GIVE_UP_VARIABLE, str(GIVE_UP_SECONDS))
  try:
    if 0 <= (seconds := float(text)) < math.inf:
      return seconds
  except ValueError:
    pass
  raise ConfigError(f"{GIVE_UP_VARIABLE}={text}: give a number of seconds of at least 0")


@functools.cache
def open_storage() -> Any:
  """Returns the file system of gcsfs, the same one for the whole process.

  Raises:
    ConfigError: gcsfs is not installed, or the credentials cannot be used.
  """
  give_up_seconds()
  # Otherwise, gcsfs would ask a second service, over gRPC, about every bucket.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  _limit_native_clients()
  try:
    core = importlib.import_module("gcsfs.core")
    import aiohttp
    import fsspec
  except ImportError as e:
    raise ConfigError(f"paths of gs:// need gcsfs ({one_line(e)}). Install it with "
                      "`make install-gcs` or `pip install -e '.[gcs]'`, or mount the bucket with "
                      "gcsfuse") from e
  logging.getLogger("gcsfs").addFilter(lambda record: False)  # It also raises its errors.
  storage_class = _make_class(core)
  for protocol in ("gs", "gcs"):
    fsspec.register_implementation(protocol, storage_class, clobber=True)
  timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS,
                                  sock_read=SILENCE_SECONDS)
  # For instances that others make, such as etils for Orbax. Cached listings would become stale.
  options = {"use_listings_cache": False, "requests_timeout": timeout}
  fsspec.config.conf.update({protocol: options for protocol in ("gs", "gcs")})
  try:
    return fsspec.filesystem("gcs")
  except Exception as e:  # google.auth raises errors of many types.
    raise ConfigError(f"the credentials for gs:// cannot be used ({one_line(e)}). Sign in with "
                      "`gcloud auth application-default login`") from e


def _make_class(core: Any) -> type:
  """Returns the class of gcsfs with the retries and errors of this module."""
  ask = core.GCSFileSystem._request.__wrapped__  # Without gcsfs' own retries.

  class Storage(core.GCSFileSystem):
    """gcsfs with requests that are repeated until `give_up_seconds` are over."""

    async def _request(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
      start, tries, limit = time.monotonic(), 0, give_up_seconds()
      while True:
        try:
          return await ask(self, method, path, *args, **kwargs)
        except Exception as e:
          place = _name_place(path, args, kwargs)
          if (reason := find_transient(e)) is None:
            raise make_os_error(e, place) from e
          wait = random.uniform(0.5, 1) * find_wait(tries)
          if time.monotonic() - start + wait > limit:
            raise OSError(errno.EIO, f"the storage does not answer ({reason}), tried for "
                          f"{time.monotonic() - start:.0f} s", place) from e
        await asyncio.sleep(wait)
        tries += 1

  return Storage


def find_wait(tries: int) -> float:
  """Returns the seconds to wait after a number of tries."""
  return min(FIRST_WAIT * 2**min(tries, 30), LONGEST_WAIT)  # No float has 2**1025.


def find_transient(error: Exception) -> str | None:
  """Returns the reason of a transient error, such as '503'; None for any other error.

  Args:
    error: error of gcsfs, aiohttp, requests or google.auth.
  """
  import aiohttp
  import google.auth.exceptions
  import requests
  code = getattr(error, "code", None)
  if code is not None and str(code).isdecimal():
    is_late = int(code) == 401 and "Invalid Credentials" in str(error)  # A token has expired.
    return str(code) if int(code) in _TRANSIENT or is_late else None
  if isinstance(error, (TimeoutError, aiohttp.ServerTimeoutError)):
    return "timeout"
  if isinstance(error, (aiohttp.ClientError, ConnectionError, requests.RequestException,
                        google.auth.exceptions.TransportError,
                        google.auth.exceptions.RefreshError)):
    return one_line(error)
  return None


def make_os_error(error: Exception, place: str) -> Exception:
  """Returns the OSError for an error of gcsfs that is not transient.

  Args:
    error: the error.
    place: gs:// path of the request.
  """
  if isinstance(error, FileNotFoundError):
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
  if isinstance(error, FileExistsError):
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place)
  text = one_line(error)
  if getattr(error, "code", None) in (401, "401", 403, "403") or text.startswith("Forbidden"):
    return PermissionError(errno.EACCES, f"no permission ({text})", place)
  if isinstance(error, (OSError, ValueError, RuntimeError)) or hasattr(error, "code"):
    return OSError(errno.EIO, f"the storage refuses the request ({text})", place)
  return error


def _name_place(path: str, args: tuple, kwargs: dict[str, Any]) -> str:
  """Returns the gs:// path of a request."""
  if args:
    return "gs://" + "/".join(map(str, args))
  found = _PLACE.search(path)
  if not found:
    return path
  key = found[2] or kwargs.get("name") or ""
  return f"gs://{found[1]}/{urllib.parse.unquote(key)}".rstrip("/")


# ----------------------------------------------------------- native clients


def _limit_native_clients() -> None:
  """Sets the time limits of TensorStore, whose defaults never end a transfer that has stalled."""
  os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", f"{SILENCE_SECONDS:.0f}")
  os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
  os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", f"{CONNECT_SECONDS:.0f}")


def tensorstore_retries() -> dict[str, Any]:
  """Returns the resource `gcs_request_retries` of TensorStore for `give_up_seconds`.

  Its default, 32 retries, takes a quarter of an hour. The waits double up to LONGEST_WAIT, with up
  to a second added at random (google/tensorstore, internal/retries_context_resource).
  """
  waits, total = 0, 0.0
  while total < give_up_seconds():
    total += find_wait(waits)
    waits += 1
  return {"max_retries": max(1, waits), "initial_delay": f"{FIRST_WAIT}s",
          "max_delay": f"{LONGEST_WAIT}s"}


class Info(NamedTuple):
  """The entry of an object in a listing.

  Attributes:
    st_size: bytes.
    digest: 'md5:...' or 'crc32c:...' of its content, as the storage computed it.
    generation: number that every write changes.
    encoding: 'gzip' if the storage unpacks the object when it is read, so that `st_size` is not the
      size of what is read; else ''.
  """

  st_size: int
  digest: str
  generation: str
  encoding: str = ""


def make_info(item: dict[str, Any]) -> Info:
  """Returns the entry of an object.

  Args:
    item: the object's metadata, as the storage answers.
  """
  digest = f"md5:{item['md5Hash']}" if "md5Hash" in item else f"crc32c:{item.get('crc32c', '')}"
  return Info(int(item.get("size", 0)), digest, str(item.get("generation", "")),
              str(item.get("contentEncoding", "")))
