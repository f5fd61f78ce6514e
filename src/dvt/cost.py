"""What a model costs, from its configuration alone. The public names of `dvt.models.cost`."""

from dvt.models.cost import (
    activation_elements,
    cumulative_gmacs,
    describe_all,
    describe_model,
    exit_macs,
    exit_parameters,
    handed_on_elements,
    parameter_count,
)

__all__ = [
    "activation_elements",
    "cumulative_gmacs",
    "describe_all",
    "describe_model",
    "exit_macs",
    "exit_parameters",
    "handed_on_elements",
    "parameter_count",
]
