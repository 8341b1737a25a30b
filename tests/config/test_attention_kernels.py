"""bertgpt.config.attention_kernels: the choice of a kernel, and the checks of a config."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import attention_kernels as kernels
from bertgpt.errors import ConfigError

BF16 = kernels.Layer("", "bfloat16", length=512, head_width=64, dropout=0.0)


@pytest.mark.parametrize("platform, change, expected", [
    ("tpu", {}, "splash"),
    ("tpu", {"dtype": "float32"}, "splash"),
    ("tpu", {"length": 256}, "splash"),
    ("tpu", {"length": 128}, "xla"),
    ("tpu", {"length": 500}, "xla"),
    ("tpu", {"dropout": 0.1}, "flash"),
    ("tpu", {"dropout": 0.1, "length": 128}, "flash"),
    ("tpu", {"dropout": 0.1, "length": 200}, "flash"),
    ("tpu", {"dropout": 0.1, "length": 32}, "xla"),
    ("gpu", {"dropout": 0.1, "length": 32}, "xla"),
    ("tpu", {"dropout": 0.1, "dropout_rng": "threefry"}, "xla"),
    ("tpu", {"dropout": 0.1, "head_width": 36}, "xla"),
    ("tpu", {"dropout": 0.1, "length": 16384}, "xla"),
    ("tpu", {"has_window": True}, "splash"),
    ("tpu", {"has_window": True, "length": 128}, "flash"),
    ("gpu", {"has_window": True}, "cudnn"),
    ("tpu", {"is_relative": True}, "xla"),
    ("gpu", {}, "cudnn"),
    ("gpu", {"length": 128}, "cudnn"),
    ("gpu", {"dtype": "float32"}, "xla"),
    ("gpu", {"head_width": 36}, "xla"),
    ("gpu", {"length": 127}, "xla"),
    ("gpu", {"dropout": 0.1}, "flash"),
    ("gpu", {"dropout": 0.1, "dtype": "float32"}, "xla"),
    ("gpu", {"dropout": 0.1, "has_window": True, "length": 16384}, "flash"),
    ("gpu", {"capability": 9.0}, "cudnn"),
    ("gpu", {"capability": 8.0, "dropout": 0.1}, "flash"),
    ("gpu", {"capability": 7.5}, "xla"),                  # T4
    ("gpu", {"capability": 7.0, "dropout": 0.1}, "xla"),  # V100
    ("cpu", {}, "xla"),
])
def test_auto_takes_the_best_kernel_that_can_run(platform, change, expected):
  assert kernels.choose("auto", BF16._replace(platform=platform, **change))[0] == expected


@pytest.mark.parametrize("platform, other", [("gpu", "cudnn"), ("tpu", "splash")])
def test_auto_says_why_another_kernel_is_not_taken(platform, other):
  _, reason = kernels.choose("auto", BF16._replace(platform=platform, dropout=0.1))
  assert f"{other} needs model.attention_dropout=0.0, not 0.1" in reason


def test_auto_says_that_a_gpu_is_too_old():
  layer = BF16._replace(platform="gpu", dropout=0.1, capability=7.5)
  need = "needs a GPU of compute capability 8.0, not 7.5"
  assert f"flash {need}" in kernels.choose("auto", layer)[1]
  assert f"cudnn {need}" in kernels.choose("auto", layer._replace(dropout=0.0))[1]


@pytest.mark.parametrize("requested, platform, expected", [
    ("xla", "tpu", "xla"), ("xla", "gpu", "xla"), ("cudnn", "gpu", "cudnn"),
    ("splash", "tpu", "splash"), ("splash", "cpu", "splash"),
    ("flash", "tpu", "flash"), ("flash", "cpu", "flash"),
    ("splash", "gpu", "xla"), ("cudnn", "cpu", "xla"), ("cudnn", "tpu", "xla")])
def test_a_requested_kernel_is_taken_if_it_can_run(requested, platform, expected):
  assert kernels.choose(requested, BF16._replace(platform=platform))[0] == expected


def test_short_rows_do_not_overrule_a_requested_kernel():
  assert kernels.choose("splash", BF16._replace(platform="tpu", length=128))[0] == "splash"


# ------------------------------------------------------ checks of the config


def make_config(attention, *lengths, **model):
  config = config_lib.base()
  config.model.update({"attention": attention, "attention_dropout": 0.0, **model})
  config.phases = tuple(config_lib.phase(seq_len=length) for length in lengths)
  return config


def test_all_unmet_requirements_are_listed_at_once():
  config = make_config("cudnn", 128, 127, dtype="float32", attention_dropout=0.1, num_heads=96)
  with pytest.raises(ConfigError) as error:
    config_lib.validate(config, platform="tpu")
  lines = str(error.value).splitlines()
  assert all(line.startswith("model.attention='cudnn' needs ") for line in lines)
  told = ("attention_dropout=0.0, not 0.1", "GPU", "'float32'", "tokens per row, not 127")
  assert [sum(word in line for line in lines) for word in told] == [1, 1, 1, 1]
  assert len(lines) == 4


@pytest.mark.parametrize("dtype, length, kernel", [
    ("bfloat16", 8192, "flash"), ("float32", 8192, "xla"), ("float32", 4096, "flash")])
def test_flash_is_chosen_only_if_its_backward_pass_fits(dtype, length, kernel):
  layer = BF16._replace(platform="tpu", dtype=dtype, length=length, dropout=0.1)
  assert kernels.choose("auto", layer)[0] == kernel


@pytest.mark.parametrize("attention, platform, length, problem", [
    ("splash", "tpu", 200, "multiple of 128 tokens per row, not 200"),
    ("splash", "gpu", 256, "a TPU"),
    ("flash", "tpu", 16384, "at most 8192 tokens per row in bfloat16, not 16384"),
    ("cudnn", "cpu", 256, "a GPU")])
def test_a_kernel_that_cannot_run_is_refused(attention, platform, length, problem):
  with pytest.raises(ConfigError, match=problem):
    config_lib.validate(make_config(attention, length), platform=platform)


@pytest.mark.parametrize("attention, platform", [
    ("splash", "tpu"), ("splash", "cpu"), ("splash", ""), ("cudnn", "gpu"), ("cudnn", ""),
    ("xla", "cpu"), ("auto", "cpu"), ("auto", "tpu")])
def test_a_kernel_that_can_run_is_accepted(attention, platform):
  assert config_lib.find_problems(make_config(attention, 128, 512), platform=platform) == []
