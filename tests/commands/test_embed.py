"""bertgpt.commands.embed: its choices are those of the work."""

import argparse

from bertgpt.commands import embed as command
from bertgpt.inference import embed


def test_layers_are_those_that_there_are():
  """Written twice, so that --help need not wait for JAX."""
  parser = argparse.ArgumentParser()
  command.add_flags(parser)
  (action,) = (action for action in parser._actions if action.dest == "layer")
  assert tuple(action.choices) == tuple(embed.LAYERS)
