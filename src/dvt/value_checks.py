"""What any value of a configuration must be, whatever its key: numbers that devices can hold, texts that can be paths.

Each module checks what its keys mean; what is odd for every key is refused here, so that new keys are covered. Imports
no framework.
"""

from collections.abc import Mapping
from typing import Any

from dvt.errors import ConfigError

LARGEST_FLOAT = 3e38  # models compute in float32
LARGEST_INT = 2**31 - 1  # sizes and counters are int32 on the devices


def check_values(values: Mapping[str, Any], prefix: str = "", largest: Mapping[str, int] | None = None) -> None:
    """Raises ConfigError, naming `prefix` and key, for numbers that are not finite or too large, for texts that are
    empty or hold a NUL, and for empty lists. `largest` bounds whole numbers, in place of int32."""
    for key, value in values.items():
        _check_value(f"{prefix}{key}", value, (largest or {}).get(key, LARGEST_INT))


def _check_value(key: str, value: Any, largest: int) -> None:
    if isinstance(value, list | tuple):
        if not value:
            raise ConfigError(f"{key} is an empty list; give at least one value, or leave the key out")
        for each in value:
            _check_value(key, each, largest)
    elif isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
        raise ConfigError(f"{key} is {value}; it must be a finite number of at most {LARGEST_FLOAT:g}")
    elif isinstance(value, int) and abs(value) > largest:
        raise ConfigError(f"{key} is {value}; it must be a whole number of at most {largest}")
    elif isinstance(value, str):
        if not value.strip() or "\0" in value:
            raise ConfigError(f"{key} is {value!r}; it must be a text with something in it and without NUL characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{key} is {value!r}, which no file can hold; it must be valid Unicode") from None
