"""bertgpt.devices.hardware: plausible figures, and a row for each of JAX's device names."""

import pytest

from bertgpt.devices import hardware
from bertgpt.training import metrics


@pytest.mark.parametrize("device_kind, name, teraflops", [
    ("TPU v4", "v4", 275), ("TPU v5 lite", "v5e", 197), ("TPU v5e", "v5e", 197),
    ("TPU v5", "v5p", 459), ("TPU v5p", "v5p", 459), ("TPU v6 lite", "v6e", 918),
    ("NVIDIA A100-SXM4-80GB", "a100", 312), ("NVIDIA H100 80GB HBM3", "h100", 989),
    ("TPU7x", "tpu7x", 1153.5), ("NVIDIA H200", "h200", 989), ("NVIDIA B200", "b200", 2250)])
def test_names_of_devices(device_kind, name, teraflops):
  assert hardware.find_chip(device_kind) is hardware.CHIPS[name]
  assert metrics.peak_flops(device_kind) == teraflops * 1e12


def test_a_cpu_is_not_in_the_table():
  assert hardware.find_chip("cpu") is None
  assert metrics.peak_flops("cpu") is None


@pytest.mark.parametrize("name", hardware.CHIPS)
def test_figures_are_possible(name):
  chip = hardware.CHIPS[name]
  assert chip.peak_flops > 10 * chip.vector_flops > 0
  assert chip.hbm_bandwidth > chip.link_bandwidth > chip.dcn_bandwidth > 0
  assert 0.9 * chip.hbm_bytes < chip.usable_hbm < 1.01 * chip.hbm_bytes
  assert (chip.clock > 0) == any("TPU" in kind for kind in chip.device_kinds)
  assert chip.fp8_flops == 0 or chip.fp8_flops >= chip.peak_flops


def test_efficiencies_are_shares():
  assert all(0 < share <= 1 for share in hardware.EFFICIENCY.values())
