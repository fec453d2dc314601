"""Unit tests. The folders mirror the packages that they test."""
