"""bertgpt.inference.unmasking: texts are samples of the model, and the prompt stays."""

import collections
import functools
import json

import numpy as np
import pytest

from bertgpt import cli
from bertgpt import config as config_lib
from bertgpt.data.tokens import marks
from bertgpt.errors import ConfigError
from bertgpt.inference import fill, generate, unmasking
from bertgpt.inference.generate import GREEDY, Sampling

DRAWS = 4000
PROMPTS = ("The cat sees", "A", "The dog likes the river near a stone. The bird", "", "The tree")


def encode(trained, *texts):
  return trained.tokenizer.encode(texts)


@pytest.fixture(scope="module")
def predict(diffuser):
  """Returns (prompt, added tokens or None) -> float64 [masks, V], by the code of `fill`."""
  hidden = list(diffuser.tokenizer.hidden_ids)

  @functools.cache
  def predict(prompt, added):
    at = [i + len(prompt) + 1 for i, token in enumerate(added) if token is None]
    tokens = [diffuser.tokenizer.mask_id if token is None else token for token in added]
    row = marks.of_encoder(diffuser.tokenizer).enclose(np.array([*prompt, *tokens], np.int32))
    p = np.float64(fill.predict_masked(diffuser, row, at))
    p[:, hidden] = 0
    return p / p.sum(1, keepdims=True)

  return predict


@pytest.mark.slow
def test_two_tokens_are_drawn_from_the_mean_over_both_orders(diffuser, predict):
  """In each order, a draw is among the two likeliest tokens."""
  prompt = tuple(encode(diffuser, "The cat sees the")[0].tolist())
  expected = collections.Counter()

  def best_two(p):
    kept = np.argsort(-p)[:2]
    return [(int(token), p[token] / p[kept].sum()) for token in kept]

  for first in (0, 1):
    for token, p in best_two(predict(prompt, (None, None))[first]):
      added = (token, None) if first == 0 else (None, token)
      for other, q in best_two(predict(prompt, added)[0]):
        expected[(token, other) if first == 0 else (other, token)] += p * q / 2
  found = unmasking.continue_prompts(diffuser, [np.array(prompt)] * DRAWS, 2, Sampling(top_k=2),
                                     seed=3, batch_size=500)
  counts = collections.Counter(tuple(x.tolist()) for x in found)
  assert counts.keys() <= expected.keys() and sum(expected.values()) == pytest.approx(1)
  for pair, p in expected.items():
    assert abs(counts[pair] / DRAWS - p) < 4 * np.sqrt(p / DRAWS) + 1 / DRAWS, pair


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.slow), 3, None])
def test_greedy_reveals_the_most_certain_tokens_first(diffuser, predict, steps):
  """After step s of S, floor(s 5 / S) tokens are revealed."""
  prompt = tuple(encode(diffuser, "The bird")[0].tolist())
  added, total = [None] * 5, steps or 5
  for step in range(total):
    p, masked = predict(prompt, tuple(added)), [i for i in range(5) if added[i] is None]
    number = 5 * (step + 1) // total - 5 * step // total
    for row in sorted(range(len(masked)), key=lambda row: -p[row].max())[:number]:
      added[masked[row]] = int(p[row].argmax())
  found, = unmasking.continue_prompts(diffuser, [np.array(prompt)], 5, GREEDY, steps=steps)
  assert found.tolist() == added


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, 20, 0.9)])
def test_prompts_are_continued_together_as_each_by_itself(diffuser, sampling):
  prompts, counts = encode(diffuser, *PROMPTS), [7, 3, 12, 5, 1]
  together = unmasking.continue_prompts(diffuser, prompts, counts, sampling, seed=5, batch_size=4)
  assert [len(x) for x in together] == counts
  hidden = diffuser.tokenizer.hidden_ids
  assert not hidden & {int(token) for x in together for token in x}
  for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
    alone, = unmasking.continue_prompts(diffuser, [prompt], count, sampling, seed=5, rows=[i])
    assert alone.tolist() == together[i].tolist()


def test_draws_differ_between_seeds_and_between_rows(diffuser):
  prompt, = encode(diffuser, "The")
  first, second = unmasking.continue_prompts(diffuser, [prompt] * 2, 20, seed=0)
  other, = unmasking.continue_prompts(diffuser, [prompt], 20, seed=1)
  assert first.tolist() != second.tolist() and first.tolist() != other.tolist()


def test_texts_keep_their_prompts(diffuser):
  texts = generate.generate(diffuser, ["The cat", ""], max_tokens=6, num_samples=2, steps=2)
  assert len(texts) == 4 and len(set(texts)) == 4
  assert all(text.startswith("the cat ") for text in texts[:2])


def test_a_row_without_room_is_refused(diffuser):
  """The model has 64 positions, two of which [CLS] and [SEP] take."""
  prompt = "cat " * 60
  assert generate.generate(diffuser, [prompt], max_tokens=2)
  with pytest.raises(ConfigError, match="its 60 tokens, 2 marks and 3 more exceed the model's 64"):
    generate.generate(diffuser, [prompt], max_tokens=3)
  with pytest.raises(ValueError, match="two marks are 65 tokens, which exceed the model's 64"):
    unmasking.continue_prompts(diffuser, encode(diffuser, prompt), 3)
  assert unmasking.continue_prompts(diffuser, [], 3) == []
  (text,) = generate.generate(diffuser, ["cat"])  # By default, a row of the training: 32 tokens.
  assert len(encode(diffuser, text)[0]) == 30


def test_the_command_unmasks_in_steps_and_a_gpt_refuses_them(capsys, finished_diffusion,
                                                             finished_gpt, tmp_path):
  argv = ["generate", "--prompt=The cat", "--max_tokens=4", "--steps=2"]
  assert cli.main([*argv, f"--workdir={finished_diffusion}"]) == 0
  text = capsys.readouterr().out.removesuffix("\n")
  assert text.startswith("the cat")
  out = tmp_path / "made.jsonl"
  assert cli.main([*argv, f"--workdir={finished_diffusion}", f"--out={out}"]) == 0
  assert json.loads(out.read_text()) == {"prompt": "The cat", "sample": 0, "text": text,
                                         "continuation": text.removeprefix("the cat")}
  capsys.readouterr()
  assert cli.main([*argv, f"--workdir={finished_gpt}"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "--steps: the model adds one token after another" in line


def test_other_encoders_do_not_generate(capsys, finished_bert):
  assert cli.main(["generate", "--prompt=The", f"--workdir={finished_bert}"]) == 2
  assert "which cannot continue a text" in capsys.readouterr().err


@pytest.mark.parametrize("room, is_noted", [(0, False), (1, True)])
def test_the_marks_of_a_row_count_when_it_is_longer_than_those_of_the_training(
    diffuser, capsys, room, is_noted):
  config = diffuser.config.copy_and_resolve_references()
  config.phases = (config_lib.phase(steps=diffuser.step, seq_len=32),)
  trained = diffuser._replace(config=config)
  added = 32 + room - unmasking.NUM_MARKS - len(encode(diffuser, "The cat")[0])
  capsys.readouterr()
  generate.generate(trained, ["The cat"], max_tokens=added, steps=1)
  assert ("more tokens than the rows of the training (32)" in capsys.readouterr().err) == is_noted
