"""Sizes of the published models, for `config.model.update(presets.BERT["base"])`.

They stand in the records of their families; these are the names that recipes use.
"""

from bertgpt.config.families import bert, gpt

BERT = bert.PRESETS
GPT1 = gpt.PRESETS["gpt1"]
GPT2 = {name.removeprefix("gpt2_"): fields for name, fields in gpt.PRESETS.items()
        if name.startswith("gpt2_")}
