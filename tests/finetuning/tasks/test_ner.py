"""CoNLL files: first tokens have labels, every word is predicted, entities count as a whole."""

import io
import types

import numpy as np
import pytest
import sentencepiece

from bertgpt.config import finetuning as finetune_config
from bertgpt.data.tokens import tokenizers, training
from bertgpt.data.tokens.marks import Marks
from bertgpt.errors import DataError
from bertgpt.finetuning.tasks import ner
from bertgpt.finetuning.tasks import rows as rows_lib

CONLL = """-DOCSTART- -X- O O

Anna NNP B-NP B-person
Maria NNP I-NP I-person
flew VBD B-VP O
to TO B-PP O
Rotterdam NNP B-NP B-location

unseenwords NN B-NP O
"""


def make_text_format(kind="wordpiece", max_length=64, lowercase=True):
  config = types.SimpleNamespace(kind=kind, vocab_size=300 if kind == "bpe" else 60,
                                 lowercase=lowercase, model_type="bpe")
  text = ["anna flew to maria", "a river runs near the rotterdam dam", "unseen words"] * 9
  return rows_lib.make_text_format(training.train_tokenizer(config, text),
                                   types.SimpleNamespace(family="bert", num_segments=2),
                                   types.SimpleNamespace(max_length=max_length, truncation="head"))


def open_task(folder, text_format, **fields):
  config = finetune_config.base().task
  config.update(name="ner", data=str(folder), **fields)
  return ner.open_task(config, text_format)


def sentence(text):
  words, tags = zip(*(item.rsplit("/", 1) for item in text.split()), strict=True)
  return ner.Sentence(list(words), list(tags))


def test_conll_files_are_read(tmp_path):
  (tmp_path / "a.txt").write_text(CONLL)
  assert ner.read_conll(tmp_path / "a.txt") == [
      sentence("Anna/B-person Maria/I-person flew/O to/O Rotterdam/B-location"),
      sentence("unseenwords/O")]


def test_tabs_keep_what_is_in_a_word(tmp_path):
  (tmp_path / "a.conll").write_text("two words\tB-x\n \t\n:\tO\n\t\n")
  assert ner.read_conll(tmp_path / "a.conll") == [
      ner.Sentence(["two words"], ["B-x"]), ner.Sentence([":"], ["O"])]


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece", "bpe"])
def test_the_label_of_a_word_is_at_its_first_piece(kind):
  text_format = make_text_format(kind)
  text_format = text_format._replace(marks=Marks(2, (3,), 3)) if kind == "bpe" else text_format
  s = sentence("anna/B-p mariana/I-p flew/O rotterdamer/B-l \u200b/O end/O")
  tags = ["O", "B-l", "B-p", "I-p"]
  labeled = ner.make_rows([s], tags, text_format)
  (tokens,), (labels,), (places,) = labeled.rows.tokens, labeled.rows.labels, labeled.places
  at = np.flatnonzero(labels >= 0)
  assert [(0, i) for i in at] == places and len(at) == len(s.words)
  assert [tags[i] for i in labels[at]] == s.tags
  # The tokens from one label up to the next are a word.
  words = [text_format.tokenizer.decode(tokens[a:b]).strip()
           for a, b in zip(at, [*at[1:], len(tokens) - 1], strict=True)]
  assert [w for i, w in enumerate(words) if i not in (4, 5)] == [
      w for i, w in enumerate(s.words) if i not in (4, 5)]


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": False},
                                     {"remove_extra_whitespaces": False}])
def test_words_are_encoded_as_in_running_text(options):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["anna flew to maria", "unseen words"] * 20), vocab_size=40,
      model_writer=model, minloglevel=2, hard_vocab_limit=False, **options)
  tokenizer = tokenizers.SentencePiece(model.getvalue())
  words = "anna flew to maria to words".split()
  encoded = ner.encode_words([words, [], ["to"]], tokenizer)
  assert np.concatenate(encoded[:-1]).tolist() == tokenizer.encode([" ".join(words)])[0].tolist()
  assert encoded[-1].tolist() == tokenizer.encode(["to"])[0].tolist()


def test_long_sentences_are_cut_between_words_and_lose_none():
  text_format = make_text_format(max_length=10)
  s = sentence(" ".join(f"{w}/O" for w in "anna flew to maria rotterdam river".split() * 5))
  labeled = ner.make_rows([s], ["O"], text_format)
  assert len(labeled.rows) > 3 and max(labeled.rows.lengths) <= 10
  text = " ".join(text_format.tokenizer.decode(t[1:-1]) for t in labeled.rows.tokens)
  assert text == " ".join(s.words)
  assert sum((labels >= 0).sum() for labels in labeled.rows.labels) == len(s.words)


def test_a_word_longer_than_the_window_keeps_its_start():
  text_format = make_text_format(max_length=8)
  labeled = ner.make_rows([sentence("xyxyxyxyxyxyxyxyxyxy/O a/O")], ["O"], text_format)
  assert max(labeled.rows.lengths) <= 8 and len(labeled.places[0]) == 2


def test_a_task_of_three_files(tmp_path):
  (tmp_path / "wnut17train.conll").write_text(CONLL)
  (tmp_path / "emerging.dev.conll").write_text("Anna\tB-person\n\nTo\tB-group\n")
  (tmp_path / "mine.txt").write_text("a B-location\n")
  task = open_task(tmp_path, make_text_format(), test="mine.txt")
  assert task.labels == ("O", "B-location", "B-person", "I-person")
  assert task.notes == ("1 words have tags that the training file lacks",)
  dev, test = task.evals
  outputs = [np.full(len(t), 2) for t in dev.rows.tokens]  # O, B-location, B-person, I-person
  assert dev.score(outputs) == {"f1": pytest.approx(1 / 2)}
  assert task.baseline == {"dev": {"f1": 0.0}, "test": {"f1": 0.0}}
  dev.write(outputs, tmp_path)
  assert (tmp_path / "dev.conll").read_text() == (
      "Anna B-person B-person\n\nTo B-group B-person\n\n")
  assert test.rows.labels[0].tolist().count(1) == 1


@pytest.mark.parametrize("text", ["Anna\n\nTo\nx\n", "Anna _\n\nTo _\nx _\n"])
def test_a_test_set_without_tags_is_predicted(tmp_path, text):
  (tmp_path / "train.txt").write_text(CONLL)
  (tmp_path / "dev.txt").write_text("Anna\tB-person\n\nTo\tO\nx\tO\n")
  (tmp_path / "test.txt").write_text(text)
  task = open_task(tmp_path, make_text_format())
  dev, test = task.evals
  assert test.score is None and list(task.baseline) == ["dev"] and task.notes == ()
  outputs = [np.arange(len(t)) for t in dev.rows.tokens]  # O, B-location, B-person, I-person
  for s in task.evals:
    s.write(outputs, tmp_path)
  lines = [line.split() for line in (tmp_path / "dev.conll").read_text().splitlines()]
  expected = [" ".join([cells[0], cells[2]]) if cells else "" for cells in lines]
  assert (tmp_path / "test.conll").read_text().splitlines() == expected


def test_rows_without_labels_are_made_last(tmp_path, monkeypatch):
  """An ELMo learns new words in this order, so the others keep their ids if a test set comes."""
  made, make_rows = [], ner.make_rows
  monkeypatch.setattr(ner, "make_rows", lambda sentences, *arguments: (
      made.append(sentences[0].tags is not None), make_rows(sentences, *arguments))[1])
  for name in ("train", "dev"):
    (tmp_path / f"{name}.txt").write_text(CONLL)
  (tmp_path / "test.txt").write_text("Anna\nflew\n")
  open_task(tmp_path, make_text_format())
  assert made == [True, True, False]


@pytest.mark.parametrize("text, message", [
    ("Anna B-person\nflew\n", "train.txt, line 2: has no tag ('flew')"),
    ("Anna PER\n", "train.txt, line 1: tag 'PER' is none of O, B-TYPE, I-TYPE"),
    ("Anna B-\n", "train.txt, line 1: tag 'B-' is none of O, B-TYPE, I-TYPE"),
    ("Anna S-person\n", "none of O, B-TYPE, I-TYPE. Convert the file to BIO. Replace S- and"),
    ("Anna L\n", "Convert the file to BIO. Replace S- and U- with B-, and E- and L- with I-"),
    ("word\ttag\nAnna\tO\n", "line 1: is a header (word tag). Remove the line"),
    ("Anna B\nEk I-person\n", "line 2: tag 'I-person' is unlike 'B' before it. Give all tags a"),
    ("Anna B-person\nEk O\n\nTo B\n", "line 4: tag 'B' is unlike 'B-person' before it"),
    ("\n\n", "train.txt: holds no sentences"),
])
def test_wrong_files_are_named(tmp_path, text, message):
  (tmp_path / "train.txt").write_text(text)
  (tmp_path / "dev.txt").write_text("a O\n")
  with pytest.raises(DataError) as e:
    open_task(tmp_path, make_text_format())
  assert message in str(e.value) and "\n" not in str(e.value)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(DataError, match=(
      "holds no wnut17train.conll or eng.train or .* name your own file with task.train=FILE")):
    open_task(tmp_path, make_text_format())
  (tmp_path / "train.txt").write_text(CONLL)
  (tmp_path / "dev.txt").write_text(CONLL)
  with pytest.raises(DataError, match="holds no other.txt"):
    open_task(tmp_path, make_text_format(), dev="other.txt")


# ------------------------------------------------------------------ scores


def test_entities_are_right_as_wholes():
  """Each side has three entities; one is common to both."""
  expected = [["B-a", "I-a", "O", "B-b"], ["O", "B-a"]]
  found = [["B-a", "O", "O", "B-b"], ["B-b", "B-b"]]
  assert ner.score(expected, expected) == {"f1": 1.0}
  assert ner.score(expected, found) == {"f1": pytest.approx(2 * 1 / (3 + 4))}


@pytest.mark.parametrize("tags, expected", [
    ("O B-a I-a O", {("a", 1, 3)}),
    ("B-a B-a I-a", {("a", 0, 1), ("a", 1, 3)}),
    ("I-a I-a I-b", {("a", 0, 2), ("b", 2, 3)}),
    ("B-a I-b", {("a", 0, 1), ("b", 1, 2)}),
    ("B I O I B", {("", 0, 2), ("", 3, 4), ("", 4, 5)}),
    ("O O", set()),
])
def test_where_entities_begin_and_end(tags, expected):
  assert ner.entities(tags.split()) == expected


@pytest.mark.hf
def test_seqeval_agrees():
  seqeval = pytest.importorskip("seqeval.metrics")
  rng = np.random.default_rng(0)
  tags = ["O", "O", "B-a", "I-a", "B-b", "I-b"]
  for _ in range(50):
    draw = lambda: [[tags[i] for i in rng.integers(0, 6, 12)] for _ in range(20)]
    expected, found = draw(), draw()
    for one, other in zip(expected, found, strict=True):
      other[:8] = one[:8]
    assert ner.score(expected, found)["f1"] == pytest.approx(
        seqeval.f1_score(expected, found), abs=1e-12)


# --------------------------------------------------------------- real files


def test_the_published_counts(data_dir):
  """Sentences of WNUT 2017 (Derczynski et al.), and entities of its training file."""
  counts = {}
  for name, names in ner.NAMES.items():
    (path,) = ner.files.find_given(str(data_dir / "ner" / "wnut17"), "", "", names)
    counts[name] = ner.read_conll(path)
  assert {name: len(s) for name, s in counts.items()} == {"train": 3394, "dev": 1009, "test": 1287}
  assert sum(len(ner.entities(s.tags)) for s in counts["train"]) == 1975
