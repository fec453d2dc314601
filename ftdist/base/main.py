"""How a program ends: an error for the user is printed to standard error, and its exit code is returned."""

import sys
from typing import Callable

from ftdist.base.errors import EXIT_FAILED, FtdistError
from ftdist.base.permissions import explain_os_error


def run_main(body: Callable[[], int]) -> int:
    """Call the body of a program. Errors for the user are printed without a traceback.

    Args:
        body: Does the work, and returns the exit code.

    Returns:
        The exit code: that of ``body``, of its error (see ``ftdist.base.errors``), or ``EXIT_FAILED`` if the operating
        system refused something or Ctrl-C stopped the program. Other errors are bugs, and pass through.
    """
    try:
        return body()
    except FtdistError as error:
        if str(error):  # otherwise a program that it started has printed the reason
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # for example no space on the disk, or no permission
        print(f"error: {explain_os_error(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_FAILED
