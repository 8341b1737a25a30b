"""Use of a trained model: generate, fill, embed, score, zero-shot evaluation.

    trained = bertgpt.runs.trained.load_trained(pathlib.Path("runs/demo"))

| function            | what it returns                                 |
|---------------------|-------------------------------------------------|
| `fill.fill`         | the likeliest tokens in place of [MASK]         |
| `generate.generate` | texts with their continuations                  |
| `embed.embed`       | features of texts                               |
| `score.score`       | log-probabilities of the tokens of texts        |

These functions take the model and strings; the commands print their results.
"""
