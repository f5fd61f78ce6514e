"""The model: configuration, layers, tokens, reuse, one exit (`backbone`), all exits (`cascade`), and what they cost."""
