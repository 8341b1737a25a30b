"""`python -m bertgpt`: the same program as the script `bertgpt`, which may not be on the PATH."""

import sys

from bertgpt.cli import run_program

if __name__ == "__main__":
  sys.exit(run_program())
