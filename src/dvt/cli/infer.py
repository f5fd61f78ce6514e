"""`dvt infer`, also `python -m dvt.cli.infer`; the runners need neither MindSpore nor the training modules."""

import sys
from collections.abc import Sequence

from dvt.cli.support import SOME_FAILED, Parser, run_command
from dvt.deploy.infer import InferRequest, infer


def run(argv: Sequence[str], prog: str = "infer") -> int:
    """The command; 1 if images could not be classified."""
    request, _ = Parser(prog, InferRequest, epilog=SOME_FAILED).parse(argv)
    return 1 if infer(request).failed else 0


if __name__ == "__main__":
    sys.exit(run_command(run, sys.argv[1:]))
