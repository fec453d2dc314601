"""ftdist: fine-tune large language models, sharded, and prove what changed."""

__version__ = "0.1.0"
