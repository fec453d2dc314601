# InfiniBand or RoCE between the nodes.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1  # a rank that is gone fails the others instead of hanging them
export NCCL_IB_DISABLE=0
export NCCL_IB_TIMEOUT=22                 # 4.096 us * 2^22 = 17 s: survives a flapping link
export NCCL_IB_RETRY_CNT=7
# Where NCCL picks a wrong adapter, name yours: export NCCL_IB_HCA=mlx5 NCCL_SOCKET_IFNAME=ib0
