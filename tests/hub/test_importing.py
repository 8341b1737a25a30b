"""bertgpt.hub.importing: errors say what is wrong with a folder, and leave nothing behind.

test_opening.py checks with `transformers` that imported models compute the same.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bertgpt import cli, files, trees
from bertgpt.errors import DataError, UserError
from bertgpt.hub import importing, opening
from bertgpt.runs import checkpoint


def run(capsys, *argv) -> tuple[int, list[str]]:
  """Returns (exit code, lines on stderr) of a command."""
  capsys.readouterr()
  code = cli.main([str(a) for a in argv])
  return code, capsys.readouterr().err.splitlines()


def change_json(name, **changes):
  def change(folder):
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(content))
  return change


def change_tensors(make):
  def change(folder):
    save_file(make(load_file(folder / "model.safetensors")), folder / "model.safetensors")
  return change


def cut(folder: pathlib.Path):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: pathlib.Path):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def other_tokenizer(folder: pathlib.Path):
  (folder / "tokenizer.json").unlink()
  with (folder / "vocab.txt").open("a") as f:
    f.write("another\n")


NORM = "bert.embeddings.LayerNorm.weight"


@pytest.mark.parametrize("damage, message", [
    (cut, "model.safetensors: is not a complete safetensors file"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 1000), "not a complete"),
    (pickle_only, "pytorch_model.bin is a pickle"),
    (lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json"),
     "index.json: is not valid JSON"),
    (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read (No such file"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json: is not valid JSON"),
    (lambda folder: (folder / "config.json").write_text("[]"), "config.json: holds JSON of type"),
    (change_json("config.json", model_type="t5"), "model_type='t5'"),
    (change_json("config.json", hidden_size=24), "the shape [90, 16]; according to config.json"),
    (change_json("config.json", num_attention_heads=3), "num_attention_heads=3 does not divide"),
    (change_tensors(lambda t: {name: x for name, x in t.items() if name != NORM}),
     f"the tensor {NORM} is missing"),
    (change_tensors(lambda t: t | {"extra": t[NORM]}), "extra has no place"),
    (change_tensors(lambda t: t | {NORM: t[NORM][1:]}), f"the tensor {NORM} has the shape [15]"),
    (other_tokenizer, "its tokenizer has 91 tokens, but config.json says vocab_size=90"),
    (lambda folder: [path.unlink() for path in folder.iterdir() if "vocab" in path.name
                     or path.name == "tokenizer.json"], "no tokenizer there"),
])
def test_import_names_what_is_wrong(capsys, exported_bert, tmp_path, damage, message):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  damage(folder)
  code, lines = run(capsys, "import", f"--from={folder}", f"--workdir={tmp_path / 'w'}")
  assert (code, len(lines)) == (65, 1)
  assert message in lines[0]
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_import_refuses_a_workdir_that_exists_and_a_source_that_does_not(
    capsys, exported_bert, finished_bert, tmp_path):
  code, lines = run(capsys, "import", f"--from={exported_bert}", f"--workdir={finished_bert}")
  assert (code, len(lines)) == (2, 1) and "exists already" in lines[0]
  code, lines = run(capsys, "import", f"--from={tmp_path / 'no'}", f"--workdir={tmp_path / 'w'}")
  assert (code, len(lines)) == (2, 1) and "no such folder" in lines[0]
  code, lines = run(capsys, "import", f"--from={exported_bert}", f"--workdir={tmp_path / 'w'}",
                    "--config.seed=1")
  assert (code, len(lines)) == (2, 1) and "takes no config fields" in lines[0]
  assert not list(tmp_path.iterdir())


def test_import_that_fails_late_leaves_nothing(exported_bert, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda *_, **__: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    importing.import_model(exported_bert, tmp_path / "w")
  assert not list(tmp_path.iterdir())

def test_the_number_of_parameters_does_not_count_padding(both, tmp_path):
  """The token table has rows up to a multiple of 128; the vocabulary has 90 tokens."""
  _, exported = both
  tensors = load_file(exported / "model.safetensors")
  said = importing.import_model(exported, tmp_path / "w")
  assert f", {sum(x.size for x in tensors.values()):,} parameters\n" in said


@pytest.mark.hf
@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForMaskedLM"])
def test_the_number_of_parameters_is_that_of_transformers(name, exported_bert, tmp_path):
  transformers = pytest.importorskip("transformers", reason="needs transformers: make test-hf")
  theirs = getattr(transformers, name).from_pretrained(exported_bert)
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  theirs.save_pretrained(folder)
  assert theirs.config.vocab_size % 128
  said = importing.import_model(folder, tmp_path / "w")
  assert f", {theirs.num_parameters():,} parameters\n" in said


# ---------------------------------------------------- folders in place of runs


def without_heads(exported, folder):
  """Returns a BERT's tensors in the form of BertModel: without heads and without the prefix."""
  folder = shutil.copytree(exported, folder)
  change_tensors(lambda t: {name.removeprefix("bert."): x for name, x in t.items()
                            if name.startswith("bert.")})(folder)
  return folder


def output_of(capsys, *argv):
  capsys.readouterr()
  assert cli.main([str(a) for a in argv]) == 0
  return capsys.readouterr().out


def test_commands_do_the_same_with_a_folder_as_with_its_run(
    finished_bert, finished_gpt, exported_bert, exported_gpt, tmp_path, capsys):
  text = tmp_path / "text.txt"
  text.write_text("The cat sees the dog near a tree.\nA bird sees the cat.\n")
  before = {path: sorted(path.parent.rglob("*")) for path in (exported_bert, exported_gpt)}
  for run_of, folder, argv in (
      (finished_bert, exported_bert, ("fill", "The [MASK] sees the dog.")),
      (finished_bert, exported_bert, ("evaluate", f"--suite=text={text}", "--window=24")),
      (finished_gpt, exported_gpt, ("generate", "--prompt=The cat", "--max_tokens=9")),
      (finished_gpt, exported_gpt, ("evaluate", f"--suite=text={text}", "--window=24"))):
    expected = output_of(capsys, *argv, f"--workdir={run_of}")
    assert output_of(capsys, *argv, f"--workdir={folder}") == expected
  features = []
  for i, path in enumerate((finished_bert, exported_bert)):
    out = tmp_path / f"{i}.npy"
    output_of(capsys, "embed", f"--workdir={path}", f"--input={text}", f"--out={out}")
    features.append(np.load(out))
  np.testing.assert_allclose(*features, rtol=0, atol=1e-6)
  assert before == {path: sorted(path.parent.rglob("*")) for path in before}


def test_a_fine_tuning_starts_from_a_folder(tuning, exported_bert, tmp_path, capsys):
  folder = without_heads(exported_bert, tmp_path / "model")
  before = sorted(folder.rglob("*"))
  argv = ["finetune", f"--config={tuning}", f"--init={folder}", "--config.epochs=1"]
  code, lines = run(capsys, *argv)
  assert (code, len(lines)) == (2, 1)
  assert "Name a folder for the results with --workdir" in lines[0]
  assert cli.main([*argv, f"--workdir={tmp_path / 'tuned'}"]) == 0
  assert "drawn at random, because the folder has none" in capsys.readouterr().err
  assert json.loads((tmp_path / "tuned" / "results.json").read_text())["best_run"]
  assert sorted(folder.rglob("*")) == before


def test_a_command_that_needs_a_run_says_so(exported_bert, tmp_path, capsys):
  code, lines = run(capsys, "evaluate", f"--workdir={exported_bert}")
  assert (code, len(lines)) == (2, 1) and f"bertgpt import --from {exported_bert}" in lines[0]


@pytest.mark.parametrize("argv", [
    ("fill", "The [MASK] sees."), ("evaluate", "--suite=text=TEXT"),
    ("evaluate", "--suite=pairs=PAIRS")])
def test_a_head_that_a_command_needs_is_missed_in_one_line(argv, exported_bert, tmp_path, capsys):
  folder = without_heads(exported_bert, tmp_path / "model")
  (tmp_path / "text").write_text("The cat sees.\n")
  (tmp_path / "pairs").write_text("good\tbad\nThe cat sees.\tThe sees cat.\n")
  argv = [a.replace("TEXT", str(tmp_path / "text")).replace("PAIRS", str(tmp_path / "pairs"))
          for a in argv]
  code, lines = run(capsys, *argv, f"--workdir={folder}")
  errors = [line for line in lines if not line.startswith("note: ")]
  assert (code, len(errors)) == (2, 1) and "came without a masked-LM head" in errors[0]


OLD_MODES = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
             "pooling_mode_max_tokens": False, "pooling_mode_lasttoken": False}


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("pooling, modules, notes", [
    (OLD_MODES | {"pooling_mode_mean_tokens": True}, ["Pooling"], []),
    (OLD_MODES | {"pooling_mode_mean_tokens": True}, ["Pooling", "Normalize"],
     ["scales vectors to length 1, bertgpt does not"]),
    (OLD_MODES | {"pooling_mode_cls_token": True}, ["Pooling"],
     ["pools with cls, not with the mean. Use --layer cls of embed"]),
    (OLD_MODES | {"pooling_mode_max_tokens": True}, ["Pooling", "Dense"],
     ["pools with max, not with the mean",
      "left out: the module Dense of this sentence encoder, in"]),
    # As sentence-transformers 5.4 writes it.
    ({"pooling_mode": "mean"}, ["Pooling", "Normalize"],
     ["scales vectors to length 1, bertgpt does not"]),
    ({"pooling_mode": ["mean"]}, ["Pooling"], []),
    ({"pooling_mode": "cls"}, ["Pooling"],
     ["pools with cls, not with the mean. Use --layer cls of embed"]),
    ({"pooling_mode": ["mean", "lasttoken"]}, ["Pooling"],
     ["pools with mean, lasttoken, not with the mean alone"]),
])
def test_a_sentence_encoder_says_what_it_computes_from_its_features(
    exported_bert, tmp_path, pooling, modules, notes, is_old):
  """Encoders of 2020 have their model in a subfolder."""
  root, name = tmp_path / "model", "0_Transformer" * is_old
  folder = shutil.copytree(exported_bert, root / name)
  (root / "1_Pooling").mkdir()
  (root / "1_Pooling" / "config.json").write_text(json.dumps({"include_prompt": True} | pooling))
  (root / "modules.json").write_text(json.dumps(
      [{"idx": 0, "name": "0", "path": name,
        "type": f"sentence_transformers.models.{'BERT' if is_old else 'Transformer'}"}]
      + [{"idx": i, "name": str(i), "path": f"{i}_{name}",
          "type": f"sentence_transformers.models.{name}"} for i, name in enumerate(modules, 1)]))
  found = opening.open_folder(folder, "--from").notes
  assert len(found) == len(notes)
  assert all(part in note for part, note in zip(notes, found, strict=True))


def test_a_list_of_modules_in_the_parent_may_be_of_another_folder(exported_bert, tmp_path,
                                                                  monkeypatch):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  monkeypatch.chdir(folder)
  for path, number in (("0_Transformer", 0), ("", 0), ("model", 1)):
    (tmp_path / "modules.json").write_text(json.dumps(
        [{"path": path, "type": "sentence_transformers.models.Transformer"},
         {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]))
    assert len(opening.open_folder(pathlib.Path("."), "--from").notes) == number


@pytest.mark.parametrize("name, content, note", [
    ("sentence_bert_config.json", {"max_seq_length": 8}, "cuts texts to 8 tokens, bertgpt to the"),
    ("sentence_roberta_config.json", {"max_seq_length": 8}, "cuts texts to 8 tokens, bertgpt to"),
    ("sentence_bert_config.json", {"max_seq_length": 100_000, "do_lower_case": False}, ""),
    ("sentence_bert_config.json", {"max_seq_length": None}, ""),
    ("sentence_bert_config.json", {"max_seq_length": "8"}, ""),
    ("sentence_bert_config.json", [], ""),
    ("config_sentence_transformers.json", {"prompts": 3, "default_prompt_name": "query"}, ""),
    ("config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": "query"}, ""),
    ("config_sentence_transformers.json",
     {"prompts": {"query": "query: "}, "default_prompt_name": "query"}, "puts 'query: ' before"),
    ("config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None}, "")])
def test_a_sentence_encoder_says_what_it_does_with_texts(exported_bert, tmp_path, name, content,
                                                         note):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  (folder / name).write_text(json.dumps(content))
  found = opening.open_folder(folder, "--from").notes
  assert len(found) == bool(note) and note in "".join(found)


@pytest.mark.parametrize("name", [
    "sentence_bert_config.json", "config_sentence_transformers.json", "modules.json"])
def test_a_file_of_a_sentence_encoder_that_was_not_copied_is_named(exported_bert, tmp_path, name):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  (folder / name).symlink_to("../blobs/missing")
  with pytest.raises(DataError, match=f"{folder / name}: is a folder, or a link to a missing file"):
    opening.open_folder(folder, "--from")


@pytest.mark.parametrize("longest, note", [(8, "cuts texts to 8 tokens, bertgpt to"),
                                           (10**30, "")])
def test_a_sentence_encoder_may_leave_the_limit_to_its_tokenizer(exported_bert, tmp_path, longest,
                                                                 note):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  (folder / "sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
  change_json("tokenizer_config.json", model_max_length=longest)(folder)
  found = opening.open_folder(folder, "--from").notes
  assert len(found) == bool(note) and note in "".join(found)


@pytest.mark.parametrize("content", ["", "[", "3", "null", "{}", "[1]", '[{"type": 3}]',
                                     '[{"type": "a.Pooling", "path": "nowhere"}]'])
def test_a_damaged_list_of_modules_is_not_read(exported_bert, tmp_path, content):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  (folder / "modules.json").write_text(content)
  assert not opening.open_folder(folder, "--from").notes


def test_another_model_in_the_same_file_is_left_out_with_a_note(exported_bert, tmp_path):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  tensors = load_file(folder / "model.safetensors")
  save_file(tensors | {f"ema.{name}": x + 1 for name, x in tensors.items()},
            folder / "model.safetensors")
  found, expected = (opening.open_folder(path, "--from") for path in (folder, exported_bert))
  assert found.notes == ("left out, because they belong to another model in the same file: ema.*",)
  leaves, expected = trees.named_leaves(found.params), trees.named_leaves(expected.params)
  assert all(np.array_equal(leaves[path], x) for path, x in expected.items())


# --------------------------------------------------------- folders in a bucket


@pytest.fixture
def in_bucket(storage, exported_bert, bucket):  # `storage` first: it may skip the test.
  """Returns an exported folder, copied into the bucket."""
  for path in exported_bert.iterdir():
    (bucket / "model" / path.name).upload(path)
  return bucket / "model"


@pytest.mark.parametrize("name, content", [
    ("config.json", b"{"), ("model.safetensors", b"x" * 1000), ("tokenizer.json", b"[]"),
    ("adapter_config.json", b"{}"), ("config.json", b'{"model_type": "t5"}')])
def test_errors_name_the_bucket_and_not_the_copy(in_bucket, name, content):
  (in_bucket / name).write_bytes(content)
  with pytest.raises(UserError) as error:
    opening.open_folder(in_bucket, "--init")
  line = str(error.value)
  assert str(in_bucket) in line and str(files.copy_locally(in_bucket)) not in line


def test_a_run_of_this_program_is_not_imported(capsys, finished_bert, tuned, tmp_path):
  for source in (finished_bert, tuned, tuned / "lr0.01-seed0"):
    code, lines = run(capsys, "import", "--from", source, "--workdir", tmp_path / "run")
    assert (code, len(lines)) == (2, 1) and "is a run of bertgpt" in lines[0]
  assert not (tmp_path / "run").exists()


def test_a_folder_of_transformers_may_hold_a_folder_of_checkpoints(capsys, exported_bert, tmp_path):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  (folder / "checkpoints").mkdir()
  assert run(capsys, "fill", "--workdir", folder, "the [MASK] sees")[0] == 0


def test_a_field_that_a_folder_has_under_another_name_is_called_by_that(
    capsys, exported_bert, tmp_path):
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  change_json("config.json", num_attention_heads=5)(folder)
  code, lines = run(capsys, "import", "--from", folder, "--workdir", tmp_path / "run")
  assert code == 65 and "num_attention_heads=5" in lines[0] and "model." not in lines[0]


@pytest.mark.parametrize("names, is_equal", [
    (["input_ids", "attention_mask"], True),
    (["input_ids", "token_type_ids", "attention_mask"], False)])
def test_segments_that_a_tokenizer_does_not_number_are_all_the_first(
    capsys, exported_bert, tmp_path, names, is_equal):
  """transformers then gives both texts of a pair the first one, and so must an export."""
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  change_json("tokenizer_config.json", model_input_names=names)(folder)
  assert cli.main(["import", f"--from={folder}", f"--workdir={tmp_path / 'run'}"]) == 0
  assert ("are equal to the first one" in capsys.readouterr().out) == is_equal
  table = trees.named_leaves(checkpoint.restore_params(tmp_path / "run")[0])[
      "embeddings/segment/embedding"]
  assert len(table) == 2 and np.array_equal(table[0], table[1]) == is_equal


@pytest.mark.parametrize("name, is_equal", [
    ("TokenizersBackend", True), ("PreTrainedTokenizerFast", False), ("BertTokenizer", None)])
def test_segments_that_only_one_version_of_transformers_numbers_are_noted(
    capsys, exported_bert, tmp_path, name, is_equal):
  """Only transformers 5 writes TokenizersBackend; it numbers segments only for BertTokenizer."""
  folder = shutil.copytree(exported_bert, tmp_path / "model")
  settings = json.loads((folder / "tokenizer_config.json").read_text())
  del settings["model_input_names"]
  (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": name}))
  assert cli.main(["import", f"--from={folder}", f"--workdir={tmp_path / 'run'}"]) == 0
  out = capsys.readouterr().out
  assert ("are equal to the first one" in out) == (is_equal is True)
  assert ("segments are numbered, as in the pretraining" in out) == (is_equal is False)


def test_the_masking_of_an_imported_model_may_be_named(capsys, exported_bert, tmp_path):
  """Its folder does not say how it was trained."""
  assert cli.main(["import", f"--from={exported_bert}", f"--workdir={tmp_path / 'run'}"]) == 0
  scores = []
  for rate in ("0.15", "0.5"):
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", "--config.eval.max_rows=8",
                     "--config.phases[0].seq_len=32", f"--config.objective.mask_prob={rate}"]) == 0
    scores.append(capsys.readouterr().out)
  assert scores[0] != scores[1] and "mlm_loss" in scores[0]


def test_an_imported_model_is_evaluated_with_its_own_tokenizer_wherever_it_is(
    capsys, exported_bert, story, tmp_path):
  first, moved = tmp_path / "first", tmp_path / "moved"
  importing.import_model(exported_bert, first)
  fields = [f"--config.data.source=text:{story}", f"--config.data.cache_dir={tmp_path / 'cache'}",
            "--config.data.validation_fraction=0.1", "--config.phases[0].seq_len=32"]
  expected = output_of(capsys, "evaluate", f"--workdir={first}", *fields)
  shutil.move(first, moved)
  found = output_of(capsys, "evaluate", f"--workdir={moved}", *fields)
  metrics = lambda text: [line for line in text.splitlines() if line.startswith("mlm_")]
  assert metrics(found) == metrics(expected) != []
