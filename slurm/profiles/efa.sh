# AWS EFA: the aws-ofi-nccl plugin must be on the library path.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1  # a rank that is gone fails the others instead of hanging them
export FI_PROVIDER=efa
export FI_EFA_USE_DEVICE_RDMA=1
export NCCL_SOCKET_IFNAME=^docker,lo      # NCCL's own set-up traffic
