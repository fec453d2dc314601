"""What the control plane and the data plane share: the run directory and the cache. The cache holds prepared data,
converted models and facts about models. Both planes read it.
"""
