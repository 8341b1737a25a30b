"""bertgpt.data.tokens.words: starts of words in UTF-8 that may be cut anywhere."""

import pytest

from bertgpt.data.tokens import words


@pytest.mark.parametrize("piece,expected", [
    (b"ing", True), (b" the", False), (b",", False), (b"\n", False), ("é".encode(), True),
    ("é".encode()[:1], True), ("é".encode()[1:], True), ("天".encode(), False),
    ("天".encode()[:2], False), ("天".encode()[2:], True),
    ("天".encode()[2:] + b" a", True), ("ж".encode()[:1], True)])
def test_words_are_told_from_bytes_that_may_cut_a_character(piece, expected):
  assert words.is_continuation(piece) is expected


def test_spaces_between_cjk_characters_go_and_others_stay():
  assert words.join_cjk("天 天 hello 世 上 。 a b") == "天天 hello 世上。 a b"


def test_every_byte_has_one_character_that_can_be_printed():
  assert sorted(words.BYTE_OF_CHAR.values()) == list(range(256))
  assert all(char.isprintable() and not char.isspace() for char in words.BYTE_OF_CHAR)
