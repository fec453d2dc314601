"""``make bench-gpu``: what ftdist does on one GPU, in minutes, without network."""
