"""bertgpt.config: fields are locked, and wrong values are refused."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import choices, families, recipes
from bertgpt.config.overrides import override, set_field
from bertgpt.errors import ConfigError


def problems_of(call, *args) -> list[str]:
  with pytest.raises(ConfigError) as e:
    call(*args)
  return str(e.value).splitlines()


def test_fields_are_locked():
  config = config_lib.base()
  with pytest.raises(AttributeError, match="width"):
    config.model.widht = 1
  with pytest.raises(AttributeError, match="steps"):
    config.phases[0].stesp = 1


# -------------------------------------------------------------- validation


def test_defaults_are_valid_on_any_number_of_devices():
  for num_devices in (None, 1, 2, 8, 64):
    assert config_lib.find_problems(config_lib.base(), num_devices) == []


@pytest.mark.parametrize("seq_len, rng, objective, refused", [
    (18816, "hash", "mlm_nsp", False), (18944, "hash", "mlm_nsp", True),
    (18944, "threefry", "mlm_nsp", False), (18000, "hash", "mlm_nsp", False),
    (18000, "hash", "plm_memory", True), (18000, "hash", "plm", True)])
def test_no_two_heads_drop_the_same_attention_weights(seq_len, rng, objective, refused):
  """A hash of 32 bits numbers the weights of a row: 12 heads x 18,944^2 are more than 2^32.

  XLNet's targets are queries too, and a memory holds more keys than the tokens of the row.
  """
  config = config_lib.base()
  config.model.update(max_positions=seq_len, dropout_rng=rng)
  config.objective.name = objective
  config.phases[0].seq_len = seq_len
  problems = config_lib.find_problems(config)
  found = [line for line in problems if "drop the same attention weights" in line]
  assert len(found) == refused and (found == problems or objective != "mlm_nsp")


@pytest.mark.parametrize("argument, fragment", [
    ("--config.model.num_heads=7", "model.num_heads=7 does not divide model.width=768"),
    ("--config.objective.name=causal", "objective.name='causal' does not train model.family"),
    ("--config.model.norm=middle", "choose one of post, pre"),
    ("--config.phases[0].schedule=step", "phases[0].schedule='step': choose one of linear"),
    ("--config.phases[0].seq_len=1024", "longer than model.max_positions=512"),
    ("--config.phases[0].micro_batches=3", "does not divide phases[0].batch_size=256"),
    ("--config.phases[0].micro_batches=0", "phases[0].micro_batches=0: must be at least 1"),
    ("--config.phases[0].learning_rate_rule=continuous", "no phase comes before the first one"),
    ("--config.model.dropout=1.5", "model.dropout=1.5: must be at least 0 and below 1"),
    ("--config.model.dropout=nan", "model.dropout=nan: must be at least 0 and below 1"),
    ("--config.objective.replace_with_random=0.3", "must not exceed 1"),
    ("--config.profile.steps=(1,)", "give (first, last)"),
    ("--config.profile.steps=(9,5)", "give (first, last)"),
    ("--config.profile.steps=9,5", "give (first, last)"),
    ("--config.profile.steps=5,1001", "within the run's steps"),
    ("--config.train.skip_steps=(5, 9)", "give ((first, last), ...)"),
    ("--config.train.skip_steps=((9, 5),)", "give ((first, last), ...)"),
    ("--config.train.skip_steps=((0, 5),)", "counted from 1"),
    ("--config.train.skip_steps=((1, 5), (5, 6))", "in order"),
    ("--config.train.skip_steps=((1, 1000),)", "before the last step"),
    ("--config.checkpoint.keep_best=loss", "choose one of mlm_loss, mlm_accuracy, mlm_perplexity"),
    ("--config.train.spike_guard=on", "choose one of off, skip"),
    ("--config.system.xla_options=fast",
     "choose one of auto, none, tpu_overlap, gpu_cublas, gpu_overlap"),
    ("--config.model.num_heads=0", "model.num_heads=0: must be at least 1"),
    ("--config.phases[0].learning_rate=-1e-4", "learning_rate=-0.0001: must be at least 0"),
    ("--config.phases[0].learning_rate=inf", "learning_rate=inf: must be at most 3.4e+38"),
    ("--config.phases[0].learning_rate=1e39", "learning_rate=1e+39: must be at most 3.4e+38"),
    ("--config.optimizer.clip_norm=1e-50", "clip_norm=1e-50: devices treat it as 0. Set it to 0,"),
    ("--config.model.window=5000000000", "model.window=5000000000: must be at most 2147483647"),
    ("--config.tokenizer.vocab_size=2000000000", "vocab_size=2000000000: must be at most 16777216"),
    ("--config.profile.steps=", "profile.steps=('',): give (first, last), counted from 1, within"),
    ("--config.profile.steps=True,True", "within the run's steps, or () for none"),
    ("--config.train.skip_steps=", "before the last step of the run, or () for none"),
    ("--config.optimizer.epsilon=nan", "optimizer.epsilon=nan: must be at least 1.18e-38"),
    ("--config.optimizer.epsilon=0", "optimizer.epsilon=0.0: must be at least 1.18e-38"),
    ("--config.optimizer.epsilon=1e-40", "optimizer.epsilon=1e-40: must be at least 1.18e-38"),
    ("--config.optimizer.freeze=a{99999999999}", "is not a regular expression (the repetition"),
    ("--config.phases[0].steps=3000000000", "phases[0].steps=3000000000: must be at most 21474"),
    ("--config.phases[0].warmup_steps=3000000000", "must be at most 2147483647"),
    (f"--config.seed={2**63}", f"must be at most {2**63 - 1}"),
    ("--config.optimizer.b1=1", "optimizer.b1=1.0: must be at least 0 and below 1"),
    ("--config.seed=-1", "seed=-1: must be at least 0"),
    ("--config.mesh.tensor=0", "mesh.tensor=0: must be at least 1"),
    ("--config.objective.mask_prob=0", "nothing would be predicted"),
    ("--config.mesh.axes.mlp=('model',)", "mesh.axes.mlp names 'model': choose among data, fsdp"),
    ("--config.mesh.axes.mlp=([],)", "mesh.axes.mlp names []: choose among data, fsdp"),
    ("--config.mesh.axes.batch=('data','data')", "names an axis twice"),
    ("--config.mesh.axes.batch=[['data','fsdp']]", "mesh.axes.batch names ['data', 'fsdp']"),
    ("--config.mesh.axes.heads=('fsdp',)", "mesh.axes.embed and mesh.axes.heads both name fsdp"),
])
def test_invalid_value_is_one_line_that_names_it(argument, fragment):
  config = override(config_lib.base(), [argument])
  (line,) = problems_of(config_lib.validate, config)
  assert fragment in line


def test_axes_that_meet_in_an_array_of_one_family_are_refused():
  """An ELMo computes the gates of all tokens, which have rows and features of the LSTM."""
  config = override(config_lib.base(), ["--config.mesh.axes.batch=('data','fsdp','tensor')"])
  assert not config_lib.find_problems(config)
  config.model.update(families.FAMILIES["elmo"].presets["small"], family="elmo")
  config.objective.name = "bilm"
  (line,) = (line for line in config_lib.find_problems(config) if "mesh.axes" in line)
  assert line.startswith("mesh.axes.batch and mesh.axes.mlp both name tensor, but some arrays have")


def test_the_steps_of_all_phases_are_counted_together():
  config = config_lib.base()
  config.phases = (config_lib.phase(steps=2**31 - 1), config_lib.phase(steps=1))
  (line,) = config_lib.find_problems(config)
  assert line.startswith("phases[].steps: 2147483648 in total")


def test_a_width_that_the_mesh_does_not_divide_is_refused():
  """The layers would be whole on every device, with their optimizer's state."""
  fields = ["--config.mesh.fsdp=8", "--config.model.num_heads=4", "--config.model.width=36"]
  (line,) = problems_of(config_lib.validate, override(config_lib.base(), fields), 8)
  assert line.startswith("mesh.fsdp=8: the axes mesh.axes.embed would cut model.width=36 into 8")
  config_lib.validate(override(config_lib.base(), [*fields, "--config.mesh.axes.embed=()"]), 8)
  fields += ["--config.mesh.data=4", "--config.mesh.fsdp=2", "--config.mesh.axes.embed=data,fsdp"]
  (line,) = problems_of(config_lib.validate, override(config_lib.base(), fields), 8)
  assert line.startswith("mesh.fsdp=2: the axes mesh.axes.embed would cut model.width")


def test_nothing_need_be_masked_in_the_objective_if_every_phase_has_a_share():
  config = override(config_lib.base(), ["--config.objective.mask_prob=0"])
  assert any("mask_prob" in line for line in problems_of(config_lib.validate, config))
  config_lib.validate(override(config, ["--config.phases[0].mask_prob=0.2"]))


def test_a_decay_with_the_power_0_is_refused():
  """It would be complete before it begins: t ** 0 is 1 for every t."""
  config = override(config_lib.base(), ["--config.phases[0].schedule=wsd",
                                        "--config.phases[0].power=0"])
  (line,) = problems_of(config_lib.validate, config)
  assert line.startswith("phases[0].power=0.0: with schedule 'wsd'")


@pytest.mark.parametrize("field", sorted(dict(config_lib.leaves(config_lib.base()))))
def test_none_is_refused_in_every_field(field):
  """A ConfigDict takes None in a field of any type, and a recipe may set it."""
  config = config_lib.base()
  set_field(config, field, None)
  assert config_lib.find_problems(config, 1, "cpu") == [
      f"{field}=None: no field may be None. Leave it out to keep its default"]


def test_divisors_that_are_0_are_reported_and_do_not_raise():
  config = override(config_lib.base(), [
      "--config.model.num_heads=0", "--config.phases[0].micro_batches=0", "--config.mesh.tensor=0"])
  assert len(problems_of(config_lib.validate, config, 8)) == 3
  config.phases = ()
  assert "phases: give a tuple" in problems_of(config_lib.validate, config, 8)[-1]


def test_all_problems_are_listed_at_once():
  config = override(config_lib.base(), [
      "--config.model.num_heads=7", "--config.checkpoint.keep_best=loss",
      "--config.data.prefetch=0", "--config.phases[0].seq_len=4096"])
  lines = problems_of(config_lib.validate, config)
  assert len(lines) == 4
  for name in ("num_heads", "keep_best", "data.prefetch", "phases[0].seq_len"):
    assert any(name in line for line in lines), name


@pytest.mark.parametrize("field", [*config_lib.CHOICES, *(
    f"phases[0].{field}" for field in config_lib.PHASE_CHOICES)])
def test_a_misspelled_choice_is_listed_with_the_other_wrong_values(field):
  """Checks of several fields, which look the choice up, come later."""
  config = recipes.load("xlnet_large:memory")
  config.model.attention = "flash"
  config.eval.batch_size = 0
  set_field(config, field, "nothing")
  lines = config_lib.find_problems(config, 8, "gpu")
  assert [line.partition("=")[0] for line in lines] == [field, "eval.batch_size"]
  assert lines[0].startswith(f"{field}='nothing': choose one of ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("field", ["objective.mask_prob", "phases[0].mask_prob"])
def test_a_wrong_share_is_reported_where_the_targets_are_counted(field, value):
  config = recipes.load("xlnet_large:memory")
  config.objective.mask_rule = "bernoulli"
  set_field(config, field, value)
  assert config_lib.find_problems(config) == [f"{field}={value}: must be between 0 and 1"]


def test_axes_that_are_no_names_are_found_with_any_number_of_devices():
  config = override(config_lib.base(), ["--config.mesh.axes.batch=[['data','fsdp']]"])
  lines = config_lib.find_problems(config, 8)
  assert [line for line in lines if "mesh.axes.batch names ['data', 'fsdp']" in line]


def test_an_elmo_needs_filters():
  config = recipes.load("elmo_mini")
  config.model.filters = ()
  (line,) = problems_of(config_lib.validate, config)
  assert "model.filters=(): give ((width, number), ...)" in line


def test_rows_are_divided_only_among_the_axes_of_the_batch():
  config = override(config_lib.base(), [
      "--config.mesh.fsdp=8", "--config.mesh.axes.batch=('data',)",
      "--config.phases[0].batch_size=12", "--config.eval.batch_size=12"])
  assert not [line for line in config_lib.find_problems(config, 8) if "divided" in line]


@pytest.mark.parametrize("arguments, num_devices, fragment", [
    (["--config.mesh.fsdp=3"], 8, "does not divide the 8 devices"),
    (["--config.mesh.data=2"], 8, "= 2 devices, but there are 8"),
    (["--config.mesh.data=4", "--config.mesh.tensor=4"], 8, "= 16 devices, but there are 8"),
    (["--config.phases[0].batch_size=12"], 8, "a micro-batch of 12 rows cannot be divided"),
    (["--config.phases[0].micro_batches=64"], 8, "a micro-batch of 4 rows cannot be divided"),
    (["--config.mesh.axes.batch=fsdp", "--config.phases[0].micro_batches=64"], 8,
     "a micro-batch of 4 rows cannot be divided among mesh.data=8 replicas"),
    (["--config.eval.batch_size=12"], 8, "eval.batch_size=12 cannot be divided"),
    (["--config.mesh.tensor=2", "--config.mesh.axes.batch=('data','fsdp','tensor')",
      "--config.phases[0].batch_size=12"], 8, "among data x fsdp x tensor = 8 devices"),
    (["--config.mesh.tensor=8"], 8, "mesh.tensor=8 does not divide model.num_heads=12"),
])
def test_mesh_that_does_not_fit_is_refused(arguments, num_devices, fragment):
  config = override(config_lib.base(), arguments)
  (line,) = problems_of(config_lib.validate, config, num_devices)
  assert fragment in line
  config_lib.validate(config)  # Without the devices the config is valid.


def test_a_pattern_of_frozen_parameters_is_compiled():
  config = config_lib.base()
  config.optimizer.freeze = "^body/(?!mix"
  (line,) = config_lib.find_problems(config)
  assert line.startswith("optimizer.freeze='^body/(?!mix': is not a regular expression")


@pytest.mark.parametrize("filters", [((0, 4),), ((51, 4),), ((2, 4, 1),), ((2, 0),), (2, 4)])
def test_filters_over_characters_fit_into_a_word(filters):
  config = recipes.load("elmo_mini")
  config.model.filters = filters
  (line,) = config_lib.find_problems(config)
  assert line.startswith("model.filters=") and "widths from 1 to 50" in line


def test_heads_need_not_fit_the_mesh_where_there_are_none():
  config = recipes.load("elmo_original")
  config.mesh.update(data=-1, tensor=4)
  assert config.model.num_heads == 2 and not config_lib.find_problems(config, 8)


@pytest.mark.parametrize("metric, is_known", [("order_f1", True), ("order_correlation", False)])
def test_a_best_checkpoint_needs_a_metric_whose_direction_is_known(monkeypatch, metric, is_known):
  name = config_lib.base().objective.name
  monkeypatch.setitem(choices.OBJECTIVES, name,
                      choices.OBJECTIVES[name]._replace(other_metrics=(metric,)))
  config = override(config_lib.base(), [f"--config.checkpoint.keep_best={metric}",
                                        "--config.eval.every_steps=10"])
  found = "\n".join(config_lib.find_problems(config))
  assert ("does not say whether it should be high or low" in found) != is_known
  assert ("keep_best" in found) != is_known
