"""`bertgpt plan`: memory, time and price of a run, predicted from its compiled programs."""

import argparse

from bertgpt.commands import flags
from bertgpt.errors import refuse

HELP = "Predict memory, time and price of a run, without its hardware."
USES = ("bertgpt.config", "bertgpt.planning.plan", "bertgpt.planning.topologies")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt plan`."""
  flags.add_config(parser)
  parser.add_argument("--topology", required=True, metavar="KIND:SHAPE",
                      help="TPU v4, v5e, v5p, v6e or tpu7x, such as v5e:4x4 (v5e:4x4:2 for two "
                           "slices) or v5p:2x2x1; GPU a100, h100, h200 or b200, such as h100:8 "
                           "or h100:2x8 (nodes x GPUs)")
  parser.add_argument("--phase", type=int, metavar="N",
                      help="index of a phase, from 0; default: all phases")
  parser.add_argument("--price_per_chip_hour", type=flags.number(float, 0), metavar="PRICE",
                      help="price per chip-hour, to predict the price of the run")
  parser.add_argument("--network_gbps", type=flags.number(float, 1e-3), metavar="GBPS",
                      help="speed of the network between slices or nodes, in Gbit/s per device and "
                           "direction; default: that of the data sheet")
  parser.add_argument("--kernels", type=flags.number(int, 1), default=0, metavar="N",
                      help="show the N kernels of each phase that take longest, with what bounds "
                           "them")
  parser.add_argument("--compare", nargs="+", default=(), metavar="FIELD=VALUE",
                      help="also plan with other values of these fields, and put the two plans "
                           "side by side")
  parser.add_argument("--search", action="store_true",
                      help="compile variants of the phase (default: the last one), with other "
                           "micro-batches, remat, meshes, attention kernels, loops over layers "
                           "and chunks of the output layer, and rank them")
  parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
  parser.set_defaults(exits_at_once=True)


def run(arguments: argparse.Namespace) -> None:
  """Prints the prediction."""
  from bertgpt import config as config_lib
  from bertgpt.planning import plan, topologies
  config, problems = flags.try_config(arguments)
  topology = topologies.open_topology(arguments.topology)
  if problems:  # `plan.run` checks the fields.
    refuse(problems + config_lib.find_problems(config, len(topology.devices), topology.platform))
  if arguments.network_gbps:
    topology = topologies.with_network(topology, arguments.network_gbps)
  request = plan.Request(arguments.phase, arguments.price_per_chip_hour, arguments.kernels,
                         tuple(arguments.compare), arguments.search, arguments.json)
  print(plan.run(config, topology, request))
