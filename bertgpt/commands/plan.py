"""`bertgpt plan`: memory, time and price of a run, predicted from its compiled programs."""

from bertgpt.commands import flags

HELP = "Predict memory, time and price on hardware that need not be there."
USES = ("bertgpt.planning.plan", "bertgpt.planning.topologies")


def add_flags(parser):
  flags.add_config(parser)
  parser.add_argument("--topology", required=True, metavar="KIND:SHAPE",
                      help="v4, v5e, v5p or v6e as v5e:4x4 (v5e:4x4:2 for two slices); a100, h100 "
                           "or h200 as h100:8 or h100:2x8 (nodes x GPUs)")
  parser.add_argument("--phase", type=int, metavar="N", help="only this phase, counted from 0")
  parser.add_argument("--price_per_chip_hour", type=float, metavar="PRICE",
                      help="adds what the run will cost")
  parser.add_argument("--search", action="store_true",
                      help="compile other micro-batches, remat, meshes and scans of the phase "
                           "(the last one) and rank them")
  parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments):
  from bertgpt.planning import plan, topologies
  topology = topologies.open_topology(arguments.topology)
  config = flags.read_unvalidated(
      arguments, lambda: (len(topology.devices), ""))
  print(plan.run(config, topology, phase=arguments.phase, price=arguments.price_per_chip_hour,
                 do_search=arguments.search, as_json=arguments.json))
