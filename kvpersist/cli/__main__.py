"""``python -m kvpersist.cli``, where the ``kvpersist`` script is not on the path."""

from . import main

main()
