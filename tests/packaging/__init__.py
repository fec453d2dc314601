"""Tests of the wheel in a clean environment."""
