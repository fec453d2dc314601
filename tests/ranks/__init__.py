"""Tests on 1 to 4 real ranks with gloo, compared with a plain PyTorch loop."""
