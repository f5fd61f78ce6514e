"""The model: configuration, layers, tokens, reuse, one exit (`backbone`), all exits (`cascade`), costs."""
