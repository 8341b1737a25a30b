"""`bertgpt generate`: continuations of texts."""

import argparse

from bertgpt.commands import flags

HELP = "Continue texts with a GPT, or with an encoder trained by masked diffusion."
USES = ("bertgpt.data.text.texts", "bertgpt.inference.generate")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `bertgpt generate`."""
  flags.add_workdir(parser, flags.OR_MODEL)
  given = parser.add_mutually_exclusive_group()
  given.add_argument("--prompt", action="append", metavar="TEXT",
                     help="text to continue; may be given several times; without it, or with an "
                          "empty one, the model begins a document")
  given.add_argument("--input", type=flags.local_path, metavar="FILE",
                     help="file with one prompt per line; of JSON lines (.jsonl, .ndjson, "
                          ".json), the field text")
  parser.add_argument("--max_tokens", type=flags.number(int, 1), metavar="N",
                      help="maximum number of tokens to add; default: 100, or fewer if the rows of "
                           "the training leave less room")
  parser.add_argument("--temperature", type=flags.number(float, 0), default=1.0, metavar="T",
                      help="divisor of the logits; 0: always the likeliest token; default: 1")
  parser.add_argument("--top_k", type=flags.number(int, 0, 2**31 - 1), default=0, metavar="K",
                      help="draw among the K likeliest tokens; 0, the default: among all")
  parser.add_argument("--top_p", type=flags.number(float, 1e-6, 1), default=1.0, metavar="P",
                      help="draw among the smallest set of likeliest tokens whose probabilities "
                           "sum to P or more; 1, the default: among all")
  parser.add_argument("--steps", type=flags.number(int, 1), metavar="N",
                      help="masked diffusion: steps in which the tokens are revealed; default: one "
                           "per token; fewer are faster and worse")
  parser.add_argument("--seed", type=flags.number(int, 0, 2**32 - 1), default=0, metavar="N",
                      help="seed of the draws; default: 0")
  parser.add_argument("--num_samples", type=flags.number(int, 1, 2**16), default=1, metavar="N",
                      help="continuations per prompt; default: 1")
  parser.add_argument("--out", type=flags.local_path, metavar="FILE",
                      help="new .jsonl file with one JSON object per continuation: prompt, sample "
                           "(index among the continuations of the prompt, from 0), text (which "
                           "includes the prompt as the tokenizer decodes it) and continuation "
                           "(the text without the prompt); default: the texts are printed")
  flags.add_batch_size(parser)
  flags.add_dtype(parser)


def run(arguments: argparse.Namespace) -> None:
  """Prints the continuations, separated by blank lines, or writes them to a file."""
  from bertgpt.data.text import texts
  from bertgpt.inference import generate
  prompts = (texts.read_texts(arguments.input, "--input") if arguments.input else
             [texts.clean_text(prompt, "--prompt") for prompt in arguments.prompt or [""]])
  sampling = generate.Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
  made = generate.run(
      arguments.workdir, prompts, arguments.max_tokens, sampling, seed=arguments.seed,
      num_samples=arguments.num_samples, batch_size=arguments.batch_size or flags.BATCH_SIZE,
      steps=arguments.steps, dtype=arguments.dtype, out=arguments.out)
  print(f"{arguments.out}: {len(made)} text{'s' * (len(made) != 1)}" if arguments.out else
        "\n\n".join(made))
