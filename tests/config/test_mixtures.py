"""bertgpt.config.mixtures: names, paths and shares, and what is refused."""

import fractions

import pytest

from bertgpt import config as config_lib
from bertgpt.config import mixtures, unread
from bertgpt.config.overrides import override
from bertgpt.config.stored import from_json, to_json


def make_config(mixture="", corpora="", corpus="corpora/main", objective="mlm", scored=False):
  config = config_lib.base()
  config.data.update(corpus=corpus, corpora=corpora)
  config.objective.name = objective
  config.eval.corpora = scored
  config.phases = (config_lib.phase(mixture=mixture),)
  return config


def problems_of(*arguments, **how):
  config = make_config(*arguments, **how)
  return list(mixtures.find_problems(config)) or unread.find_problems(config)


def test_a_path_may_hold_commas_and_equals_signs():
  paths = mixtures.find_paths(make_config(
      corpora="web=gs://bucket/a=1/web,v2, books=/data/x=y,books-2.0=../b"))
  assert paths == {"web": "gs://bucket/a=1/web,v2", "books": "/data/x=y", "books-2.0": "../b"}
  assert mixtures.find_paths(make_config()) == {}


@pytest.mark.parametrize("mixture, expected, period", [
    ("", {"main": "1"}, 1),
    ("books=3", {"books": "1"}, 1),
    ("main=0.7,books=0.3", {"main": "7/10", "books": "3/10"}, 10),
    (" main = 7 , books=3. ", {"main": "7/10", "books": "3/10"}, 10),
    ("a=0.1,b=0.2,c=0.3", {"a": "1/6", "b": "1/3", "c": "1/2"}, 6),
    ("a=1e-3,b=.999", {"a": "1/1000", "b": "999/1000"}, 1000),
])
def test_shares_are_the_weights_divided_by_their_sum_without_rounding(mixture, expected, period):
  shares = mixtures.find_shares(config_lib.phase(mixture=mixture))
  assert shares == {name: fractions.Fraction(share) for name, share in expected.items()}
  assert sum(shares.values()) == 1
  assert mixtures.period(shares) == period


@pytest.mark.parametrize("field, part, how", [
    ("phases[0].mixture", "give NAME=WEIGHT", {"mixture": "main"}),
    ("phases[0].mixture", "give NAME=WEIGHT", {"mixture": "main=1,"}),
    ("phases[0].mixture", "give NAME=WEIGHT", {"mixture": "a b=1"}),
    ("phases[0].mixture", "has the name main twice", {"mixture": "main=1,main=2"}),
    ("phases[0].mixture", "must be a number above 0, not '0.0'", {"mixture": "main=0.0"}),
    ("phases[0].mixture", "must be a number above 0, not '-1'", {"mixture": "main=-1"}),
    ("phases[0].mixture", "must be a number above 0, not 'nan'", {"mixture": "main=nan"}),
    ("phases[0].mixture", "must be a number above 0, not '1e999'", {"mixture": "main=1e999"}),
    ("phases[0].mixture", "has no boks. Choose among main, books, or add boks=PATH",
     {"mixture": "main=1,boks=1", "corpora": "books=b"}),
    ("phases[0].mixture", "a row continues the same row of the previous step",
     {"mixture": "main=1,books=1", "corpora": "books=b", "objective": "bilm"}),
    ("data.corpora", "give NAME=PATH", {"corpora": "corpora/books"}),
    ("data.corpora", "give NAME=PATH", {"corpora": "books=", "mixture": "books=1"}),
    ("data.corpora", "has the name books twice", {"corpora": "books=a,books=b"}),
    ("data.corpora", "main is the name of data.corpus", {"corpora": "main=a"}),
    ("data.corpora", "validation is the name of the held-out documents",
     {"corpora": "validation=a", "mixture": "validation=1"}),
    ("eval.corpora", "leave eval.corpora at False", {"scored": True, "mixture": "main=1"}),
    ("data.corpora", "set data.corpus too",
     {"corpora": "books=b", "mixture": "books=1", "corpus": ""}),
    ("data.corpora", "Mount the bucket", {"corpora": "books=s3://b/x", "mixture": "books=1"}),
    ("data.corpora", "no phases[].mixture names web. Leave it out, or score it",
     {"corpora": "web=w,books=b", "mixture": "main=1,books=1"}),
])
def test_a_wrong_mixture_is_one_line_with_the_field_and_the_remedy(field, part, how):
  (line,) = problems_of(**how)
  assert line.startswith(f"{field}=") and part in line


@pytest.mark.parametrize("how", [
    {"mixture": "main=1"}, {"mixture": "main=1", "corpus": ""},
    {"mixture": "books=1", "corpora": "books=b", "objective": "bilm", "scored": True},
    {"mixture": "main=0.99999,books=0.00001", "corpora": "books=b"}])
def test_a_right_mixture_is_no_problem(how):
  how.setdefault("objective", "mlm")
  assert list(mixtures.find_problems(make_config(**how))) == []
  assert not list(mixtures.find_unread(make_config(**how)))


def test_weights_with_too_many_digits_are_refused_with_weights_that_are_not():
  (line,) = problems_of("main=123456789,books=987654321", "books=b")
  assert line.startswith("phases[0].mixture=") and "fewer digits" in line
  (shorter,) = (part for part in line.split() if part.startswith("main="))
  assert shorter == "main=0.111,books=0.889"
  assert problems_of(shorter, "books=b") == []


def test_the_command_line_and_config_json_keep_a_mixture():
  corpora, mixture = "web=gs://b/web,books=/d/books", "main=0.5,web=0.3,books=0.2"
  config = override(make_config(), [f"--config.data.corpora={corpora}",
                                    f"--config.phases[0].mixture={mixture}"])
  assert (config.data.corpora, config.phases[0].mixture) == (corpora, mixture)
  assert from_json(to_json(config)) == config
  assert mixtures.find_others(config) == ["books", "web"]


def test_a_corpus_that_no_phase_reads_may_be_scored():
  config = make_config(corpora="web=w,books=b", mixture="books=1", scored=True)
  assert list(mixtures.find_problems(config)) == unread.find_problems(config) == []
  assert mixtures.find_others(config) == ["books"]
  assert mixtures.find_scored(config) == ["books", "web"]
  config.eval.corpora = False
  assert mixtures.find_scored(config) == []
