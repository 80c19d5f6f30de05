"""The contract suites: what every backend, persister and serializer must do.

A test module for a backend is a fixture that names a new, empty store, and the classes::

    import pytest
    from kvpersist.testing import BackendContract, PersisterContract

    @pytest.fixture
    def url(tmp_path):
        return f"mystore://{tmp_path}"

    class TestBackend(BackendContract):
        pass

    class TestPersister(PersisterContract):
        pass

Every test runs with the sync face and with the async one.  A serializer's is the class `SerializerContract` with the
serializer as its attribute.  Needs the extra ``kvpersist[testing]``.
"""

from kvpersist.errors import MissingExtraError

try:
    import hypothesis  # noqa: F401  here, so that one message names the extra for both
    import pytest
except ImportError as error:
    raise MissingExtraError(
        f'the suites need pytest and hypothesis ({error}): pip install "kvpersist[testing]"'
    ) from error

# So that a failed assertion shows its values in other projects too; before these modules are imported.
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("backend", "model", "persister", "serializer")))

from .backend import BackendContract
from .faces import Blocking, Face
from .model import StoreMachine
from .persister import PersisterContract
from .serializer import SerializerContract

__all__ = ["BackendContract", "Blocking", "Face", "PersisterContract", "SerializerContract", "StoreMachine"]
