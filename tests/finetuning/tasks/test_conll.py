"""CoNLL files as they occur in practice: columns, comments, line ends, files without tags."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgpt.errors import DataError
from bertgpt.finetuning.tasks import conll, files
from bertgpt.finetuning.tasks.conll import Sentence


def read(folder, text, **options):
  path = folder / "a.conll"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return list(conll.iterate_sentences(path, **options))


@pytest.mark.parametrize("text, words, tags", [
    ("10\u00a0000 B-NUM\n", "10\u00a0000", "B-NUM"),
    ("10\u00a0000\tB-NUM\n", "10\u00a0000", "B-NUM"),
    ("a\u3000b\u2003c\u0085d NN O\n", "a\u3000b\u2003c\u0085d", "O"),
    ("EU NNP\tB-ORG\n", "EU", "B-ORG"),
    ("EU NNP\tB-ORG\nrejects VBZ\tO\n", "EU|rejects", "B-ORG|O"),
    ("EU NNP\tB-ORG\nrejects\tO\nit PRP O\n", "EU|rejects|it", "B-ORG|O|O"),
    ("New York\tB-LOC\n:\tO\n", "New York|:", "B-LOC|O"),
    ("EU\tB-ORG\t\t\nis\tO\t \n", "EU|is", "B-ORG|O"),
    ("  EU   NNP  \t B-ORG  \n", "EU", "B-ORG"),
    ("\ufeffEU B-ORG\r\nis O\r\n", "EU|is", "B-ORG|O"),
    ("EU B-ORG\ris O\r", "EU|is", "B-ORG|O"),
    ("EU B-ORG\nis O", "EU|is", "B-ORG|O"),
    ("EU\u2028 B-ORG\nis\x0b\x0c O", "EU\u2028|is\x0b\x0c", "B-ORG|O"),
])
def test_columns_and_line_ends(tmp_path, text, words, tags):
  assert read(tmp_path, text) == [Sentence(words.split("|"), tags.split("|"))]


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u00a0", "\u3000\u2003", "\u0085", "\t \t",
                                   "-DOCSTART- -X- -X- O", "-DOCSTART-\tO", "-DOCSTART-"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_where_sentences_end(tmp_path, blank, end):
  text = end.join([blank, "EU B-ORG", blank, blank, "is O", blank, ""])
  assert read(tmp_path, text) == [Sentence(["EU"], ["B-ORG"]), Sentence(["is"], ["O"])]


def test_germeval_numbers_its_words(tmp_path):
  """The third column has the outer entities, the fourth the nested ones."""
  text = ("#\thttp://de.wikipedia.org/wiki/Manfred_Korfmann [2009-10-17]\n1\tAufgrund\tO\tO\n"
          "2\tder\tO\tO\n3\tUniv.\tB-ORG\tO\n4\tTroja\tI-ORG\tB-LOC\n\n"
          "#\thttp://de.wikipedia.org/x\n1\t1\tO\tO\n2\tO\tO\tO\n")
  expected = [(["Aufgrund", "der", "Univ.", "Troja"], ["O", "O", "B-ORG", "I-ORG"]),
              (["1", "O"], ["O", "O"])]
  assert read(tmp_path, text) == [Sentence(*s) for s in expected]
  without = "\n".join("\t".join(line.split("\t")[:2]) for line in text.split("\n"))
  assert read(tmp_path, without, needs_tags=False) == [Sentence(s[0], None) for s in expected]


def test_numbers_that_are_words_are_words(tmp_path):
  assert read(tmp_path, "1 O\n2 O\n\n1 B-X\n") == [
      Sentence(["1", "2"], ["O", "O"]), Sentence(["1"], ["B-X"])]


def test_multiconer_has_comments(tmp_path):
  text = ("\n# id 5239d808-f300-46ea-aa3b-5093040213a3\tdomain=en\nits _ _ O\n# _ _ O\n"
          "robert _ _ B-PER\n\n\n# id 2\n# text = # is here\n# _ _ O\n")
  assert read(tmp_path, text) == [Sentence(["its", "#", "robert"], ["O", "O", "B-PER"]),
                                  Sentence(["#"], ["O"])]
  hidden = text.replace(" O\n", " _\n").replace("B-PER", "_")
  assert read(tmp_path, hidden, needs_tags=False) == [Sentence(["its", "#", "robert"], None),
                                                      Sentence(["#"], None)]


@pytest.mark.parametrize("comment", ["# text = He drove on I-95", "# Vitamin B-12", "# Plan O",
                                     "#\t1\tO\tO", "# I", "# Appendix B"])
def test_a_comment_may_end_like_a_tag(tmp_path, comment):
  numbered = f"{comment}\n1\tBerlin\tB-LOC\tO\n2\tis\tO\tO\n"
  assert read(tmp_path, numbered) == [Sentence(["Berlin", "is"], ["B-LOC", "O"])]
  if " " in comment:
    plain = f"{comment}\nBerlin B-LOC\nis O\n"
    assert read(tmp_path, plain) == [Sentence(["Berlin", "is"], ["B-LOC", "O"])]


def test_a_word_that_begins_like_a_comment_helps_to_find_the_columns(tmp_path):
  assert read(tmp_path, "# 1\tB-MISC\nwins\tO\n\nEU\tB-ORG\n") == [
      Sentence(["# 1", "wins"], ["B-MISC", "O"]), Sentence(["EU"], ["B-ORG"])]
  assert read(tmp_path, "EU B-ORG\nNew York B-LOC\n\n# 1 pick O\nx O\n") == [
      Sentence(["EU", "New"], ["B-ORG", "B-LOC"]), Sentence(["#", "x"], ["O", "O"])]


def test_a_file_with_a_single_type_needs_none(tmp_path):
  """BioBERT's published files are like this."""
  assert read(tmp_path, "IL-2\tB\ngene\tI\nis\tO\n\nI\tO\nB\tB\n") == [
      Sentence(["IL-2", "gene", "is"], ["B", "I", "O"]), Sentence(["I", "B"], ["O", "B"])]


@pytest.mark.parametrize("start", [0, 1])
def test_words_are_numbered_from_zero_or_one(tmp_path, start):
  text = "".join(f"{start + i}\tw{i}\tO\tO\n" for i in range(3))
  assert read(tmp_path, text) == [Sentence(["w0", "w1", "w2"], ["O"] * 3)]


@pytest.mark.parametrize("other", ["", "3-4\tzum\tO\tO\n", "x\tw\tO\tO\n"])
def test_one_number_that_is_wrong_does_not_make_all_of_them_words(tmp_path, other):
  lines = [f"{i}\tw{i}\tO\tO\n" for i in range(1, 31)]
  lines[2] = other
  after = "".join(f"{i}\tw{i}\tO\tO\n" for i in range(1, 21))
  with pytest.raises(DataError, match="line 3: does not begin with the number of its word"):
    read(tmp_path, "".join(lines) + "\n" + after)


def test_words_that_are_numbers_are_no_count(tmp_path):
  text = "1996 CD O\n08 CD O\n30 CD O\n"
  assert read(tmp_path, text) == [Sentence(["1996", "08", "30"], ["O"] * 3)]


def test_offsets_of_words_are_not_words(tmp_path):
  words = "The cat sees the dog and runs away".split()
  offsets = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
  text = "".join(f"{start} {word} O\n" for start, word in zip(offsets, words, strict=True))
  with pytest.raises(DataError, match="line 2: does not begin with the number of its word"):
    read(tmp_path, text)


@pytest.mark.parametrize("text, words", [
    ("EU\nis\n\n#\nhere\n", [["EU", "is"], ["#", "here"]]),
    ("EU\t\nis\t\n", [["EU", "is"]]),
    ("EU NNP _\nis VBZ _\n", [["EU", "is"]]),
    ("EU\t-\nis\t-\n", [["EU", "is"]]),
])
def test_files_without_tags(tmp_path, text, words):
  assert read(tmp_path, text, needs_tags=False) == [Sentence(w, None) for w in words]
  with pytest.raises(DataError, match="a.conll, line 1: (has no tag|tag '.' is none of)"):
    read(tmp_path, text)


@pytest.mark.parametrize("text", ["EU NNP\nis VBZ\n", "EU B-ORG\nis\n", "EU PER\nis O\n"])
def test_tags_that_are_not_read_may_be_anything(tmp_path, text):
  assert read(tmp_path, text, reads_tags=False) == [Sentence(["EU", "is"], None)]


@pytest.mark.parametrize("text, message", [
    ("EU B-ORG\nis\n", "line 2: has no tag ('is')"),
    ("EU B-ORG\nis _\n", "line 2: tag '_' is none of O, B-TYPE, I-TYPE"),
    ("EU PER\nis O\n", "line 1: tag 'PER' is none of"),
    ("New York\tB-LOC\n\tO\n", "line 2: has no word ('\\tO')"),
    ("EU B-ORG\n# comment\nis O\n", "line 2: tag 'comment' is none of"),
])
def test_a_file_in_which_some_tags_are_missing_is_refused(tmp_path, text, message):
  with pytest.raises(DataError) as e:
    read(tmp_path, text, needs_tags=False)
  assert message in str(e.value) and "\n" not in str(e.value)


def test_a_file_is_read_twice_without_being_held(tmp_path, monkeypatch):
  """A first pass checks the columns; a second pass yields one sentence at a time."""
  lines = []
  read_text_lines = files.read_text_lines

  def count(path):
    for number, line in read_text_lines(path):
      lines.append(number)
      yield number, line

  monkeypatch.setattr(files, "read_text_lines", count)
  path = tmp_path / "a.conll"
  path.write_text("EU B-ORG\nis O\n\n" * 100)
  sentences = conll.iterate_sentences(path)
  assert next(sentences) == Sentence(["EU", "is"], ["B-ORG", "O"])
  assert len(lines) == 300 + 4
  assert len(list(sentences)) == 99 and len(lines) == 600


def test_a_file_without_empty_lines_is_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(conll, "MAX_WORDS", 3)
  assert len(read(tmp_path, "a O\nb O\nc O\n\nd O\n")) == 2
  with pytest.raises(DataError, match="line 5: a sentence has more than 3 words. Separate"):
    read(tmp_path, "\n" + "a O\n" * 100)


WORDS = st.text(st.characters(exclude_characters=" \t\r\n\0", exclude_categories=("Cs",)),
                min_size=1).filter(lambda w: w.strip() and w != "-DOCSTART-" and w[0] != "\ufeff")
TAGGED = st.lists(st.lists(st.tuples(WORDS, st.sampled_from(["O", "B-x", "I-x\u00a0y"])),
                           min_size=1), min_size=1)


@settings(deadline=None)
@given(TAGGED, st.sampled_from([" ", "\t", " \t", "\t\t"]), st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_was_written_is_read(tmp_path_factory, sentences, space, end):
  """Words are any text without ASCII white space, and tags may be followed by it."""
  text = "".join("".join(f"{word}{space}{tag}{space}{end}" for word, tag in s) + end
                 for s in sentences)
  folder = tmp_path_factory.mktemp("conll")
  assert read(folder, text) == [
      Sentence([word for word, _ in s], [tag for _, tag in s]) for s in sentences]
