"""Tests of runs on several machines without a scheduler, emulated on one machine."""
