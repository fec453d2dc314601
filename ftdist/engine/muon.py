"""Import DeepSpeed's Muon optimizer without loading PyTorch's compiler."""

from deepspeed.runtime import compiler


def import_muon() -> None:
    """Import DeepSpeed's Muon optimizer, and leave its functions uncompiled.

    DeepSpeed imports this optimizer whenever it builds an engine, whether it is used or not. The module decorates its
    functions with ``torch.compile``, which loads TorchInductor: about a second of CPU time for each rank.
    """
    compile_with = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compile_with
