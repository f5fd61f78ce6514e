"""The command line: `start` begins a command, `main` lists them, `support` is what they share; one module a command."""
