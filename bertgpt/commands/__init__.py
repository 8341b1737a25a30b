"""The commands of the program: one module and one line of the table per command.

The module of a command has

  HELP       line of the command in `bertgpt --help`
  USES       modules that `run` imports; Ctrl-C waits while they are loaded
  add_flags  (parser): adds the flags of the command, and `parser.set_defaults(resumes=True)` if the
             same command continues where Ctrl-C stopped it; others begin again
  check      (arguments), optional: checks everything that needs neither devices nor the other
             processes of a run, so that a wrong flag is refused at once; may return what it read
  run        (arguments) or, with what `check` returned, (arguments, checked) -> exit code; None
             means 0

`bertgpt.cli` calls `check` before `run`. Every start of the program loads all of these modules, so
modules that are slow to import (JAX, and even the config) are imported inside their functions.
"""

# Name of the command -> its module, in the order of `bertgpt --help`.
COMMANDS = {
    "train": "bertgpt.commands.train",
    "evaluate": "bertgpt.commands.evaluate",
    "generate": "bertgpt.commands.generate",
    "fill": "bertgpt.commands.fill",
    "embed": "bertgpt.commands.embed",
    "export": "bertgpt.commands.export",
    "import": "bertgpt.commands.import_",
    "finetune": "bertgpt.commands.finetune",
    "predict": "bertgpt.commands.predict",
    "prepare": "bertgpt.commands.prepare",
    "data": "bertgpt.commands.data",
    "plan": "bertgpt.commands.plan",
    "sweep": "bertgpt.commands.sweep",
    "compare": "bertgpt.commands.compare",
    "goodput": "bertgpt.commands.goodput",
    "verify": "bertgpt.commands.verify",
    "rollback": "bertgpt.commands.rollback",
}
