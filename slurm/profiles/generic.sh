# Any cluster: what NCCL finds out by itself is left to it.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1  # a rank that is gone fails the others instead of hanging them
