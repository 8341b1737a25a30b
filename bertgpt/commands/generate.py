"""`bertgpt generate`: continuations of texts."""

from bertgpt.commands import flags

HELP = "Continue texts with a GPT."
USES = ("bertgpt.data.text.texts", "bertgpt.inference.generate")


def add_flags(parser):
  flags.add_workdir(parser)
  given = parser.add_mutually_exclusive_group(required=True)
  given.add_argument("--prompt", action="append", metavar="TEXT",
                     help="text to continue; may be given several times")
  given.add_argument("--input", type=flags.local_path, metavar="FILE",
                     help="one prompt per line; in a .jsonl file the field text")
  parser.add_argument("--max_tokens", type=flags.number(int, 1), metavar="N",
                      help="tokens added at most; default: 100, or what the rows of the training "
                           "leave")
  parser.add_argument("--temperature", type=flags.number(float, 0), default=1.0, metavar="T",
                      help="0 takes the likeliest token; default: 1")
  parser.add_argument("--top_k", type=flags.number(int, 0, 2**31 - 1), default=0, metavar="K",
                      help="draw among the K likeliest tokens; 0: among all")
  parser.add_argument("--top_p", type=flags.number(float, 1e-6, 1), default=1.0, metavar="P",
                      help="draw among the fewest likeliest tokens that have this probability "
                           "together")
  parser.add_argument("--seed", type=flags.number(int, 0, 2**32 - 1), default=0, metavar="N",
                      help="seed of the draws; default: 0")
  parser.add_argument("--num_samples", type=flags.number(int, 1, 2**16), default=1, metavar="N",
                      help="continuations of each prompt")
  flags.add_batch_size(parser)


def run(arguments):
  from bertgpt.data.text import texts
  from bertgpt.inference import generate
  prompts = arguments.prompt or texts.read_texts(arguments.input, "--input")
  sampling = generate.Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
  print("\n\n".join(generate.run(
      arguments.workdir, prompts, arguments.max_tokens, sampling, seed=arguments.seed,
      num_samples=arguments.num_samples, batch_size=arguments.batch_size or flags.BATCH_SIZE)))
