"""Names of the files of a model's folder that several packages read or write."""

ADAPTER_CONFIG = "adapter_config.json"
"""The settings of an adapter in PEFT's format."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The weights of an adapter in PEFT's format."""
EXPORT_MARK = "ftdist_export.json"
"""A file with this name marks a folder as an export of ftdist. It holds the checkpoint's manifest, the identity of the
base model of an adapter, and what the chat template saw in training besides the conversations."""
GENERATION_CONFIG = "generation_config.json"
"""How a model samples if nothing else is said."""
