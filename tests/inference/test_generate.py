"""bertgpt.inference.generate: draws follow the distribution, and depend only on seed, row and
position.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bertgpt import cli
from bertgpt.data.tokens.tokenizers import load_tokenizer
from bertgpt.errors import ConfigError
from bertgpt.inference import draws, generate
from bertgpt.inference.generate import GREEDY, Sampling
from bertgpt.models import Inputs

DRAWS = 20_000
LOGITS = np.array([2.0, 1.0, 0.0, -1.0, 3.0, 1.5], np.float32)
CHI_SQUARE = {1: 15.1, 2: 18.4, 3: 21.1, 5: 25.7}  # Exceeded once in 10,000, by degrees of freedom.


def count_draws(sampling):
  keys = jax.random.split(jax.random.key(0), DRAWS)
  rows = jnp.broadcast_to(LOGITS, (DRAWS, len(LOGITS)))
  return np.bincount(draws.draw(rows, sampling, keys), minlength=len(LOGITS))


def distribution(logits, temperature=1.0):
  weights = np.exp(np.float64(logits) / temperature)
  return weights / weights.sum()


def assert_drawn_from(counts, p):
  assert set(np.flatnonzero(counts)) == set(np.flatnonzero(p))
  possible = p > 0
  expected = p[possible] * DRAWS
  chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
  assert chi_square < CHI_SQUARE[possible.sum() - 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_distribution(temperature):
  assert_drawn_from(count_draws(Sampling(temperature)), distribution(LOGITS, temperature))


@pytest.mark.parametrize("sampling, best", [
    (Sampling(top_k=3), [4, 0, 5]),
    (Sampling(top_p=0.7), [4, 0]),        # The first has 0.57, both have 0.78.
    (Sampling(top_p=0.85), [4, 0, 5]),
    (Sampling(top_k=2, top_p=0.9), [4, 0]),
    (Sampling(top_k=3, top_p=0.7), [4, 0]),  # Among the three: 0.63 and 0.23.
])
def test_draws_are_among_the_likeliest_in_their_proportions(sampling, best):
  p = np.zeros(len(LOGITS))
  p[best] = distribution(LOGITS[best])
  assert_drawn_from(count_draws(sampling), p)


@pytest.mark.parametrize("sampling", [Sampling(top_k=6), Sampling(top_k=1000), Sampling(top_p=1.0),
                                      Sampling(top_k=6, top_p=1.0)])
def test_what_leaves_nothing_out_changes_nothing(sampling):
  np.testing.assert_array_equal(count_draws(sampling), count_draws(Sampling()))


def test_temperature_0_takes_the_likeliest():
  assert count_draws(GREEDY)[4] == count_draws(Sampling(top_p=0.0))[4] == DRAWS


def test_a_temperature_at_which_logits_overflow_takes_the_likeliest():
  logits = jnp.broadcast_to(jnp.array([10.0, 25.0, 30.0, 5.0]), (16, 4))
  drawn = draws.draw(logits, Sampling(temperature=2e-38), jax.random.split(jax.random.key(0), 16))
  assert drawn.tolist() == [2] * 16


def kept_by_numpy(logits, top_k, top_p):
  """Picks the k likeliest tokens, then the fewest of them with `top_p` of their probability."""
  order = sorted(range(len(logits)), key=lambda token: -logits[token])[:top_k or len(logits)]
  p, kept, mass = distribution(np.array(logits)[order]), [], 0.0
  for token, share in zip(order, p, strict=True):
    if mass < top_p or top_p == 1:
      kept.append(token)
    mass += share
  return set(kept)


def test_supports_are_those_of_a_plain_count():
  rng = np.random.default_rng(0)
  for _ in range(30):
    logits = rng.normal(0, 3, 40).astype(np.float32)
    top_k, top_p = int(rng.integers(0, 41)), float(rng.choice([1.0, rng.uniform(0.05, 1)]))
    found = np.asarray(draws.restrict(jnp.asarray(logits[None]), top_k, top_p))[0]
    kept = np.flatnonzero(np.isfinite(found))
    assert set(kept) == kept_by_numpy(logits, top_k, top_p), (top_k, top_p)
    np.testing.assert_array_equal(found[kept], logits[kept])


# ---------------------------------------------------------------- with a model


def encode(gpt, *texts):
  return gpt.tokenizer.encode(texts)


PROMPTS = ("The cat sees", "A", "The dog likes the river near a stone. The bird",
           "The cloud " * 15, "The tree")  # Lengths of two buckets.


def next_logits(gpt, tokens):
  """Returns the logits of the token after `tokens`, without a cache; padding comes after it."""
  row = np.zeros((1, 32), np.int32)
  row[0, :len(tokens)] = tokens
  logits = tiny.apply(gpt.model, gpt.params, Inputs.of_texts(row, np.array([32])))
  return logits[0, len(tokens) - 1, :gpt.tokenizer.vocab_size]


def test_greedy_is_the_argmax_after_every_prefix(gpt):
  prompts = encode(gpt, *PROMPTS[:2])
  for prompt, added in zip(prompts, generate.continue_prompts(gpt, prompts, 4, GREEDY),
                           strict=True):
    tokens = prompt.tolist()
    for token in added:
      assert token == int(np.argmax(next_logits(gpt, tokens)))
      tokens.append(int(token))
    assert len(added) == 4 or np.argmax(next_logits(gpt, tokens)) == gpt.tokenizer.eod_id


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, 20, 0.9)])
def test_prompts_are_continued_together_as_each_by_itself(gpt, sampling):
  prompts = encode(gpt, *PROMPTS)
  together = generate.continue_prompts(gpt, prompts, 20, sampling, seed=5, batch_size=4)
  for i, prompt in enumerate(prompts):
    alone, = generate.continue_prompts(gpt, [prompt], 20, sampling, seed=5, rows=[i])
    assert alone.tolist() == together[i].tolist()
  again = generate.continue_prompts(gpt, prompts[::-1], 20, sampling, seed=5,
                                    rows=range(len(prompts))[::-1], batch_size=3)
  assert [x.tolist() for x in again[::-1]] == [x.tolist() for x in together]


def test_draws_differ_between_seeds_and_between_rows(gpt):
  prompt, = encode(gpt, "The")
  first, second = generate.continue_prompts(gpt, [prompt] * 2, 30, seed=0)
  other, same = (generate.continue_prompts(gpt, [prompt], 30, seed=seed)[0] for seed in (1, 0))
  assert same.tolist() == first.tolist()
  assert first.tolist() != second.tolist() and first.tolist() != other.tolist()
  assert all(0 <= x.min() and x.max() < gpt.tokenizer.vocab_size for x in (first, second, other))


def test_a_continuation_ends_with_the_document(gpt):
  """Continuations are repeated with one of their tokens as the end of a document."""
  prompts = encode(gpt, *PROMPTS[:3])
  whole = generate.continue_prompts(gpt, prompts, 30, Sampling(0.9), seed=3)
  stop = int(whole[0][7])
  stopping = gpt._replace(tokenizer=type(gpt.tokenizer)(gpt.tokenizer.data))
  stopping.tokenizer.eod_id = stop
  for full, cut in zip(whole, generate.continue_prompts(stopping, prompts, 30, Sampling(0.9),
                                                        seed=3), strict=True):
    ends = np.flatnonzero(full == stop)
    if len(full) == 30 or len(ends):  # Otherwise the end of the document came first.
      assert cut.tolist() == full[:ends[0] if len(ends) else 30].tolist()
  assert len(cut) <= 30


def test_every_prompt_may_have_its_own_number_of_tokens(gpt):
  prompts = encode(gpt, *PROMPTS[:2])
  room = gpt.config.model.max_positions - len(prompts[0])
  added = generate.continue_prompts(gpt, prompts, [room, 3], Sampling(2.0), seed=1)
  whole = generate.continue_prompts(gpt, prompts, room, Sampling(2.0), seed=1)
  assert added[0].tolist() == whole[0].tolist() and added[1].tolist() == whole[1][:3].tolist()
  with pytest.raises(ValueError, match=f"exceed the model's {gpt.config.model.max_positions} pos"):
    generate.continue_prompts(gpt, prompts, room + 1)


def with_vocabulary(gpt, tmp_path, *missing):
  """Returns the same model with a vocab.txt, in which some pieces have other names."""
  names = [f"[unused{i}]" if piece in missing else piece
           for i, piece in enumerate(gpt.tokenizer.pieces)]
  (tmp_path / "vocab.txt").write_text("\n".join(names) + "\n")
  return gpt._replace(tokenizer=load_tokenizer(tmp_path / "vocab.txt"))


@pytest.mark.parametrize("is_bert", [False, True])
def test_an_empty_prompt_begins_a_document(gpt, tmp_path, is_bert):
  """Output starts with the likeliest token after the end of a document ([SEP] in BERT's)."""
  if is_bert:
    gpt = with_vocabulary(gpt, tmp_path, "<|endoftext|>")
    assert gpt.tokenizer.eod_id == gpt.tokenizer.pieces.index("[SEP]")
  added, = generate.continue_prompts(gpt, [np.zeros(0, np.int32)], 6, GREEDY)
  tokens = [gpt.tokenizer.eod_id]
  for token in added:
    assert token == int(np.argmax(next_logits(gpt, tokens)))
    tokens.append(int(token))
  assert len(added) == 6 or np.argmax(next_logits(gpt, tokens)) == gpt.tokenizer.eod_id
  begun, continued = generate.generate(gpt, ["", "The cat"], max_tokens=6, sampling=GREEDY)
  assert begun == gpt.tokenizer.decode(added) and continued.startswith("the cat")


@pytest.mark.parametrize("prompt", ["the cat", ""])
def test_a_token_that_begins_a_text_is_put_before_prompts(gpt, prompt):
  begun = gpt._replace(bos_id=gpt.tokenizer.cls_id)
  ids, = gpt.tokenizer.encode([prompt])
  by_hand = np.array([gpt.tokenizer.cls_id, *ids])
  expected, = generate.continue_prompts(gpt, [by_hand], 6, GREEDY)
  found, = generate.continue_prompts(begun, [ids], 6, GREEDY)
  assert found.tolist() == expected.tolist()
  text, = generate.generate(begun, [prompt], max_tokens=6, sampling=GREEDY)
  assert text == gpt.tokenizer.decode([*ids, *expected])
  with pytest.raises(ConfigError, match="1 mark and 64 more exceed the model's 64 positions"):
    generate.generate(begun, [prompt], max_tokens=64)


def test_a_token_that_begins_a_document_is_put_before_an_empty_prompt_alone(gpt):
  begun = gpt._replace(beginning_id=gpt.tokenizer.cls_id)
  text = gpt.tokenizer.encode(["the cat"])[0]
  for prompt, by_hand in (([], [gpt.tokenizer.cls_id]), (text, text)):
    expected, = generate.continue_prompts(gpt, [np.array(by_hand)], 6, GREEDY)
    found, = generate.continue_prompts(begun, [np.array(prompt, np.int32)], 6, GREEDY)
    assert found.tolist() == expected.tolist()


def test_no_tokens_may_be_asked_for(gpt):
  assert generate.generate(gpt, ["the cat", "a dog"], max_tokens=0) == ["the cat", "a dog"]


def test_no_prompts_have_no_continuations(gpt):
  assert generate.generate(gpt, []) == generate.continue_prompts(gpt, [], 3) == []


def test_without_an_end_of_document_none_can_be_begun(gpt, tmp_path):
  gpt = gpt._replace(tokenizer=type(gpt.tokenizer)(gpt.tokenizer.data))
  gpt.tokenizer.eod_id = -1
  with pytest.raises(ValueError, match="prompt is empty, and no token of the model"):
    generate.continue_prompts(gpt, [np.zeros(0, np.int32)], 3)
  with pytest.raises(ConfigError, match="prompt 2: is empty, and no token of the model begins"):
    generate.generate(gpt, ["The", " "])


@pytest.mark.parametrize("length, expected", [(1, 31), (20, 12), (31, 1), (32, 32), (63, 1)])
def test_tokens_added_by_default_stay_in_the_rows_of_the_training(gpt, length, expected):
  """The model was trained on rows of 32 tokens, and has 64 positions."""
  assert generate.default_tokens(gpt, length) == expected


@pytest.mark.parametrize("prompts, max_tokens, noted", [
    (["The cat"], 31, ""), (["The cat"], 32, "1 of 1"), (["The", "The cat sees"], 31, "1 of 2")])
def test_texts_that_become_longer_than_the_rows_of_the_training_are_noted(
    gpt, capsys, prompts, max_tokens, noted):
  """The last token that is drawn is not read."""
  generate.generate(gpt, prompts, max_tokens=max_tokens, sampling=GREEDY)
  error = capsys.readouterr().err
  assert bool(error) == bool(noted)
  if noted:
    assert f"note: {noted} texts have more tokens than the rows of the training (32)" in error


@pytest.mark.parametrize("init_from, max_tokens, is_noted", [
    ("", None, False), ("runs/a", 5, False), ("runs/a", None, True)])
def test_a_default_length_that_follows_only_the_last_rows_is_noted(
    gpt, capsys, init_from, max_tokens, is_noted):
  """The model has 64 positions, of which the prompt takes two."""
  config = gpt.config.copy_and_resolve_references()
  config.init_from = init_from
  generate.generate(gpt._replace(config=config), ["The cat"], max_tokens=max_tokens,
                    sampling=GREEDY)
  note = "init_from=runs/a may have been longer. --max_tokens=62 uses all positions of the model\n"
  assert capsys.readouterr().err.endswith(note) == is_noted


def test_one_program_serves_prompts_of_a_bucket_and_every_sampling(gpt):
  generate.continue_prompts(gpt, encode(gpt, "The cat"), 9)
  before = generate._continue._cache_size()
  for text, sampling in (("The", GREEDY), ("The dog likes", Sampling(0.7, 5, 0.5))):
    generate.continue_prompts(gpt, encode(gpt, text), 8, sampling, seed=9)
  assert generate._continue._cache_size() == before


# ------------------------------------------------------------------ the command


def run(capsys, *argv):
  """Returns (exit code, stdout, lines on stderr) of a command."""
  capsys.readouterr()
  code = cli.main([str(a) for a in argv])
  output = capsys.readouterr()
  return code, output.out, output.err.splitlines()


def test_the_command_continues_each_prompt(capsys, finished_gpt, gpt, tmp_path):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("The cat\nThe dog sees\n")
  flags = ["generate", f"--workdir={finished_gpt}", "--num_samples=2", "--max_tokens=5"]
  code, out, _ = run(capsys, *flags, f"--input={prompts}")
  assert code == 0
  texts = out.rstrip("\n").split("\n\n")
  assert [text[:7] for text in texts] == ["the cat"] * 2 + ["the dog"] * 2
  assert texts[0] != texts[1]
  assert texts == generate.generate(gpt, ["The cat", "The dog sees"], max_tokens=5, num_samples=2)
  assert run(capsys, *flags, "--prompt=The cat", "--prompt", "The dog sees")[1] == out

  path = tmp_path / "made.jsonl"
  assert run(capsys, *flags, f"--input={prompts}", f"--out={path}")[:2] == (0, f"{path}: 4 texts\n")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row["text"] for row in rows] == texts
  assert ["the cat" + row["continuation"] for row in rows[:2]] == texts[:2]
  assert ["the dog sees" + row["continuation"] for row in rows[2:]] == texts[2:]
  assert [(row["prompt"], row["sample"]) for row in rows] == [
      ("The cat", 0), ("The cat", 1), ("The dog sees", 0), ("The dog sees", 1)]
  for name, problem in ((path, "exists already"), (tmp_path / "a.txt", "name a file that ends in")):
    code, _, lines = run(capsys, *flags, f"--input={prompts}", f"--out={name}")
    assert code == 2 and f"--out {name}: {problem}" in lines[-1]


@pytest.mark.parametrize("prompt, whole, expected", [
    ("the cat", "the cat sat.", " sat."),
    ("the ca", "the cat", "t"),
    ("", "the cat", "the cat"),
    ("the cat", "the cat", ""),
    ("5 \ufffd", "5 \u20ac and", "\u20ac and"),  # The bytes of the euro sign are in both parts.
    ("5 \ufffd", "5 \ufffd", ""),
    ("don '", "don't", "'t"),
])
def test_the_continuation_is_the_end_of_the_text(prompt, whole, expected):
  assert generate.continuation_of(whole, prompt) == expected


def test_the_command_begins_documents(capsys, finished_gpt, gpt, tmp_path):
  """A document begins without a prompt, at an empty prompt, and at an empty line of a file."""
  flags = ["generate", f"--workdir={finished_gpt}", "--num_samples=2", "--max_tokens=5"]
  code, out, _ = run(capsys, *flags)
  assert code == 0
  assert run(capsys, *flags, "--prompt=")[1] == out == run(capsys, *flags, "--prompt", " ")[1]
  begun = generate.generate(gpt, [""], max_tokens=5, num_samples=2)
  assert out.rstrip("\n").split("\n\n") == begun
  assert not any(name in out for name in ("[SEP]", "<|endoftext|>"))
  (tmp_path / "prompts.txt").write_text("\nThe cat\n")
  code, found, _ = run(capsys, *flags, f"--input={tmp_path / 'prompts.txt'}")
  assert code == 0 and found.startswith(out.rstrip("\n") + "\n\nthe cat")


def test_a_sample_depends_neither_on_their_number_nor_on_the_other_prompts(capsys, finished_gpt):
  texts = {}
  for samples, prompts in ((1, 2), (3, 2), (3, 1)):
    code, out, _ = run(capsys, "generate", f"--workdir={finished_gpt}", "--max_tokens=8",
                       f"--num_samples={samples}", *["--prompt=The cat"] * prompts)
    texts[samples, prompts] = out.rstrip("\n").split("\n\n")
    assert (code, len(texts[samples, prompts])) == (0, samples * prompts)
  assert texts[3, 2][::3] == texts[1, 2] and texts[3, 2][:3] == texts[3, 1]
  assert len(set(texts[3, 2])) == 6


@pytest.mark.parametrize("flags, fragment", [
    (["--prompt=The", "--prompt=\x01"], "prompt 2, '\\x01': the tokenizer finds no tokens in it"),
    (["--prompt=", "--max_tokens=64"], "exceed the model's 64 positions. Shorten"),
    (["--prompt=cat", "--max_tokens=64"], "exceed the model's 64 positions. Shorten"),
    (["--prompt=" + "cat " * 70], "exceed the model's 64 positions. Shorten"),
    (["--prompt=cat", "--temperature=-1"], "--temperature: -1: give a number of at least 0"),
    (["--prompt=cat", "--top_p=1.5"], "--top_p: 1.5: give a number"),
    (["--prompt=cat", "--top_k=2.5"], "--top_k: 2.5: give a whole number of at least 0"),
    (["--prompt=cat", "--temperature=nan"], "--temperature: nan: give a number"),
    (["--prompt=cat", "--seed=4294967296"], "--seed: 4294967296: give a whole number of at least 0 "
     "and at most 4294967295"),
    (["--input=nothing.txt"], "nothing.txt: no such file"),
    (["--prompt=cat", "--input=a.txt"], "--input: not allowed with argument --prompt"),
    (["--prompt=cat", "--config.seed=1"], "generate takes no config fields"),
])
def test_bad_input_is_one_line(capsys, finished_gpt, flags, fragment):
  code, out, lines = run(capsys, "generate", f"--workdir={finished_gpt}", *flags)
  assert (code, out, len(lines)) == (2, "", 1)
  assert fragment in lines[0]


def test_a_bert_is_refused(capsys, finished_bert):
  code, out, lines = run(capsys, "generate", f"--workdir={finished_bert}", "--prompt=The")
  assert (code, out, len(lines)) == (2, "", 1)
  assert "holds a BERT" in lines[0] and "`bertgpt fill`" in lines[0]
