"""Keep activations in host memory until the backward pass needs them.

On CUDA they are copied in a stream of their own, so that the device goes on computing: what a layer keeps is copied to
pinned memory while the next layer runs. The backward pass needs the layers in the opposite order. While it computes one
layer, the tensors of the layer before it are copied back. So the device holds the tensors of two layers at most.
"""

import weakref
from typing import List, Optional, Union

import torch


class _Copy:
    """One tensor in host memory."""

    def __init__(self, host: torch.Tensor, device: torch.device, layer: int) -> None:
        self.host, self.device, self.layer = host, device, layer
        self.back: Optional[torch.Tensor] = None
        """The copy on the device. It is complete when the event ``arrived`` is reached."""
        self.arrived: Optional[torch.cuda.Event] = None
        self.taken = False


class HostCopies:
    """Copies what layers keep to host memory, and returns it in the backward pass."""

    def __init__(self) -> None:
        # Autograd owns the copies. They go with the graph, also if it never runs backward.
        self._layers: List[List[weakref.ref[_Copy]]] = []
        self._stream: Optional[torch.cuda.Stream] = None

    def begin_layer(self) -> None:
        """Begin the next layer: the tensors that ``pack`` gets from now on belong to it."""
        while self._layers and not any(copy() for copy in self._layers[-1]):
            self._layers.pop()
        self._layers.append([])

    def pack(self, tensor: torch.Tensor) -> Union[torch.Tensor, _Copy]:
        """Begin to copy a tensor, and return what ``unpack`` takes. Integers, such as masks, stay where they are."""
        if not tensor.is_floating_point():
            return tensor
        if tensor.is_cuda:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            stream = self._own_stream(tensor.device)
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                host.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)  # its memory must not be used again before it is copied
        else:
            host = tensor.clone()
        copy = _Copy(host, tensor.device, len(self._layers) - 1)
        self._layers[-1].append(weakref.ref(copy))
        return copy

    def unpack(self, packed: Union[torch.Tensor, _Copy]) -> torch.Tensor:
        """Return the tensor on its device."""
        if isinstance(packed, torch.Tensor):
            return packed
        self._begin(packed)
        for layer in self._layers[max(0, packed.layer - 1) : packed.layer + 1]:
            for copy in (reference() for reference in layer):
                if copy and not copy.taken:
                    self._begin(copy)
        assert packed.back is not None
        if packed.arrived:
            current = torch.cuda.current_stream(packed.device)
            current.wait_event(packed.arrived)
            packed.back.record_stream(current)
        result, packed.back, packed.taken = packed.back, None, True
        return result

    def _begin(self, copy: _Copy) -> None:
        """Begin to copy a tensor back, if this has not begun."""
        if copy.back is not None:
            return
        if copy.device.type != "cuda":
            copy.back = copy.host
            return
        with torch.cuda.stream(self._own_stream(copy.device)):
            copy.back = copy.host.to(copy.device, non_blocking=True)
            copy.arrived = torch.cuda.Event()
            copy.arrived.record()

    def _own_stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream
