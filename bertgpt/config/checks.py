"""Checks of a whole pretraining config, before anything is compiled."""

import math
import re
from collections.abc import Iterator

from bertgpt import files
from bertgpt.config import attention_kernels as kernels
from bertgpt.config import choices, compiler_options, families, metric_names, mixtures
from bertgpt.config.derived import max_predictions, total_steps
from bertgpt.config.pretraining import CHOICES, MESH_AXES, PHASE_CHOICES, ConfigDict, leaves
from bertgpt.errors import refuse

AT_LEAST = {
    "seed": 0,
    "data.prepare_workers": 0, "data.reader_workers": 0, "data.prefetch": 1,
    "data.max_sequences": 0, "tokenizer.vocab_size": 1, "tokenizer.train_bytes": 1,
    "model.num_layers": 1, "model.width": 1, "model.num_heads": 1, "model.mlp_dim": 1,
    "model.embedding_width": 0, "optimizer.initial_accumulator": 0, "objective.rtd_weight": 0,
    "model.max_positions": 2, "model.num_segments": 0, "model.vocab_size": 0,
    "model.window": 0, "model.global_every": 0, "model.rope_theta": 1, "model.rope_theta_local": 1,
    "model.layer_norm_epsilon": 0, "model.init_std": 0, "model.position_init_std": 0,
    "model.scan_unroll": -1, "objective.loss_chunk": -1, "objective.ngram": 1,
    "objective.permutation_block": 0, "objective.memory": 1,
    "optimizer.clip_norm": 0, "optimizer.weight_decay": 0,
    "train.max_bad_steps": 1, "train.spike_factor": 1, "train.spike_window": 1,
    "checkpoint.keep_every_steps": 0,
    "eval.every_steps": 0,
    "eval.batch_size": 1, "eval.max_rows": 0, "checkpoint.every_steps": 0,
    "checkpoint.every_minutes": 0, "checkpoint.keep": 1, "log.every_steps": 1,
    "system.hang_timeout_minutes": 0, "system.compile_timeout_minutes": 0,
    "mesh.fsdp": 1, "mesh.tensor": 1,
    **{f"model.{field}": low for family in families.FAMILIES.values()
       for field, low in family.at_least.items()},
}
FRACTIONS = ("data.validation_fraction", "data.short_sequence_prob", "data.random_next_prob",
             "data.max_unused", "eval.mask_prob", "objective.mask_prob",
             "objective.replace_with_mask", "objective.replace_with_random",
             "optimizer.layer_decay")
# With an epsilon of 0, Adam divides 0 by 0 wherever no gradient has arrived, as in padding rows.
ABOVE_ZERO = ("optimizer.epsilon",)
BELOW_ONE = ("model.dropout", "model.attention_dropout", "optimizer.b1", "optimizer.b2",
             "optimizer.momentum")
PHASE_AT_LEAST = {"steps": 1, "seq_len": 8, "batch_size": 1, "micro_batches": 1,
                  "max_predictions": 0, "rope_theta": 0, "rope_theta_local": 0,
                  "learning_rate": 0, "warmup_steps": 0, "power": 0}
MAX_INT = MAX_STEPS = 2**31 - 1  # A step is an int32.
# Devices compute in int32 and float32, and treat numbers below the smallest normal float32 as 0.
AT_MOST = {"seed": 2**63 - 1, "tokenizer.train_bytes": 2**63 - 1, "tokenizer.vocab_size": 2**24}
MAX_FLOAT, MIN_FLOAT = 3.4e38, 2.0 ** -126
PHASE_FRACTIONS = ("mask_prob", "warmup_fraction", "end_fraction", "decay_fraction")

# Local, or gs://.
PATHS = ("init_from", "data.corpus", "data.cache_dir", "tokenizer.path", "system.compilation_cache")

# Pairs of logical axes of one array. They must not be split over the same mesh axis.
AXES_TOGETHER = (("embed", "heads"), ("embed", "mlp"))


def validate(config: ConfigDict, num_devices: int | None = None, platform: str = "") -> None:
  """Checks the whole config before anything is compiled.

  Args:
    config: whole config.
    num_devices: number of devices in the mesh; None skips the checks that need it.
    platform: platform of these devices, 'cpu', 'gpu' or 'tpu'; '' skips the checks that need it.
  Raises:
    ConfigError: the config has problems; the message has one line per problem.
  """
  refuse(find_problems(config, num_devices, platform))


def find_problems(config: ConfigDict, num_devices: int | None = None,
                  platform: str = "") -> list[str]:
  """Returns the problems of a config, one line each.

  If a field has a name that is not one of its choices, fields that do not fit together are not
  listed.

  Args:
    config, num_devices, platform: see `validate`.
  """
  if problems := [describe_empty(field) for field, value in leaves(config) if value is None]:
    return problems
  if any(not isinstance(p, ConfigDict) for p in config.phases) or not config.phases:
    return ["phases: give a tuple of at least one phase(...)"]
  unknown = list(_choice_problems(config))
  problems = [*unknown, *_range_problems(config), *_path_problems(config)]
  if unknown:  # The other checks look these names up.
    return problems
  problems += [*_model_problems(config), *_axes_problems(config)]
  for i, p in enumerate(config.phases):
    problems += _phase_problems(config, p, f"phases[{i}]")
  if total_steps(config) > MAX_STEPS >= max(p.steps for p in config.phases):
    problems.append(f"phases[].steps: {total_steps(config)} in total. A run has at most "
                    f"{MAX_STEPS} steps")
  problems += [*_attention_problems(config, platform), *_profile_problems(config),
               *skip_problems(config), *_best_problems(config),
               *_option_problems(config, platform), *_freeze_problems(config),
               *_tracker_problems(config), *mixtures.find_problems(config)]
  if num_devices is not None and min(config.mesh.fsdp, config.mesh.tensor) >= 1:
    problems += _mesh_problems(config, num_devices)
  return problems


def describe_empty(field: str) -> str:
  """Returns the line about a field that is None, which ml_collections accepts for every type.

  Args:
    field: path of the field.
  """
  return f"{field}=None: no field may be None. Leave it out to keep its default"


def _choice_problems(config):
  for field, names in CHOICES.items():
    group, name = field.split(".")
    yield from _unknown_choice(field, config[group][name], names)
  for i, p in enumerate(config.phases):
    for field, names in PHASE_CHOICES.items():
      yield from _unknown_choice(f"phases[{i}].{field}", p[field], names)


def _tracker_problems(config):
  for name in choices.names_of_trackers(config.log.trackers):
    if name not in choices.TRACKERS:
      yield (f"log.trackers={config.log.trackers!r}: {name} is not one of "
             f"{', '.join(choices.TRACKERS)}")


def _unknown_choice(field, value, allowed):
  if value not in allowed:
    yield f"{field}={value!r}: choose one of {', '.join(allowed)}"


def range_problems(field: str, value: float, low: float) -> Iterator[str]:
  """Yields a line if a number is too small, or too large or too close to 0 for the devices.

  Args:
    field: path of the field.
    value: its value.
    low: its smallest value.
  """
  most = AT_MOST.get(field, MAX_INT) if isinstance(value, int) else MAX_FLOAT
  if not value >= low:  # False for NaN too.
    yield f"{field}={value}: must be at least {low}"
  elif value > most:
    yield f"{field}={value}: must be at most {most}"
  elif 0 < value < MIN_FLOAT:
    yield f"{field}={value}: devices treat it as 0. Set it to 0, or to at least {MIN_FLOAT:.3g}"


def _fraction_problems(field, value):
  if not 0 <= value <= 1:
    yield f"{field}={value}: must be between 0 and 1"


def _range_problems(config):
  values = dict(leaves(config))
  for field, low in AT_LEAST.items():
    yield from range_problems(field, values[field], low)
  for field in FRACTIONS:
    yield from _fraction_problems(field, values[field])
  for field in ABOVE_ZERO:
    if not MIN_FLOAT <= values[field] <= MAX_FLOAT:
      yield (f"{field}={values[field]}: must be at least {MIN_FLOAT:.3g} and at most "
             f"{MAX_FLOAT:.3g}")
  for field in BELOW_ONE:
    if not 0 <= values[field] < 1:
      yield f"{field}={values[field]}: must be at least 0 and below 1"
  if config.objective.replace_with_mask + config.objective.replace_with_random > 1 + 1e-9:
    yield "objective.replace_with_mask + objective.replace_with_random: must not exceed 1"
  for i, p in enumerate(config.phases):
    for field, low in PHASE_AT_LEAST.items():
      yield from range_problems(f"phases[{i}].{field}", p[field], low)
    for field in PHASE_FRACTIONS:
      yield from _fraction_problems(f"phases[{i}].{field}", p[field])


def _path_problems(config):
  values = dict(leaves(config))
  for field in PATHS:
    if problem := files.find_problem(values[field]):
      yield f"{field}={problem}"


def remote_problem(path: str) -> str | None:
  """Returns why a path such as gs://bucket/file cannot be used; None if it is local.

  Args:
    path: value of a flag or field.
  """
  if "://" not in path:
    return None
  return (f"{path}: only local paths are possible here. Mount the storage (for gs://: gcsfuse), "
          "or use a local or NFS path")


def _model_problems(config):
  model = config.model
  family = families.FAMILIES[model.family]
  objective = choices.OBJECTIVES[config.objective.name]
  for stack in ("", *(stack for stack in family.stacks if stack)):
    heads, width = model[f"{stack}num_heads"], model[f"{stack}width"]
    if heads > 0 and width % heads:
      yield f"model.{stack}num_heads={heads} does not divide model.{stack}width={width}"
  for stack in family.stacks:
    width = model[f"{stack}width"] // max(1, model[f"{stack}num_heads"])
    if model.position == "rope" and width % 2:
      yield (f"model.position='rope' rotates pairs of features, but a head of model.{stack}width="
             f"{model[f'{stack}width']} is {width} wide. Choose an even width")
  if config.objective.name not in family.objectives:
    yield (f"objective.name={config.objective.name!r} does not train model.family="
           f"{model.family!r}. Choose one of {', '.join(family.objectives)}, or another family")
  yield from family.find_problems(model)
  for field, values in family.only.items():
    if model[field] not in values:
      yield (f"model.{field}={model[field]!r}: model.family={model.family!r} can have only "
             f"{', '.join(map(repr, values))}")
  if objective.has_pairs and model.num_segments < 2:
    yield (f"model.num_segments={model.num_segments}: objective {config.objective.name} needs 2, "
           "one for each part of a pair")
  if objective.continues_rows and len({p.batch_size for p in config.phases}) > 1:
    yield (f"phases[].batch_size: with objective {config.objective.name}, a row continues the same "
           "row of the previous step. Set the same number in all phases")
  of_phases = [p.mask_prob or config.objective.mask_prob for p in config.phases]
  if not objective.predicts_all and 0 in of_phases:
    yield "objective.mask_prob=0.0: nothing would be predicted. BERT has 0.15"


def _axes_problems(config):
  axes = config.mesh.axes
  for name in axes:
    for axis in axes[name]:
      if axis not in MESH_AXES:
        yield f"mesh.axes.{name} names {axis!r}: choose among {', '.join(MESH_AXES)}"
    if not set(MESH_AXES).issuperset(map(str, axes[name])):
      return
    if len(set(axes[name])) < len(axes[name]):
      yield f"mesh.axes.{name}={tuple(axes[name])} names an axis twice"
  for one, other in (*AXES_TOGETHER, *families.find(config).axes_together):
    if shared := set(axes[one]) & set(axes[other]):
      yield (f"mesh.axes.{one} and mesh.axes.{other} both name {', '.join(sorted(shared))}, but "
             "some arrays have both. Remove it from one of them")


def _phase_problems(config, p, name):
  if p.seq_len > config.model.max_positions:
    yield (f"{name}.seq_len={p.seq_len} is longer than "
           f"model.max_positions={config.model.max_positions}. Set it to at most "
           f"{config.model.max_positions}")
  if p.micro_batches > 0 and p.batch_size % p.micro_batches:
    yield f"{name}.micro_batches={p.micro_batches} does not divide {name}.batch_size={p.batch_size}"
  objective = choices.OBJECTIVES[config.objective.name]
  has_memory = "objective.memory" in objective.reads
  reuse = config.objective.permutation_block
  if has_memory and not 0 < reuse < p.seq_len - 3:
    yield (f"objective.permutation_block={reuse}: with objective {config.objective.name}, set it "
           f"between 1 and {name}.seq_len - 4 = {p.seq_len - 4}")
  heads = max((config.model[f"{stack}num_heads"] for stack in families.find(config).stacks),
              default=0)
  queries, keys = p.seq_len, p.seq_len + config.objective.memory * has_memory
  if objective.has_target_stream and 0 <= (p.mask_prob or config.objective.mask_prob) <= 1:
    queries += max_predictions(config, p)
  if (config.model.attention_dropout > 0 and config.model.dropout_rng == "hash"
      and heads * queries * keys > 2**32):  # The hash numbers the weights of a row in 32 bits.
    yield (f"{name}.seq_len={p.seq_len}: several of {heads} heads would drop the same attention "
           "weights. Set model.attention_dropout=0.0, or model.dropout_rng='threefry'")
  if p.max_predictions > p.seq_len:
    yield f"{name}.max_predictions={p.max_predictions} exceeds {name}.seq_len={p.seq_len}"
  if p.warmup_steps and p.warmup_fraction:
    yield f"{name}: sets both warmup_steps and warmup_fraction. Set one of them"
  if p.schedule == "wsd" and p.power == 0:
    yield (f"{name}.power={p.power}: with schedule 'wsd', the learning rate would have its last "
           "value from the first step on. Set it above 0, such as 1 (linear) or 0.5 (1-sqrt)")
  if name == "phases[0]" and p.learning_rate_rule == "continuous":
    yield (f"{name}.learning_rate_rule='continuous': no phase comes before the first one. Set "
           "'restart'")


def _attention_problems(config, platform):
  model = config.model
  stacks = [stack for stack in families.find(config).stacks if model[f"{stack}num_heads"] > 0]
  if model.attention not in kernels.FUSED:
    return
  obstacles = {}  # An ordered set, because most obstacles are the same in every phase.
  for p in config.phases:
    for stack in stacks:
      layer = kernels.layer_of(model, p.seq_len, platform, stack=stack)
      obstacles |= dict.fromkeys(kernels.obstacles(model.attention, layer))
  for obstacle in obstacles:
    yield f"model.attention={model.attention!r} needs {obstacle}. 'auto' chooses what can run"


def _profile_problems(config):
  steps = config.profile.steps
  if steps and not (len(steps) == 2 and all(type(step) is int for step in steps)
                    and 1 <= steps[0] <= steps[1] <= total_steps(config)):
    yield (f"profile.steps={steps}: give (first, last), counted from 1, within the run's steps, "
           "or () for none")


def skip_problems(config: ConfigDict) -> Iterator[str]:
  """Yields what is wrong with the steps that are left out.

  Args:
    config: a whole config.
  """
  ranges, end = config.train.skip_steps, 0
  for pair in ranges:
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(type(x) is int for x in pair)
            and end < pair[0] <= pair[1] < total_steps(config)):
      yield (f"train.skip_steps={ranges}: give ((first, last), ...) in order, counted from 1, "
             "before the last step of the run, or () for none")
      return
    end = pair[1]


def _best_problems(config):
  """Yields what is wrong with the metric of the best checkpoint."""
  metric = config.checkpoint.keep_best
  if not metric:
    return
  objective = choices.OBJECTIVES[config.objective.name]
  stem = objective.loss.removesuffix("loss")
  known = (objective.loss, f"{stem}accuracy", f"{stem}perplexity", *objective.other_metrics)
  if metric not in known:
    yield f"checkpoint.keep_best={metric!r}: choose one of {', '.join(known)}"
  elif not metric_names.has_direction(metric):
    yield (f"checkpoint.keep_best={metric!r}: its name does not say whether it should be high or "
           "low. Rename the metric so that it ends with "
           f"{', '.join(metric_names.SHARES)} (high) or {metric_names.LOSS}, "
           f"{metric_names.PERPLEXITY} (low)")
  if not config.eval.every_steps:
    yield f"checkpoint.keep_best={metric!r}: needs evaluations. Set eval.every_steps"


def _freeze_problems(config):
  try:
    re.compile(config.optimizer.freeze)
  except (re.error, OverflowError, RecursionError) as e:
    yield f"optimizer.freeze={config.optimizer.freeze!r}: is not a regular expression ({e})"


def _option_problems(config, platform):
  name = config.system.xla_options
  if name in compiler_options.SETS and platform not in ("", compiler_options.SETS[name].platform):
    yield f"system.xla_options={name!r} is not for platform {platform!r}. 'auto' takes what fits"


def _mesh_problems(config, num_devices):
  mesh, data = config.mesh, config.mesh.data
  rest = mesh.fsdp * mesh.tensor
  if data == -1:
    if num_devices % rest:
      return [f"mesh.fsdp={mesh.fsdp} x mesh.tensor={mesh.tensor} does not divide the "
              f"{num_devices} devices. Set both so that their product does"]
    data = num_devices // rest
  if data * rest != num_devices:
    return [f"mesh data={data} x fsdp={mesh.fsdp} x tensor={mesh.tensor} = {data * rest} devices, "
            f"but there are {num_devices}. mesh.data=-1 uses all remaining devices"]
  problems = []
  sizes = {"data": data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
  axes = [axis for axis in mesh.axes.batch if axis in MESH_AXES]
  parts = math.prod(sizes[axis] for axis in axes)
  devices = f"{' x '.join(axes)} = {parts} devices"
  for i, p in enumerate(config.phases):
    rows = p.batch_size // max(1, p.micro_batches)
    if p.micro_batches > 1 and rows % data:  # Each replica cuts its own rows.
      problems.append(f"phases[{i}]: a micro-batch of {rows} rows cannot be divided among "
                      f"mesh.data={data} replicas")
    elif rows % parts:
      problems.append(f"phases[{i}]: a micro-batch of {rows} rows cannot be divided among "
                      f"{devices}")
  if config.eval.batch_size % parts:
    problems.append(f"eval.batch_size={config.eval.batch_size} cannot be divided among {devices}")
  split = 1  # As in `sharding`, an axis is used if the axes before it leave enough to split.
  for axis in mesh.axes.embed:
    split *= sizes.get(axis, 1)
    if axis in sizes and config.model.width % split:
      problems.append(f"mesh.{axis}={sizes[axis]}: the axes mesh.axes.embed would cut model.width="
                      f"{config.model.width} into {split} parts, which do not divide it. Set "
                      "another number")
  fields = [f"{stack}{field}" for stack in families.find(config).stacks
            for field in ("num_heads", "mlp_dim")]
  for field in fields or ["mlp_dim"]:
    if config.model[field] % mesh.tensor:
      problems.append(f"mesh.tensor={mesh.tensor} does not divide "
                      f"model.{field}={config.model[field]}")
  return problems
