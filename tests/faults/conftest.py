"""No process of a test outlives it, however the test ends."""

from tests.e2e.conftest import no_process_is_left as no_process_is_left
