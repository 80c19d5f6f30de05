"""cloudpickle: any value, functions and local classes with their code too.

What holds code is bound to one version of Python.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

from ..errors import MissingExtraError
from .pickle import PickleSerializer

try:
    import cloudpickle
except ImportError as error:
    raise MissingExtraError("cloudpickle is not installed: pip install 'kvpersist[cloudpickle]'") from error


class CloudpickleSerializer(PickleSerializer):
    """Any value that cloudpickle takes; takes the arguments of `PickleSerializer`."""

    name = "cloudpickle"

    def _pickler(self, file: io.BytesIO) -> Any:
        return cloudpickle.Pickler(file, self._for_dumps.get("protocol"))

    def _why(self, value: Any) -> str:
        return f"is a {type(value).__module__}:{type(value).__qualname__}, which cloudpickle cannot hold"

    def holds_code(self, data: bytes) -> bool:
        """Whether the bytes hold functions or classes with their code, which another Python may crash on."""
        try:
            return any(
                isinstance(argument, str) and argument.startswith("cloudpickle.")
                for _, argument, _ in pickletools.genops(data)
            )
        except Exception:  # noqa: BLE001  what is no pickle at all
            return False
