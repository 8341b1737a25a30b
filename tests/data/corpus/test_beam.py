"""bertgpt.data.corpus.beam: a pipeline of Apache Beam makes the same bytes as one machine."""

import importlib.util

import pytest
from corpus_texts import hashes, make_config, write_text

from bertgpt.data.corpus import beam, prepare
from bertgpt.data.text import pieces
from bertgpt.errors import ConfigError, DataError

HAS_BEAM = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(
    not HAS_BEAM, reason="Apache Beam has an environment of its own: requirements-beam.lock")


@needs_beam
@pytest.mark.parametrize("trains", [False, True])
def test_the_direct_runner_makes_the_bytes_of_one_machine(tmp_path, monkeypatch, trains):
  monkeypatch.setattr(pieces, "PIECE_BYTES", 3000)
  monkeypatch.setattr(beam, "PART_BYTES", 20_000)
  write_text(tmp_path / "text.txt", 60)
  config = make_config(tmp_path, validation_fraction=0.1)
  if trains:
    config.tokenizer.update({"path": "", "kind": "bpe", "vocab_size": 300, "train_bytes": 20_000})
  expected = hashes(prepare.prepare(config, tmp_path / "one"))
  assert beam.count_parts(config.data.source) > 2
  found = beam.prepare(config, tmp_path / "c", "--runner=DirectRunner")
  assert hashes(found) == expected


@needs_beam
def test_an_error_of_a_worker_is_one_line(tmp_path):
  (tmp_path / "text.txt").write_bytes(b"\xff")
  with pytest.raises(DataError, match="the pipeline failed .*invalid UTF-8 at byte 0") as found:
    beam.prepare(make_config(tmp_path), tmp_path / "c", "")
  assert "\n" not in str(found.value)


@pytest.mark.skipif(HAS_BEAM, reason="Apache Beam is installed")
def test_without_beam_one_line_says_how_to_install_it(tmp_path):
  write_text(tmp_path / "text.txt", 3)
  with pytest.raises(ConfigError, match="--engine beam: .*requirements-beam.lock"):
    beam.prepare(make_config(tmp_path), tmp_path / "c", "")
  assert not (tmp_path / "c.parts").exists()
