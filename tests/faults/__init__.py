"""Tests of faults: crashes, full and failing disks, damaged files, dying ranks, malicious input."""
