"""Tokenizers, and what words and characters their tokens stand for."""
