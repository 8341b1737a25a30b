"""A chip with round figures, and texts of programs for it."""

from bertgpt.devices import hardware
from bertgpt.planning import roofline
from bertgpt.planning.collectives import Network, Place

CHIP = hardware.CHIPS["v5e"]._replace(peak_flops=1e12, vector_flops=1e9, hbm_bandwidth=1e9, tile=1,
                                      link_bandwidth=1e6, clock=1e6)
NETWORK = Network(CHIP, [Place(0, (x, 0)) for x in range(4)], (4, 1), {"data": 4})
SHARE = CHIP.efficiency._asdict()


def analyze(text, true_share=None, **arguments):
  return roofline.analyze(text, NETWORK._replace(**arguments), true_share=true_share)


def program_text(body):
  return f"HloModule m\nENTRY %main (p: f32[1000,1000]) -> f32[1000,1000] {{\n{body}\n}}\n"


DOT = program_text("""  %p = f32[1000,1000]{1,0} parameter(0)
  ROOT %d = f32[1000,1000]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}""")
