"""The fine-tuning methods, by the value of ``method.kind``."""

from typing import Dict

from ftdist.config.schema import MethodKind
from ftdist.method.base import Method
from ftdist.method.full import FullFineTuning

METHODS: Dict[MethodKind, Method] = {MethodKind.full: FullFineTuning()}
