"""Collecting: prompts and images into the store, then what the network does under each prompt."""

from tasks.collect.duplicates import DuplicatesParams
from tasks.collect.task.clustering import cluster_prompts, clusters_known
from tasks.collect.task.collecting import (
    collect_norms,
    collect_values,
    cost_of_values,
    empty_prompts,
    register_model,
)
from tasks.collect.task.describing import Described, described
from tasks.collect.task.importing import (
    Inputs,
    import_inputs,
    import_set,
    read_inputs,
    read_prompt_file,
    rows_of,
    set_name,
)
from tasks.collect.token_check import tokenized
from tasks.collect.training_set import NEUTRAL

__all__ = [
    "NEUTRAL",
    "Described",
    "DuplicatesParams",
    "Inputs",
    "cluster_prompts",
    "clusters_known",
    "collect_norms",
    "collect_values",
    "cost_of_values",
    "described",
    "empty_prompts",
    "import_inputs",
    "import_set",
    "read_inputs",
    "read_prompt_file",
    "register_model",
    "rows_of",
    "set_name",
    "tokenized",
]
