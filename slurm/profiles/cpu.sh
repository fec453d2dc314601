# Nodes without GPUs.
export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu
