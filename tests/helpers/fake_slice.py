"""A topology whose devices are the CPU's."""

import jax

from bertgpt.devices import hardware
from bertgpt.planning import topologies


def on_fake_devices(count=8, chip="v5e", num_slices=1):
  """The tests' CPU devices stand for chips, because their compiler is available everywhere."""
  return FakeSlice("fake", "tpu", hardware.CHIPS[chip], (count // num_slices, 1), num_slices,
                   jax.devices()[:count])


class FakeSlice(topologies.Topology):
  def place(self, device):
    slice_index, x = divmod(device.id, self.torus[0])
    return topologies.Place(slice_index, (x, 0))
