"""YAML in which every scalar is the text that is written in the file: ``12e3`` and not ``12000.0``."""

import yaml


class TextLoader(yaml.SafeLoader):
    """A YAML loader that recognizes no numbers, booleans, dates and nulls. Merge keys (``<<: *name``) still work."""


TextLoader.yaml_implicit_resolvers = {
    first: merges
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (merges := [resolver for resolver in resolvers if resolver[0] == "tag:yaml.org,2002:merge"])
}
