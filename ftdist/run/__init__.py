"""What the control plane and the data plane share.

It is the run directory, and the cache of prepared data, converted models and facts about models, which both read.
"""
