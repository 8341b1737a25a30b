"""Pretraining of BERT and GPT with JAX and Flax."""
