"""The limit of open files of this process."""

import resource
import sys


def raise_open_limit(wanted: int) -> int:
  """Raises the limit of open files, as far as the system lets this process; never lowers it.

  Args:
    wanted: files that shall be open at the same time.
  Returns:
    The limit, which may be smaller than `wanted`.
  """
  limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
  if limit != resource.RLIM_INFINITY and limit < wanted:
    limit = wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)
    try:
      resource.setrlimit(resource.RLIMIT_NOFILE, (limit, highest))
    except (OSError, ValueError):  # macOS has another limit, which it does not tell.
      limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
  return sys.maxsize if limit == resource.RLIM_INFINITY else limit
