"""bertgpt.inference.suites: texts are read, detokenized and counted by their protocols."""

import gzip

import pytest
from one_by_one import encode

from bertgpt.errors import ConfigError
from bertgpt.inference import suites, zero_shot
from bertgpt.inference.suites import SUITES


def test_every_suite_has_a_measure_and_a_reader():
  measures = {suite.measure for suite in SUITES.values()}
  assert measures == set(zero_shot.MEASURES) == set(suites.READERS)


def test_wikitext_is_counted_as_published(data_dir):
  """Merity et al. 2016, table 1: 245,569 tokens in the test set of WikiText-2."""
  text = gzip.decompress((data_dir / "lm/wikitext-2/test.txt.gz").read_bytes()).decode()
  assert suites.count_words(text, SUITES["wikitext2"].counts_lines) == 245_569


@pytest.mark.parametrize("before, after", [
    (" = Robert <unk> = \n", "= Robert <unk> =\n"),
    (" \n = = Career = = \n = = = 2000 – 2005 = = = \n", "\n== Career ==\n=== 2000 – 2005 ===\n"),
    (" a guest @-@ starring role , in 2000 . It was , he said , 3 @.@ 5 ft ( 1 @,@ 100 mm ) ; so\n",
     "a guest-starring role, in 2000. It was, he said, 3.5 ft (1,100 mm); so\n"),
    (' he portrayed " Scott Parry " in " In Safe Hands " . \n',
     'he portrayed "Scott Parry" in "In Safe Hands".\n'),
    (" the boys ' coat , Jim 's and I 'll not\n", "the boys' coat, Jim's and I'll not\n"),
    (" costs $ 5 or £ 3 : [ 2 ] ? yes !\n", "costs $5 or £3: [2]? yes!\n"),
])
def test_wikitext_is_written_as_text(before, after):
  assert suites.detokenize(before, "wikitext") == after
  assert suites.detokenize(before, "") == before


def test_stop_tokens_are_no_guess_for_a_last_word(gpt):
  is_stop = suites.find_stop_tokens(gpt.tokenizer)
  token = lambda text: encode(gpt, text)[0]
  assert is_stop[[token("the"), token("a"), token("."), gpt.tokenizer.eod_id]].all()
  assert not is_stop[[token("tree"), token("cat")]].any()


def test_a_comma_belongs_to_the_file_unless_a_name_follows():
  assert suites.parse("pairs=a,b.txt, text=tfds:x:test#title,text") == [
      ("pairs", "a,b.txt"), ("text", "tfds:x:test#title,text")]
  with pytest.raises(ConfigError, match="--suite pairs=tfds:x:test#good,bad: pairs are read from"):
    suites.parse("pairs=tfds:x:test#good,bad")
  with pytest.raises(ConfigError, match="--suite text=gs://b/x.txt: .* only local paths"):
    suites.parse("text=gs://b/x.txt")


@pytest.mark.parametrize("name, text", [
    ("text", "One.\n\n  def f():\n\treturn\x0b\u2028\n"),
    ("wikitext2", " \n = A title = \n \n x . \n"),
    ("lambada", '{"text": "a\\nb c"}\n\n{"text": "d e"}\n'),
    ("pairs", "good\tbad\na\tb\n\nc \td\n"),
    ("choices", '{"context": "a\\n", "endings": ["b", " c"], "label": 1}\n\n')])
@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_do_not_change_a_suite(tmp_path, name, text, end):
  ending = ".jsonl" if name == "lambada" else ".txt"
  plain, other = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
  plain.write_bytes(text.encode())
  other.write_bytes(text.replace("\n", end).encode("utf-8-sig"))
  expected = list(suites.iterate(name, str(plain)))
  assert expected and list(suites.iterate(name, str(other))) == expected
  if name in ("text", "wikitext2"):
    assert "".join(line for line, in expected) == text
