"""Training of ELMo: equal losses in every layout, a run that stops and resumes, held-out scores."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
import tiny

from bertgpt import cli, trees
from bertgpt.config import recipes
from bertgpt.config.overrides import override
from bertgpt.data.tokens import spelling
from bertgpt.devices import sharding
from bertgpt.finetuning import predict as predict_lib
from bertgpt.inference import embed, fill
from bertgpt.runs import checkpoint, metrics_file, word_tables
from bertgpt.runs import trained as trained_lib
from bertgpt.training import evaluate_run, steps
from bertgpt.training import loop as train

RECIPE = """
from bertgpt.config import base, phase


def get_config():
  config = base()
  config.data.update(source="text:{text}", cache_dir="{cache}", prepare_workers=1,
                     validation_fraction=0.1)
  config.tokenizer.update(kind="words", lowercase=False, vocab_size=29)
  config.model.update(family="elmo", num_heads=2, num_layers=2, width=32, mlp_dim=32,
                      filters=((1, 8), (2, 8), (3, 16)), num_highways=1, dtype="float32",
                      pooling="mean")
  config.objective.name = "bilm"
  config.optimizer.update(name="adagrad", initial_accumulator=1 / 400, clip_norm=0.5,
                          weight_decay=0.0)
  config.phases = (phase(steps=40, seq_len=20, batch_size=8, learning_rate=0.2,
                         schedule="constant"),)
  config.eval.batch_size = 8
  config.checkpoint.every_steps = 20
  config.checkpoint.keep = 9
  config.log.update(every_steps=2, tensorboard=False)
  config.system.compilation_cache = ""
  return config
"""


# -------------------------------------------------------------------- layouts


def spell_at_random(params):
  shape = params["words"]["spelling"].shape
  table = np.random.default_rng(0).integers(0, spelling.NUM_CHARS, shape).astype(np.float32)
  placed = jax.make_array_from_callback(shape, params["words"]["spelling"].sharding,
                                        lambda index: table[index])
  return {**params, "words": {**params["words"], "spelling": placed}}


@functools.cache
def compute(mesh, micro_batches):
  """Returns gradients, loss, sums and carry of one step, whose carry is not zero."""
  config = tiny.make_config("bilm", mesh=mesh, mlp_dim=64)
  config.model.num_heads = 2
  with tiny.Setup(config) as setup:
    state = steps.make_state(setup.training, setup.abstract)  # Computed on this mesh.
    params = spell_at_random(state.params)
    layout = sharding.batch_sharding(setup.mesh, config)
    rng = np.random.default_rng(1)
    carry = {name: jax.device_put(rng.normal(size=x.shape).astype(np.float32) / 4, layout)
             for name, x in state.carry.items()}
    compute_gradients = jax.jit(steps.make_gradients(setup.split(micro_batches)))
    return jax.device_get(compute_gradients(params, setup.put(tiny.make_batch(config)), 3, carry))


@pytest.mark.parametrize("mesh, micro_batches", [
    ((2, 2, 2), 4), *(pytest.param(*layout, marks=pytest.mark.slow) for layout in (
        ((8, 1, 1), 2), ((1, 1, 1), 4), ((8, 1, 1), 1), ((1, 8, 1), 1), ((2, 2, 2), 1),
        ((1, 8, 1), 4), ((1, 1, 4), 1), ((1, 1, 4), 4)))], ids=str)
def test_loss_gradients_and_states_do_not_depend_on_the_layout(mesh, micro_batches):
  (grads, loss, sums), carry = compute(mesh, micro_batches)
  (expected_grads, expected_loss, expected_sums), expected_carry = compute((1, 1, 1), 1)
  assert loss == pytest.approx(expected_loss, rel=1e-5)
  close = functools.partial(np.testing.assert_allclose, atol=1e-5)
  jax.tree.map(functools.partial(close, rtol=1e-4), sums, expected_sums)
  jax.tree.map(functools.partial(close, rtol=0), grads, expected_grads)
  jax.tree.map(functools.partial(close, rtol=0), carry, expected_carry)
  assert np.abs(expected_grads["encoder"]["lstm_0_kernel"]).max() > 1e-4


# ------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def elmo_recipe(story, tmp_path_factory):
  path = tmp_path_factory.mktemp("elmo") / "recipe.py"
  path.write_text(RECIPE.format(text=story, cache=path.parent / "cache"))
  return path


@pytest.fixture(scope="module")
def finished_elmo(elmo_recipe):
  path = elmo_recipe.with_name("run")
  train.train(recipes.load(str(elmo_recipe)), path)
  return path


def test_a_run_learns_the_text(finished_elmo):
  """Of a sentence's 10 targets, only 4 words are random: log(11 x 7 x 10 x 9) nats."""
  curves = metrics_file.read_curves(finished_elmo)
  loss = dict(curves["eval/validation/bilm_loss"])[40]
  least = np.log(11 * 7 * 10 * 9) / 10
  assert least < loss < 1.5 < np.log(29)
  both = [dict(curves[f"eval/validation/{name}_loss"])[40] for name in ("forward", "backward")]
  assert loss == pytest.approx(np.mean(both), rel=1e-6)
  assert min(both) > least


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(finished_elmo, elmo_recipe,
                                                                      tmp_path):
  path = shutil.copytree(finished_elmo, tmp_path / "run")
  shutil.rmtree(path / "checkpoints" / "40")
  train.train(recipes.load(str(elmo_recipe)), path)
  found, expected = (checkpoint.verify(p / "checkpoints" / "40") for p in (path, finished_elmo))
  assert found["leaves"] == expected["leaves"]
  assert found["leaves"]["carry/cell"][0] == "float32[8,2,2,32]"


@pytest.mark.slow
def test_a_run_starts_from_another_with_words_of_its_own(finished_elmo, elmo_recipe, tmp_path):
  """The other words are lower-case and have other ids. Known words keep their output rows."""
  path = tmp_path / "run"
  fields = [f"--config.init_from={finished_elmo}", "--config.tokenizer.lowercase=True",
            "--config.tokenizer.vocab_size=28", "--config.phases[0].steps=2",
            "--config.log.every_steps=1"]
  train.train(override(recipes.load(str(elmo_recipe)), fields), path)
  before, after = (trained_lib.load_trained(p) for p in (finished_elmo, path))
  ids = {piece: i for i, piece in enumerate(before.tokenizer.pieces)}
  assert [ids[piece] for piece in after.tokenizer.pieces] != [*range(28)]
  loss = metrics_file.read_curves(path)["train/loss"][0][1]
  assert loss < 2.2 < np.log(28)  # The first words of sentences are new to the model.
  np.testing.assert_array_equal(after.params["words"]["spelling"][:28],
                                spelling.make_table(after.tokenizer))


def test_the_words_of_a_run_keep_their_characters(finished_elmo):
  trained = trained_lib.load_trained(finished_elmo)
  table = trained.params["words"]["spelling"]
  np.testing.assert_array_equal(table[:29], spelling.make_table(trained.tokenizer))
  i = trained.tokenizer.encode(["house"])[0]
  assert table[i[0], :8].tolist() == [258, *b"house", 259, 260]


@pytest.mark.parametrize("targets, known", [(0, 29), (16, 16), (256, 29)])
def test_words_keep_their_rows_of_an_output_layer_of_another_size(finished_elmo, targets, known):
  """`model.target_words` may differ from the run that `init_from` names, with the same words."""
  trained = trained_lib.load_trained(finished_elmo)
  old = trained.params["lm"]
  fresh = {name: np.full((targets or len(x), *x.shape[1:]), 7, np.float32)
           for name, x in old.items()}
  found = word_tables.replace_words(trained, trained.tokenizer, fresh).params["lm"]
  for name, x in fresh.items():
    assert found[name].shape == x.shape
    np.testing.assert_array_equal(found[name][:known], old[name][:known])
    if targets:
      assert (found[name][known:] == 7).all()


def test_evaluate_gives_the_last_score_of_the_training(finished_elmo):
  scores = evaluate_run.evaluate_workdir(finished_elmo)
  logged = metrics_file.read_curves(finished_elmo)["eval/validation/bilm_loss"][-1][1]
  assert scores["bilm_loss"] == pytest.approx(logged, rel=1e-5)
  assert scores["bilm_perplexity"] == pytest.approx(np.exp(logged), rel=1e-5)
  assert "bits_per_byte" not in scores


def test_an_evaluation_carries_the_state_from_batch_to_batch(finished_elmo):
  """In rows of 8 tokens, sentences of 10 are cut, but hand on their state."""
  short = evaluate_run.evaluate_workdir(finished_elmo, ["--config.phases[0].seq_len=8"])
  whole = evaluate_run.evaluate_workdir(finished_elmo)
  assert short["bilm_loss"] == pytest.approx(whole["bilm_loss"], abs=0.02)
  assert jnp.isfinite(short["bilm_loss"])


# ------------------------------------------------------------------------ inference


def test_unknown_words_are_read_by_their_characters(finished_elmo):
  """Features do not depend on which unknown words were added before, or in which order."""
  trained = trained_lib.load_trained(finished_elmo)
  texts = ["The zebra sees the giraffe.", "A yak."]
  one, other = embed.embed(trained, texts, "last3")
  assert one.shape == (8, 96) and other.shape == (5, 96)
  knowing = word_tables.extend_vocabulary_to(trained, ["yak giraffe zebra", *map(str, range(300))])
  for x, y in zip(embed.embed(knowing, texts, "last3"), (one, other), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-6)
  assert np.abs(one[2, :16] - one[5, :16]).max() > 1e-3  # zebra, giraffe: not [UNK] twice.
  np.testing.assert_array_equal(one[:, :16], one[:, 16:32])  # Both directions start alike.
  assert knowing.params["lm"]["embedding"].shape == trained.params["lm"]["embedding"].shape


def test_a_hidden_word_is_guessed_next_to_unknown_ones(finished_elmo):
  trained = trained_lib.load_trained(finished_elmo)
  (guesses,), = fill.fill(trained, ["The zebra sees [MASK] giraffe near a cat ."], top=3)
  assert guesses[0].token == "the" and guesses[0].probability > 0.5


@pytest.mark.slow
def test_a_task_learns_the_mix_and_its_own_words(finished_elmo, glue, tmp_path, capsys):
  recipe = tmp_path / "tune.py"
  recipe.write_text(small_runs.TUNING.format(data=glue))
  work = tmp_path / "tuned"
  assert cli.main(["finetune", "--config", str(recipe), "--init", str(finished_elmo), "--workdir",
                   str(work), "--config.epochs=3", "--config.seeds=0,"]) == 0
  run = predict_lib.find_run(work)
  tuned = trained_lib.load_any(run)
  assert np.abs(tuned.params["body"]["mix"]["weights"]).max() > 1e-4
  before = trained_lib.load_trained(finished_elmo)
  words = tuned.params["body"]["words"]["spelling"]
  np.testing.assert_array_equal(words[:tuned.tokenizer.vocab_size],
                                spelling.make_table(tuned.tokenizer))
  assert tuned.tokenizer.pieces[:29] == before.tokenizer.pieces
  predictor = predict_lib.open_predictor(work)
  records = [{"sentence": "The cat sees an unheard zebra."}, {"sentence": "A dog."}]
  found = list(predict_lib.predict_records(predictor, records))
  alone = list(predict_lib.predict_records(predictor, records[:1]))
  assert len(found) == 2 and len(alone) == 1
  assert found[0]["label"] == alone[0]["label"]
  capsys.readouterr()
  assert cli.main(["export", "--workdir", str(run), "--out", str(tmp_path / "out")]) == 2
  assert "transformers has no such model for tasks" in capsys.readouterr().err


@pytest.mark.slow
def test_a_set_without_labels_may_come_later(finished_elmo, glue, tmp_path, capsys):
  """Its words are learned too, after those of the sets that have labels."""
  recipe, data, work = tmp_path / "tune.py", tmp_path / "data", tmp_path / "tuned"
  shutil.copytree(glue, data)
  test = data / "SST-2" / "test.tsv"
  test.unlink()
  recipe.write_text(small_runs.TUNING.format(data=data))

  def tune(seeds):
    return cli.main(["finetune", f"--config={recipe}", f"--init={finished_elmo}", "--workdir",
                     str(work), "--config.epochs=1", f"--config.seeds={seeds}"])

  assert tune("0,") == 0
  test.write_text("index\tsentence\n0\tA quokka sees a numbat .\n")
  capsys.readouterr()
  assert tune("0,1") == 0
  assert "1 of 1 completed runs did not predict test" in capsys.readouterr().out
  assert len(json.loads((work / "results.json").read_text())["runs"]) == 2
  dev = data / "SST-2" / "dev.tsv"
  dev.write_text(dev.read_text().replace("The", "A", 1))
  assert tune("0,1,2") == 2
  (line,) = [x for x in capsys.readouterr().err.splitlines() if "earlier start" in x]
  assert line == "  task.data: different from the earlier start: dev"


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["", "^body/(?!mix|pooler|mlm|lm)"])
def test_the_mix_labels_words_of_a_model_that_is_frozen_or_not(finished_elmo, labeled, tmp_path,
                                                               freeze):
  """If it is frozen, only the output layer and the mix learn, which is slower."""
  work = tmp_path / "tuned"
  assert cli.main(["finetune", f"--config={labeled}", f"--init={finished_elmo}",
                   f"--workdir={work}", f"--config.optimizer.freeze={freeze}"]) == 0
  (result,) = json.loads((work / "results.json").read_text())["runs"]
  assert result["dev"]["f1"] > (0.4 if freeze else 0.9), result
  run = predict_lib.find_run(work)
  (_, first), *_, (_, last) = metrics_file.read_curves(run)["train/loss"]
  assert last < first / 2
  before = trees.named_leaves(trained_lib.load_trained(finished_elmo).params)
  after = trees.named_leaves(trained_lib.load_any(run).params["body"])
  assert np.abs(after["mix/weights"]).max() > 1e-2 and abs(after["mix/scale"] - 1).max() > 1e-2
  for name in before:
    if name.startswith("encoder/"):
      assert np.array_equal(after[name], before[name]) == bool(freeze), name
