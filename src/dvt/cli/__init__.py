"""The command line: one module a command; `start` begins it, `main` lists all, `support` is shared."""
