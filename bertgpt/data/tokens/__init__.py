"""Tokenizers, and the words and characters that their tokens stand for."""
