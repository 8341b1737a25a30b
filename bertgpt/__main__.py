"""`python -m bertgpt`: the program, if the script `bertgpt` is not on the path."""

import sys

from bertgpt.cli import run_program

if __name__ == "__main__":
  sys.exit(run_program())
