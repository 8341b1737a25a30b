"""bertgpt.devices.hardware: a row for each of JAX's device names."""

import pytest

from bertgpt.devices import hardware


@pytest.mark.parametrize("device_kind, name, teraflops", [
    ("TPU v4", "v4", 275), ("TPU v5 lite", "v5e", 197), ("TPU v5e", "v5e", 197),
    ("TPU v5", "v5p", 459), ("TPU v5p", "v5p", 459), ("TPU v6 lite", "v6e", 918),
    ("NVIDIA A100-SXM4-80GB", "a100", 312), ("NVIDIA H100 80GB HBM3", "h100", 989),
    ("TPU7x", "tpu7x", 1153.5), ("NVIDIA H200", "h200", 989), ("NVIDIA B200", "b200", 2250),
    ("NVIDIA A100-PCIE-40GB", "a100", 312), ("TPU v6e", "v6e", 918)])
def test_names_of_devices(device_kind, name, teraflops):
  assert hardware.find_chip(device_kind) is hardware.CHIPS[name]
  assert hardware.CHIPS[name].peak_flops == teraflops * 1e12


@pytest.mark.parametrize("device_kind", [
    "cpu", "NVIDIA RTX A1000", "NVIDIA GH200 480GB", "NVIDIA H100 PCIe", "NVIDIA H100 NVL",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_what_is_not_in_the_table_is_not_taken_for_what_is(device_kind):
  assert hardware.find_chip(device_kind) is None
