"""Tests of the real command line: runs and their interruptions, verbs, messages, exit codes."""
