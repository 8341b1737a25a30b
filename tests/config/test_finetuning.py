"""bertgpt.config.finetuning: problems are named, and a run keeps the pretrained model."""

import pytest

from bertgpt import config as config_lib
from bertgpt.config import finetuning as finetune_config
from bertgpt.config import presets, recipes
from bertgpt.config.overrides import override, set_field
from bertgpt.config.stored import from_json, to_json
from bertgpt.errors import ConfigError
from bertgpt.finetuning import tasks
from bertgpt.training import schedules


def make_config(**fields):
  config = finetune_config.base()
  config.task.data = "glue"
  for field, value in fields.items():
    set_field(config, field.replace("__", "."), value)
  return config


def make_run(config, steps=40, **pretrained):
  trained = config_lib.base()
  trained.model.update({"num_layers": 3, "vocab_size": 99, "dropout": 0.3} | pretrained)
  trained.profile.steps = (900, 905)
  trained.phases = (config_lib.phase(seq_len=64), config_lib.phase(seq_len=512))
  return finetune_config.run_config(trained, config, steps=steps, learning_rate=3e-5,
                                    vocab_size=102)


@pytest.mark.parametrize("fields, problem", [
    ({"task__data": ""}, "task.data: give the folder"),
    ({"task__data": "gs://bucket/glue"}, "task.data=gs://bucket/glue: only local paths"),
    ({"task__data": "tfds:gs://bucket/glue"}, "only local paths"),
    ({"seeds": ()}, "seeds=(): give numbers from 0"),
    ({"seeds": (0, -1)}, "seeds=(0, -1)"),
    ({"seeds": (2**31,)}, "seeds=(2147483648,): give numbers from 0 to 2**31 - 1"),
    ({"seeds": (1, 2, 1)}, "seeds=(1, 2, 1) names a run twice"),
    ({"seeds": ([1], [2])}, "seeds=([1], [2]): give numbers from 0"),
    ({"seeds": (True,)}, "seeds=(True,): give numbers from 0"),
    ({"learning_rates": (1e-5, [1])}, "give numbers above 0"),
    ({"learning_rates": (0.0,)}, "learning_rates=(0.0,): give numbers above 0"),
    ({"learning_rates": ("a", 1e-5)}, "give numbers above 0"),
    ({"learning_rates": (float("nan"),)}, "give numbers above 0"),
    ({"learning_rates": (5e-5, 1e39)}, "give numbers above 0 that float32 can hold"),
    ({"learning_rates": (5e-5, 1e-40)}, "give numbers above 0 that float32 can hold"),
    ({"epochs": 0}, "epochs=0: must be at least 1"),
    ({"epochs": 99999999999}, "epochs=99999999999: must be at most 2147483647"),
    ({"task__lm_weight": float("inf")}, "task.lm_weight=inf: must be at most 3.4e+38"),
    ({"task__null_threshold": float("nan")}, "task.null_threshold=nan: give a finite number"),
    ({"dropout": 1.0}, "dropout=1.0: must be at least 0 and below 1, or -1"),
    ({"warmup_fraction": 1.5}, "warmup_fraction=1.5"),
    ({"task__truncation": "middle"}, "choose one of head, tail, head_tail"),
    ({"task__labels": ("a",)}, "task.labels=('a',): give two different names or more"),
    ({"task__labels": ("a", "b", "a")}, "give two different names or more"),
    ({"task__labels": (0, 1)}, "task.labels=(0, 1): give names, such as negative,neutral"),
    ({"task__labels": ("a", " b")}, "task.labels=('a', ' b'): give names"),
    ({"task__labels": ("a", "")}, "task.labels=('a', ''): give names"),
    ({"task__max_length": 4}, "task.max_length=4: must be at least 8"),
])
def test_what_is_wrong_is_named(fields, problem):
  (found,) = finetune_config.find_problems(make_config(**fields))
  assert problem in found


def test_the_defaults_need_only_data():
  assert finetune_config.find_problems(make_config()) == []


def test_a_run_has_the_model_and_the_recipes_training():
  config = make_config(batch_size=16, task__max_length=64, optimizer__weight_decay=0.2)
  run = make_run(config)
  (phase,) = run.phases
  assert (phase.steps, phase.seq_len, phase.batch_size) == (40, 64, 16)
  assert (phase.learning_rate, phase.schedule, phase.warmup_fraction) == (3e-5, "linear", 0.1)
  assert (run.model.num_layers, run.model.vocab_size, run.model.dropout) == (3, 102, 0.3)
  assert run.optimizer.weight_decay == 0.2
  finetune_config.validate_run(run, 1, "cpu")


@pytest.mark.parametrize("dtype, expected", [
    ("", ("bfloat16", "fp8")), ("float32", ("float32", "bf16")),
    ("bfloat16", ("bfloat16", "bf16"))])
def test_a_dtype_turns_float8_off(dtype, expected):
  trained = config_lib.base()
  trained.model.matmul = "fp8"
  config = finetune_config.base()
  config.dtype = dtype
  run = finetune_config.run_config(trained, config, steps=1, learning_rate=1e-5, vocab_size=102)
  assert (run.model.dtype, run.model.matmul) == expected


@pytest.mark.parametrize("kernel, expected", [("cudnn", "auto"), ("splash", "auto"),
                                              ("xla", "xla"), ("auto", "auto")])
def test_a_fused_kernel_is_chosen_again(kernel, expected):
  """The machine, the dtype and the dropout may be others than in pretraining."""
  run = make_run(make_config(dropout=0.1, dtype="float32"), attention=kernel)
  assert run.model.attention == expected
  finetune_config.validate_run(run, 1, "cpu")


def test_dropout_may_differ_from_pretraining():
  run = make_run(make_config(dropout=0.1), dropout=0.0, attention_dropout=0.0)
  assert (run.model.dropout, run.model.attention_dropout) == (0.1, 0.1)


@pytest.mark.parametrize("fields, devices, fragment", [
    ({"task__max_length": 600}, 1,
     "task.max_length=600 is longer than model.max_positions=512. Set it to at most 512"),
    ({"micro_batches": 3}, 1, "micro_batches=3 does not divide batch_size=32"),
    ({"batch_size": 6}, 4, "batch_size: a micro-batch of 6 rows cannot be divided"),
    ({"optimizer__name": "sgd"}, 1, "optimizer.name='sgd': choose one of"),
])
def test_problems_of_a_run_are_told_in_the_recipes_words(fields, devices, fragment):
  with pytest.raises(ConfigError) as e:
    finetune_config.validate_run(make_run(make_config(**fields)), devices, "cpu")
  assert fragment in str(e.value) and "phases" not in str(e.value)


@pytest.mark.parametrize("recipe, change, fields, devices", [
    ("xlnet_base:memory", {}, {"task__max_length": 128}, 1),  # Permutes 256 tokens together.
    ("xlnet_base", {"model.max_positions": 18_000}, {"task__max_length": 18_000}, 1),  # No targets.
    ("electra_small", {}, {"mesh__tensor": 4}, 4),  # The generator has one head.
    ("bert_base", {"objective.mask_prob": 0.0, "phases[0].mask_prob": 0.3,
                   "phases[1].mask_prob": 0.15}, {}, 1),
])
def test_fields_that_only_pretraining_reads_cannot_be_wrong(recipe, change, fields, devices):
  pretrained = recipes.load(recipe)
  pretrained.model.vocab_size = 30522
  for field, value in change.items():
    set_field(pretrained, field, value)
  config_lib.validate(pretrained, 1, "cpu")
  run = finetune_config.run_config(pretrained, make_config(**fields), steps=9, learning_rate=1e-4,
                                   vocab_size=30522)
  finetune_config.validate_run(run, devices, "cpu")


def test_json_brings_the_config_back():
  config = make_config(seeds=(3, 4), learning_rates=(1e-5, 2e-5), task__truncation="tail")
  text = to_json(config)
  assert from_json(text, finetune_config.base) == config
  with pytest.raises(ConfigError, match="is not the config of a run"):
    from_json(text)


# ------------------------------------------------------- fields without effect


def problems_of(config, preset):
  pretrained = config_lib.base()
  pretrained.model.update(preset)
  try:
    finetune_config.check_read(
        config, {name: entry.reads for name, entry in tasks.TASKS.items()}, pretrained)
  except ConfigError as e:
    return str(e).splitlines()
  return []


BERT, GPT = presets.BERT["tiny"], presets.GPT2["small"]


@pytest.mark.parametrize("task, model, field, value, reason", [
    ("sst2", BERT, "task__stride", 64, "task.name='sst2' does not read it. Leave it at 128"),
    ("stsb", GPT, "task__n_best", 5, "task.name='stsb'"),
    ("ner", BERT, "task__truncation", "tail", "task.name='ner'"),
    ("ner", BERT, "pooling", "mean", "task.name='ner'"),
    ("squad", BERT, "pooling", "cls", "task.name='squad'"),
    ("squad", BERT, "task__null_threshold", 1.0, "task.name='squad'"),
    ("sst2", BERT, "task__lm_weight", 0.1, "model.family of --init='bert'"),
    ("sst2", BERT, "optimizer__momentum", 0.5, "optimizer.name='bert_adamw'"),
    ("sst2", BERT, "log__group", "a", "log.trackers=''"),
])
def test_a_field_without_effect_is_refused(task, model, field, value, reason):
  (problem,) = problems_of(make_config(task__name=task, **{field: value}), model)
  assert problem.startswith(f"{field.replace('__', '.')}={value!r}: {reason}")


@pytest.mark.parametrize("task, model, field, value", [
    ("squad", BERT, "task__stride", 64), ("squad2", BERT, "task__null_threshold", 1.0),
    ("stsb", BERT, "task__truncation", "tail"), ("sst2", GPT, "task__lm_weight", 0.1),
    ("sst2", BERT, "task__lm_weight", 0.0), ("sst2", BERT, "pooling", "mean")])
def test_a_field_with_an_effect_is_accepted(task, model, field, value):
  assert not problems_of(make_config(task__name=task, **{field: value}), model)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_recipes_and_defaults_are_accepted_for_every_task(task):
  for model in (BERT, GPT):
    assert not problems_of(make_config(task__name=task), model)
  for name in recipes.names():
    if name.startswith("finetune_"):
      config = override(recipes.load(name, finetune_config.base),
                        [f"--config.task.name={task}"])
      assert not problems_of(config, GPT if name == "finetune_gpt" else BERT)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 40])
def test_short_runs_learn_in_every_step(steps):
  """With 10% warm-up, only a run of 10 steps or more has one: int(0.1 * steps) in BERT's code."""
  rate = schedules.make_schedule(make_run(make_config(), steps=steps))
  expected = [3e-5 * (i / (steps / 10) if i < steps // 10 else 1 - i / steps)
              for i in range(steps)]
  assert [float(rate(i)) for i in range(steps)] == pytest.approx(expected)
