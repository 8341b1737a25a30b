"""A topology whose devices are the CPU's."""

import jax

from bertgpt.devices import hardware
from bertgpt.planning import topologies


def on_fake_devices(count=8, chip="v5e"):
  """The tests' CPU devices stand for chips, because their compiler is available everywhere."""
  return FakeSlice("fake", "tpu", hardware.CHIPS[chip], (count, 1), 1, jax.devices()[:count])


class FakeSlice(topologies.Topology):
  def place(self, device):
    return topologies.Place(0, (device.id, 0))
