"""The text of a JSON object: a field, a nested field, or several fields."""

import pytest
from source_files import paragraphs, write

from bertgpt.data.text import fields
from bertgpt.errors import DataError

RECORD = {"text": "t", "a": {"b": "ab", "c": {"d": "acd"}, "none": None}, "a.b": "dot",
          "x.y": {"z": "xyz"}, "t,u": "comma", "none": None, "empty": "", "n": 1, "false": False}


@pytest.mark.parametrize("field, expected", [
    ("text", "t"), ("a.b", "dot"), ("a.c.d", "acd"), ("x.y.z", "xyz"), ("t,u", "comma"),
    ("text,a.c.d", "t\n\nacd"), ("text, a.b", "t\n\ndot"), ("none,text", "t"), ("empty,text", "t"),
    ("a.none,text", "t"), ("empty", ""), ("none", None), ("n", None), ("a", None), ("no", None),
    ("", None), ("text,no", "t"),
    ("no,a.c.d", "acd"), ("no,none", None), ("no,nope", None), ("no,n", None), ("false", None),
    ("false,text", None), ("text,n", None), ("a.b.c", None), ("a.", None)])
def test_a_field_of_an_object(field, expected):
  assert fields.find_text(RECORD, field) == expected


@pytest.mark.parametrize("record", [[], "text", None, 1, {}])
def test_what_is_not_an_object_has_no_text(record):
  assert fields.find_text(record, "text") is None


def test_a_jsonl_source_takes_nested_and_several_fields(tmp_path):
  path = write(tmp_path / "a.jsonl", b'{"meta": {"title": "A"}, "text": "a\\nb"}')
  assert paragraphs(f"jsonl:{path}#meta.title,text") == [("A", "", "a", "b")]
  assert paragraphs(f"jsonl:{path}#subtitle,text") == [("a", "b")]
  with pytest.raises(DataError, match=(
      r"no text in field 'meta.titel,txt' of the JSON object at byte 0\. "
      "Choose one of text, or set data.invalid_text")):
    paragraphs(f"jsonl:{path}#meta.titel,txt")


@pytest.mark.parametrize("record, expected", [
    ({}, "It has no keys."), ({"a": 1, "b\n": 2}, r"It has 'a', 'b\n'."),
    ({"x": {"y": None}}, "Its 'x.y' is null."),
    ({"x.y": 5}, "Its 'x.y' is a number."), ({"a": "", "z": 5}, "Its 'z' is a number."),
    ({"x": {"y": ["text"]}}, "Its 'x.y' is an array."),
    ({"x": "", "x.y": True}, "Its 'x.y' is a boolean."),
    ([], "Each line must hold one JSON object."), ("a", "Each line must hold one JSON object.")])
def test_what_an_object_has_instead(record, expected):
  assert fields.describe(record, "x.y,z") == expected


def test_an_object_without_any_text_is_described(tmp_path):
  path = write(tmp_path / "a.jsonl", b'{"text": 5, "id": ""}\n')
  with pytest.raises(DataError, match=r"at byte 0\. Its 'text' is a number\. Repair it"):
    paragraphs(f"jsonl:{path}")


@pytest.mark.parametrize("field, expected", [
    ("txt", ("", "Choose one of text, url")), ("none", ("Its 'none' is null.", "")),
    ("a.b", ("Its 'a.b' is a number.", "")), ("a.c", ("", "Choose one of text, url")),
    ("none,a.b", ("Its 'none' is null.", "")), ("no,nope", ("", "Choose one of text, url")),
    ("none,txt", ("Its 'none' is null.", "Choose one of text, url"))])
def test_other_fields_are_named_only_if_one_is_absent(field, expected):
  record = {"none": None, "text": "t", "url": "u", "a": {"b": 1}}
  assert fields.advise(record, field) == expected


def test_a_record_without_its_text_is_not_told_to_use_another_field(tmp_path):
  path = write(tmp_path / "a.jsonl", b'{"text": null, "url": "u"}\n')
  with pytest.raises(DataError, match=r"byte 0\. Its 'text' is null\. Repair it, or set data"):
    paragraphs(f"jsonl:{path}")


def test_many_keys_are_not_all_named():
  many = fields.describe({str(i): i for i in range(1000)}, "text")
  assert many.startswith("It has '0', '1',") and many.endswith("'19', ....")
  assert len(fields.describe({"x" * 5000: 1}, "text")) < 400
