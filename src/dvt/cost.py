"""What a model costs, from its configuration alone. The public names of `dvt.models.cost`."""

from dvt.models.cost import (  # noqa: F401
    cumulative_gmacs,
    describe_all,
    describe_model,
    exit_macs,
    exit_parameters,
    parameter_count,
)
