"""``python -m ftdist VERB`` is ``ftdist VERB``, so that torchrun can start it by module name."""

from ftdist.launch.cli import main

if __name__ == "__main__":
    main()
