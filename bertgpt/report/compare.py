"""Comparison of runs: a table, and a page with curves, configs, scores and samples in one file."""

import collections
import html
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from bertgpt import console, files
from bertgpt.config import metric_names
from bertgpt.errors import ConfigError
from bertgpt.report import bands, curves
from bertgpt.report.curves import Compared
from bertgpt.runs import folder_kinds

TEMPLATE = pathlib.Path(__file__).with_name("page.html")
MARK = "<!-- A page of bertgpt. -->"  # First line; files without it are not replaced.


def find_runs(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """Returns the workdirs of runs; the folder of a sweep stands for all of its runs that have begun.

  Args:
    paths: workdirs of runs, and folders of sweeps.
  """
  return [run for path in paths for run in folder_kinds.runs_of_sweep(path) or [path]]


def read(paths: Sequence[pathlib.Path], references: Sequence[str] = ()) -> list[Compared]:
  """Returns the runs, with unique names, and the references, each of them once.

  Args:
    paths: see `find_runs`.
    references: see `curves.read_reference`.
  Raises:
    ConfigError: there is no such run or reference.
  """
  paths = list(dict.fromkeys(find_runs(paths)))
  names = ["field", *(path.name for path in paths)]  # "field" is a column of a table.
  runs = [curves.read_run(path) for path in paths]
  flags = list(dict.fromkeys(references))
  found = [curves.read_reference(flag) for flag in flags]
  twice = {name for name, count in collections.Counter(one.name for one in found).items()
           if count > 1}
  return [run._replace(name=str(path)) if names.count(path.name) > 1 else run
          for run, path in zip(runs, paths, strict=True)] + [
              one._replace(name=flag) if one.name in twice else one
              for one, flag in zip(found, flags, strict=True)]


def label(run: Compared) -> str:
  """Returns the name of a run, or 'reference NAME'."""
  return f"reference {run.name}" if run.is_reference else run.name


def notes(runs: Sequence[Compared]) -> list[str]:
  """Returns lines: whether each run is on course, and what the references were trained on.

  Args:
    runs: runs and references.
  """
  return [*bands.courses(runs), *(f"{label(run)}: {run.about}" for run in runs if run.about)]


def table(runs: Sequence[Compared]) -> list[dict[str, Any]]:
  """Returns a row per run: name, steps, tokens, time in steps, and the last held-out scores.

  Args:
    runs: runs and references.
  """
  rows: list[dict[str, Any]] = []
  for run in runs:
    longest = max(run.curves.values(), key=lambda curve: curve.step[-1], default=None)
    rows.append({
        "run": label(run), "steps": f"{run.steps}/{run.total_steps}",
        "tokens": f"{longest.tokens[-1]:.3g}" if longest else "",
        "time": console.format_duration(longest.seconds[-1]) if longest else "", **run.scores})
  names = dict.fromkeys(name for row in rows for name in row)
  return [{name: row.get(name, "") for name in names} for row in rows]


def lines(runs: Sequence[Compared]) -> list[str]:
  """Returns the output of `bertgpt compare`: scores, whether runs are on course, other fields.

  Args:
    runs: runs and references.
  """
  found = console.format_table(table(runs))
  if said := notes(runs):
    found += ["", *said]
  if fields := curves.differences(runs):
    rows = [{"field": field, **{label(run): json.dumps(value)
                                for run, value in zip(runs, values, strict=True)}}
            for field, values in fields.items()]
    found += ["", *console.format_table(rows)]
  return found


def write_page(runs: Sequence[Compared], path: pathlib.Path, title: str) -> None:
  """Writes the page: one file of HTML, which needs no other file and no network.

  Args:
    runs: runs and references.
    path: file to write; a page of bertgpt is replaced.
    title: heading of the page.
  Raises:
    ConfigError: there is another file at `path`.
    OSError: the file cannot be written.
  """
  check_replaceable(path)
  data = [{"label": label(run), "is_reference": run.is_reference,
           "bands": {tag: bands.limits(run, tag) for tag in run.curves
                     if run.is_reference and metric_names.is_loss(tag)},
           "curves": {tag: curve._asdict() for tag, curve in run.curves.items()}} for run in runs]
  # In a script element, only '<' could be taken for HTML.
  content = json.dumps(files.without_nonfinite(data)).replace("<", "\\u003c")
  said = "\n".join(f"<p class=course>{html.escape(line)}</p>" for line in notes(runs))
  parts = {"@@TITLE@@": html.escape(title), "@@NOTES@@": said, "@@BODY@@": body(runs),
           "@@DATA@@": content}
  page = re.sub("|".join(parts), lambda match: parts[match[0]], TEMPLATE.read_text("utf-8"))
  files.write_atomically(path, f"{MARK}\n{page}")


def check_replaceable(path: pathlib.Path, flag: str = "--out") -> None:
  """Checks that a page may be written.

  Args:
    path: file of the page, which need not exist.
    flag: flag that names the file, or its folder, for messages.
  Raises:
    ConfigError: there is another file at `path`.
  """
  if path.exists() and not (path.is_file() and path.read_bytes().startswith(MARK.encode())):
    raise ConfigError(f"{flag} {path}: is not a page of bertgpt, so it is not replaced. Move it "
                      "away, or name another file")


def body(runs: Sequence[Compared]) -> str:
  """Returns the parts of the page that need no script: scores, fields that differ, reports.

  Args:
    runs: runs and references.
  """
  parts = ["<h2>Held-out scores</h2>", _html_table(table(runs))]
  if fields := curves.differences(runs):
    parts += ["<h2>Fields that differ</h2>", _html_table([
        {"field": field, **{label(run): json.dumps(value)
                            for run, value in zip(runs, values, strict=True)}}
        for field, values in fields.items()])]
  for run in runs:
    if run.report:
      parts += [f"<details{' open' if len(runs) < 3 else ''}><summary>Report and samples: "
                f"{html.escape(label(run))}</summary><pre>{html.escape(run.report)}</pre></details>"]
    if run.time:
      parts += [f"<p>{html.escape(label(run))}. {html.escape(run.time)}</p>"]
  return "\n".join(parts)


def _html_table(rows) -> str:
  show = lambda value: html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
  head = "".join(f"<th>{show(name)}</th>" for name in rows[0])
  cells = "".join("<tr>" + "".join(f"<td>{show(value)}</td>" for value in row.values()) + "</tr>\n"
                  for row in rows)
  return (f"<div class=wide><table><thead><tr>{head}</tr></thead>"
          f"<tbody>\n{cells}</tbody></table></div>")
