"""The fine-tuning methods, by the value of ``method.kind``."""

from typing import Dict

from ftdist.config.method import MethodKind
from ftdist.method.base import Method
from ftdist.method.full import FullFineTuning
from ftdist.method.lora import Lora
from ftdist.method.partial import PartialFineTuning
from ftdist.method.qlora import Qlora

METHODS: Dict[MethodKind, Method] = {
    MethodKind.full: FullFineTuning(), MethodKind.lora: Lora(), MethodKind.partial: PartialFineTuning(),
    MethodKind.qlora: Qlora(),
}  # fmt: skip
