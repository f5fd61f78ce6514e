"""`dvt info`."""

from collections.abc import Sequence

from dvt.cli.support import HIDDEN, Parser, given_keys
from dvt.config.files import config_from_dict
from dvt.models.variants import ModelConfig, list_models


def run(argv: Sequence[str], prog: str) -> None:
    """The command."""
    model = parse(argv, prog)
    from dvt.models.cost import describe_all, describe_model

    print(describe_all() if model is None else describe_model(model))


def parse(argv: Sequence[str], prog: str = "dvt info") -> ModelConfig | None:
    """The model that the arguments describe; None to list all."""
    parser = Parser(
        prog,
        "List the models, or describe one: its parameters and its cost, exit by exit.",
        usage=f"{prog} [MODEL] [--config YAML] [--model.KEY VALUE ...]",
    )
    parser.add_argument("variant", nargs="?", metavar="MODEL", help=f"One of {', '.join(list_models())}.")
    parser.add_config(["model"])
    parser.set_help("print_config", HIDDEN)
    given = parser.parse(argv)
    keys = {key: value for key, value in given_keys(given).items() if key.startswith("model.")}
    if given["variant"] is not None:
        keys["model.name"] = given["variant"]
    elif not keys and not given["config"]:
        return None
    model = config_from_dict(keys).model
    return model.resolve(model.num_classes or ModelConfig.num_classes, model.in_channels or ModelConfig.in_channels)
