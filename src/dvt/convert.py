"""Names, shapes and weights of the released PyTorch checkpoints. The public names of `dvt.models.names` and
`dvt.checkpoint.released`; files are read and written by `dvt.checkpoint.pytorch`."""

from dvt.checkpoint.released import (
    from_reference,
    load_reference_state_dict,
    recognise,
    strip_module,
    to_reference,
    to_reference_state_dict,
)
from dvt.models.names import EXIT_PREFIXES, Row, exit_rows, parameter_shapes, reference_shapes, table, with_shared

__all__ = [
    "EXIT_PREFIXES",
    "Row",
    "exit_rows",
    "from_reference",
    "load_reference_state_dict",
    "parameter_shapes",
    "recognise",
    "reference_shapes",
    "strip_module",
    "table",
    "to_reference",
    "to_reference_state_dict",
    "with_shared",
]
