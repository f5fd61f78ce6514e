"""`dvt info`."""

from collections.abc import Sequence

from dvt.cli.support import HIDDEN, Parser, given_keys
from dvt.config.sections import ModelSection
from dvt.models.variants import ModelConfig, list_models, model_config


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
    given = parser.parse(argv, defaults=False)
    if given["variant"] is None and not {"model", "config"} & given.keys():
        return None
    model = given_keys(given).get("model", {})
    name = model.pop("name", ModelSection.name)
    return model_config(given["variant"] or name, **model)
