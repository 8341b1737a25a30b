"""A trained model in use: generate, fill, embed, zero-shot evaluation."""
