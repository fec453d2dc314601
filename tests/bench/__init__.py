"""Benchmarks (``make bench``): framework tax, preparation, start-up, saving. They are no tests."""
