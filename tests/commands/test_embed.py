"""bertgpt.commands.embed: the choices of --layer are those of bertgpt.inference.embed."""

import argparse

from bertgpt.commands import embed as command
from bertgpt.inference import embed


def test_layers_are_those_that_there_are():
  """The layers are listed twice, so that --help does not wait for JAX."""
  parser = argparse.ArgumentParser()
  command.add_flags(parser)
  (action,) = (action for action in parser._actions if action.dest == "layer")
  assert tuple(action.choices) == tuple(embed.LAYERS)
