"""An exported cascade as an HTTP service: `python examples/serve.py BUNDLE`; --help lists all options."""

import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"


def run() -> int:
    if SRC.is_dir():  # a checkout works without being installed
        sys.path.insert(0, str(SRC))
    try:
        from dvt.cli.support import Parser, run_command
        from dvt.deploy import Cascade
        from dvt_service.app import create_app
        from dvt_service.guard import hosts_of
        from dvt_service.server import DrainingServer, listen
        from dvt_service.settings import ServeOptions
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed for {sys.executable}. Run `pip install -r requirements-serve.txt`, "
            "or elsewhere `pip install 'dvt-mindspore[deploy,serve]'`",
            file=sys.stderr,
        )
        return 2

    def serve(argv: list[str]) -> int:
        parser = Parser("serve.py", ServeOptions)
        text = "names under which clients may ask, or *; by default localhost and --host (0.0.0.0: any numeric address)"
        parser.add_argument("--allowed_hosts", nargs="+", help=text)
        options, given = parser.parse(argv)
        listening = listen(options.host, options.port)
        runtime = {name: getattr(options, name) for name in ("threads", "precision", "providers")}
        cascade = Cascade(options.bundle, options.backend, options.format, **runtime)
        hosts = given["allowed_hosts"] or hosts_of(options.host)
        app = create_app(cascade, options.limits, hosts, options.exif, options.audit)
        print(f"running on {cascade.runs_on}", file=sys.stderr)
        try:
            DrainingServer(app, listening, options.limits.drain_seconds).run()
        except KeyboardInterrupt:  # uvicorn raises it again once everything has been answered
            return 130
        return 0

    return run_command(serve, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
