"""bertgpt.inference.arguments: what the Python functions refuse, as the command line does."""

import pytest

from bertgpt.errors import ConfigError
from bertgpt.inference import arguments
from bertgpt.inference.embed import embed
from bertgpt.inference.fill import fill
from bertgpt.inference.generate import Sampling, generate
from bertgpt.inference.score import score


def test_any_iterable_of_texts_is_a_list():
  assert arguments.as_list(text for text in "ab") == arguments.as_list(("a", "b")) == ["a", "b"]
  with pytest.raises(ConfigError, match=r"prompts='the': give a list of texts, such as \['the'\]"):
    arguments.as_list("the", "prompts")


@pytest.mark.parametrize("call, message", [
    (lambda bert, gpt: embed(bert, "abc"), "texts='abc': give a list of texts"),
    (lambda bert, gpt: embed(bert, ["abc"], "max"), "layer 'max': choose one of cls, mean, last"),
    (lambda bert, gpt: embed(bert, ["abc"], batch_size=0), "batch_size=0: give at least 1"),
    (lambda bert, gpt: fill(bert, "a [MASK]"), r"texts='a \[MASK\]': give a list of texts"),
    (lambda bert, gpt: fill(bert, ["a [MASK]"], top=0), "top=0: give at least 1"),
    (lambda bert, gpt: score(bert, "abc"), "texts='abc': give a list of texts"),
    (lambda bert, gpt: score(gpt, ["abc"], batch_size=-1), "batch_size=-1: give at least 1"),
    (lambda bert, gpt: generate(gpt, "the"), "prompts='the': give a list of texts"),
    (lambda bert, gpt: generate(gpt, ["the"], max_tokens=-2), "max_tokens=-2: give at least 0"),
    (lambda bert, gpt: generate(gpt, ["the"], num_samples=0), "num_samples=0: give at least 1"),
    (lambda bert, gpt: generate(gpt, ["the"], batch_size=0), "batch_size=0: give at least 1"),
    (lambda bert, gpt: generate(gpt, ["the"], sampling=Sampling(temperature=-1.0)),
     "temperature=-1.0: give at least 0"),
    (lambda bert, gpt: generate(gpt, ["the"], sampling=Sampling(top_p=0.0)),
     "top_p=0.0: give at least 1e-06"),
    (lambda bert, gpt: generate(gpt, ["the"], sampling=Sampling(top_p=1.5)),
     "top_p=1.5: give at most 1"),
])
def test_wrong_arguments_are_one_line(bert, gpt, call, message):
  with pytest.raises(ConfigError, match=message):
    call(bert, gpt)


def test_a_generator_of_texts_is_read_once(bert, gpt):
  texts = ["The cat.", "A dog."]
  assert (embed(bert, iter(texts)) == embed(bert, texts)).all()
  assert generate(gpt, iter(texts), max_tokens=2) == generate(gpt, texts, max_tokens=2)
  assert fill(bert, iter(["a [MASK]"])) == fill(bert, ["a [MASK]"])
