"""Samples in the report of a finished run: hidden words with guesses, and a continued text."""

import textwrap

import jax
import numpy as np

from bertgpt.config import families
from bertgpt.data.corpus.corpus import Corpus
from bertgpt.data.tokens import marks
from bertgpt.data.tokens.tokenizers import Tokenizer
from bertgpt.inference import fill, generate
from bertgpt.runs.trained import Trained
from bertgpt.training.finished import Finished

PROMPT = "The function returns"
MAX_DOCUMENTS = 1_000  # Documents among which a suitable sentence is looked for.
NUM_SENTENCES = 5


def describe_guesses(run: Finished) -> list[str]:
  """Returns the lines of a report about hidden words of held-out sentences, if there are any.

  Args:
    run: the finished run of a model with the ability "fill".
  """
  guesses = guess_words(run.trained, run.held_out)
  title = "Held-out sentences with one [word] hidden from the model, and its guesses:"
  return ["", title, "", *guesses] if guesses else []


def describe_continuation(run: Finished, title: str = "A sampled continuation") -> list[str]:
  """Returns the lines of a report with a text that the model continues.

  Args:
    run: the finished run of a model with the ability "generate" or "unmask".
    title: what the text is.
  """
  return ["", f"{title} (temperature 0.8, top 40):", "",
          *(line for text in continuation(run.trained).splitlines() for line in wrap(text))]


def guess_words(trained: Trained, held_out: Corpus) -> list[str]:
  """Returns held-out sentences with one word masked, and the five likeliest tokens in its place.

  The rank of the word is added if the word is not among the five.

  Args:
    trained: a masked LM.
    held_out: documents to draw sentences from; the draws are always the same for a corpus.
  Returns:
    Lines of the report.
  """
  trained = trained._replace(params=jax.device_put(trained.params))
  tokenizer, rng = trained.tokenizer, np.random.default_rng(0)
  around = marks.of_encoder(tokenizer, families.find(trained.config).cls_last)
  is_whole = whole_words(tokenizer)
  continues, ends = tokenizer.continues_word(), tokenizer.ends_word()
  longest = min(40, trained.config.model.max_positions - around.count())
  lines, left = [], NUM_SENTENCES
  for document in rng.permutation(len(held_out))[:MAX_DOCUMENTS]:
    sentence = pick_sentence(held_out, int(document), rng)
    followed = np.append(continues[sentence[1:]] & ~ends[sentence[:-1]], False)
    places = np.flatnonzero(is_whole[sentence] & ~followed)
    if not 8 <= len(sentence) <= longest or not len(places):
      continue
    place = int(rng.choice(places))
    hidden = sentence[place]
    row = around.enclose(sentence)
    p, = fill.predict_masked(trained, row, [place + around.num_before])
    order = fill.likeliest(tokenizer, p, len(p)).tolist()
    guesses = ", ".join(f"{fill.name_token(tokenizer, i, continues[i])} {p[i]:.0%}"
                        for i in order[:5])
    # Spaces are correct only if the text is decoded from its beginning.
    before, through, whole = (tokenizer.decode(sentence[:n]) for n in (place, place + 1, None))
    word = through[len(before):].strip()
    rank = "" if hidden in order[:5] else f" ({word}: rank {order.index(hidden) + 1})"
    lines += [*wrap(f"{before} [{word}]{whole[len(through):]}".strip()),
              f"      guesses: {guesses}{rank}"]
    left -= 1
    if not left:
      break
  return lines


def pick_sentence(corpus: Corpus, document: int, rng: np.random.Generator) -> np.ndarray:
  """Returns a random sentence of a document.

  Args:
    corpus: corpus of the document.
    document: index of the document.
    rng: draws the sentence.
  Returns:
    Token ids, int32 [N].
  """
  first, last = corpus.document_offsets[document:document + 2]
  lengths = corpus.sentence_lengths[first:last]
  i = rng.integers(len(lengths))
  start = int(lengths[:i].sum())
  return corpus.tokens([document])[0][start:start + int(lengths[i])].astype(np.int32)


def whole_words(tokenizer: Tokenizer) -> np.ndarray:
  """Finds the tokens that begin a word and consist of at least four letters.

  Args:
    tokenizer: tokenizer of the model.
  Returns:
    bool [vocab_size].
  """
  begins = ~tokenizer.continues_word()
  texts = [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab_size)]
  return begins & np.array([text.isalpha() and len(text) >= 4 for text in texts])


def continuation(trained: Trained) -> str:
  """Returns PROMPT with a sampled continuation, within the rows of the last phase.

  Args:
    trained: the model, with the ability "generate" or "unmask".
  """
  generator = generate.find_generator(trained)
  half = trained.config.phases[-1].seq_len // 2
  prompt = trained.tokenizer.encode([PROMPT])[0][:half]
  if not len(prompt) and not generator.num_marks:
    prompt = np.array([trained.start_id])
  room = trained.config.phases[-1].seq_len - len(prompt) - generator.num_marks
  added, = generator.add(trained, [prompt], min(60, room),
                         generate.Sampling(temperature=0.8, top_k=40))
  return trained.tokenizer.decode([*prompt, *added])


def wrap(text: str) -> list[str]:
  """Returns a text as indented lines of at most 96 characters.

  Args:
    text: one paragraph.
  """
  return textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="  ")
