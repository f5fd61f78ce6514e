"""An exported cascade as an HTTP service: `python examples/serve.py BUNDLE`; --help lists all options."""

import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"


def run() -> int:
    if SRC.is_dir():  # a checkout works without being installed
        sys.path.insert(0, str(SRC))
    try:
        from jsonargparse import ArgumentParser

        from dvt.deploy import Cascade
        from dvt.errors import DVTError
        from dvt_service.app import create_app
        from dvt_service.guard import hosts_of
        from dvt_service.server import DrainingServer, listen
        from dvt_service.settings import ServiceSettings
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed for {sys.executable}. Run `pip install -r requirements-serve.txt`, "
            "or elsewhere `pip install 'dvt-mindspore[deploy,serve]'`",
            file=sys.stderr,
        )
        return 2

    parser = ArgumentParser(prog="serve.py", description=__doc__.split(":")[0] + ".")
    parser.add_argument("bundle", type=str, help="folder that export.py wrote")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--allowed-hosts",
        "--allowed_hosts",
        type=str,
        nargs="+",
        help="names under which clients may ask, or *; by default localhost and --host (0.0.0.0: any numeric address)",
    )
    parser.add_argument("--threads", type=int | None, help="threads of ONNX Runtime; by default it chooses")
    parser.add_argument("--format", type=str, default="ONNX", help="files to run: ONNX or ONNX_INT8")
    parser.add_class_arguments(ServiceSettings, "limits")
    options = parser.parse_args()
    try:
        options = parser.instantiate(options)
        listening = listen(options.host, options.port)
        cascade = Cascade(options.bundle, graph_format=options.format, threads=options.threads)
        app = create_app(cascade, options.limits, options.allowed_hosts or hosts_of(options.host))
    except DVTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        DrainingServer(app, listening, options.limits.drain_seconds).run()
    except KeyboardInterrupt:  # uvicorn raises it again once everything has been answered
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
