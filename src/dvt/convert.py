"""Names, shapes and weights of the released PyTorch checkpoints. The public names of `dvt.models.names` and
`dvt.checkpoint.released`; files are read and written by `dvt.checkpoint.pytorch`."""

from dvt.checkpoint.released import (  # noqa: F401
    from_reference,
    load_reference_state_dict,
    recognise,
    strip_module,
    to_reference,
    to_reference_state_dict,
)
from dvt.models.names import (  # noqa: F401
    EXIT_PREFIXES,
    Row,
    exit_rows,
    parameter_shapes,
    reference_shapes,
    table,
    with_shared,
)
