"""``python -m ftdist VERB`` is ``ftdist VERB``, so that torchrun can start it by module name."""

import sys

if not getattr(sys.flags, "safe_path", False):  # Python 3.10 has none
    # -m puts the current folder first. It may be a model's or a data set's: a torch.py there must not become ours.
    sys.path.pop(0)

from ftdist.launch.cli import main

if __name__ == "__main__":
    main()
