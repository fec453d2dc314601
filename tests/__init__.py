"""The tests. Each folder holds one kind; CONTRIBUTING.md describes them."""
