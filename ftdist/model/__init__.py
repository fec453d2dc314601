"""Load, check, run and write models. Importing the package turns off a warning of bitsandbytes."""

import logging

# PEFT imports bitsandbytes where it is installed. On a CPU it then warns that a faster kernel cannot be loaded.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
