"""The model card, a README.md made of what a checkpoint knows of itself; what it does not know is left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvt.early_exit.budgets import Choice, certainty
from dvt.errors import ConfigError
from dvt.models.cost import cumulative_gmacs, parameter_count
from dvt.models.variants import ModelConfig

MARK = "<!-- written by dvt card; without this line it stays as it is -->"
FIGURE = "accuracy_gmacs.png"
NEVER = 1e8  # thresholds of this size let no image leave, or every one
IN_WORDS = ("certificate", "gmacs_bound", "not_certified")


def card(model: ModelConfig, metadata: Mapping[str, Any], folder: Path) -> str:
    """Markdown about a model, from the metadata of its checkpoint, with the figure of a report in the same folder."""
    chosen, results = metadata.get("early_exit") or {}, metadata.get("results") or {}
    accuracies = results.get("anytime_classification") or []
    lines = ["---", "library_name: dvt-mindspore", "pipeline_tag: image-classification", "---", MARK, f"# {model.name}"]
    lines.append(
        f"A Dynamic Vision Transformer: {model.num_exits} exits, {parameter_count(model) / 1e6:.2f} M parameters, "
        f"{model.num_classes} classes. An image leaves at the first exit that is sure enough.\n"
    )
    lines += ["| exit | tokens | GMACs per image | top-1, all images |", "|---|---|---|---|"]
    for k, (grid, gmacs) in enumerate(zip(model.grid_sizes, cumulative_gmacs(model), strict=True)):
        accuracy = f"{accuracies[k]:.2f} %" if k < len(accuracies) else "-"
        lines.append(f"| {k + 1} | {grid} x {grid} + 1 | {gmacs:.4g} | {accuracy} |")
    if present := metadata.get("classes_present"):
        restricted = ", ".join(f"{each:.2f}" for each in present["anytime_accuracy"])
        measured = f"Measured on images of {present['count']} of the {model.num_classes} classes"
        lines.append(f"\n{measured}; with the outputs restricted to these, the exits have {restricted} %.")
    lines += ["", f"![Accuracy against the average cost of an image]({FIGURE})"] if (folder / FIGURE).exists() else []
    for title, said in {
        "Early exit": _listed({key: chosen[key] for key in chosen if key not in IN_WORDS}),
        "Certificate": _certainty(metadata),
        "Measured speed": _listed(metadata.get("measured") or {}),
        "Data": _listed(
            {
                "trained on": ((metadata.get("config") or {}).get("data") or {}).get("dataset"),
                "classes": metadata.get("class_names"),
                "model inputs": metadata.get("preprocessing"),
            }
        ),
    }.items():
        lines += ["", f"## {title}", *said] if said else []
    lines += ["", "## Use", "```python", "import dvt", "", 'model, loaded = dvt.from_pretrained("FOLDER")', "```"]
    return "\n".join([*lines, "```bash", "dvt predict photo.jpg --checkpoint FOLDER", "```", ""])


def _listed(values: Mapping[str, Any]) -> list[str]:
    return [f"- {name.replace('_', ' ')}: {_said(each)}" for name, each in values.items() if each is not None]


def _certainty(metadata: Mapping[str, Any]) -> list[str]:
    """Sentences on what is guaranteed of the thresholds."""
    try:
        choice = Choice.from_metadata(metadata)
    except ConfigError as error:
        return [f"What is stored of it cannot be read: {error}."]
    said = [line.strip() for line in certainty(choice)] if choice else []
    return [f"{line[0].upper()}{line[1:]}." for line in said]


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < NEVER else "no image" if value > 0 else "every image"
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_said(each)}" for key, each in value.items() if each is not None)
    if isinstance(value, list):
        return ", ".join(map(_said, value[:10])) + (f" and {len(value) - 10} more" if len(value) > 10 else "")
    return str(value)
