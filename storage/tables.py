"""The tables: what a row of each is, the type and meaning of each column, and how its parts are laid out.

A column's description is kept in the metadata of its Parquet field, so a file explains itself wherever it is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

VERSION = 5
"""Version of the schemas; raise it whenever a column is added or removed, or changes its name, type or meaning.

Parts of two schemas must not meet in one store: a view takes its columns from the first part it finds, so a column that
only later parts have would be lost without a word. Stores of other versions are refused."""

TEXT = pa.string()
INT = pa.int32()
COUNT = pa.int64()
FLOAT = pa.float64()
TIME = pa.timestamp("us", tz="UTC")
FLOATS = pa.list_(pa.float32())
MEMBERS = pa.list_(pa.uint32())


@dataclass(frozen=True)
class Table:
    """One table of the store."""

    name: str
    text: str
    """What a row is."""
    schema: pa.Schema
    """Columns in order; a field that is not nullable must be in every row, a nullable one may be left out."""
    partition: tuple[str, ...]
    """Columns whose values name the folders, outermost first; one part holds one value of each."""

    unit: tuple[str, ...]
    """Columns that name, within one folder, what was made in one go: rows that agree in these count once, as one part
    has them; see `storage.units`. None of tables of earlier versions, which are kept to be migrated alone."""

    view: str
    """Name of the SQL view of all rows; the table's own name unless that name stands for something made from them."""


def column(name: str, kind: pa.DataType, text: str, optional: bool = False, values: str = "") -> pa.Field:
    """A column. `values` lists the only values allowed in a text column, separated by spaces."""
    metadata = {"description": text} | ({"values": values} if values else {})
    return pa.field(name, kind, nullable=optional, metadata=metadata)


def _table(name: str, text: str, partition: str, *columns: pa.Field, unit: str, view: str = "") -> Table:
    metadata = {"engram.table": name, "engram.version": str(VERSION), "description": text}
    return Table(name, text, pa.schema(columns, metadata), tuple(partition.split()), tuple(unit.split()), view or name)


_MODEL = column("model_id", TEXT, "fingerprint of the model's weights and configs, and of any precision but float32")
_VARIANT = column("variant", TEXT, "the model as it stands: 'original' or the name of an intervention")
_METHOD = column("variant", TEXT, "'original', or what `variants.method` says of the variant")
_PARAMS = column("params_id", TEXT, "key of the parameters that the numbers were made with")
_SITE = column("site", TEXT, "kind of place in the network: 'value', 'value-all', 'key' or 'ff-hidden'")
_LAYER = column("layer", TEXT, "name of the layer's module in the model")
_STEP = column("step", INT, "number of the denoising step from 0; null where nothing depends on it", optional=True)
_DETECTOR = column("detector", TEXT, "the detector that looked, see `engram methods`")
_AUDIT = column("audit_id", TEXT, "the audit")

_ALL = (
    _table(
        "models",
        "a model under audit",
        "",
        _MODEL,
        column("source", TEXT, "its folder, or its name on the Hugging Face Hub; the same for successive versions"),
        column("family", TEXT, "class of the denoiser, width of text embeddings, e.g. 'UNet2DConditionModel 768'"),
        column("created_at", TIME, "when it was first seen"),
        unit="model_id",
    ),
    _table(
        "prompts",
        "a prompt of a set",
        "prompt_set",
        column("prompt_set", TEXT, "name of the set"),
        column("prompt_id", TEXT, "hash of the text"),
        column("text", TEXT, "the prompt"),
        column("kind", TEXT, "what the prompt is taken for", values="memorized null ordinary"),
        column("memorization", TEXT, "verbatim or template; null if unknown or none", optional=True, values="VM TM"),
        column("subset", TEXT, "group of prompts that is localized together", optional=True),
        column("image_ids", pa.list_(TEXT), "training images that belong to the prompt", optional=True),
        column(
            "exposures",
            COUNT,
            "how often training shows the prompt in an epoch, with all of its images; null if unknown",
            optional=True,
        ),
        unit="prompt_id",
    ),
    _table(
        "clusters",
        "which near-duplicates a prompt of a set belongs to",
        "prompt_set",
        column("prompt_set", TEXT, "name of the set"),
        column("prompt_id", TEXT, "the prompt"),
        column("cluster", TEXT, "the smallest prompt id of those with nearly the same image or caption"),
        column("params_id", TEXT, "key of the prompts that were compared, and of the models that compared them"),
        unit="params_id prompt_id",
    ),
    _table(
        "images",
        "a training image",
        "",
        column("image_id", TEXT, "sha256 of the bytes"),
        column("bytes", pa.binary(), "the encoded file"),
        column("width", INT, "pixels"),
        column("height", INT, "pixels"),
        column("caption", TEXT, "its caption in the training data", optional=True),
        unit="image_id",
    ),
    _table(
        "activations",
        "one layer at one step for one prompt",
        "model_id variant site layer",
        _MODEL,
        _VARIANT,
        column("prompt_id", TEXT, "the prompt"),
        _SITE,
        _LAYER,
        _STEP,
        column("timestep", INT, "the scheduler's timestep at that step", optional=True),
        column("mean_abs", FLOATS, "per neuron, the mean of |output| over the tokens", optional=True),
        column("sum_sq", FLOATS, "per feature, the sum of squares over all unit-norm tokens", optional=True),
        column("tokens", COUNT, "tokens that mean_abs and sum_sq run over", optional=True),
        column("params_id", TEXT, "key of the parameters of the collection (schedule, seed, guidance)", optional=True),
        unit="params_id prompt_id step",
    ),
    _table(
        "neuron_sets",
        "one set of members: neurons, or weights, found for one scope in one layer",
        "model_id method site layer",
        _MODEL,
        column("method", TEXT, "how it was found: 'nemo', 'wanda', 'random', ...; or the method of a pruned variant"),
        _PARAMS,
        column(
            "scope",
            TEXT,
            "what it was found for; 'variant' where it is what a pruned variant sets to zero",
            values="prompt subset trigger variant",
        ),
        column("scope_id", TEXT, "the prompt, subset, trigger or variant"),
        _SITE,
        _LAYER,
        _STEP,
        column("members", MEMBERS, "sorted, no repeats: neuron indices, or weights as row * width + column"),
        column("universe", pa.uint64(), "number of possible members"),
        column("width", pa.uint32(), "columns of the weight matrix; null when members are neurons", optional=True),
        unit="params_id scope scope_id step",
    ),
    _table(
        "nemo_traces",
        "one trial of a neuron search, in the order tried",
        "model_id variant",
        _MODEL,
        _VARIANT,
        column("prompt_id", TEXT, "the prompt"),
        _PARAMS,
        column(
            "phase",
            TEXT,
            "stage of the search, or of the curve of memorization left by number of neurons",
            values="detect gate select layer neuron curve curve-control",
        ),
        column("step_number", INT, "position of the trial in the search of this prompt, from 0"),
        column("theta", FLOAT, "z-score threshold in force", optional=True),
        column("k", INT, "top-k in force", optional=True),
        column("layer", TEXT, "layer that was tried without blocking", optional=True),
        column("neuron", INT, "neuron that was tried without blocking", optional=True),
        column("score", FLOAT, "similarity reached: unblocked against blocked", optional=True),
        column("kept", pa.bool_(), "whether what was tried stays blocked", optional=True),
        column("candidates", INT, "neurons blocked in this trial", optional=True),
        unit="params_id prompt_id",
    ),
    _table(
        "detections",
        "one detector's score of one prompt",
        "model_id variant detector",
        _MODEL,
        _VARIANT,
        column("prompt_id", TEXT, "the prompt"),
        _PARAMS,
        _DETECTOR,
        column("score", FLOAT, "its score, higher where the prompt is memorized; to be compared with null prompts"),
        unit="params_id prompt_id",
    ),
    _table(
        "findings",
        "what one detector says of one prompt of a scan",
        "scan_id",
        column("scan_id", TEXT, "the scan: of these prompts by this model, compared with these null prompts"),
        _MODEL,
        column("prompt_id", TEXT, "the prompt"),
        column("text", TEXT, "the prompt itself: scanned prompts are no set of `prompts`"),
        _DETECTOR,
        _PARAMS,
        column("score", FLOAT, "the detector's score, as `detections` has it"),
        column("nulls", COUNT, "null prompts that it was compared with"),
        column("p_value", FLOAT, "(1 + null prompts that score as high) / (nulls + 1)"),
        column("alpha", FLOAT, "the false-alarm rate that was asked for"),
        column("flagged", pa.bool_(), "whether the p-value is at most alpha"),
        column("found_at", TIME, "when"),
        unit="detector params_id prompt_id",
    ),
    _table(
        "variants",
        "a model as it stands after an intervention",
        "model_id",
        _MODEL,
        _VARIANT,
        column("method", TEXT, "the intervention; 'none' for the original"),
        _PARAMS,
        column(
            "rule",
            TEXT,
            "what its sets are: 'neurons' or 'weights' that are zero, or, as 'prompt-neurons', neurons of each prompt"
            " that are zero when it is asked; null where nothing is set to zero",
            optional=True,
            values="neurons weights prompt-neurons",
        ),
        column("sets_method", TEXT, "`neuron_sets.method` of these sets; null without a rule", optional=True),
        column("sets_id", TEXT, "`neuron_sets.params_id` of these sets", optional=True),
        column("sets_scopes", pa.list_(TEXT), "`neuron_sets.scope_id` of these sets", optional=True),
        column("site", TEXT, "`neuron_sets.site` of these sets", optional=True),
        column("weights", TEXT, "address of the folder of weights that were trained; null for others", optional=True),
        column("card", TEXT, "what its model card says (JSON); null for the original", optional=True),
        column("pruned", COUNT, "neurons or weights set to zero", optional=True),
        column("total", COUNT, "neurons or weights in the layers that were searched", optional=True),
        unit="variant params_id",
    ),
    _table(
        "triggers",
        "a found adversarial embedding",
        "model_id variant",
        _MODEL,
        _VARIANT,
        column("image_id", TEXT, "the image it was searched for"),
        column("trigger_id", TEXT, "key of the trigger"),
        column("start", TEXT, "where the search began: 'prompt', 'noise' or 'other'"),
        column("restart", INT, "number of the restart, from 0"),
        column("embedding", FLOATS, "the embedding, row by row"),
        column("shape", pa.list_(INT), "its shape: tokens, width"),
        column(
            "distance", FLOAT, "l2 distance of the embedding from where the search began; 0 where it is that itself"
        ),
        column("loss", FLOATS, "loss at each step of the search", optional=True),
        unit="trigger_id",
    ),
    _table(
        "generations",
        "a generated image",
        "model_id variant condition",
        _MODEL,
        _VARIANT,
        column(
            "condition", TEXT, "what was asked of the variant: 'prompt', 'dori-noise', 'effort-100', 'ordinary', ..."
        ),
        column("prompt_id", TEXT, "the prompt; null when generated from a trigger alone", optional=True),
        column("trigger_id", TEXT, "the trigger; null when generated from a prompt", optional=True),
        column("seed", COUNT, "seed of the initial noise"),
        column("generation_id", TEXT, "key of the image"),
        column("bytes", pa.binary(), "the encoded file"),
        unit="generation_id",
    ),
    _table(
        "scores",
        "one score of one generation",
        "metric",
        column("generation_id", TEXT, "the generated image"),
        column("metric", TEXT, "the measure, e.g. 'sscd'"),
        column("reference_id", TEXT, "what it was compared with; null if nothing", optional=True),
        column("scorer", TEXT, "the model that scored, e.g. of SSCD or CLIP; null if none", optional=True),
        column("value", FLOAT, "the score"),
        unit="generation_id reference_id scorer",
    ),
    _table(
        "metrics",
        "one estimate of one variant under one condition",
        "",
        _AUDIT,
        _METHOD,
        column("condition", TEXT, "what was asked of the variant; null when the estimate needs none", optional=True),
        column("metric", TEXT, "the measure, e.g. 'mr', 'sscd_orig_median', 'fid'"),
        column("value", FLOAT, "the estimate; null when there was nothing to measure", optional=True),
        column("low", FLOAT, "lower end of its interval", optional=True),
        column("high", FLOAT, "upper end of its interval", optional=True),
        column("n", COUNT, "cases it rests on", optional=True),
        unit="audit_id variant condition metric",
    ),
    _table(
        "evidence",
        "the generations whose scores the estimates of one variant under one condition rest on",
        "",
        _AUDIT,
        _METHOD,
        column("condition", TEXT, "what was asked of the variant"),
        column("metric", TEXT, "the kind of score, as `scores` has it", values="sscd clip"),
        column("scorer", TEXT, "the model the scores were made with"),
        column("generation_ids", pa.list_(TEXT), "the generations"),
        unit="audit_id variant condition metric scorer",
    ),
    _table(
        "runs",
        "what was asked of an audit: model, prompts and settings; of a run with several rows the last counts",
        "",
        column("run_id", TEXT, "the run: a key of model, prompts and all settings that change a result"),
        _MODEL,
        column("prompt_set", TEXT, "the prompts"),
        column("params", TEXT, "all parameters (JSON); of one run they differ in speed and places alone"),
        column("long_prompts", TEXT, "how many prompts are longer than the model reads; empty where none is"),
        column("code_version", TEXT, "version of this program that resolved it"),
        column("resolved_at", TIME, "when it was resolved"),
        unit="run_id params resolved_at",
    ),
    _table(
        "audits",
        "a state of an audit: one row when it starts, one when it ends",
        "",
        _AUDIT,
        _MODEL,
        column("run_id", TEXT, "the run that it executes; null before there were runs", optional=True),
        column("prompt_set", TEXT, "the prompts it was asked about", optional=True),
        column("params", TEXT, "all parameters (JSON)"),
        column("code_version", TEXT, "version of this program"),
        column("library_versions", TEXT, "versions of libraries, and flags of arithmetic (JSON)", optional=True),
        column("seed", COUNT, "seed of everything random", optional=True),
        column("device", TEXT, "where it ran", optional=True),
        column("started_at", TIME, "when it started"),
        column("finished_at", TIME, "when it ended; null while it runs", optional=True),
        column("state", TEXT, "'running', 'completed', 'failed', 'cancelled' or 'lost': its process is gone"),
        unit="audit_id state",
        view="audit_states",
    ),
    _table(
        "processes",
        "the process that an audit runs in, by which others see whether it is still there",
        "",
        _AUDIT,
        column("host", TEXT, "name and id of the machine"),
        column("boot", TEXT, "which start of the machine"),
        column("space", TEXT, "the process ids' namespace, one for each container; empty where there are none"),
        column("pid", COUNT, "number of the process"),
        column("began", FLOAT, "when the process began, seconds since 1970"),
        unit="audit_id",
    ),
    _table(
        "audit_parts",
        "a part that the numbers of a completed audit rest on, as it was when the audit ended",
        "",
        _AUDIT,
        column("address", TEXT, "where the part lies, relative to the store"),
        column("sha256", TEXT, "its seal; of a table with a column of times, the digest of its rows without these"),
        unit="audit_id address",
    ),
    _table(
        "accepted",
        "a person's word that an audit is the baseline that later ones are compared with",
        "",
        _AUDIT,
        column("accepted_at", TIME, "when"),
        unit="audit_id accepted_at",
    ),
    _table(
        "nights",
        "what the nightly re-audit found of a model",
        "",
        column("name", TEXT, "what the model is registered as"),
        _AUDIT,
        column("baseline", TEXT, "the audit it was compared with; null where there was none", optional=True),
        column("outcome", TEXT, "'first' or 'no regression' or 'regression'"),
        column("told_at", TIME, "when"),
        unit="name audit_id",
    ),
    _table(
        "registrations",
        "a state of a model that is audited every night: the last row of a name counts",
        "",
        column("name", TEXT, "what the model is called"),
        column("state", TEXT, "whether it is audited from then on", values="registered removed"),
        column("params", TEXT, "all parameters of its audit (JSON); null when it is removed", optional=True),
        column("changed_at", TIME, "when"),
        unit="name changed_at",
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
"""Every table by name."""

ESTIMATES = ("metrics", "evidence")
"""Tables of what audits found, each row of which belongs to one audit."""
