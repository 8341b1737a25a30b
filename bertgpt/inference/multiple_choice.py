"""The measure of multiple choice: which of several endings is the likeliest after a context.

The definitions are those of lm-evaluation-harness (output_type multiple_choice), so that scores can
be compared. A decoder gives the log-likelihood of an ending, an encoder its pseudo-log-likelihood,
with each token of the ending masked once and the context visible.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bertgpt.errors import ConfigError
from bertgpt.inference import measures, scorers
from bertgpt.inference.long_documents import Part
from bertgpt.inference.measures import Record, Scores, Settings, Totals
from bertgpt.inference.scorers import Row
from bertgpt.inference.suites import Suite
from bertgpt.runs.trained import Trained

# Score -> length of an ending, by which its log-likelihood is divided. The harness counts
# characters for acc_norm, although it is often described as a norm by bytes.
METRICS: dict[str, Callable[[str], int]] = {
    "acc": lambda ending: 1,
    "acc_norm": len,
    "acc_bytes": lambda ending: len(ending.encode()),
}


class Ending(NamedTuple):
  """An ending after its context, as the model sees it.

  Attributes:
    text: context and ending.
    tokens: ids of the text, int [N].
    row: the row that scores the tokens of the ending.
    num_cut: tokens left out at the start of the context.
  """

  text: str
  tokens: np.ndarray
  row: Row
  num_cut: int


def add_choices(trained: Trained, suite: Suite, parts: Sequence[Part], settings: Settings,
                totals: Totals) -> list[Record]:
  """Compares the endings of every context, and adds to the totals.

  Args:
    trained: the model.
    suite: the protocol; not read.
    parts: results of `suites.make_choice`.
    settings: result of `resolve`.
    totals: totals of the contexts before.
  Returns:
    The log-likelihoods of all endings, in nats, and whether each metric is right, for every
    context.
  Raises:
    ConfigError: see `encode_choices`.
  """
  parts = parts[:measures.room(settings, totals)]
  encoded = encode_choices(trained, suite, parts, settings)
  measures.add_unknown(trained, [x.text for x in encoded], [x.tokens for x in encoded], totals)
  scores = iter(scorers.find(trained).score(trained, [x.row for x in encoded],
                                            settings.batch_size))
  num_cut = iter([x.num_cut for x in encoded])
  records: list[Record] = []
  for part in parts:
    label, _, *endings = part.texts
    logp = np.array([next(scores).sum(dtype=np.float64) for _ in endings])
    measures.add_to(totals, scored=1, endings=len(endings), chance=1 / len(endings),
                    cut=sum(next(num_cut) > 0 for _ in endings))
    record: Record = {"text": totals["scored"], "label": int(label), "logp": logp.tolist()}
    for metric, length in METRICS.items():
      # White space that separates an ending from its context is not part of its length.
      is_right, is_tie = compare(logp / [length(x.lstrip()) for x in endings], int(label))
      measures.add_to(totals, **{metric: is_right, f"{metric}_ties": is_tie})
      record[metric] = is_right
    records.append(record)
  return records


def compare(scores: np.ndarray, label: int) -> tuple[bool, bool]:
  """Returns whether an entry is greater than all others, and whether it shares the first place.

  Args:
    scores: float [E].
    label: index of the entry.
  """
  most = np.delete(scores, label).max()
  return bool(scores[label] > most), bool(scores[label] == most)


def encode_choices(trained: Trained, suite: Suite, parts: Sequence[Part],
                   settings: Settings) -> list[Ending]:
  """Returns the endings of all contexts, one after the other.

  Context and ending are tokenized together, and the tokens of the ending are those after as many
  as the context has when it is tokenized by itself, as in lm-evaluation-harness.

  Args:
    trained, suite, settings: see `add_choices`.
    parts: results of `suites.make_choice`.
  Raises:
    ConfigError: an ending has no tokens, or does not fit into the window, or nothing is before it.
  """
  del suite
  contexts = trained.tokenizer.encode([part.texts[1] for part in parts])
  texts = [(i, ending, part.texts[1] + ending) for i, part in enumerate(parts)
           for ending in part.texts[2:]]
  join, encoded = scorers.find(trained).join, []
  for (i, ending, text), tokens in zip(texts, trained.tokenizer.encode([x for *_, x in texts]),
                                       strict=True):
    ids = tokens[len(contexts[i]):]
    row, num_cut = join(trained, contexts[i], ids, settings.window)
    name = f"--suite choices: the ending {ending.strip()[:40]!r}"
    if not len(ids):
      raise ConfigError(f"{name} has no tokens of its own. Remove its object")
    if (most := len(row.tokens) - row.first) < len(ids):
      raise ConfigError(f"{name} has {len(ids)} tokens, and the window holds {most}. Give a longer "
                        "--window, or remove its object" if num_cut else
                        f"{name} has no token before it that predicts its first one. Give its "
                        "object a context")
    encoded.append(Ending(text, tokens, row, num_cut))
  return encoded


def finish_choices(trained: Trained, suite: Suite, totals: Totals, settings: Settings) -> Scores:
  """Returns how often the right ending is the likeliest one, by every metric.

  A tie is not correct. In lm-evaluation-harness, it is correct if the right ending comes first.

  Args:
    trained: the model.
    suite: not used.
    totals: totals of all contexts.
    settings: result of `resolve`.
  Raises:
    ConfigError: there are none.
  """
  del suite
  measures.check_scored(totals)
  count, scorer = totals["scored"], scorers.find(trained)
  remarks = [f"{count} contexts with {totals['endings']} endings"]
  if cut := totals["cut"]:
    remarks.append(f"{cut} of them with a context cut at its left to fit {settings.window} tokens")
  remarks.append(f"chance {totals['chance'] / count:.3g}")
  if not scorer.is_likelihood:
    remarks.append(scorer.how(trained))
  ties = {metric: totals[f"{metric}_ties"] for metric in METRICS}
  if any(ties.values()):
    remarks.append(" and ".join(f"{n} tie{'s' * (n != 1)} of {metric}"
                                for metric, n in ties.items() if n) + " counted as wrong")
  return {"protocol": ", ".join(remarks) + measures.remark_unknown(totals),
          **{metric: totals[metric] / count for metric in METRICS}}
