"""Zero-shot evaluation: scores of a model on texts that it was not trained for.

There are four measures; every protocol of `suites.SUITES` names one of them. The texts are scored
in chunks, so that memory is bounded and interrupted work resumes.
"""

import contextlib
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from bertgpt import console
from bertgpt.errors import ConfigError
from bertgpt.hub import opening
from bertgpt.inference import long_documents, measures, multiple_choice, resumable, scorers, suites
from bertgpt.inference.long_documents import Part
from bertgpt.inference.measures import Record, Scores, Settings, Totals, is_enough
from bertgpt.inference.score import choose_window
from bertgpt.inference.suites import SUITES, Suite
from bertgpt.progress import Progress
from bertgpt.runs import trained as trained_lib
from bertgpt.runs.trained import Trained

CHUNK_ENTRIES = 256  # Texts that are scored before their scores are written.
SCORES = "scores"
STATE_FORMAT = 2  # Of unfinished work; raised if `measure_file` commits other values.


def run(path: pathlib.Path, spec: str, settings: Settings,
        dtype: str = trained_lib.SCORING_DTYPE, out: pathlib.Path | None = None) -> Iterator[str]:
  """Yields the lines that `bertgpt evaluate --suite` prints.

  Args:
    path: folder of the run, or of a model of `transformers`.
    spec: 'NAME=FILE,NAME=FILE'.
    settings: values of the flags.
    dtype: see `runs.trained.make_trained`.
    out: new .jsonl file for the scores of every text; if it is given and the work is interrupted,
      the same call resumes it. None: they are not written.
  Raises:
    ConfigError: no model in `path`, a suite that does not exist or does not fit the model, a
      wrong setting, or `out` exists.
    DataError: a file is damaged.
  """
  wanted = suites.parse(spec)
  if out is not None:
    resumable.check_out(out, (".jsonl",))
  trained = opening.open_model(path, dtype=dtype)
  settings = resolve(settings, trained)
  for name, _ in wanted:
    if ability := MEASURES[SUITES[name].measure].needs:
      trained_lib.require(trained, ability, f"be scored by {name}",
                          "Use choices, pairs, text or wikitext2")
  # Every file is read once before anything is scored, so that errors in it are found at once.
  found = [resumable.measure(map("\t".join, suites.iterate(*pair))) for pair in wanted]
  for pair in wanted:
    check_entries(trained, *pair, settings)
  trained = trained._replace(params=jax.device_put(trained.params))
  with contextlib.ExitStack() as stack:
    work = None
    if out is not None:
      identity = {"format of unfinished results": STATE_FORMAT,
                  "suites": ",".join(name for name, _ in wanted),
                  "texts": [measured.digest for measured in found],
                  "flags": settings._asdict()} | resumable.identify(trained)
      work = stack.enter_context(resumable.open_unfinished(out, identity))
    for i, ((name, file), measured) in enumerate(zip(wanted, found, strict=True)):
      suite = SUITES[name]
      with resumable.discarding(work):
        totals = measure_file(trained, name, file, measured, settings, work, i)
        try:
          scores = MEASURES[suite.measure].finish(trained, suite, totals, settings)
        except ConfigError as e:
          raise ConfigError(f"--suite {name} {file}: {e}") from e
      yield f"{name}: {pathlib.PurePath(file).name}, {scores.pop('protocol')}, {dtype}"
      for metric, value in scores.items():
        yield f"{name}/{metric} {value if isinstance(value, int) else format(value, '.6g')}"
    if work is not None:
      work.open(SCORES)
      work.publish(SCORES)


def check_entries(trained: Trained, name: str, file: str, settings: Settings) -> None:
  """Checks the texts of a suite's file that will be scored.

  Args:
    trained, name, file, settings: see `measure_file`.
  Raises:
    ConfigError: one of them cannot be scored.
  """
  suite = SUITES[name]
  if check := MEASURES[suite.measure].check:
    parts = make_parts(trained, name, file, suites.iterate(name, file))
    for chunk in chunks(itertools.islice(filter(measures.has_text, parts), settings.limit or None)):
      check(trained, suite, chunk, settings)


def measure_file(trained: Trained, name: str, file: str, measured: resumable.Measured,
                 settings: Settings, work: resumable.Unfinished | None, number: int) -> Totals:
  """Scores a suite's file, chunk by chunk, and returns its totals.

  Args:
    trained: the model.
    name: key of `SUITES`.
    file: see `suites.iterate`.
    measured: entries of the file.
    settings: result of `resolve`.
    work: unfinished results, from which the work resumes; None: nothing is written.
    number: index of the suite among those of the command.
  Raises:
    DataError: the file changes during the work.
  """
  suite = SUITES[name]
  done = list(work.state.get("suites", [])) if work else []
  if number + 1 < len(done):  # A later suite has begun.
    return done[number]["totals"]
  state: dict[str, Any] = (done.pop() if number < len(done) else
                           {"entries": 0, "carry": "", "totals": {}})
  totals, num_entries = dict(state["totals"]), state["entries"]
  entries = itertools.islice(
      resumable.reread(suites.iterate(name, file), measured, f"--suite {name} {file}", "\t".join),
      num_entries, None)
  unit = "lines" if suites.is_one_document(name, file) else "texts"
  progress = (Progress(settings.limit, f"scores of {name}", totals.get("scored", 0))
              if settings.limit else Progress(measured.num_texts, f"{unit} of {name}", num_entries))
  parts = make_parts(trained, name, file, entries, state["carry"])
  for chunk, records in add_parts(trained, suite, parts, settings, totals):
    added = sum(part.entries for part in chunk)
    num_entries += added
    progress.add(totals["scored"] - progress.done if settings.limit else added)
    if work:
      place = {"suite": name, "file": file}
      work.open(SCORES).writelines(json.dumps(place | record).encode() + b"\n"
                                   for record in records)
      work.commit(suites=[*done, {"entries": num_entries, "carry": chunk[-1].carry,
                                  "totals": totals}])
  return totals


def resolve(settings: Settings, trained: Trained) -> Settings:
  """Returns the settings with the defaults of a model.

  Args:
    settings: values of the flags.
    trained: the model.
  Raises:
    ConfigError: a stride was given, but the windows of the model do not overlap; or see
      `choose_window`.
  """
  if settings.stride and scorers.find(trained).by_line:
    raise ConfigError(f"--stride={settings.stride}: the model sees each line as a whole, so its "
                      "windows do not overlap. Leave it out")
  window, stride = choose_window(trained, settings.window, settings.stride)
  if not settings.window:
    trained_lib.note_former_rows(trained, f"--window={trained.config.model.max_positions}")
  if trained_lib.count_untrained(trained, [range(window)]):
    console.say(f"note: --window={window} is more than the rows of the training "
                f"({trained_lib.longest_row(trained)}). {trained_lib.UNTRAINED}")
  return settings._replace(window=window, stride=stride)


def measure(trained: Trained, suite: Suite, content: Sequence[Any], settings: Settings) -> Scores:
  """Returns the scores of a measure for texts in memory, and how they were obtained as 'protocol'.

  Args:
    trained: the model.
    suite: the protocol.
    content: documents, passages, (good, bad) sentences, or results of `suites.make_choice`.
    settings: result of `resolve`.
  Raises:
    ConfigError: see the functions of the measure.
  """
  totals: Totals = {}
  parts = (measures.make_part(suite, (entry,) if isinstance(entry, str) else entry)
           for entry in content)
  for _ in add_parts(trained, suite, parts, settings, totals):
    pass  # The records of the texts are not wanted.
  return MEASURES[suite.measure].finish(trained, suite, totals, settings)


def add_parts(trained: Trained, suite: Suite, parts: Iterable[Part], settings: Settings,
              totals: Totals) -> Iterator[tuple[list[Part], list[Record]]]:
  """Scores parts, chunk by chunk, until `settings.limit` is reached, and adds to the totals.

  Args:
    trained: the model.
    suite: the protocol.
    parts: the parts.
    settings: result of `resolve`.
    totals: totals of the texts before.
  Yields:
    (a chunk of parts, the scores of its texts).
  Raises:
    ConfigError: see the functions of the measure.
  """
  for chunk in chunks(parts):
    if is_enough(settings, totals):
      break
    yield chunk, MEASURES[suite.measure].add(trained, suite, chunk, settings, totals)


def chunks(parts: Iterable[Part]) -> Iterator[list[Part]]:
  """Yields parts in lists of bounded size."""
  return resumable.chunks(parts, CHUNK_ENTRIES, lambda part: sum(map(len, part.texts)))


def make_parts(trained: Trained, name: str, file: str, entries: Iterator[suites.Entry],
               carry: str = "") -> Iterator[Part]:
  """Yields the entries of a file as the measures read them; a long document comes in parts.

  Args:
    trained: the model.
    name: key of `SUITES`.
    file: see `suites.iterate`.
    entries: the entries, or those that are left.
    carry: `Part.carry` of the entry before those that are left.
  """
  suite = SUITES[name]
  # The lines of one document; a model that scores lines reads them one by one.
  if suites.is_one_document(name, file) and not scorers.find(trained).by_line:
    detokenize = functools.partial(suites.detokenize, detokenizer=suite.detokenizer)
    return long_documents.cut_document((line for line, in entries), trained.tokenizer, detokenize,
                                       carry)
  return (measures.make_part(suite, entry) for entry in entries)


# -------------------------------------------------------------------- the table


class Measure(NamedTuple):
  """One measure of zero-shot evaluation.

  Attributes:
    add: (trained, suite, chunk of parts, settings, totals) -> scores of the texts; adds to the
      totals. `scored` counts towards the limit.
    finish: (trained, suite, totals, settings) -> the scores by name, and how they were obtained as
      'protocol'.
    needs: ability that the model must have; '': any that has a scorer.
    check: (trained, suite, chunk of parts, settings) -> not used; raises ConfigError if the texts
      cannot be scored.
  """

  add: Callable[[Trained, Suite, Sequence[Part], Settings, Totals], list[Record]]
  finish: Callable[[Trained, Suite, Totals, Settings], Scores]
  needs: str = ""
  check: Callable[[Trained, Suite, Sequence[Part], Settings], Any] | None = None


MEASURES = {
    "perplexity": Measure(measures.add_perplexity, measures.finish_perplexity),
    "last_word": Measure(measures.add_last_words, measures.finish_last_words, needs="score",
                         check=measures.encode_passages),
    "pairs": Measure(measures.add_pairs, measures.finish_pairs, check=measures.encode_pairs),
    "choices": Measure(multiple_choice.add_choices, multiple_choice.finish_choices,
                       check=multiple_choice.encode_choices),
}
