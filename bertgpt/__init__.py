"""Pretraining of BERT and GPT in JAX and Flax."""
