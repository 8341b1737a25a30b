"""bertgpt.data.tokens.words: starts of words in UTF-8 that may be cut anywhere."""

import re

import pytest

from bertgpt.data.tokens import words


@pytest.mark.parametrize("piece,expected", [
    (b"ing", True), (b" the", False), (b",", False), (b"\n", False), ("é".encode(), True),
    ("é".encode()[:1], True), ("é".encode()[1:], True), ("天".encode(), False),
    ("天".encode()[:2], False), ("天".encode()[2:], True),
    ("天".encode()[2:] + b" a", True), ("ж".encode()[:1], True)])
def test_words_are_told_from_bytes_that_may_cut_a_character(piece, expected):
  assert words.is_continuation(piece) is expected


@pytest.mark.parametrize("piece,expected", [
    (b"(", True), (b"ing", False), (b" (", True), (b".\"", True), (b"don'", True), (b"'t", False),
    (b" ", False), (b"\n", True), ("天".encode(), True), ("天".encode()[:2], False),
    ("€".encode(), False), ("「".encode(), True), ("é".encode()[1:], False), (b"_", True),
    ("कि".encode(), False), ("…".encode(), True), (b"x,\xe5\xa4", False)])
def test_a_word_starts_after_punctuation(piece, expected):
  assert words.ends_word(piece) is expected


@pytest.mark.parametrize("char", ["_", "ि", "€", "\u0301"])
def test_runs_of_version_0_1_keep_its_words(char):
  """Version 0.1 took everything that `\\w` does not match for starts of words."""
  assert words.former_is_continuation(char.encode()) == bool(re.match(r"\w", char))
  assert words.is_continuation(char.encode()) != bool(re.match(r"\w", char))


@pytest.mark.parametrize("char,expected", [
    ("ि", True), ("\u0301", True), ("😀", True), ("€", True), ("_", False), ("$", False),
    ("。", False), ("\u3000", False), ("ใ", False), ("ั", True)])
def test_marks_and_symbols_continue_a_word_as_in_bert(char, expected):
  assert words.is_continuation(char.encode()) is expected


def test_spaces_between_cjk_characters_go_and_others_stay():
  assert words.join_cjk("天 天 hello 世 上 。 a b") == "天天 hello 世上。 a b"


def test_every_byte_has_one_character_that_can_be_printed():
  assert sorted(words.BYTE_OF_CHAR.values()) == list(range(256))
  assert all(char.isprintable() and not char.isspace() for char in words.BYTE_OF_CHAR)
