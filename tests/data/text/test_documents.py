"""Documents keep their text, and sentences are cut where they end, without losing a character."""

import random
import re

import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import read

from bertgpt.data.text import documents as documents_lib
from bertgpt.data.text.documents import Document, cut_at_spaces, cut_sentences, make_documents
from bertgpt.data.text.intake import Counts
from bertgpt.errors import ConfigError, DataError

TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]),
                          st.sampled_from(" \n\t.!?。\u3000\xa0\x85\u2028abA")), max_size=60)


def sentences(text, language):
  return [sentence.strip() for sentence in cut_sentences(Document(text, False), language)]


def test_english_abbreviations_and_names_with_dots_do_not_end_a_sentence():
  assert sentences('Dr. Smith used PIL.Image for 3.5 days. "Why?" asked he. The end', "en") == [
      "Dr. Smith used PIL.Image for 3.5 days.", '"Why?" asked he.', "The end"]


@pytest.mark.parametrize("space", "\xa0\u2009\u202f\u3000")
def test_a_wide_space_before_a_period_is_text(monkeypatch, space):
  """sentencex 1.0.32 panics if it gets one after a capital letter."""
  text = f"We chose plan B{space}. Then we left."
  assert sentences(text, "en") == [f"We chose plan B{space}.", "Then we left."]
  nothing = re.compile("((?!))")
  monkeypatch.setattr(documents_lib, "_WIDE_SPACE", nothing)
  assert sentences(text, "en") == [f"We chose plan B{space}.", "Then we left."]
  monkeypatch.setattr(documents_lib, "_ANY_WIDE_SPACE", nothing)
  with pytest.raises(DataError, match="a.txt: sentencex cannot cut the document at byte 7 into"):
    cut_sentences(Document(text, False, "a.txt", 7), "en")


@pytest.mark.parametrize("text", ["I..\xa0.", "A...\xa0.", "A\xa0.\xa0.", "A..\u3000.",
                                  "Құжат A... \xa0. Соңы."])
def test_the_rules_of_kazakh_panic_at_more_wide_spaces(text):
  assert "".join(cut_sentences(Document(text, False), "kk")) == text


@pytest.mark.parametrize("language", ["zh", "en"])
def test_chinese_sentences_end_at_their_marks(language):
  assert sentences("今天天气很好。我们去哪里？去公园！好", language) == [
      "今天天气很好。", "我们去哪里？", "去公园！", "好"]


@pytest.mark.parametrize("language", ["en", "ja", "tr", "als", "nds", "pt-br", "de-at", "olo",
                                      "kk-cyrl", "vec", "rue"])
def test_two_letters_and_codes_with_rules_are_languages(language):
  documents_lib.check_language(language)


@pytest.mark.parametrize("language, remedy", [("deu", "code"), ("jp", "code"),
                                              ("pt-pt", "code, such as pt"),
                                              ("zh_TW", "code, such as zh")])
def test_a_code_that_means_english_is_refused(language, remedy):
  with pytest.raises(ConfigError, match=f"English rules would apply.*letter {remedy}, or en"):
    documents_lib.check_language(language)


@pytest.mark.parametrize("given, expected", [
    (True, ["  One. Two", "\n\n\tThree", "\nfour. \n"]),
    (False, ["  One.", " Two", "\n\n\tThree", "\nfour. \n"])])
def test_a_sentence_begins_with_the_white_space_before_it(given, expected):
  document = Document("  One. Two\n\n\tThree\nfour. \n", given)
  assert cut_sentences(document, "en") == expected


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, is_given=st.booleans(), max_chars=st.sampled_from([3, 1 << 14]))
def test_sentences_joined_are_the_text(text, is_given, max_chars):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(documents_lib, "MAX_SENTENCE_CHARS", max_chars)
    found = cut_sentences(Document(text, is_given), "en")
  assert "".join(found) == (text if text.strip() else "")
  assert all(sentence.strip() for sentence in found)
  assert max((len(s.strip()) for s in found), default=0) <= max_chars


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_documents_joined_are_the_text(text):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(documents_lib, "MAX_DOCUMENT_BYTES", 16)
    counts = Counts()
    found = [document.text for document in make_documents(Document(text, False), counts)]
  assert "".join(found) == (text if text.strip() else "")
  assert max((len(part.encode()) for part in found), default=0) <= 16
  assert counts["documents without text: skipped"] == (not text.strip())
  assert counts["long documents cut"] == (len(found) > 1)


def test_long_documents_are_cut_after_lines():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(documents_lib, "MAX_DOCUMENT_BYTES", 16)
    whole = Document("one two\n  three\n\nfour five six seven eight", True, "a.txt", 7)
    found = list(make_documents(whole, Counts()))
  assert [d.text for d in found] == ["one two\n  three\n", "\n", "four five six ", "seven eight"]
  assert {(d.sentences_given, d.path, d.offset) for d in found} == {(True, "a.txt", 7)}


def write_chinese(seed, length):
  """Returns a line with quotes and brackets, of which a few are not closed, and few spaces."""
  rng = random.Random(seed)
  line = ""

  def words():
    return "".join(chr(0x4e00 + rng.randrange(3_000)) for _ in range(rng.randint(2, 30)))

  while len(line) < length:
    opening, closing = rng.choice(["“”", "「」", "（）", "‘’", ("", "")])
    content = "".join(words() + rng.choice("。！？，…") for _ in range(rng.randint(1, 5)))
    line += opening + content + (closing if rng.random() < 0.99 else "")
    line += words() + rng.choice(["。", "！”", "，", "3.5", " ", "Yahoo! "])
  return line.strip()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("language", ["zh", "ja", "en"])
def test_windows_of_a_long_line_give_the_sentences_of_the_whole_line(seed, language):
  line = write_chinese(seed, 30_000)
  whole = list(documents_lib._split_window(line, language))
  assert list(documents_lib._split(line, language)) == whole and len(whole) > 50


def write_english(seed, length, num_open):
  """Returns a line with apostrophes and straight quotes, of which some are not closed."""
  rng = random.Random(seed)
  sentences, size = [], 0
  while size < length:
    words = ["".join(rng.choices("abcdefgh", k=4)) for _ in range(rng.randint(2, 20))]
    words += ["isn't"] * rng.randrange(2)
    sentence = " ".join(words).capitalize() + "."
    sentences += [f'"{sentence} Yes, {words[0]}."' if rng.random() < 0.3 else sentence]
    size += len(sentences[-1]) + 1
  for place in rng.sample(range(len(sentences)), num_open):
    sentences[place] = sentences[place].replace('"', "") + ' "'
  return " ".join(sentences)


@pytest.mark.parametrize("seed", range(3))
def test_windows_of_a_line_with_closed_straight_quotes_give_the_sentences_of_the_line(seed):
  line = write_english(seed, 90_000, 0)
  whole = list(documents_lib._split_window(line, "en"))
  assert list(documents_lib._split(line, "en")) == whole and len(whole) > 500


@pytest.mark.parametrize("line", [write_english(3, 200_000, 9), '"' + "Yes it is. " * 20_000 + '"',
                                  '"Word ' * 40_000, "\"'`" * 60_000, "Don't go. " * 20_000])
def test_a_very_long_line_with_straight_quotes_is_given_to_sentencex_in_windows(monkeypatch, line):
  given, segment = [], sentencex.segment
  monkeypatch.setattr(sentencex, "segment",
                      lambda language, text: given.append(len(text)) or segment(language, text))
  assert "".join(cut_sentences(Document(line, False), "en")) == line
  assert max(given) <= documents_lib._LARGEST_WINDOW + 10
  assert sum(given) < 3 * len(line)


def test_a_line_with_straight_quotes_below_the_limit_is_given_whole(monkeypatch):
  given, segment = [], sentencex.segment
  monkeypatch.setattr(sentencex, "segment",
                      lambda language, text: given.append(len(text)) or segment(language, text))
  line = write_english(4, 60_000, 1)
  cut_sentences(Document(line, False), "en")
  assert given == [len(line)]


def test_a_long_line_without_spaces_is_given_to_sentencex_in_windows(monkeypatch):
  given, segment = [], sentencex.segment
  monkeypatch.setattr(sentencex, "segment",
                      lambda language, text: given.append(len(text)) or segment(language, text))
  line = "今天天气很好，“我们去公园。”然后回家吃饭。" * 3_000
  assert len(cut_sentences(Document(line, False), "zh")) > 3_000
  assert max(given) < 10_000


def test_sentences_end_in_a_quote_that_is_longer_than_the_largest_window(monkeypatch):
  sizes, segment = [], sentencex.segment
  monkeypatch.setattr(sentencex, "segment",
                      lambda language, text: sizes.append(len(text)) or segment(language, text))
  text = "「" + "你好。" * 30_000 + "」"
  parts = cut_sentences(Document(text, False), "zh")
  assert "".join(parts) == text and len(parts) == 30_000
  assert max(sizes) <= documents_lib._LARGEST_WINDOW + 10


def test_sentences_of_real_text(data_dir):
  documents = read(f"jsonl:{data_dir}/lm/wikipedia_en/heldout.jsonl.xz")
  assert len(documents) > 50
  for document in documents:
    found = cut_sentences(document, "en")
    assert "".join(found) == document.text
    assert all(sentence.strip() for sentence in found)
    assert not any("\n" in sentence.strip() for sentence in found)


def test_cuts_at_spaces_lose_only_the_space():
  text = "ab cde f" * 50
  pieces = cut_at_spaces(text, 9)
  assert max(map(len, pieces)) <= 9 and " ".join(pieces) == text
  assert cut_at_spaces("x" * 20, 9) == ["x" * 9, "x" * 9, "xx"]
