"""bertgpt.report.compare and .curves: what the page shows is what the runs wrote."""

import contextlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from bertgpt import cli, files
from bertgpt import config as config_lib
from bertgpt.config import base, phase, recipes
from bertgpt.config.overrides import set_field
from bertgpt.config.stored import from_json, to_json
from bertgpt.errors import ConfigError
from bertgpt.report import bands, compare, curves
from bertgpt.report.curves import Curve


def make_run(path, steps=10, loss=2.0, **fields):
  """Makes a run with a log line every second step, and an evaluation at the end."""
  path.mkdir(parents=True)
  config = base()
  config.phases = (phase(steps=steps, seq_len=32, batch_size=8, learning_rate=1e-3),)
  for field, value in fields.items():
    set_field(config, field.replace("__", "."), value)
  (path / "config.json").write_text(to_json(config))
  points = [{"step": step, "train/mlm_loss": loss / step, "perf/step_seconds": 0.5,
             "perf/tokens_per_second": 400.0} for step in range(2, steps + 1, 2)]
  points.append({"step": steps, "eval/validation/mlm_loss": loss, "eval/validation/mlm_accuracy":
                 0.25})
  (path / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
  return path


class Page(HTMLParser):
  """Parses a page: its data, its tables, and the addresses that it would load."""

  def __init__(self, path):
    super().__init__()
    self.data, self.rows, self.addresses, self._inside = "", [], [], ""
    self.feed(path.read_text())
    self.data = json.loads(self.data)

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self._inside = "data" if attributes.get("id") == "data" else tag
    self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
    if tag == "tr":
      self.rows.append([])

  def handle_endtag(self, tag):
    self._inside = ""

  def handle_data(self, text):
    if self._inside == "data":
      self.data += text
    elif self._inside in ("td", "th"):
      self.rows[-1].append(text)


def test_a_curve_has_three_axes(tmp_path):
  run = curves.read_run(make_run(tmp_path / "a"))
  curve = run.curves["train/mlm_loss"]
  assert curve.step == [2, 4, 6, 8, 10]
  assert curve.seconds == [1, 2, 3, 4, 5]  # Half a second per step.
  assert curve.tokens == [400, 800, 1200, 1600, 2000]
  assert run.curves["eval/validation/mlm_loss"] == ([10], [2000], [5], [2.0])
  assert run.scores == {"mlm_loss": 2.0, "mlm_accuracy": 0.25}
  assert (run.steps, run.total_steps) == (10, 10)


def test_steps_that_were_left_out_take_no_time(tmp_path):
  run = curves.read_run(make_run(tmp_path / "a", train__skip_steps=((4, 5), (8, 8))))
  assert run.curves["train/mlm_loss"].step == [2, 4, 6, 8, 10]
  assert run.curves["train/mlm_loss"].seconds == [1, 1.5, 2, 2.5, 3.5]


def test_a_long_curve_is_read_once_and_only_points_of_the_page_are_placed(tmp_path, monkeypatch):
  path, placed, opened = make_run(tmp_path / "a", steps=6_000), [], []
  place_of, read_json_lines = curves._places, files.read_json_lines

  def note_places(*args):
    place = place_of(*args)
    return lambda step: (placed.append(step), place(step))[1]

  monkeypatch.setattr(curves, "_places", note_places)
  monkeypatch.setattr(files, "read_json_lines",
                      lambda path: (opened.append(path.name), read_json_lines(path))[1])
  run = curves.read_run(path)
  curve = run.curves["train/mlm_loss"]
  assert (len(curve.step), curve.step[0], curve.step[-1]) == (curves.MAX_POINTS, 2, 6_000)
  assert curve.seconds == [step / 2 for step in curve.step]
  assert run.steps == 6_000
  assert len(placed) == sum(len(curve.step) for curve in run.curves.values())
  assert opened.count("metrics.jsonl") == 1


def test_the_page_has_the_curves_the_scores_and_the_fields_that_differ(tmp_path, monkeypatch,
                                                                       capsys):
  monkeypatch.chdir(tmp_path)
  first = make_run(tmp_path / "a")
  second = make_run(tmp_path / "b", loss=3.0, optimizer__b2=0.95, log__every_steps=2)
  (second / "report.md").write_text("a <b>sample</b> & </script><script>@@DATA@@")
  assert cli.main(["compare", str(first), str(second)]) == 0
  printed = capsys.readouterr().out.splitlines()
  assert printed[0].split() == ["run", "steps", "tokens", "time", "mlm_loss", "mlm_accuracy"]
  assert printed[1].split() == ["a", "10/10", "2e+03", "0:00:05", "2", "0.25"]
  assert printed[5].split() == ["optimizer.b2", "0.999", "0.95"]
  page = Page(tmp_path / "compare.html")
  assert [run["label"] for run in page.data] == ["a", "b"]
  for run, path in zip(page.data, (first, second), strict=True):
    expected = {tag: curve._asdict() for tag, curve in curves.read_run(path).curves.items()}
    assert run["curves"] == expected
  assert ["b", "10/10", "2e+03", "0:00:05", "3", "0.25"] in page.rows
  assert ["optimizer.b2", "0.999", "0.95"] in page.rows
  assert not [row for row in page.rows if row[0].startswith("log.")]  # It affects no result.
  assert page.addresses == []  # The page needs no other file and no network.
  text = (tmp_path / "compare.html").read_text()
  assert "a &lt;b&gt;sample&lt;/b&gt; &amp; &lt;/script&gt;&lt;script&gt;@@DATA@@" in text
  assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_the_runs_of_a_sweep_are_compared(tmp_path):
  for name in ("sweep/000", "sweep/001", "other/000"):
    make_run(tmp_path / name)
  (tmp_path / "sweep" / "001-cola").mkdir()  # A fine-tuning workdir next to its run.
  (tmp_path / "sweep" / "001-cola" / "config.json").write_text("{}")
  runs = compare.read([tmp_path / "sweep", tmp_path / "other" / "000"])
  assert [run.name for run in runs] == [
      str(tmp_path / "sweep" / "000"), "001", str(tmp_path / "other" / "000")]


def test_each_run_has_a_name_of_its_own(tmp_path):
  """A column of the table of fields is named 'field'."""
  first, second = make_run(tmp_path / "a"), make_run(tmp_path / "field", seed=3)
  runs = compare.read([first, second, first], ["demo", "demo"])
  assert [run.name for run in runs] == ["a", str(second), "demo"]
  assert compare.lines(runs[:2])[-1].split() == ["seed", "0", "3"]


def test_each_reference_has_a_name_of_its_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run = make_run(tmp_path / "a")
  for folder in ("b", "c"):
    (tmp_path / folder).mkdir()
    assert cli.main(["compare", str(run), "--save_reference", f"{folder}/mine.json"]) == 0
  runs = compare.read([run], ["b/mine.json", "demo", "c/mine.json"])
  assert [run.name for run in runs] == ["a", "b/mine.json", "demo", "c/mine.json"]


def test_a_page_that_may_not_be_written_stops_all_of_the_command(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  run = make_run(tmp_path / "a")
  (tmp_path / "compare.html").write_text("mine")
  assert cli.main(["compare", str(run), "--save_reference", "mine.json"]) == 2
  assert not capsys.readouterr().out and not (tmp_path / "mine.json").exists()


def test_the_page_and_the_reference_are_two_files(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  run = make_run(tmp_path / "a")
  assert cli.main(["compare", str(run), "--save_reference", "x", "--out", "x"]) == 2
  assert "/x: is also the --out of the page. Name two files" in capsys.readouterr().err
  assert not (tmp_path / "x").exists()


def test_a_phase_that_a_run_lacks_is_one_line(tmp_path):
  first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
  config = from_json((second / "config.json").read_bytes())
  config.phases = (*config.phases, phase(steps=7, seq_len=64, batch_size=4))
  (second / "config.json").write_text(to_json(config))
  assert curves.differences(compare.read([first, second])) == {
      "phases[1]": [None, "7 steps of 4 rows of 64 tokens"]}


def test_a_reference_has_few_points_and_finds_its_recipe(tmp_path, monkeypatch):
  monkeypatch.setattr(curves, "REFERENCES", tmp_path / "references")
  (tmp_path / "references").mkdir()
  run = curves.read_run(make_run(tmp_path / "a", steps=1000))
  assert curves.find_reference(run) is None
  curves.save_reference(bands.average([run]), tmp_path / "references" / "mine.json")
  assert (tmp_path / "references" / "mine.json").stat().st_size < 20_000
  reference = curves.find_reference(curves.read_run(make_run(tmp_path / "b", steps=1000, loss=9.0)))
  assert (reference.name, reference.is_reference) == ("mine", True)
  assert curves.find_reference(curves.read_run(make_run(tmp_path / "c", optimizer__b1=0.5))) is None
  assert curves.reference_names() == ["mine"]
  found, whole = reference.curves["train/mlm_loss"], run.curves["train/mlm_loss"]
  assert len(found.step) == 40 and found.step[0] == 2 and found.step[-1] == 1000
  for step, value in zip(found.step[1:-1], found.value[1:-1], strict=True):
    near = [v for s, v in zip(whole.step, whole.value, strict=True) if abs(s - step) <= 14]
    assert min(near) <= value <= max(near)  # The mean of the nearest points.
  assert reference.curves.keys() == {"train/mlm_loss", "eval/validation/mlm_loss",
                                     "eval/validation/mlm_accuracy"}


@pytest.mark.parametrize("field, value", [
    ("data.corpus", "corpora/books"), ("eval.mask_prob", 0.5), ("eval.max_rows", 64),
    ("eval.rows_by", "phase")])
def test_another_text_and_other_held_out_rows_are_a_difference(tmp_path, monkeypatch, field, value):
  """A resumed run may change these fields, but its scores would then mean something else."""
  monkeypatch.setattr(curves, "REFERENCES", tmp_path)
  first = curves.read_run(make_run(tmp_path / "a"))
  other = curves.read_run(make_run(tmp_path / "b", seed=1, **{field.replace(".", "__"): value}))
  assert curves.differences([first, other]).keys() == {"seed", field}
  with pytest.raises(ConfigError, match=f"more than their seed, in {field}"):
    bands.average([first, other])
  curves.save_reference(bands.average([first]), tmp_path / "mine.json")
  assert curves.find_reference(first).name == "mine"
  assert curves.find_reference(other) is None


def test_an_existing_file_is_read_before_a_reference_that_comes_with_bertgpt(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run = curves.read_run(make_run(tmp_path / "a"))
  assert curves.read_reference("demo").total_steps == 3300
  curves.save_reference(bands.average([run]), tmp_path / "demo")
  assert curves.read_reference("demo").total_steps == 10


def test_a_reference_without_fields_of_later_versions_has_their_defaults(tmp_path):
  run = curves.read_run(make_run(tmp_path / "a", optimizer__b2=0.95))
  curves.save_reference(bands.average([run]), tmp_path / "mine.json")
  stored = json.loads((tmp_path / "mine.json").read_text())["fields"]
  assert [field for field in stored if not field.startswith("phases[")] == ["optimizer.b2"]
  assert curves.read_reference(str(tmp_path / "mine.json")).fields == run.fields


@pytest.mark.parametrize("name", curves.reference_names())
def test_references_that_come_with_bertgpt_are_those_of_their_recipes(name):
  reference, config = curves.read_reference(name), recipes.load(name)
  fields = curves.plain_fields(config)
  assert reference.fields.keys() == fields.keys()
  assert {field for field in fields if reference.fields[field] != fields[field]} <= set(
      curves.PLACES)
  assert reference.total_steps == config_lib.total_steps(config) >= reference.steps
  assert reference.about or reference.fields["data.source"] == "pydocs"
  assert (curves.REFERENCES / f"{name}.json").stat().st_size < 10_000


def test_a_reference_does_not_name_files(tmp_path):
  fields = dict.fromkeys(curves.PLACES, f"text:{tmp_path}/x.txt")
  run = curves.read_run(make_run(tmp_path / "a", **fields))
  curves.save_reference(bands.average([run]), tmp_path / "mine.json")
  assert str(tmp_path) not in (tmp_path / "mine.json").read_text()
  reference = curves.read_reference(str(tmp_path / "mine.json"))
  assert curves.differences([run, reference]) == {}


def test_a_file_of_a_reference_can_be_compared(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  run = make_run(tmp_path / "a")
  for _ in range(2):  # A reference is replaced.
    assert cli.main(["compare", str(run), "--save_reference", "mine.json"]) == 0
  assert cli.main(["compare", str(run), "--reference", "mine.json"]) == 0
  assert "reference mine" in capsys.readouterr().out
  labels = [(r["label"], r["is_reference"]) for r in Page(tmp_path / "compare.html").data]
  assert labels == [("a", False), ("reference mine", True)]


def test_a_reference_of_a_run_that_is_not_finished_says_so(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  make_run(tmp_path / "a")
  other = make_run(tmp_path / "b", seed=1)
  for command, shown in ((["a"], "reference of 1 run, steps"),
                         (["a", "b"], "reference of 2 runs, steps")):
    assert cli.main(["compare", *command, "--save_reference", "mine.json"]) == 0
    out = capsys.readouterr().out
    assert f"mine.json: {shown} 0 to 10 of 10" in out and "not finished" not in out
  lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
  (other / "metrics.jsonl").write_text(
      "".join(line for line in lines if json.loads(line)["step"] <= 4))
  assert cli.main(["compare", "a", "b", "--save_reference", "mine.json"]) == 0
  out = capsys.readouterr().out
  assert "mine.json: reference of 2 runs, steps 0 to 4 of 10" in out
  assert "note: not finished: b. " in out


@pytest.mark.parametrize("arguments, fragment", [
    (["nowhere"], "nowhere"), (["a", "--reference", "none"], "--reference none: no such file or"),
    (["a", "--reference", "a/config.json"], "is not a reference"),
    (["a", "--out", "a/config.json"], "is not a page of bertgpt"), ([], "required: RUN"),
    (["a", "--out", "a"], "is not a page of bertgpt, so it is not replaced"),
    (["a", "--out", "none/a.html"], "none/a.html: there is no folder"),
    (["a", "--save_reference", "none/a.json"], "none/a.json: there is no folder"),
    (["a", "--save_reference", "a/config.json"], "is not a reference, so it is not replaced")])
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, fragment):
  monkeypatch.chdir(tmp_path)
  config = make_run(tmp_path / "a") / "config.json"
  before = config.read_text()
  assert cli.main(["compare", *arguments]) == 2
  assert config.read_text() == before
  assert fragment in capsys.readouterr().err.strip().splitlines()[0]


def test_a_run_that_has_just_begun_and_values_that_are_not_finite(tmp_path):
  path = make_run(tmp_path / "a")
  (path / "metrics.jsonl").write_text('{"step": 1, "train/loss": NaN}\n')
  empty = make_run(tmp_path / "b")
  (empty / "metrics.jsonl").unlink()
  runs = compare.read([path, empty])
  compare.write_page(runs, tmp_path / "page.html", "<title>")
  first, second = Page(tmp_path / "page.html").data
  assert first["curves"]["train/loss"]["value"] == [None] and second["curves"] == {}


@pytest.mark.parametrize("damage", [
    lambda stored: stored["curves"]["train/mlm_loss"]["value"].pop(),
    lambda stored: stored["curves"]["train/mlm_loss"].update(value=["x"] * 5),
    lambda stored: stored["curves"].update({"train/mlm_loss": dict.fromkeys(Curve._fields, [])}),
    lambda stored: stored.update(scores=[1]), lambda stored: stored.update(fields=[1])])
def test_a_damaged_reference_is_refused(tmp_path, damage):
  path = tmp_path / "mine.json"
  curves.save_reference(bands.average([curves.read_run(make_run(tmp_path / "a"))]), path)
  damage(stored := json.loads(path.read_text()))
  path.write_text(json.dumps(stored))
  with pytest.raises(ConfigError, match="is not a reference"):
    curves.read_reference(str(path))


# ------------------------------------------------------------------ browser


@pytest.fixture
def chromium():
  program = shutil.which("chromium") or shutil.which("google-chrome")
  if program is None:
    pytest.skip("chromium is not installed")
  return program


@pytest.fixture
def browser(chromium):
  sync_api = pytest.importorskip("playwright.sync_api")
  with sync_api.sync_playwright() as playwright, contextlib.closing(
      playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])) as browser:
    yield browser


def test_a_browser_draws_every_curve(tmp_path, chromium):
  runs = compare.read([make_run(tmp_path / "a"), make_run(tmp_path / "b", loss=3.0)])
  compare.write_page([*runs, runs[0]._replace(name="c", is_reference=True)],
                     tmp_path / "page.html", "a & b")
  result = subprocess.run(
      [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user",
       "--dump-dom", (tmp_path / "page.html").as_uri()],
      capture_output=True, text=True, timeout=1200, check=True)
  lines = re.findall(r'data-run="(.*?)" data-tag="(.*?)"', result.stdout)
  assert sorted(lines) == sorted((name, tag) for name in ("a", "b", "reference c")
                                 for tag in runs[0].curves)
  assert result.stdout.count("<circle") == 6  # Two held-out scores of all three.
  bands_of = re.findall(r'<polygon[^>]* data-tag="(.*?)"', result.stdout)
  assert bands_of == ["eval/validation/mlm_loss"]


def test_a_browser_draws_single_points_and_values_that_hardly_differ(tmp_path, chromium):
  path = make_run(tmp_path / "a")
  (path / "metrics.jsonl").write_text(
      '{"step": 1, "train/almost": 0.7, "train/single": 3.0}\n'
      '{"step": 2, "train/almost": 0.7000000000000001}\n')
  compare.write_page(compare.read([path]), tmp_path / "page.html", "a")
  result = subprocess.run(
      [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user",
       "--dump-dom", (tmp_path / "page.html").as_uri()],
      capture_output=True, text=True, timeout=120, check=True)
  assert result.stdout.count("<polyline") == 2 and result.stdout.count("<circle") == 1


def test_a_browser_changes_the_axes(tmp_path, browser):
  runs = compare.read([make_run(tmp_path / "a"), make_run(tmp_path / "b", loss=3.0)])
  compare.write_page([*runs, runs[0]._replace(name="a", is_reference=True)],
                     tmp_path / "page.html", "a & b")
  page, errors = browser.new_page(), []
  page.on("pageerror", lambda error: errors.append(error))
  page.on("request", lambda request: errors.append(request.url)
          if not request.url.startswith("file:") else None)
  page.goto((tmp_path / "page.html").as_uri())
  assert page.title() == "a & b"
  panels = page.locator("svg")
  names = panels.evaluate_all("all => all.map(svg => svg.dataset.metric)")
  assert names == ["mlm_loss", "mlm_accuracy", "step_seconds", "tokens_per_second"]
  lines = panels.nth(0).locator("polyline")
  assert lines.evaluate_all("all => all.map(line => [line.dataset.run, line.dataset.tag])") == [
      [run, tag] for run in ("reference a", "a", "b")
      for tag in ("train/mlm_loss", "eval/validation/mlm_loss")]
  assert panels.nth(0).locator("circle").count() == 3
  assert "Held-out scores" in page.inner_text("body")
  before = page.inner_text("#panels figure:nth-child(1)")
  page.check("input[value=tokens]")
  assert page.inner_text("#panels figure:nth-child(1)") != before  # The axis has changed.
  page.check("#log")
  assert panels.count() == 4 and errors == []
  heights = [[float(pair.split(",")[1]) for pair in points.split()] for points in
             lines.evaluate_all("all => all.map(line => line.getAttribute('points'))")]
  assert heights[0] == sorted(heights[0])  # The loss falls, so the curve goes down the page.


def test_a_description_without_a_reference_is_refused(tmp_path, capsys):
  run = make_run(tmp_path / "run")
  assert cli.main(["compare", str(run), "--about", "my text"]) == 2
  assert "--about belongs to --save_reference" in capsys.readouterr().err


def test_a_damaged_list_of_steps_that_are_left_out_is_named(tmp_path, capsys):
  copy = make_run(tmp_path / "copy")
  text = (copy / "config.json").read_text()
  (copy / "config.json").write_text(text.replace('"skip_steps": []', '"skip_steps": [5]'))
  assert cli.main(["compare", str(copy), f"--out={tmp_path}/a.html"]) == 2
  assert "config.json: train.skip_steps=(5,): give" in capsys.readouterr().err
